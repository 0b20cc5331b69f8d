//! What the keeper and the template do before they are used, and the parameters that spaces get.

use std::ops::Range;
use std::sync::OnceLock;

use rustix::io::Errno;

use super::arena::Slot;
use super::service::{Entry, Service};
use super::{code, filter, layout, machine};
use crate::arch::x86_64::xstate;
use crate::error::{Error, Result};
use crate::name::Engine;

/// What a new space is to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Params {
    pub(crate) engine: Engine,
    pub(crate) spin_budget_ns: u64,
    /// The pid that the process's parent must have.
    pub(crate) parent: i32,
}

impl Params {
    /// Writes them to where the resident code finds them.
    pub(crate) fn write(&self, slot: &Slot) {
        let at = |offset| layout::PARAMS + offset;
        let budget = machine::ticks(self.spin_budget_ns);
        slot.write(at(layout::BUDGET_TICKS), budget);
        slot.write(at(layout::YIELD_TICKS), machine::ticks(machine::SPIN_WITHOUT_YIELD_NS).min(budget));
        slot.write(at(layout::PATIENCE_TICKS), machine::ticks(machine::PATIENCE_NS));
        slot.write(at(layout::XMASK), xstate::mask());
        slot.write(at(layout::DISPATCH), u32::from(!self.engine.traces() && dispatch_works()));
        slot.write(at(layout::TRACED), u32::from(self.engine.traces()));
        // Signals wait for the tracer, where there is one.
        slot.write(at(layout::SIGMASK), if self.engine.traces() { code::ASYNCHRONOUS } else { 0 });
        slot.write(at(layout::PARENT), self.parent.cast_unsigned());
        let filter = filter::executor(slot.region());
        slot.write(at(layout::FILTER), filter.len() as u64);
        slot.write(at(layout::FILTER) + 8, slot.address(at(layout::FILTER_CODE)));
        for (i, instruction) in filter.iter().enumerate() {
            slot.write(at(layout::FILTER_CODE) + 8 * i as u64, filter::word(instruction));
        }
        // A request that has not been made: the service task starts out with this word.
        slot.write(layout::CONTROL + layout::WORD, super::service::STARTED);
    }
}

/// Has this kernel Syscall User Dispatch?
pub(crate) fn dispatch_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        // SAFETY: turning off what is off changes nothing (Documentation/admin-guide/syscall-user-dispatch.rst).
        unsafe { libc::prctl(filter::PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0) == 0 }
    })
}

/// Leaves the keeper with nothing of the supervisor's: no memory but the region and the vDSO, no descriptor but the
/// memory file's, no capabilities, no terminal, no working directory. `mapped` is what it has mapped besides.
pub(crate) fn empty_keeper(service: &Service, mapped: &[Range<u64>]) -> Result<()> {
    let slot = &service.life.slot;
    let mut arguments = Arguments { slot, next: layout::ARGUMENTS };
    let root = arguments.put(&[u64::from(b'/')]);
    let name = arguments.put(&[u64::from_le_bytes(*b"pvx-spac"), u64::from(b'e')]);
    // Not 0: programs that take core dumps over a pipe would get one (core(5)).
    let no_core = arguments.put(&[1, 1]);
    const CAPABILITY_VERSION_3: u64 = 0x2008_0522;
    let cap_header = arguments.put(&[CAPABILITY_VERSION_3]);
    let no_caps = arguments.put(&[0; 3]);
    let last_fd = u64::from(u32::MAX);
    let mut calls = vec![
        (Entry::new(libc::SYS_close_range, [0, layout::ARENA_FD as u64 - 1, 0, 0, 0, 0]), "close_range"),
        (
            Entry::new(libc::SYS_close_range, [layout::ARENA_FD as u64 + 1, last_fd, 0, 0, 0, 0]),
            "close_range",
        ),
        // Signals of the terminal are not for guests. They stay in the supervisor's session, for the scheduler to see
        // both sides of a hand-off as one (sched(7), "The autogroup feature").
        (Entry::new(libc::SYS_setpgid, [0; 6]), "setpgid"),
        (Entry::new(libc::SYS_chdir, [root, 0, 0, 0, 0, 0]), "chdir"),
        (Entry::new(libc::SYS_prctl, [libc::PR_SET_NAME as u64, name, 0, 0, 0, 0]), "prctl"),
        (Entry::new(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0]), "prctl"),
        (Entry::new(libc::SYS_prlimit64, [0, u64::from(libc::RLIMIT_CORE), no_core, 0, 0, 0]), "prlimit"),
    ];
    for range in mapped {
        calls.push((
            Entry::new(libc::SYS_munmap, [range.start, range.end - range.start, 0, 0, 0, 0]),
            "munmap",
        ));
    }
    // What is free in the region is nobody's: the kernel would put there what a guest maps wherever there is room.
    let free = code::range(slot.region()).end.next_multiple_of(4096);
    let reserve = [
        free,
        slot.address(layout::CONTROL) - free,
        libc::PROT_NONE as u64,
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE) as u64,
        u64::MAX,
        0,
    ];
    calls.push((Entry::new(libc::SYS_mmap, reserve), "mmap"));
    calls.push((Entry::new(libc::SYS_capset, [cap_header, no_caps, 0, 0, 0, 0]), "capset"));
    run_all(service, &calls)
}

/// Confines a template, and all that is copied from it, to the calls of [`filter::service`].
pub(crate) fn confine(service: &Service) -> Result<()> {
    const SET_MODE_FILTER: u64 = 1;
    let program: Vec<u64> = filter::service(service.life.slot.region()).iter().map(filter::word).collect();
    let mut arguments = Arguments { slot: &service.life.slot, next: layout::ARGUMENTS };
    let instructions = arguments.put(&program);
    let program = arguments.put(&[program.len() as u64, instructions]);
    run_all(service, &[(Entry::new(libc::SYS_seccomp, [SET_MODE_FILTER, 0, program, 0, 0, 0]), "seccomp")])
}

/// No privileges to gain, which the kernel wants before it takes a filter.
pub(crate) fn renounce_privileges(service: &Service) -> Result<()> {
    let no_new_privs = Entry::new(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0]);
    run_all(service, &[(no_new_privs, "prctl")])
}

/// Gives the template, or the executor in a live process, the signal handlers of executors; copies inherit them.
pub(crate) fn install_handlers(service: &Service) -> Result<()> {
    let slot = &service.life.slot;
    let mut arguments = Arguments { slot, next: layout::ARGUMENTS };
    let flags = (libc::SA_SIGINFO | libc::SA_ONSTACK | SA_RESTORER).cast_unsigned();
    let no_defer = libc::SA_NODEFER.cast_unsigned();
    // struct sigaction of the kernel: handler, flags, restorer, mask (asm/signal.h).
    let (handler, restorer) = (code::handler(slot.region()), code::restorer(slot.region()));
    let raised = arguments.put(&[handler, u64::from(flags | no_defer), restorer, 0]);
    let sent = arguments.put(&[handler, u64::from(flags), restorer, !0]);
    let calls = (1..=64)
        .filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal))
        .map(|signal| {
            let action = if code::is_synchronous(signal) { raised } else { sent };
            let args = [u64::from(signal.unsigned_abs()), action, 0, 8, 0, 0];
            (Entry::new(libc::SYS_rt_sigaction, args), "rt_sigaction")
        })
        .collect::<Vec<_>>();
    run_all(service, &calls)
}

/// Lets the template, and all that are copied from it, tell every processor of changed text (membarrier(2)). Later, with
/// more tasks, this takes milliseconds. Where the kernel has no such thing, nothing is rewritten.
pub(crate) fn register_barrier(service: &Service) -> Result<()> {
    const REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: u64 = 1 << 6;
    service.call(libc::SYS_membarrier, [REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0, 0, 0, 0]).map(drop)
}

/// `SA_RESTORER` (asm/signal.h): the restorer field is valid. x86-64 demands it.
const SA_RESTORER: libc::c_int = 0x0400_0000;

fn run_all(service: &Service, calls: &[(Entry, &'static str)]) -> Result<()> {
    let entries: Vec<Entry> = calls.iter().map(|&(entry, _)| entry).collect();
    let results: Vec<std::result::Result<u64, Errno>> = service.request(&entries)?;
    for (result, &(_, call)) in results.into_iter().zip(calls) {
        result.map_err(|errno| Error::Space { call, errno })?;
    }
    Ok(())
}

/// Puts what calls point to into the control pages, where the task reads but nobody there writes.
struct Arguments<'a> {
    slot: &'a Slot,
    next: u64,
}

impl Arguments<'_> {
    /// The address in the other space.
    fn put(&mut self, words: &[u64]) -> u64 {
        let start = self.next;
        for &word in words {
            self.slot.write(self.next, word);
            self.next += 8;
        }
        self.slot.address(start)
    }
}
