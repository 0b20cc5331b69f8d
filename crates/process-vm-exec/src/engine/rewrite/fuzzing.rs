//! Recognising a site, and the stub for it, in text that may be anything.

use super::site::{Text, recognise};
use super::stub::{Jump, Page};
use crate::arch::x86_64::Registers;

/// Where the text of a fuzzed site is, and the page of its stub.
const TEXT: u64 = 0x40_0000;
const STUBS: u64 = 0x1000_0000;

/// Rewrites the site whose `syscall` ends `offset` bytes into `text`, in each way in which it can be.
///
/// # Panics
/// If something else than text would be changed, or what stands for it is not where it should be.
pub fn rewrite_site(text: &[u8], offset: u16, registers: &Registers) {
    let text = Text { start: TEXT, bytes: text };
    let registers = Registers { rip: TEXT + u64::from(offset), ..*registers };
    let rip = registers.rip;
    for form in recognise(text, &registers) {
        for jump in Jump::all(&form, text, rip) {
            let mut page = Page::new(STUBS);
            let Some(stub) = page.stub(text, rip, &jump) else { continue };
            assert!(stub.start >= page.start && stub.start + stub.bytes.len() as u64 <= page.end());
            let in_stub = stub.start..stub.start + stub.bytes.len() as u64;
            let in_text = text.start..text.end();
            let end = jump.at + stub.jump.len() as u64;
            assert!(text.get(jump.at..end).is_some(), "{:#x} to {end:#x}", jump.at);
            for (there, original) in &stub.original {
                assert!(in_stub.contains(there) || in_stub.end == *there, "{there:#x}");
                assert!(in_text.contains(original) || in_text.end == *original, "{original:#x}");
            }
            for (original, there) in &stub.moved {
                assert!(in_text.contains(original) && in_stub.contains(there), "{original:#x} to {there:#x}");
            }
        }
    }
}
