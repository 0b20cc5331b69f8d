//! What a thread's seccomp filters say to calls, before it makes them. They are executed here, because to suspend them
//! would not do: they are back when the supervisor dies, and the thread's calls go on.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET,
    BPF_W, SECCOMP_RET_ACTION_FULL, SECCOMP_RET_ALLOW, SECCOMP_RET_LOG, sock_filter,
};
use rustix::io::Errno;
use syscalls::Sysno;

use super::rights::Status;
use super::thread::refusal;
use crate::call::Call;
use crate::error::Result;
use crate::executor::code::AUDIT_ARCH_X86_64;
use crate::ptrace::request;
use crate::refusal::ThreadError;

/// linux/ptrace.h, Linux 4.4 and 6.4.
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;

/// That nothing keeps a stopped thread from making these calls, and those that an errand makes itself.
pub(super) fn require_allowed(tid: i32, calls: &[Call<'_>]) -> Result<()> {
    if dispatches_calls(tid) {
        return Err(refusal(tid, Errno::PERM, ThreadError::Dispatches));
    }
    let status = Status::of(tid).map_err(|_| refusal(tid, Errno::SRCH, ThreadError::Ended))?;
    if !status.is_under_seccomp() {
        return Ok(());
    }
    let filters = filters_of(tid).map_err(|errno| {
        let why = match errno {
            Errno::ACCESS => ThreadError::Seccomp,
            // Of the strict mode, which has none.
            Errno::INVAL => ThreadError::StrictSeccomp,
            _ => ThreadError::UnknownFilter,
        };
        refusal(tid, Errno::PERM, why)
    })?;
    let mask = Call::with_args(Sysno::rt_sigprocmask, [libc::SIG_SETMASK as u64, 0, 0, 8, 0, 0]);
    let is_refused = |call: &&Call| !filters.iter().all(|filter| allows(filter, call));
    match std::iter::once(&mask).chain(calls).find(is_refused) {
        None => Ok(()),
        Some(call) => Err(refusal(tid, Errno::PERM, ThreadError::Forbidden(call.nr().name()))),
    }
}

/// Does it use Syscall User Dispatch? Kernels before 6.4 do not tell.
fn dispatches_calls(tid: i32) -> bool {
    // struct ptrace_sud_config: mode, which is 0 for off, selector, offset, len.
    let mut config = [0u64; 4];
    let size = size_of_val(&config);
    request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, (&raw mut config) as usize).is_ok()
        && config[0] != 0
}

fn filters_of(tid: i32) -> std::result::Result<Vec<Vec<sock_filter>>, Errno> {
    let mut filters = Vec::new();
    loop {
        let get = |data| request(PTRACE_SECCOMP_GET_FILTER, tid, filters.len(), data);
        let len = match get(0) {
            Ok(len) => usize::try_from(len).unwrap_or(0),
            // There are no more.
            Err(Errno::NOENT) => return Ok(filters),
            Err(errno) => return Err(errno),
        };
        let mut filter = vec![sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; len];
        get(filter.as_mut_ptr().addr())?;
        filters.push(filter);
    }
}

/// Does the filter say yes? One that looks at where the call is made does not.
pub(super) fn allows(filter: &[sock_filter], call: &Call<'_>) -> bool {
    let verdict = judge(filter, &data(call.nr().id().cast_unsigned(), None, call.args()));
    verdict.is_some_and(|verdict| {
        [SECCOMP_RET_ALLOW, SECCOMP_RET_LOG].contains(&(verdict & SECCOMP_RET_ACTION_FULL))
    })
}

/// `struct seccomp_data` (linux/seccomp.h), in halves: number, architecture, where the call is made, arguments.
pub(crate) fn data(nr: u32, ip: Option<u64>, args: [u64; 6]) -> Vec<Option<u32>> {
    let half = |half: u64| u32::try_from(half).expect("a half");
    let halves =
        |word: Option<u64>| [word.map(|word| half(word & 0xffff_ffff)), word.map(|word| half(word >> 32))];
    let words = [ip].into_iter().chain(args.map(Some)).flat_map(halves);
    [Some(nr), Some(AUDIT_ARCH_X86_64)].into_iter().chain(words).collect()
}

/// What the filter returns. None if it uses what filters hardly use, or looks at what is not known.
pub(crate) fn judge(filter: &[sock_filter], data: &[Option<u32>]) -> Option<u32> {
    const NEXT: usize = 1;
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let &sock_filter { code, jt, jf, k } = filter.get(at)?;
        let jump = |is_so: bool| NEXT + usize::from(if is_so { jt } else { jf });
        at += match u32::from(code) {
            code if code == BPF_LD | BPF_W | BPF_ABS => {
                accumulator = (*data.get(k as usize / 4)?)?;
                NEXT
            }
            code if code == BPF_ALU | BPF_AND | BPF_K => {
                accumulator &= k;
                NEXT
            }
            code if code == BPF_JMP | BPF_JA => NEXT + k as usize,
            code if code == BPF_JMP | BPF_JEQ | BPF_K => jump(accumulator == k),
            code if code == BPF_JMP | BPF_JGT | BPF_K => jump(accumulator > k),
            code if code == BPF_JMP | BPF_JGE | BPF_K => jump(accumulator >= k),
            code if code == BPF_JMP | BPF_JSET | BPF_K => jump(accumulator & k != 0),
            code if code == BPF_RET | BPF_K => return Some(k),
            _ => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;

    fn filter(instructions: &[(u32, u8, u8, u32)]) -> Vec<sock_filter> {
        let instruction =
            |&(code, jt, jf, k)| sock_filter { code: u16::try_from(code).expect("16 bits"), jt, jf, k };
        instructions.iter().map(instruction).collect()
    }

    const GETPID: Call<'_> = Call::new(Sysno::getpid);

    #[test]
    fn numbers_and_arguments_decide() {
        let prctl = filter(&[
            (LOAD, 0, 0, 4),
            (BPF_JMP | BPF_JEQ | BPF_K, 1, 0, AUDIT_ARCH_X86_64),
            (BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
            (LOAD, 0, 0, 0),
            (BPF_JMP | BPF_JEQ | BPF_K, 0, 4, 157),
            (LOAD, 0, 0, 16),
            (BPF_ALU | BPF_AND | BPF_K, 0, 0, !1),
            (BPF_JMP | BPF_JGT | BPF_K, 1, 0, 10),
            (BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW),
            (BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | 1),
        ]);
        let of = |option| Call::new(Sysno::prctl).arg(0, option);
        assert!(allows(&prctl, &of(3)) && allows(&prctl, &of(11)) && !allows(&prctl, &of(12)));
        assert!(!allows(&prctl, &GETPID));
    }

    /// Each kind of jump, at its edge.
    #[test]
    fn jumps_go_where_the_kernel_would() {
        let ends =
            [(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO), (BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW)];
        let nr = GETPID.nr().id().cast_unsigned();
        for (condition, k, is_so) in [
            (BPF_JEQ, nr, true),
            (BPF_JEQ, nr + 1, false),
            (BPF_JGT, nr - 1, true),
            (BPF_JGT, nr, false),
            (BPF_JGE, nr, true),
            (BPF_JGE, nr + 1, false),
            (BPF_JSET, nr | 1 << 31, true),
            (BPF_JSET, !nr, false),
        ] {
            let jump = (BPF_JMP | condition | BPF_K, 1, 0, k);
            let filter = filter(&[&[(LOAD, 0, 0, 0), jump], &ends[..]].concat());
            assert_eq!(allows(&filter, &GETPID), is_so, "{condition:#x} {k:#x}");
        }
        let always = (BPF_JMP | BPF_JA, 0, 0, 1);
        assert!(allows(&filter(&[&[always], &ends[..]].concat()), &GETPID));
    }

    #[test]
    fn both_halves_of_each_argument_are_seen() {
        let args = [1, 2, 3, 4, 5, 6].map(|arg| arg << 32 | (arg + 0x10));
        for (index, arg) in (0..).zip(args) {
            for (offset, half) in [(16 + 8 * index, arg & 0xffff_ffff), (20 + 8 * index, arg >> 32)] {
                let equal = (BPF_JMP | BPF_JEQ | BPF_K, 0, 1, u32::try_from(half).expect("a half"));
                let yes = (BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW);
                let no = (BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_TRAP);
                let filter = filter(&[(LOAD, 0, 0, offset), equal, yes, no]);
                assert!(allows(&filter, &Call::with_args(Sysno::getpid, args)), "at {offset}");
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_not_allowed() {
        let looks_at_its_place = filter(&[(LOAD, 0, 0, 8), (BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW)]);
        assert!(!allows(&looks_at_its_place, &GETPID));
        assert!(!allows(&filter(&[(BPF_RET | libc::BPF_A, 0, 0, 0)]), &GETPID));
        assert!(!allows(&[], &GETPID));
        assert!(allows(&filter(&[(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_LOG)]), &GETPID));
    }
}
