//! Finding a kernel's complaints among its messages.

/// Found anywhere in a message.
const ANYWHERE: &[&str] = &[
    "BUG:",
    "WARNING:",
    "KASAN:",
    "UBSAN:",
    "Oops",
    "Kernel panic",
    "kernel BUG at",
    "Bad page ",
    "bad page ",
    "bad: scheduling",
    "scheduling while atomic",
    "sleeping function called",
    "DEBUG_LOCKS_WARN_ON",
    "blocked for more than",
    "self-detected stall",
    "detected stalls",
    "rcu_preempt kthread starved",
    "soft lockup",
    "hard LOCKUP",
    "refcount_t:",
    "corrupted stack",
    "Bad rss-counter state",
    "non-zero pgtables_bytes",
];
/// What a message starts with. User programs cause messages that have these words further on.
const AT_THE_START: &[&str] =
    &["general protection fault", "stack segment", "double fault", "list_add", "list_del"];

/// The message in `line`, if it is a complaint: an oops, a warning, a report of a checker, a stall.
pub(super) fn complaint(line: &str) -> Option<&str> {
    let message = message(line);
    let is_complaint = ANYWHERE.iter().any(|words| message.contains(words))
        || AT_THE_START.iter().any(|words| message.starts_with(words));
    is_complaint.then_some(message)
}

/// `line` without the time that the kernel writes before a message.
fn message(line: &str) -> &str {
    let time_ends = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    time_ends.map_or(line, |(_, message)| message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_of_the_kernel_are_found() {
        for line in [
            "[    1.234567] BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "[    1.234567] WARNING: CPU: 0 PID: 1 at kernel/fork.c:1 f+0x1/0x2",
            "[    1.234567] WARNING: possible circular locking dependency detected",
            "[    1.234567] Oops: Oops: 0002 [#1] PREEMPT SMP",
            "[    1.234567] general protection fault, probably for non-canonical address 0x1: 0000 [#1]",
            "[   12.345678] INFO: task run:55 blocked for more than 20 seconds.",
            "[   12.345678] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "Kernel panic - not syncing: Attempted to kill init!",
        ] {
            assert!(complaint(line).is_some(), "{line}");
        }
    }

    #[test]
    fn what_programs_cause_is_no_complaint() {
        for line in [
            "[    1.234567] traps: fuzz[77] general protection fault ip:401000 sp:7ffc0000 error:0 in fuzz[401000+1000]",
            "[    1.234567] edges[77]: segfault at 0 ip 0000000000401000 sp 00007ffc00000000 error 4",
            "[    1.234567] Out of memory: Killed process 99 (oom) total-vm:1000kB",
            "[    0.000000] Linux version 6.12.117 (xtask@localhost)",
        ] {
            assert_eq!(complaint(line), None, "{line}");
        }
    }
}
