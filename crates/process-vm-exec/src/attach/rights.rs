//! Who may be attached to, and why not.

use rustix::io::Errno;

use crate::error::Error;
use crate::procfs;

/// A capability (capabilities(7)) by its number and name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capability(u32, &'static str);

pub(super) const CAP_SYS_PTRACE: Capability = Capability(19, "CAP_SYS_PTRACE");
pub(super) const CAP_SYS_ADMIN: Capability = Capability(21, "CAP_SYS_ADMIN");

impl Capability {
    /// Has this thread it?
    pub(super) fn is_ours(self) -> bool {
        Status::ours().is_some_and(|status| status.capabilities("CapEff") >> self.0 & 1 != 0)
    }

    /// What to do without it.
    pub(super) fn is_needed(self) -> String {
        format!("run with {}, which root has unless it was taken away", self.1)
    }
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
                Some(Errno::NOENT | Errno::SRCH) | None => {
                    refusal(pid, Errno::SRCH, "there is no such process")
                }
                Some(errno) => refusal(pid, errno, "/proc/PID/status cannot be read"),
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
        let Some(ours) = Self::ours() else { return Some(self.user()) };
        let ids = |status: &Self, name| -> Vec<u64> {
            let ids = status.field(name).unwrap_or("").split_ascii_whitespace().take(3);
            ids.filter_map(|id| id.parse().ok()).collect()
        };
        let has_ids_of_ours = ["Uid", "Gid"].iter().all(|name| ids(self, name) == ids(&ours, name));
        let has = |capability: Capability| self.capabilities("CapEff") >> capability.0 & 1 != 0;
        let lacks_none_of_ours = ours.capabilities("CapPrm") & !self.capabilities("CapPrm") == 0;
        let space = |process: i32| std::fs::read_link(format!("/proc/{process}/ns/user")).ok();
        let is_in_our_user_namespace = space(self.pid).is_some_and(|theirs| Some(theirs) == space(ours.pid));
        let is_as_strong =
            is_in_our_user_namespace && (has(CAP_SYS_PTRACE) || has_ids_of_ours && lacks_none_of_ours);
        (!is_as_strong).then(|| self.user())
    }

    fn user(&self) -> u32 {
        u32::try_from(self.number("Uid")).unwrap_or(u32::MAX)
    }

    /// Refuses what no right would help with.
    pub(super) fn require_possible(&self) -> Result<(), Error> {
        let refuse = |errno, why: &str| Err(refusal(self.pid, errno, why));
        if self.pid == rustix::process::getpid().as_raw_pid() {
            return refuse(Errno::INVAL, "it is the calling process itself");
        }
        if self.number("Tgid") != self.pid.unsigned_abs().into() {
            return refuse(
                Errno::SRCH,
                "it is a thread, not a process; give the process (Tgid in /proc/PID/status)",
            );
        }
        match self.field("State").and_then(|state| state.chars().next()) {
            Some('Z' | 'X') => return refuse(Errno::SRCH, "it has ended already (a zombie)"),
            _ if self.field("VmSize").is_none() => {
                return refuse(Errno::PERM, "it is a kernel thread, or is just ending: it has no memory");
            }
            _ => {}
        }
        match self.number("TracerPid") {
            0 => Ok(()),
            tracer => {
                let name = procfs::read(format!("/proc/{tracer}/comm")).unwrap_or_default();
                let why = format!("process {tracer} ({}) traces it; that has to detach first", name.trim());
                refuse(Errno::PERM, &why)
            }
        }
    }

    /// Why `PTRACE_SEIZE` said `EPERM`: the rules of ptrace(2), "Ptrace access mode checking".
    pub(super) fn why_not_permitted(&self) -> Error {
        let ours = rustix::process::geteuid().as_raw();
        let theirs: Vec<_> = self.field("Uid").unwrap_or("").split_ascii_whitespace().collect();
        let scope = procfs::read("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
        let needed = CAP_SYS_PTRACE.is_needed();
        let has_more = || {
            let ours = Self::ours().map_or(0, |status| status.capabilities("CapEff"));
            self.capabilities("CapPrm") & !ours != 0
        };
        let why = match scope.trim() {
            _ if self.number("TracerPid") != 0 => "somebody traces it".to_owned(),
            "3" => {
                "the sysctl kernel.yama.ptrace_scope is 3: nobody may trace anything until the next boot".to_owned()
            }
            _ if CAP_SYS_PTRACE.is_ours() => {
                "the kernel refuses, although this process has CAP_SYS_PTRACE: it belongs to a user namespace where that \
                 does not count, or a security module protects it"
                    .to_owned()
            }
            _ if theirs.iter().any(|uid| uid.parse() != Ok(ours)) => format!(
                "it belongs to uid {}, you are uid {ours}; become that user, or {needed}",
                theirs.first().unwrap_or(&"?")
            ),
            "2" => format!("the sysctl kernel.yama.ptrace_scope is 2; {needed}"),
            "1" => format!(
                "the sysctl kernel.yama.ptrace_scope is 1: only descendants may be traced; {needed}, or set it to 0"
            ),
            _ if has_more() => format!("it has capabilities that this process lacks; {needed}"),
            _ => format!("it is not dumpable, or in another user namespace; {needed}"),
        };
        refusal(self.pid, Errno::PERM, &why)
    }
}

/// An error that says why.
pub(super) fn refusal(pid: i32, errno: Errno, why: &str) -> Error {
    Error::Attach { pid, why: why.to_owned(), errno }
}
