//! Signals: what /proc/PID/status tells of them, and what only the process itself can: its handlers.

use appkernel::calls::{FieldValue, SIGACTION, name_of_signal};
use process_vm_exec::{Call, Result, Sysno};
use procfs::process::Status;
use serde::Serialize;

use super::memory::Memory;
use crate::live::{Calls, with_scratch};

/// The highest signal (signal(7)).
const LAST: u32 = 64;
/// The size of a set of signals.
const SIGSET_SIZE: u64 = 8;

/// Sets of signals that the process has as a whole.
#[derive(Debug, Serialize)]
pub(crate) struct Signals {
    pub(crate) caught: Vec<String>,
    pub(crate) ignored: Vec<String>,
    /// Those that wait for any thread to take them.
    pub(crate) pending: Vec<String>,
    /// How many are queued for the process's user, and how many may be.
    pub(crate) queued: u64,
    pub(crate) queue_limit: u64,
}

/// What the process does at a signal (sigaction(2)); signals with the default action are left out.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Handler {
    pub(crate) signal: String,
    /// `ignore`, or the address of a function.
    pub(crate) action: String,
    /// The file that the function is in, and where.
    pub(crate) place: Option<String>,
    pub(crate) flags: String,
    /// What is blocked meanwhile.
    pub(crate) mask: String,
}

impl Signals {
    pub(crate) fn of(status: &Status) -> Self {
        let (queued, queue_limit) = status.sigq;
        Self {
            caught: names(status.sigcgt),
            ignored: names(status.sigign),
            pending: names(status.shdpnd),
            queued,
            queue_limit,
        }
    }
}

/// The members of a set as /proc has it: bit 0 is signal 1.
pub(crate) fn names(set: u64) -> Vec<String> {
    (1..=LAST).filter(|signal| set >> (signal - 1) & 1 != 0).map(name).collect()
}

pub(super) fn name(signal: u32) -> String {
    let known = i32::try_from(signal).ok().and_then(name_of_signal);
    known.map_or_else(|| signal.to_string(), str::to_owned)
}

/// Asks the space, in one batch, what is done at each signal.
pub(crate) fn handlers(space: &impl Calls, memory: Option<&Memory>) -> Result<Vec<Handler>> {
    let len = SIGACTION.len as u64;
    with_scratch(space, u64::from(LAST) * len, |scratch| {
        let at = |signal: u32| scratch + u64::from(signal - 1) * len;
        let calls: Vec<_> = (1..=LAST)
            .map(|signal| {
                Call::with_args(Sysno::rt_sigaction, [signal.into(), 0, at(signal), SIGSET_SIZE, 0, 0])
            })
            .collect();
        let results = space.make(&calls)?;
        let mut handlers = Vec::new();
        for (signal, result) in (1..=LAST).zip(results) {
            let mut record = vec![0; SIGACTION.len];
            if result.is_ok() {
                space.read(at(signal), &mut record)?;
                handlers.extend(Handler::new(signal, &record, memory));
            }
        }
        Ok(handlers)
    })
}

impl Handler {
    /// Reads a `struct sigaction` of the kernel; `None` for the default action.
    fn new(signal: u32, record: &[u8], memory: Option<&Memory>) -> Option<Self> {
        let field = |name: &str| {
            let field = SIGACTION.fields.iter().find(|field| field.name == name)?;
            field.value(record)
        };
        let words = |name| field(name).as_ref().map(FieldValue::to_string).unwrap_or_default();
        let action = words("sa_handler_kernel");
        let address = u64::from_str_radix(action.strip_prefix("0x")?, 16).ok()?;
        let action = match usize::try_from(address) {
            Ok(libc::SIG_DFL) => return None,
            Ok(libc::SIG_IGN) => "ignore".to_owned(),
            _ => action,
        };
        Some(Self {
            signal: name(signal),
            action,
            place: memory.and_then(|memory| memory.place(address)),
            flags: words("sa_flags"),
            mask: words("sa_mask"),
        })
    }
}

#[cfg(test)]
mod tests {
    use process_vm_exec::{AddressSpace, ServiceCalls};

    use super::*;

    #[test]
    fn handlers_are_read_from_the_kernels_record() {
        let record = [0x5555_0000u64, 0x1400_0004, 0x5555_1000, 1 << 1].map(u64::to_le_bytes).concat();
        let handler = Handler::new(15, &record, None).expect("there is one");
        assert_eq!(
            handler,
            Handler {
                signal: "SIGTERM".into(),
                action: "0x55550000".into(),
                place: None,
                flags: "SA_SIGINFO|SA_RESTART|SA_RESTORER".into(),
                mask: "[SIGINT]".into(),
            }
        );
        assert_eq!(Handler::new(15, &[0; 32], None), None);
        let ignored = [1u64, 0, 0, 0].map(u64::to_le_bytes).concat();
        assert_eq!(Handler::new(34, &ignored, None).unwrap().action, "ignore");
    }

    #[test]
    fn one_batch_asks_for_all_signals_and_leaves_nothing_mapped() {
        let space = AddressSpace::builder().service_calls(ServiceCalls::All).create().unwrap();
        let maps = || {
            std::fs::read_to_string(format!("/proc/{}/maps", space.pid().expect("a live space").as_raw_pid()))
                .unwrap()
        };
        let before = maps();
        let found = handlers(&space, None).unwrap();
        // The space's own: its executors are told of system calls by SIGSYS.
        assert!(found.iter().any(|handler| handler.signal == "SIGSYS"), "{found:?}");
        assert!(found.iter().all(|handler| handler.signal != "SIGKILL"));
        assert_eq!(maps(), before);
    }

    #[test]
    fn sets_are_named_and_numbered() {
        assert_eq!(names(1 << 1 | 1 << 63), ["SIGINT", "64"]);
    }
}
