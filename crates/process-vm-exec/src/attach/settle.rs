//! From an executor that has just been born to one that serves: its pages, and the way into the resident code.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use rustix::thread::{sched_getaffinity, sched_setaffinity};

use super::birth::Born;
use super::place::Place;
use super::region::{self, Room, mark_of};
use super::removal::Added;
use super::rights::is_ours;
use super::{Tracing, bootstrap, inject};
use crate::error::{Error, Result};
use crate::executor::arena::Slot;
use crate::executor::region::Region;
use crate::executor::service::STARTED;
use crate::executor::setup::Params;
use crate::executor::signature::Key;
use crate::executor::{code, layout, machine};
use crate::ptrace::{NO_SYSCALL, get_registers, request, set_registers, set_vectors};
use crate::refusal::Capability;

/// Makes the executors' pages, and sends them into the resident code.
pub(super) fn settle(
    born: &Born,
    (place, room): (&Place, Room),
    added: &Added,
    params: Params,
    keys: [Key; 2],
    tracing: Tracing,
) -> Result<Slot> {
    let Born { executor, sharer, .. } = *born;
    // The helper and the parent are gone: what was the thread's data is free for a name.
    let name = place.addr + bootstrap::code().len() as u64;
    place
        .write_at(name, format!("{}\0", region::NAME).as_bytes())
        .map_err(|error| host("writing to /proc/PID/mem")(errno_of(&error)))?;

    let leave = place.addr + bootstrap::site_exit();
    // MFD_EXEC is known since Linux 6.3, and wanted where vm.memfd_noexec is 1.
    let memfd = |flags: MemfdFlags| {
        let flags = u64::from((flags | MemfdFlags::ALLOW_SEALING).bits());
        inject::call(executor, leave, libc::SYS_memfd_create, [name, flags, 0, 0, 0, 0])
    };
    let file =
        memfd(MemfdFlags::EXEC).or_else(|_| memfd(MemfdFlags::empty())).map_err(space("memfd_create"))?;
    for task in [Some(executor), sharer].into_iter().flatten() {
        run_where_we_do(task);
        // Signals of the terminal are not for it. It stays in the session: in another one the scheduler would have it
        // compete with the whole of this one (sched(7), "The autogroup feature"), and a yield would not reach the
        // other side of the hand-off.
        let _ = inject::call(task, leave, libc::SYS_setpgid, [0; 6]);
        // Waiting reads the time-stamp counter, which is a fault where the target's thread has asked for that or is under
        // strict seccomp.
        let tsc = [libc::PR_SET_TSC, libc::PR_TSC_ENABLE].map(|number| u64::from(number.unsigned_abs()));
        inject::call(task, leave, libc::SYS_prctl, [tsc[0], tsc[1], 0, 0, 0, 0])
            .map_err(space("prctl(PR_SET_TSC)"))?;
        if !is_ours(Capability::SysPtrace) {
            let _ =
                inject::call(task, leave, libc::SYS_prctl, [PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0, 0]);
        }
        let _ = inject::call(task, leave, libc::SYS_prctl, [libc::PR_SET_NAME as u64, name, 0, 0, 0, 0]);
    }
    let file_here = fetch(executor, i32::try_from(file).map_err(|_| Error::Dead)?)?;
    let slot = Slot::of_file(file_here, room.region)?;
    params.write(&slot);
    slot.write_bytes(layout::CODE, &code::bytes_in_words(room.region));
    slot.write(layout::CONTROL + layout::SHARER + layout::WORD, STARTED);

    let mark = machine::tsc();
    slot.write(0, mark);
    added.region.store(room.region.start(), Ordering::Relaxed);
    added.mark.store(mark, Ordering::Relaxed);
    let site = place.addr + bootstrap::site_pause();
    added.site.store(site, Ordering::Relaxed);
    added.sharer.store(sharer.unwrap_or(0), Ordering::Relaxed);
    added.executor.store(executor, Ordering::Release);
    // From here on the janitor, or whoever sees us fail, takes out what we put in.
    let put_in = || -> Result<()> {
        if let Some((region, mark)) = room.left_over
            && mark_of(region, executor) == Ok(mark)
        {
            inject::call(executor, site, libc::SYS_munmap, [region.start(), layout::SIZE, 0, 0, 0, 0])
                .map_err(space("munmap of what an executor has left"))?;
        }
        for (offset, len, protection) in [
            (0, layout::CONTROL, libc::PROT_READ | libc::PROT_EXEC),
            (layout::CONTROL, layout::CONTROL_LEN, libc::PROT_READ),
            (layout::RESULT, layout::SIZE - layout::RESULT, libc::PROT_READ | libc::PROT_WRITE),
        ] {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
            let numbers = [protection, flags].map(|number| u64::from(number.cast_unsigned()));
            let args = [slot.address(offset), len, numbers[0], numbers[1], file, offset];
            inject::call(executor, site, libc::SYS_mmap, args)
                .map_err(space("mmap of the executor's pages"))?;
        }
        inject::call(executor, site, libc::SYS_close, [file, 0, 0, 0, 0, 0]).map_err(space("close"))?;
        if let Some(sharer) = sharer {
            serve(sharer, (room.region, layout::SHARER), keys[1], tracing).map_err(host("PTRACE_DETACH"))?;
        }
        serve(executor, (room.region, 0), keys[0], tracing).map_err(host("PTRACE_DETACH"))
    };
    put_in().inspect_err(|_| _ = added.remove())?;
    Ok(slot)
}

/// On whose processors a task runs, and how it is scheduled there, is inherited from the target's thread, which may be
/// bound to one that it needs for itself. It works for us: as this thread, which has it from the one that attaches.
fn run_where_we_do(tid: i32) {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are valid for the call, which is about a task that we have made.
    unsafe { libc::sched_setscheduler(tid, libc::SCHED_OTHER, &raw const none) };
    if let Ok(ours) = sched_getaffinity(None) {
        // The target's cpuset may have none of these.
        let _ = sched_setaffinity(Pid::from_raw(tid), &ours);
    }
}

/// Sends a task into the service loop, whose request and result are `offset` behind those of the first, with the key that
/// it signs with in its vector registers: nobody else in the target ever sees it.
fn serve(
    tid: i32,
    (region, offset): (Region, u64),
    key: Key,
    tracing: Tracing,
) -> std::result::Result<(), Errno> {
    const INTERRUPTS_ON: u64 = 0x202;
    let registers = libc::user_regs_struct {
        rip: code::service(region),
        rbp: region.address(layout::CONTROL + offset),
        rbx: region.address(layout::RESULT + offset),
        r12: u64::from(STARTED),
        rax: 0,
        orig_rax: NO_SYSCALL,
        eflags: INTERRUPTS_ON,
        ..get_registers(tid)?
    };
    set_registers(tid, &registers)?;
    set_vectors(tid, &key.words())?;
    let go_on = match tracing {
        Tracing::Ends => libc::PTRACE_DETACH,
        Tracing::GoesOn => libc::PTRACE_CONT,
    };
    request(go_on, tid, 0, 0).map(drop)
}

/// The descriptor that `fd` of the process `pid` is.
fn fetch(pid: i32, fd: i32) -> Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(Error::Dead)?;
    let pidfd =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(host("pidfd_open of the executor"))?;
    rustix::process::pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty())
        .map_err(host("pidfd_getfd from the executor"))
}

/// Linux's values for Yama (linux/prctl.h): any process that may otherwise may trace this one. The supervisor is no
/// ancestor of an executor, nor is the janitor, and Yama knows one exception for each: nobody narrower could be named. Whoever
/// has CAP_SYS_PTRACE needs none, and does not open its executors to others.
const PR_SET_PTRACER: u64 = 0x5961_6d61;
const PR_SET_PTRACER_ANY: u64 = !0;

fn host(call: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Host { call, errno }
}

fn space(call: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Space { call, errno }
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
