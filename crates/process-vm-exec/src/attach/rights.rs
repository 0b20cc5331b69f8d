//! Who may be attached to, and why not.

use rustix::io::Errno;

use crate::error::Error;
use crate::procfs;
use crate::refusal::{AttachError, Capability, NotPermitted};

/// Has this thread the capability?
pub(super) fn is_ours(capability: Capability) -> bool {
    Status::ours().is_some_and(|status| status.has(capability))
}

/// What /proc/PID/status tells of a thread of a process (proc(5)).
#[derive(Debug)]
pub(super) struct Status {
    pid: i32,
    text: String,
}

impl Status {
    /// Of the main thread.
    pub(super) fn of(pid: i32) -> Result<Self, Error> {
        Self::of_thread(pid, pid)
    }

    pub(super) fn of_thread(pid: i32, tid: i32) -> Result<Self, Error> {
        match procfs::read(format!("/proc/{tid}/status")) {
            Ok(text) => Ok(Self { pid, text }),
            Err(error) => Err(match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::SRCH) | None => refusal(pid, Errno::SRCH, AttachError::NoProcess),
                Some(errno) => refusal(pid, errno, AttachError::Status),
            }),
        }
    }

    /// This thread's.
    fn ours() -> Option<Self> {
        let text = procfs::read("/proc/thread-self/status").ok()?;
        Some(Self { pid: rustix::process::getpid().as_raw_pid(), text })
    }

    fn field(&self, name: &str) -> Option<&str> {
        let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'));
        self.text.lines().find(is_it).map(|line| line[name.len() + 1..].trim())
    }

    fn number(&self, name: &str) -> u64 {
        let first = self.field(name).and_then(|value| value.split_ascii_whitespace().next());
        first.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    fn capabilities(&self, name: &str) -> u64 {
        self.field(name).and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0)
    }

    fn has(&self, capability: Capability) -> bool {
        self.capabilities("CapEff") >> capability.number() & 1 != 0
    }

    /// Is it a thread of this process, that has not ended?
    pub(super) fn is_thread_of(&self, process: i32) -> bool {
        let has_ended = self.field("State").is_some_and(|state| state.starts_with(['Z', 'X']));
        self.number("Tgid") == process.unsigned_abs().into() && !has_ended
    }

    /// Does seccomp judge its calls, by a filter or by the strict mode?
    pub(super) fn is_under_seccomp(&self) -> bool {
        self.number("Seccomp") != 0
    }

    /// The user of a process whose credentials would not do to trace us (ptrace(2)). Whoever has them can take from that
    /// process what is passed to it, but not from us.
    pub(super) fn weaker_user(&self) -> Option<u32> {
        let is_as_strong = Self::ours().is_some_and(|ours| self.could_trace(&ours));
        (!is_as_strong).then(|| self.user())
    }

    fn could_trace(&self, other: &Self) -> bool {
        let ids = |status: &Self, name| -> Vec<u64> {
            let ids = status.field(name).unwrap_or("").split_ascii_whitespace().take(3);
            ids.filter_map(|id| id.parse().ok()).collect()
        };
        let has_its_ids = ["Uid", "Gid"].iter().all(|name| ids(self, name) == ids(other, name));
        let lacks_none_of_its = other.capabilities("CapPrm") & !self.capabilities("CapPrm") == 0;
        let space = |process: i32| std::fs::read_link(format!("/proc/{process}/ns/user")).ok();
        let is_in_its_user_namespace = space(self.pid).is_some_and(|mine| Some(mine) == space(other.pid));
        is_in_its_user_namespace && (self.has(Capability::SysPtrace) || has_its_ids && lacks_none_of_its)
    }

    fn user(&self) -> u32 {
        u32::try_from(self.number("Uid")).unwrap_or(u32::MAX)
    }

    /// Refuses what no right would help with.
    pub(super) fn require_possible(&self) -> Result<(), Error> {
        let refuse = |errno, why| Err(refusal(self.pid, errno, why));
        if self.pid == rustix::process::getpid().as_raw_pid() {
            return refuse(Errno::INVAL, AttachError::Itself);
        }
        if self.number("Tgid") != self.pid.unsigned_abs().into() {
            return refuse(Errno::SRCH, AttachError::Thread);
        }
        match self.field("State").and_then(|state| state.chars().next()) {
            Some('Z' | 'X') => return refuse(Errno::SRCH, AttachError::Zombie),
            _ if self.field("VmSize").is_none() => return refuse(Errno::PERM, AttachError::NoMemory),
            _ => {}
        }
        match self.number("TracerPid") {
            0 => Ok(()),
            tracer => {
                let name = procfs::read(format!("/proc/{tracer}/comm")).unwrap_or_default();
                refuse(Errno::PERM, AttachError::Traced { tracer, name: name.trim().to_owned() })
            }
        }
    }

    /// Why `PTRACE_SEIZE` said `EPERM`.
    pub(super) fn why_not_permitted(&self) -> NotPermitted {
        let scope = procfs::read("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
        match Self::ours() {
            Some(ours) => self.why_not_traced_by(&ours, scope.trim()),
            None => NotPermitted::Unknown,
        }
    }

    /// The same as the reason why the process cannot be attached to.
    pub(super) fn not_permitted(&self) -> Error {
        refusal(self.pid, Errno::PERM, self.why_not_permitted().into())
    }

    /// By the rules of ptrace(2), "Ptrace access mode checking".
    fn why_not_traced_by(&self, ours: &Self, scope: &str) -> NotPermitted {
        let uids = |status: &Self| -> Vec<u32> {
            let uids = status.field("Uid").unwrap_or("").split_ascii_whitespace();
            uids.filter_map(|uid| uid.parse().ok()).collect()
        };
        let (euid, theirs) = (uids(ours).get(1).copied().unwrap_or(0), uids(self));
        match scope {
            _ if self.number("TracerPid") != 0 => NotPermitted::Traced,
            "3" => NotPermitted::Nobody,
            _ if ours.has(Capability::SysPtrace) => NotPermitted::Protected,
            _ if theirs.iter().any(|&uid| uid != euid) => {
                NotPermitted::User { theirs: self.user(), ours: euid }
            }
            "2" => NotPermitted::Restricted,
            "1" => NotPermitted::Descendants,
            _ if self.capabilities("CapPrm") & !ours.capabilities("CapEff") != 0 => {
                NotPermitted::Capabilities
            }
            _ => NotPermitted::Undumpable,
        }
    }
}

/// An error that says why.
pub(super) fn refusal(pid: i32, errno: Errno, why: AttachError) -> Error {
    Error::Attach { pid, why, errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us() -> i32 {
        rustix::process::getpid().as_raw_nonzero().get()
    }

    fn status(pid: i32, text: &str) -> Status {
        Status { pid, text: text.to_owned() }
    }

    #[test]
    fn who_has_other_rights_could_not_trace_us() {
        let of = |uid: &str, gid: &str, permitted: u64, effective: u64| {
            let caps = format!("CapPrm:\t{permitted:016x}\nCapEff:\t{effective:016x}");
            status(us(), &format!("Uid:\t{uid}\nGid:\t{gid}\n{caps}\n"))
        };
        const IDS: &str = "7\t7\t7\t7";
        let ours = of(IDS, IDS, 0b101, 0b101);
        assert!(of(IDS, IDS, 0b101, 0).could_trace(&ours));
        assert!(of(IDS, IDS, 0b111, 0).could_trace(&ours));
        // The last is of file systems only.
        assert!(of("7\t7\t7\t8", IDS, 0b101, 0).could_trace(&ours));
        for (uid, gid) in [("8\t7\t7\t7", IDS), ("7\t8\t7\t7", IDS), ("7\t7\t8\t7", IDS), (IDS, "7\t8\t7\t7")]
        {
            assert!(
                !of(uid, gid, 0b101, !0 ^ 1 << Capability::SysPtrace.number()).could_trace(&ours),
                "{uid} {gid}"
            );
            assert!(of(uid, gid, 0, 1 << Capability::SysPtrace.number()).could_trace(&ours), "{uid} {gid}");
        }
        assert!(!of(IDS, IDS, 0b100, 0).could_trace(&ours));
        let elsewhere = Status { pid: -1, ..of(IDS, IDS, !0, !0) };
        assert!(!elsewhere.could_trace(&ours) && !elsewhere.could_trace(&Status { pid: -1, ..ours }));
    }

    #[test]
    fn a_thread_of_a_process_is_one_of_its_own_that_has_not_ended() {
        for (state, tgid, is_one) in
            [("S", 7, true), ("R", 7, true), ("Z", 7, false), ("X", 7, false), ("S", 8, false)]
        {
            let text = format!("State:\t{state} (whatever)\nTgid:\t{tgid}\n");
            assert_eq!(status(9, &text).is_thread_of(7), is_one, "{text}");
        }
    }

    #[test]
    fn why_a_process_cannot_be_attached_to_is_said() {
        let why = |pid, rest: &str| match status(pid, &format!("Tgid:\t7\n{rest}")).require_possible() {
            Ok(()) => String::new(),
            Err(Error::Attach { why, .. }) => why.to_string(),
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(why(7, "State:\tS\nVmSize:\t4 kB\nTracerPid:\t0\n"), "");
        for (pid, rest, word) in [
            (8, "State:\tS\nVmSize:\t4 kB\n", "thread"),
            (7, "State:\tZ\nVmSize:\t4 kB\n", "zombie"),
            (7, "State:\tX\n", "zombie"),
            (7, "State:\tS\n", "no memory"),
            (7, "State:\tS\nVmSize:\t4 kB\nTracerPid:\t9\n", "process 9"),
            (us(), "State:\tS\nVmSize:\t4 kB\n", "itself"),
        ] {
            assert!(why(pid, rest).contains(word), "{rest} of {pid}: {}", why(pid, rest));
        }
    }

    #[test]
    fn what_would_help_is_said_where_the_kernel_refuses() {
        let of = |uid: u32, tracer: u32, permitted: u64, effective: u64| {
            let ids = format!("TracerPid:\t{tracer}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n");
            status(7, &format!("{ids}CapPrm:\t{permitted:016x}\nCapEff:\t{effective:016x}\n"))
        };
        let ours = of(7, 0, 0b11, 0b11);
        let root = of(0, 0, 0, 1 << Capability::SysPtrace.number());
        for (theirs, ours, scope, word) in [
            (of(7, 9, 0, 0), &ours, "3", "somebody traces it"),
            (of(7, 0, 0b10, 0), &root, "3", "until the next boot"),
            (of(7, 0, 0b10, 0), &root, "2", "although this process has CAP_SYS_PTRACE"),
            (
                of(8, 0, 0, 0),
                &ours,
                "2",
                "uid 8, you are uid 7; become that user, or run with CAP_SYS_PTRACE",
            ),
            (of(7, 0, 0b100, 0), &ours, "2", "ptrace_scope is 2; run with"),
            (of(7, 0, 0b100, 0), &ours, "1", "only descendants"),
            (of(7, 0, 0b100, 0), &ours, "0", "it has capabilities"),
            (of(7, 0, 0b10, 0), &ours, "", "not dumpable"),
        ] {
            let why = theirs.why_not_traced_by(ours, scope).to_string();
            assert!(why.contains(word), "{word}: {why}");
        }
    }

    #[test]
    fn both_kinds_of_seccomp_judge_calls() {
        for (mode, is_judged) in [(0, false), (1, true), (2, true)] {
            // Not the other field whose name begins so.
            let text = format!("Seccomp_filters:\t3\nSeccomp:\t{mode}\n");
            assert_eq!(status(7, &text).is_under_seccomp(), is_judged);
        }
    }

    /// Whether this runs with rights or without.
    #[test]
    fn our_own_capabilities_are_the_kernels_word() {
        for capability in [Capability::SysPtrace, Capability::SysAdmin] {
            let set = rustix::thread::capabilities(None).expect("our capabilities").effective;
            assert_eq!(is_ours(capability), set.bits() >> capability.number() & 1 != 0, "{capability:?}");
        }
    }
}
