//! What tasks in a space may ask the host kernel for.
//!
//! Guest code: nothing. It shares its rights with the executor, and can jump into the executor's code; so everything
//! allowed there is harmless in its hands: it may sleep and wake in its own mailboxes, yield, and change its own
//! registers. Service tasks: calls about memory, and what the library needs them for.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_TRAP, sock_filter,
};
use syscalls::Sysno;

use super::region::Region;
use super::{code, layout};

/// Which system calls can be executed in a created space: see [`AddressSpaceBuilder::service_calls`](crate::AddressSpaceBuilder::service_calls).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceCalls {
    /// Those about memory (mmap(2), mprotect(2), madvise(2) and their kin, shmat(2), mbind(2), membarrier(2)), processors,
    /// clocks and futexes, and those that only tell something (getpid(2), getcwd(2), uname(2)). A seccomp filter keeps
    /// the space's process to them and to what the library itself needs.
    Memory,
    /// All but clone(2), execve(2), exit(2) and their kin. Those that change how the space's process itself lives (prctl(2),
    /// rt_sigprocmask(2), sigaltstack(2), close(2) of what it has not opened for you) are the end of what this library promises of it.
    All,
}

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NR: u32 = 0;
const ARCH: u32 = 4;
const IP_LOW: u32 = 8;
const IP_HIGH: u32 = 12;

const fn arg_low(n: u32) -> u32 {
    16 + 8 * n
}

const fn arg_high(n: u32) -> u32 {
    arg_low(n) + 4
}

/// Where each verdict stands at the end of the program.
#[derive(Clone, Copy)]
enum Verdict {
    Allow,
    Kill,
    Trap,
    /// Fails with `EPERM`.
    Refuse,
}

impl Verdict {
    const ALL: [Self; 4] = [Self::Allow, Self::Kill, Self::Trap, Self::Refuse];

    fn action(self) -> u32 {
        match self {
            Self::Allow => SECCOMP_RET_ALLOW,
            Self::Kill => SECCOMP_RET_KILL_PROCESS,
            Self::Trap => SECCOMP_RET_TRAP,
            Self::Refuse => SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs(),
        }
    }
}

/// The filter of executors, in the kernel's format. Every call from outside the executor's code raises `SIGSYS`, where
/// Syscall User Dispatch has not done so already (the vsyscall page, kernels without it).
#[allow(clippy::cast_possible_truncation, reason = "addresses are split into halves")]
pub(crate) fn executor(region: Region) -> Vec<sock_filter> {
    use Verdict::{Allow, Kill, Trap};
    let code = code::range(region);
    let region_high = (region.start() >> 32) as u32;
    let mask = region.address(layout::PARAMS + layout::SIGMASK);
    let mut filter = Assembler::default();
    filter.load(ARCH);
    filter.unless_equal(code::AUDIT_ARCH_X86_64, Trap);
    filter.load(IP_HIGH);
    filter.unless_equal(region_high, Trap);
    filter.load(IP_LOW);
    filter.unless_at_least(code.start as u32, Trap);
    filter.if_at_least(code.end as u32 + 1, Trap);
    filter.load(NR);
    filter.if_equal(number(libc::SYS_sched_yield), Allow);
    filter.if_equal(number(libc::SYS_rt_sigreturn), Allow);
    // Nothing but "block what the parameters say".
    filter.only_for(libc::SYS_rt_sigprocmask, |filter| {
        for (offset, value) in [
            (arg_low(0), libc::SIG_SETMASK.cast_unsigned()),
            (arg_low(1), mask as u32),
            (arg_high(1), (mask >> 32) as u32),
            (arg_low(2), 0),
            (arg_high(2), 0),
            (arg_low(3), 8),
        ] {
            filter.load(offset);
            filter.unless_equal(value, Kill);
        }
        filter.always(Allow);
    });
    filter.unless_equal(number(libc::SYS_futex), Kill);
    filter.load(arg_high(0));
    filter.unless_equal(region_high, Kill);
    filter.load(arg_low(0));
    filter.if_at_least(region.range().end as u32, Kill);
    // FUTEX_WAIT and FUTEX_WAKE are 0 and 1; every flag and other operation has a higher bit.
    filter.load(arg_low(1));
    filter.and(!1);
    filter.unless_equal(0, Kill);
    filter.finish()
}

/// Calls that a supervisor has made in a space unless it wants more: about the memory and the processors of the space, and
/// about what it is.
const MEMORY: &[Sysno] = {
    use Sysno as S;
    &[
        S::munmap,
        S::mprotect,
        S::mremap,
        S::madvise,
        S::msync,
        S::mincore,
        S::mlock,
        S::mlock2,
        S::munlock,
        S::mlockall,
        S::munlockall,
        S::brk,
        S::shmat,
        S::shmdt,
        S::remap_file_pages,
        S::mseal,
        S::pkey_alloc,
        S::pkey_free,
        S::pkey_mprotect,
        S::mbind,
        S::get_mempolicy,
        S::set_mempolicy,
        S::migrate_pages,
        S::move_pages,
        S::membarrier,
        S::futex,
        S::sched_yield,
        S::sched_setaffinity,
        S::sched_getaffinity,
        S::sched_get_priority_max,
        S::sched_get_priority_min,
        S::sched_rr_get_interval,
        S::getcpu,
        S::clock_gettime,
        S::clock_getres,
        S::clock_nanosleep,
        S::nanosleep,
        S::gettimeofday,
        S::time,
        S::times,
        S::getrusage,
        S::getrlimit,
        S::getpid,
        S::getppid,
        S::gettid,
        S::getpgrp,
        S::getpgid,
        S::getsid,
        S::getuid,
        S::geteuid,
        S::getresuid,
        S::getgid,
        S::getegid,
        S::getresgid,
        S::getgroups,
        S::getcwd,
        S::uname,
        S::sysinfo,
        S::getrandom,
    ]
};

/// Calls that the library makes itself besides, for births, files that arrive, signals, filters of executors, what these do,
/// and the end. In other hands some of them would show the key of a service task, or make another that has it.
const OWN: &[Sysno] = {
    use Sysno as S;
    &[
        S::close,
        S::close_range,
        S::socketpair,
        S::recvmsg,
        S::rt_sigaction,
        S::rt_sigprocmask,
        S::rt_sigreturn,
        S::sigaltstack,
        S::seccomp,
        S::exit,
        S::exit_group,
    ]
};

/// May a supervisor have this call made in a space that is confined?
pub(crate) fn is_about_memory(call: Sysno) -> bool {
    call == Sysno::mmap || MEMORY.contains(&call)
}

/// Would this call end the task that executes it, with what it has left there, or make one that nobody looks after? In a created
/// space that would be a second service task with the first one's key and place.
pub(crate) fn is_the_end_of_its_task(call: Sysno) -> bool {
    use Sysno as S;
    matches!(
        call,
        S::execve
            | S::execveat
            | S::exit
            | S::exit_group
            | S::fork
            | S::vfork
            | S::clone
            | S::clone3
            | S::rt_sigreturn
    )
}

/// How the library clones: executors, and processes.
pub(crate) const CLONE_EXECUTOR: libc::c_int =
    libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
pub(crate) const CLONE_PROCESS: libc::c_int = libc::CLONE_PARENT;

/// The filter of service tasks. What is not allowed fails; guests' calls are the executors' filter's, whose verdicts
/// weigh more.
#[allow(clippy::cast_possible_truncation, reason = "addresses are split into halves")]
pub(crate) fn service(region: Region) -> Vec<sock_filter> {
    use Verdict::{Allow, Refuse};
    let adopting = code::adopting(region);
    let mut filter = Assembler::default();
    filter.load(ARCH);
    filter.unless_equal(code::AUDIT_ARCH_X86_64, Refuse);
    filter.load(NR);
    for call in MEMORY.iter().chain(OWN) {
        filter.if_equal(number(call.id().into()), Allow);
    }
    // The memory file, which all spaces are in, is for a new process to map its slot of.
    filter.only_for(libc::SYS_mmap, |filter| {
        filter.load(arg_low(4));
        filter.unless_equal(layout::ARENA_FD.cast_unsigned(), Allow);
        filter.load(IP_HIGH);
        filter.unless_equal((region.start() >> 32) as u32, Refuse);
        filter.load(IP_LOW);
        filter.unless_at_least(adopting.start as u32, Refuse);
        filter.unless_at_least(adopting.end as u32 + 1, Allow);
        filter.always(Refuse);
    });
    filter.only_for(libc::SYS_clone, |filter| {
        filter.load(arg_high(0));
        filter.unless_equal(0, Refuse);
        filter.load(arg_low(0));
        filter.if_equal(CLONE_EXECUTOR.cast_unsigned(), Allow);
        filter.if_equal(CLONE_PROCESS.cast_unsigned(), Allow);
        filter.always(Refuse);
    });
    filter.only_for(libc::SYS_prctl, |filter| {
        filter.load(arg_low(0));
        for option in [libc::PR_SET_PDEATHSIG, PR_SET_SYSCALL_USER_DISPATCH, libc::PR_SET_NO_NEW_PRIVS] {
            filter.if_equal(option.cast_unsigned(), Allow);
        }
        filter.always(Refuse);
    });
    filter.always(Refuse);
    filter.finish()
}

/// linux/prctl.h.
pub(crate) const PR_SET_SYSCALL_USER_DISPATCH: libc::c_int = 59;

fn number(nr: libc::c_long) -> u32 {
    u32::try_from(nr).expect("a call number")
}

/// An instruction as the eight bytes that the kernel reads.
pub(crate) fn word(instruction: &sock_filter) -> u64 {
    let [low, high] = instruction.code.to_le_bytes();
    let [a, b, c, d] = instruction.k.to_le_bytes();
    u64::from_le_bytes([low, high, instruction.jt, instruction.jf, a, b, c, d])
}

/// Puts a filter together: conditional jumps to verdicts, which stand behind the last instruction.
#[derive(Default)]
struct Assembler {
    code: Vec<sock_filter>,
    jumps: Vec<(usize, bool, Verdict)>,
}

impl Assembler {
    fn load(&mut self, offset: u32) {
        self.push(BPF_LD | BPF_W | BPF_ABS, offset);
    }

    fn and(&mut self, mask: u32) {
        self.push(BPF_ALU | BPF_AND | BPF_K, mask);
    }

    fn if_equal(&mut self, value: u32, verdict: Verdict) {
        self.jump(BPF_JEQ, value, true, verdict);
    }

    fn unless_equal(&mut self, value: u32, verdict: Verdict) {
        self.jump(BPF_JEQ, value, false, verdict);
    }

    fn if_at_least(&mut self, value: u32, verdict: Verdict) {
        self.jump(BPF_JGE, value, true, verdict);
    }

    fn unless_at_least(&mut self, value: u32, verdict: Verdict) {
        self.jump(BPF_JGE, value, false, verdict);
    }

    /// What `judge` adds is for this call only.
    fn only_for(&mut self, nr: libc::c_long, judge: impl FnOnce(&mut Self)) {
        let at = self.code.len();
        self.push(BPF_JMP | BPF_JEQ | BPF_K, number(nr));
        judge(self);
        let skipped = self.code.len() - at - 1;
        self.code[at].jf = u8::try_from(skipped).expect("a judgement is short");
    }

    fn always(&mut self, verdict: Verdict) {
        self.push(BPF_RET | BPF_K, verdict.action());
    }

    fn jump(&mut self, condition: u32, value: u32, when: bool, verdict: Verdict) {
        self.jumps.push((self.code.len(), when, verdict));
        self.push(BPF_JMP | condition | BPF_K, value);
    }

    fn push(&mut self, opcode: u32, k: u32) {
        let code = u16::try_from(opcode).expect("BPF opcodes have 16 bits");
        self.code.push(sock_filter { code, jt: 0, jf: 0, k });
    }

    /// Falls through to "allow".
    fn finish(mut self) -> Vec<sock_filter> {
        let end = self.code.len();
        for (at, when, verdict) in self.jumps.clone() {
            let distance = u8::try_from(end + verdict as usize - at - 1).expect("the filter is short");
            let instruction = &mut self.code[at];
            *(if when { &mut instruction.jt } else { &mut instruction.jf }) = distance;
        }
        Verdict::ALL.into_iter().for_each(|verdict| self.always(verdict));
        self.code
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::attach::verdict::{data, judge};
    use crate::space::AddressSpace;

    /// What executors' calls come to: whose instruction ends at `ip`, in code of this architecture.
    fn of_executor(arch: u32, ip: u64, (nr, args): (libc::c_long, [u64; 6])) -> u32 {
        let mut data = data(number(nr), Some(ip), args);
        data[ARCH as usize / 4] = Some(arch);
        judge(&executor(REGION), &data).expect("a verdict")
    }

    const REGION: Region = Region::DEFAULT;

    /// What code of the executor needs; a number, arguments, and the bits that matter of each.
    fn harmless_calls() -> Vec<(libc::c_long, [u64; 6], [u64; 6])> {
        const HALF: u64 = 0xffff_ffff;
        let mask = REGION.address(layout::PARAMS + layout::SIGMASK);
        let block = [libc::SIG_SETMASK as u64, mask, 0, 8, 0, 0];
        let mailbox = REGION.address(layout::MAILBOXES);
        let last = REGION.range().end - 1;
        // Whatever moves the word to be slept on out of the library's pages.
        let futex = [!(layout::SIZE - 1), HALF & !1, 0, 0, 0, 0];
        vec![
            (libc::SYS_sched_yield, [0; 6], [0; 6]),
            (libc::SYS_rt_sigreturn, [0; 6], [0; 6]),
            (libc::SYS_rt_sigprocmask, block, [HALF, !0, !0, HALF, 0, 0]),
            (libc::SYS_futex, [mailbox, 0, 0, 0, 0, 0], futex),
            (libc::SYS_futex, [last, 1, 0, 0, 0, 0], futex),
        ]
    }

    #[test]
    fn an_executor_makes_harmless_calls_only_with_no_argument_changed() {
        let code = code::range(REGION);
        for ip in [code.start, code.end] {
            let verdict = |nr, args| of_executor(code::AUDIT_ARCH_X86_64, ip, (nr, args));
            for (nr, args, relevant) in harmless_calls() {
                assert_eq!(verdict(nr, args), SECCOMP_RET_ALLOW, "{nr} {args:x?}");
                for (index, bit) in (0..6).flat_map(|index| (0..64).map(move |bit| (index, 1 << bit))) {
                    let mut changed = args;
                    changed[index] ^= bit;
                    let is_harmless = relevant[index] & bit == 0;
                    let expected = if is_harmless { SECCOMP_RET_ALLOW } else { SECCOMP_RET_KILL_PROCESS };
                    assert_eq!(verdict(nr, changed), expected, "{nr} {changed:x?}");
                }
            }
            assert_eq!(verdict(libc::SYS_getpid, [0; 6]), SECCOMP_RET_KILL_PROCESS);
        }
    }

    #[test]
    fn what_is_not_the_executors_code_makes_no_call() {
        let code = code::range(REGION);
        let elsewhere = [code.start - 1, code.end + 1, code.start + (1 << 32), code.start - (1 << 32), 0, !0];
        for (nr, args, _) in harmless_calls() {
            for ip in elsewhere {
                let verdict = of_executor(code::AUDIT_ARCH_X86_64, ip, (nr, args));
                assert_eq!(verdict, SECCOMP_RET_TRAP, "{nr} at {ip:#x}");
            }
            // int $0x80
            const AUDIT_ARCH_I386: u32 = 0x4000_0003;
            assert_eq!(of_executor(AUDIT_ARCH_I386, code.start, (nr, args)), SECCOMP_RET_TRAP);
        }
    }

    #[test]
    fn a_service_task_maps_the_memory_file_only_as_a_new_process() {
        let adopting = code::adopting(REGION);
        let map = |ip, fd: libc::c_int| {
            let args = [0, 4096, 3, 1, fd.unsigned_abs().into(), 0];
            judge(&service(REGION), &data(number(libc::SYS_mmap), Some(ip), args))
        };
        let refused = Some(SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs());
        let elsewhere =
            [adopting.start - 1, adopting.end + 1, adopting.end ^ 1 << 32, code::syscall(REGION) + 2];
        for ip in elsewhere {
            assert_eq!(map(ip, layout::ARENA_FD), refused, "{ip:#x}");
            assert_eq!(map(ip, layout::ARENA_FD + 1), Some(SECCOMP_RET_ALLOW), "{ip:#x}");
        }
        assert_eq!(map(adopting.end, layout::ARENA_FD), Some(SECCOMP_RET_ALLOW));
    }

    /// Whoever might have it make them.
    #[test]
    fn the_kernel_confines_a_service_task_to_what_the_library_needs() {
        let space = AddressSpace::create().unwrap();
        let outcome = |nr, args| space.service().call(nr, args).unwrap();
        let number = |value: libc::c_int| u64::from(value.unsigned_abs());
        for (nr, args) in [
            (libc::SYS_openat, [0; 6]),
            (libc::SYS_pwrite64, [layout::ARENA_FD.unsigned_abs().into(), REGION.start(), 8, 0, 0, 0]),
            (libc::SYS_clone, [0; 6]),
            (libc::SYS_clone, [number(CLONE_EXECUTOR | libc::CLONE_FILES), 0, 0, 0, 0, 0]),
            (libc::SYS_prctl, [number(libc::PR_SET_DUMPABLE), 0, 0, 0, 0, 0]),
            // Another space's slot.
            (
                libc::SYS_mmap,
                [0, 4096, 3, number(libc::MAP_SHARED), layout::ARENA_FD.unsigned_abs().into(), 0],
            ),
        ] {
            assert_eq!(outcome(nr, args), Err(Errno::PERM), "{nr} {args:x?}");
        }
        assert!(outcome(libc::SYS_getpid, [0; 6]).is_ok());
    }
}
