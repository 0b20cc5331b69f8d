//! Recognising a site, and the stub for it, in text that may be anything.

use super::site::{Text, recognise};
use super::stub::Page;
use crate::arch::x86_64::Registers;

/// Where the text of a fuzzed site is, and the page of its stub.
const TEXT: u64 = 0x40_0000;
const STUBS: u64 = 0x1000_0000;
/// A stub is not longer.
const LONGEST: usize = 64;

/// Rewrites the site whose `syscall` ends `offset` bytes into `text`, if it is one.
///
/// # Panics
/// If something else than text is changed, or what stands for it is not where it should be.
pub fn rewrite_site(text: &[u8], offset: u16, registers: &Registers, alone: bool) {
    let text = Text { start: TEXT, bytes: text };
    let registers = Registers { rip: TEXT + u64::from(offset), ..*registers };
    let Some(form) = recognise(text, &registers, alone) else { return };
    let mut page = Page::new(STUBS);
    let Some(stub) = page.stub(text, registers.rip, &form) else { return };
    assert!(stub.bytes.len() <= LONGEST, "{} bytes", stub.bytes.len());
    let in_stub = stub.start..stub.start + stub.bytes.len() as u64;
    let in_text = text.start..text.end();
    for (addr, bytes) in &stub.patches {
        assert!(
            text.get(*addr..addr + bytes.len() as u64).is_some(),
            "a patch of {} at {addr:#x}",
            bytes.len()
        );
    }
    for (there, original) in &stub.original {
        assert!(in_stub.contains(there) || in_stub.end == *there || in_text.contains(there), "{there:#x}");
        assert!(in_text.contains(original) || in_text.end == *original, "{original:#x}");
    }
    for (original, there) in &stub.moved {
        assert!(in_text.contains(original) && in_stub.contains(there), "{original:#x} to {there:#x}");
    }
}
