//! Stubs: the code, near a rewritten site, that stands for it and goes to the trampoline.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl};

use super::site::{Form, JUMP, SYSCALL, Text};
use crate::executor::{code, layout};
use crate::maps::Map;

/// Length of a page of stubs: room for some 1,500 sites.
pub(super) const PAGE_LEN: u64 = 64 << 10;

/// How far a `jmp rel32` may be from a stub: less than 2 GiB, with room for the page and the text itself.
const REACH: u64 = (1 << 31) - (64 << 20);

/// Memory for stubs. It begins with the trampoline's address.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) start: u64,
    next: u64,
}

/// A stub that is to be written, and how its addresses and the site's correspond.
#[derive(Debug)]
pub(super) struct Stub {
    pub(super) start: u64,
    pub(super) bytes: Vec<u8>,
    /// What to put at the site, and in between.
    pub(super) patches: Vec<(u64, Vec<u8>)>,
    /// Addresses in the stub, and where in the original text a context at that point is.
    pub(super) original: BTreeMap<u64, u64>,
    /// Addresses in the original text that have been overwritten, and where their instructions are now.
    pub(super) moved: BTreeMap<u64, u64>,
}

impl Page {
    pub(super) fn new(start: u64) -> Self {
        Self { start, next: start + 8 }
    }

    /// What the page begins with.
    pub(super) fn header() -> [u8; 8] {
        code::trampoline().to_le_bytes()
    }

    pub(super) fn end(&self) -> u64 {
        self.start + PAGE_LEN
    }

    /// Can a site at `addr` use it?
    pub(super) fn serves(&self, addr: u64) -> bool {
        const LONGEST: u64 = 64;
        self.end() - self.next >= LONGEST && self.start.abs_diff(addr) < REACH
    }

    /// The stub for the site whose `syscall` ends at `rip`; it takes the next free bytes.
    pub(super) fn stub(&mut self, text: Text<'_>, rip: u64, form: &Form) -> Option<Stub> {
        let syscall = rip - SYSCALL;
        let mut stub = Assembler::at(self.next);
        let mut patches = Vec::new();
        match form {
            Form::Before { at, moved } => {
                let mut next = *at;
                while next < moved.end {
                    next = stub.instruction(text, next)?;
                }
                stub.call(self.start, rip, syscall)?;
                patches.push((*at, jump(*at, self.next)?));
            }
            Form::Padding { padding } => {
                stub.call(self.start, rip, syscall)?;
                stub.original.insert(*padding, syscall);
                let distance = i8::try_from(padding.wrapping_sub(rip).cast_signed()).ok()?;
                patches.push((*padding, jump(*padding, self.next)?));
                patches.push((syscall, vec![0xeb, distance.cast_unsigned()]));
            }
            Form::After { moved } => {
                let continuation = self.next + CALL;
                stub.call(self.start, continuation, syscall)?;
                let mut addresses = BTreeMap::new();
                for instruction in moved {
                    addresses.insert(instruction.start, stub.here());
                    stub.instruction(text, instruction.start)?;
                }
                let end = moved.last()?.end;
                stub.stands_for(end);
                stub.bytes(&jump(stub.here(), end)?);
                patches.push((syscall, jump(syscall, self.next)?));
                stub.moved = addresses;
            }
        }
        let start = self.next;
        self.next += (stub.code.len() as u64).next_multiple_of(8);
        Some(Stub { start, bytes: stub.code, patches, original: stub.original, moved: stub.moved })
    }
}

/// Length of what [`Assembler::call`] writes.
const CALL: u64 = 7 + 6;

struct Assembler {
    start: u64,
    code: Vec<u8>,
    original: BTreeMap<u64, u64>,
    moved: BTreeMap<u64, u64>,
}

impl Assembler {
    fn at(start: u64) -> Self {
        Self { start, code: Vec::new(), original: BTreeMap::new(), moved: BTreeMap::new() }
    }

    fn here(&self) -> u64 {
        self.start + self.code.len() as u64
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// A context that is here is at `addr` of the original text.
    fn stands_for(&mut self, addr: u64) {
        self.original.insert(self.here(), addr);
    }

    /// The instruction at `from` in the guest's text, doing here what it does there. Says what comes behind it there.
    fn instruction(&mut self, text: Text<'_>, from: u64) -> Option<u64> {
        self.stands_for(from);
        let mut decoder = Decoder::with_ip(64, text.get(from..text.end())?, from, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let offsets = decoder.get_constant_offsets(&instruction);
        let next = instruction.next_ip();
        let mut bytes = text.get(from..next)?.to_vec();
        if instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near() {
            if instruction.flow_control() == FlowControl::UnconditionalBranch {
                self.bytes(&[0xe9]);
            } else {
                self.bytes(&[0x0f, 0x80 | (instruction.condition_code() as u8 - 1)]);
            }
            self.bytes(&relative(self.here() + 4, instruction.near_branch_target())?);
            return Some(next);
        }
        if instruction.is_ip_rel_memory_operand() {
            let end = self.here() + bytes.len() as u64;
            let at = offsets.displacement_offset();
            let distance = relative(end, instruction.ip_rel_memory_address())?;
            bytes.get_mut(at..at + distance.len())?.copy_from_slice(&distance);
        }
        self.bytes(&bytes);
        Some(next)
    }

    /// `lea return_to(%rip), %r11; jmp *trampoline(%rip)`
    fn call(&mut self, page: u64, return_to: u64, syscall: u64) -> Option<()> {
        self.stands_for(syscall);
        self.bytes(&[0x4c, 0x8d, 0x1d]);
        self.bytes(&relative(self.here() + 4, return_to)?);
        self.stands_for(syscall);
        self.bytes(&[0xff, 0x25]);
        self.bytes(&relative(self.here() + 4, page)?);
        Some(())
    }
}

/// `jmp rel32` at `from` to `to`.
fn jump(from: u64, to: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0xe9];
    bytes.extend(relative(from + JUMP, to)?);
    Some(bytes)
}

/// The distance from the end of an instruction to `to`.
fn relative(end: u64, to: u64) -> Option<[u8; 4]> {
    i32::try_from(to.wrapping_sub(end).cast_signed()).ok().map(i32::to_le_bytes)
}

/// Where a page of stubs for a site at `addr` can be: free, within reach, and away from what else grows (`brk`
/// upwards behind a program, other mappings downwards).
pub(super) fn place_for_page(maps: &[Map], addr: u64) -> Option<u64> {
    const MARGIN: u64 = 1 << 20;
    const LOWEST: u64 = 64 << 10;
    let text = maps.iter().find(|map| map.range.contains(&addr))?.range.start & !(MARGIN - 1);
    let below = [16u64, 64, 256, 1024].map(|mib| text.checked_sub(mib << 20));
    let above = [1536u64, 1024, 512].map(|mib| text.checked_add(mib << 20));
    // A program at 4 MiB has little below; it is closer to its own text than anything that grows.
    let low = [Some(LOWEST)];
    below.into_iter().chain(above).chain(low).flatten().find(|&start| {
        let margin = if start == LOWEST { 0 } else { MARGIN };
        let wanted = start.saturating_sub(margin)..start + PAGE_LEN + margin;
        start >= LOWEST
            && start.abs_diff(addr) < REACH
            && !layout::overlaps_region(wanted.start, wanted.end - wanted.start)
            && wanted.end < crate::arch::x86_64::USER_END
            && maps.iter().all(|map| map.range.end <= wanted.start || map.range.start >= wanted.end)
    })
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Instruction};

    use super::*;

    const SITE: u64 = 0x40_1000;
    const PAGE: u64 = 0x1_0000;

    /// The stub's instructions for a site in `code`, whose `syscall` ends `rip` bytes behind its start.
    fn stub_of(code: &[u8], rip: u64, form: &Form) -> (Stub, Vec<Instruction>) {
        let text = Text { start: SITE, bytes: code };
        let stub = Page::new(PAGE).stub(text, SITE + rip, form).expect("room for a stub");
        let decoded = Text { start: stub.start, bytes: &stub.bytes }.decode(stub.start).collect();
        (stub, decoded)
    }

    #[test]
    fn what_stands_before_a_call_keeps_its_constants_and_its_addresses() {
        // mov $1,%eax; mov 0x100(%rip),%rdi; syscall
        let code = [0xb8, 1, 0, 0, 0, 0x48, 0x8b, 0x3d, 0, 1, 0, 0, 0x0f, 0x05];
        let (stub, decoded) = stub_of(&code, 14, &Form::Before { at: SITE, moved: SITE..SITE + 12 });
        assert_eq!(decoded[0].immediate(1), 1);
        assert_eq!(decoded[1].ip_rel_memory_address(), SITE + 12 + 0x100);
        assert_eq!(stub.original[&decoded[1].ip()], SITE + 5);
        // The call goes on behind the `syscall`.
        assert_eq!(decoded[2].ip_rel_memory_address(), SITE + 14);
        assert_eq!(stub.original[&decoded[2].ip()], SITE + 12);
        assert_eq!(stub.patches.len(), 1);
        assert_eq!((stub.patches[0].0, stub.patches[0].1.len()), (SITE, 5));
    }

    #[test]
    fn branches_keep_their_conditions_and_their_targets() {
        for condition in 0..16 {
            // syscall; jcc +0x10; nop
            let code = [0x0f, 0x05, 0x70 | condition, 0x10, 0x90];
            let (stub, decoded) =
                stub_of(&code, 2, &Form::After { moved: vec![SITE + 2..SITE + 4, SITE + 4..SITE + 5] });
            let original = Text { start: SITE, bytes: &code }.decode(SITE + 2).next().unwrap();
            assert_eq!(decoded[2].condition_code(), original.condition_code());
            assert_eq!(decoded[2].near_branch_target(), SITE + 4 + 0x10);
            assert_eq!(stub.moved[&(SITE + 2)], decoded[2].ip());
            // Behind it what was behind it, and the way back.
            assert_eq!(decoded[3].code(), Code::Nopd);
            assert_eq!(decoded[4].near_branch_target(), SITE + 5);
        }
        // syscall; jmp -0x20 (rel32)
        let code = [0x0f, 0x05, 0xe9, 0xe0, 0xff, 0xff, 0xff];
        let (_, decoded) =
            stub_of(&code, 2, &Form::After { moved: std::iter::once(SITE + 2..SITE + 7).collect() });
        assert_eq!(decoded[2].code(), Code::Jmp_rel32_64);
        assert_eq!(decoded[2].near_branch_target(), SITE + 7 - 0x20);
    }
}
