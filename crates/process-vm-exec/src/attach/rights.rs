//! Who may be attached to, and why not.

use rustix::io::Errno;

use crate::error::Error;
use crate::procfs;

/// What /proc/PID/status tells of a process (proc(5)).
#[derive(Debug)]
pub(super) struct Status {
    pid: i32,
    text: String,
}

impl Status {
    pub(super) fn of(pid: i32) -> Result<Self, Error> {
        match procfs::read(format!("/proc/{pid}/status")) {
            Ok(text) => Ok(Self { pid, text }),
            Err(error) => Err(match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::SRCH) | None => {
                    refusal(pid, Errno::SRCH, "there is no such process")
                }
                Some(errno) => refusal(pid, errno, "/proc/PID/status cannot be read"),
            }),
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'));
        self.text.lines().find(is_it).map(|line| line[name.len() + 1..].trim())
    }

    fn number(&self, name: &str) -> u64 {
        let first = self.field(name).and_then(|value| value.split_ascii_whitespace().next());
        first.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// Is it a thread of this process, that has not ended?
    pub(super) fn is_thread_of(&self, process: i32) -> bool {
        let has_ended = self.field("State").is_some_and(|state| state.starts_with(['Z', 'X']));
        self.number("Tgid") == process.unsigned_abs().into() && !has_ended
    }

    /// Does a seccomp filter judge its calls?
    pub(super) fn has_seccomp_filter(&self) -> bool {
        self.number("Seccomp") != 0
    }

    /// Refuses what no right would help with.
    pub(super) fn require_possible(&self) -> Result<(), Error> {
        let refuse = |errno, why: &str| Err(refusal(self.pid, errno, why));
        if self.pid == rustix::process::getpid().as_raw_nonzero().get() {
            return refuse(Errno::INVAL, "it is the calling process; call the functions themselves");
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
        let why = match scope.trim() {
            _ if self.number("TracerPid") != 0 => "somebody traces it".to_owned(),
            "3" => "the sysctl kernel.yama.ptrace_scope is 3: nobody may trace anything until the next boot".to_owned(),
            _ if ours != 0 && theirs.iter().any(|uid| uid.parse() != Ok(ours)) => format!(
                "it belongs to uid {}, you are uid {ours}; become that user, or root",
                theirs.first().unwrap_or(&"?")
            ),
            "2" => "the sysctl kernel.yama.ptrace_scope is 2: only CAP_SYS_PTRACE may trace; become root".to_owned(),
            "1" => "the sysctl kernel.yama.ptrace_scope is 1: only descendants may be traced; become root, or set it \
                    to 0"
                .to_owned(),
            _ => "it is not dumpable, or has capabilities or a user namespace that you lack; become root".to_owned(),
        };
        refusal(self.pid, Errno::PERM, &why)
    }
}

/// An error that says why.
pub(super) fn refusal(pid: i32, errno: Errno, why: &str) -> Error {
    Error::Attach { pid, why: why.to_owned(), errno }
}
