//! What the supervisor reads of an executor's mailbox: registers, calls, faults, signals, extended state.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use process_vm_exec::fuzzing::Mailbox;

static MAILBOX: LazyLock<Mailbox> = LazyLock::new(Mailbox::default);

/// As far as anything is read: to the end of the extended state. The first bytes of an input say what is where, as
/// most of a mailbox is nothing.
const LEN: usize = 0x2000;

fuzz_target!(|input: (u32, Vec<(u16, u64)>)| {
    let (word, writes) = input;
    let mut bytes = vec![0; LEN];
    for (at, value) in writes {
        let at = usize::from(at) % (LEN / 8) * 8;
        bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }
    // The last command's sequence number, and any kind of report.
    MAILBOX.read(&bytes, if word % 8 == 0 { word } else { 0x100 | word >> 3 & 0xff });
});
