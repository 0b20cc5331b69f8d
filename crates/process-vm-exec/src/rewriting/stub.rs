//! Stubs: the code, near a rewritten site, that stands for it and goes to the trampoline.

use std::collections::BTreeMap;
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions};

use super::INT3;
use super::site::{Form, JUMP, SYSCALL, Text};
use crate::executor::code;
use crate::executor::region::Region;

/// Length of a page of stubs: room for some 1,500 sites. A jump whose second byte is given finds its stub in any page.
pub(super) const PAGE_LEN: u64 = 64 << 10;

/// How far a `jmp rel32` may be from a stub: less than 2 GiB, with room for the page and the text itself.
const REACH: u64 = (1 << 31) - (64 << 20);

/// Memory for stubs. It begins with the trampoline's address. What has been a stub stays one: a context may be there.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) start: u64,
    /// Where the next stub goes that may be anywhere.
    next: u64,
    /// The stubs: their ends by their starts.
    taken: BTreeMap<u64, u64>,
}

/// A stub that is to be written, and how its addresses and the site's correspond.
#[derive(Clone, Debug)]
pub(super) struct Stub {
    pub(super) start: u64,
    pub(super) bytes: Vec<u8>,
    /// What to put at the site.
    pub(super) jump: Vec<u8>,
    /// Addresses in the stub, and where in the original text a context at that point is.
    pub(super) original: BTreeMap<u64, u64>,
    /// Addresses in the original text that have been overwritten, and where their instructions are now.
    pub(super) moved: BTreeMap<u64, u64>,
}

/// A jump that can take the place of a site.
#[derive(Clone, Debug)]
pub(super) struct Jump {
    pub(super) at: u64,
    /// The instructions that move to the stub: with those of [`Form::Behind`] a `syscall` before them.
    moved: Vec<Range<u64>>,
    /// Where overwritten instructions begin, the first of them at `at`.
    pub(super) breakpoints: Vec<u64>,
    /// Has it a prefix that does nothing? Then its distance is one byte farther behind.
    has_prefix: bool,
    is_behind: bool,
    /// What the moved instructions are relative to.
    bases: Vec<u64>,
}

impl Jump {
    /// The jumps that a site of this form can become, the most easily placed first.
    pub(super) fn all(form: &Form, text: Text<'_>, rip: u64) -> Vec<Self> {
        match form {
            Form::Before { at, moved } => {
                let moved: Vec<_> = text
                    .decode(*at)
                    .map(|instruction| instruction.ip()..instruction.next_ip())
                    .take_while(|instruction| instruction.end <= moved.end)
                    .collect();
                let bases = bases(text, &moved);
                let breakpoints = vec![*at];
                vec![Self { at: *at, moved, breakpoints, has_prefix: false, is_behind: false, bases }]
            }
            Form::Behind { moved } => {
                let at = rip - SYSCALL;
                let jump = |has_prefix| {
                    let end = at + JUMP + u64::from(has_prefix);
                    let moved: Vec<_> = moved.iter().filter(|moved| moved.start < end).cloned().collect();
                    let breakpoints =
                        std::iter::once(at).chain(moved.iter().map(|moved| moved.start)).collect();
                    let is_whole = moved.last().is_some_and(|last| last.end >= end);
                    let bases = bases(text, &moved);
                    is_whole.then_some(Self { at, moved, breakpoints, has_prefix, is_behind: true, bases })
                };
                [jump(false), jump(true)].into_iter().flatten().collect()
            }
        }
    }

    /// Can it lead into a page at `start`, and what it moves there reach all that it is about?
    pub(super) fn reaches(&self, start: u64) -> bool {
        self.bases.iter().chain([&self.at]).all(|&base| start.abs_diff(base) < REACH)
    }

    pub(super) fn end(&self) -> u64 {
        self.at + JUMP + u64::from(self.has_prefix)
    }

    /// All that is overwritten or moved.
    pub(super) fn range(&self) -> Range<u64> {
        self.at..self.moved.last().map_or(self.end(), |last| last.end.max(self.end()))
    }

    /// Which bytes of its distance have to be a breakpoint.
    pub(super) fn given(&self) -> [bool; 4] {
        let distance = self.end() - 4;
        [0, 1, 2, 3].map(|byte| self.breakpoints.contains(&(distance + byte)))
    }

    /// The distances whose upper half is this, each as the address that it leads to.
    fn targets(&self, upper: [u8; 2]) -> impl Iterator<Item = u64> + use<> {
        let [lowest, second, _, _] = self.given();
        let end = self.end();
        values(second).flat_map(move |second| {
            values(lowest).map(move |lowest| {
                let distance = i32::from_le_bytes([lowest, second, upper[0], upper[1]]);
                end.wrapping_add_signed(i64::from(distance))
            })
        })
    }

    /// The addresses in `range` that it can lead to.
    fn targets_in(&self, range: Range<u64>) -> impl Iterator<Item = u64> + use<> {
        let [.., third, highest] = self.given();
        let upper = |addr: u64| {
            let distance = i32::try_from(addr.wrapping_sub(self.end()).cast_signed()).ok()?;
            let [_, _, upper @ ..] = distance.to_le_bytes();
            let fits = |given: bool, byte| !given || byte == INT3;
            (fits(third, upper[0]) && fits(highest, upper[1])).then_some(upper)
        };
        // A page meets two upper halves.
        let (first, last) = (upper(range.start), upper(range.end - 1));
        let last = last.filter(|_| last != first);
        let targets: Vec<_> = first.into_iter().chain(last).map(|upper| self.targets(upper)).collect();
        targets.into_iter().flatten().filter(move |target| range.contains(target))
    }

    fn bytes(&self, to: u64) -> Option<Vec<u8>> {
        // Of an operand's size, which a jump has only one of.
        const REX_W: u8 = 0x48;
        let prefix = self.has_prefix.then_some(REX_W);
        let distance = relative(self.end(), to)?;
        Some(prefix.into_iter().chain([0xe9]).chain(distance).collect())
    }
}

/// The addresses that some instructions are about by their distance.
fn bases(text: Text<'_>, instructions: &[Range<u64>]) -> Vec<u64> {
    let decoded = instructions.iter().filter_map(|range| text.decode(range.start).next());
    decoded
        .filter_map(|instruction| {
            if instruction.is_ip_rel_memory_operand() {
                Some(instruction.ip_rel_memory_address())
            } else {
                let is_branch = instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near();
                is_branch.then(|| instruction.near_branch_target())
            }
        })
        .collect()
}

/// What a byte can be, that is given or not.
pub(super) fn values(is_given: bool) -> std::ops::RangeInclusive<u8> {
    if is_given { INT3..=INT3 } else { 0..=u8::MAX }
}

impl Page {
    pub(super) fn new(start: u64) -> Self {
        Self { start, next: start + 8, taken: BTreeMap::new() }
    }

    /// What the page begins with.
    pub(super) fn header(region: Region) -> [u8; 8] {
        code::trampoline(region).to_le_bytes()
    }

    pub(super) fn end(&self) -> u64 {
        self.start + PAGE_LEN
    }

    /// The stub for the site whose `syscall` ends at `rip`, if there is room for it where `jump` can lead.
    pub(super) fn stub(&mut self, text: Text<'_>, rip: u64, jump: &Jump) -> Option<Stub> {
        if !jump.reaches(self.start) {
            return None;
        }
        // Its length is the same wherever it is.
        let len = self.assemble(self.start, text, rip, jump)?.bytes.len() as u64;
        let is_anywhere = jump.given() == [false; 4];
        let start = if is_anywhere {
            self.next_free(len)
        } else {
            let mut targets = jump.targets_in(self.start + 8..self.end());
            targets.find(|&start| start + len <= self.end() && self.taken_in(start..start + len).is_none())
        }?;
        if is_anywhere {
            self.next = start + len;
        }
        self.taken.insert(start, start + len);
        self.assemble(start, text, rip, jump)
    }

    /// The next place that is free.
    fn next_free(&self, len: u64) -> Option<u64> {
        let mut start = self.next.next_multiple_of(8);
        while let Some(end) = self.taken_in(start..start + len) {
            start = end.next_multiple_of(8);
        }
        (start + len <= self.end()).then_some(start)
    }

    /// The end of a stub in `range`.
    fn taken_in(&self, range: Range<u64>) -> Option<u64> {
        self.taken.range(..range.end).next_back().map(|(_, &end)| end).filter(|&end| end > range.start)
    }

    fn assemble(&self, start: u64, text: Text<'_>, rip: u64, jump: &Jump) -> Option<Stub> {
        let mut stub = Assembler::at(start);
        let mut moved = BTreeMap::new();
        let syscall = rip - SYSCALL;
        if jump.is_behind {
            stub.call(self.start, start + CALL, syscall)?;
            // A `syscall` leaves the address of what is behind it in rcx; the trampoline leaves this one.
            stub.stands_for(rip);
            stub.bytes(&[0x48, 0x8d, 0x0d]);
            stub.bytes(&relative(stub.here() + 4, rip)?);
            for instruction in &jump.moved {
                moved.insert(instruction.start, stub.here());
                stub.instruction(text, instruction.start)?;
            }
            let end = jump.moved.last()?.end;
            stub.stands_for(end);
            stub.bytes(&[0xe9]);
            stub.bytes(&relative(stub.here() + 4, end)?);
        } else {
            for instruction in &jump.moved {
                stub.instruction(text, instruction.start)?;
            }
            stub.call(self.start, rip, syscall)?;
        }
        let jump = jump.bytes(start)?;
        Some(Stub { start, bytes: stub.code, jump, original: stub.original, moved })
    }
}

/// Length of what [`Assembler::call`] writes.
const CALL: u64 = 7 + 6;

struct Assembler {
    start: u64,
    code: Vec<u8>,
    original: BTreeMap<u64, u64>,
}

impl Assembler {
    fn at(start: u64) -> Self {
        Self { start, code: Vec::new(), original: BTreeMap::new() }
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

    /// The instruction at `from` in the guest's text, doing here what it does there.
    fn instruction(&mut self, text: Text<'_>, from: u64) -> Option<()> {
        self.stands_for(from);
        let mut decoder = Decoder::with_ip(64, text.get(from..text.end())?, from, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let offsets = decoder.get_constant_offsets(&instruction);
        let next = instruction.next_ip();
        let mut bytes = text.get(from..next)?.to_vec();
        if instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near() {
            match instruction.condition_code() as u8 {
                // A condition's number is one less than iced's; none is 0.
                0 => self.bytes(&[0xe9]),
                condition => self.bytes(&[0x0f, 0x80 | (condition - 1)]),
            }
            self.bytes(&relative(self.here() + 4, instruction.near_branch_target())?);
            return Some(());
        }
        if instruction.is_ip_rel_memory_operand() {
            let end = self.here() + bytes.len() as u64;
            let at = offsets.displacement_offset();
            let distance = relative(end, instruction.ip_rel_memory_address())?;
            bytes.get_mut(at..at + distance.len())?.copy_from_slice(&distance);
        }
        self.bytes(&bytes);
        Some(())
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

/// The distance from the end of an instruction to `to`.
fn relative(end: u64, to: u64) -> Option<[u8; 4]> {
    i32::try_from(to.wrapping_sub(end).cast_signed()).ok().map(i32::to_le_bytes)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Instruction};

    use super::*;
    use crate::rewriting::Places;

    const SITE: u64 = 0x40_1000;
    const PAGE: u64 = 0x1000_0000;

    fn decode(stub: &Stub) -> Vec<Instruction> {
        Text { start: stub.start, bytes: &stub.bytes }.decode(stub.start).collect()
    }

    /// The instructions of the first stub for a site in `code`, whose `syscall` ends `rip` bytes behind its start.
    fn stub_of(code: &[u8], rip: u64, form: &Form) -> (Stub, Vec<Instruction>) {
        let text = Text { start: SITE, bytes: code };
        let jump = Jump::all(form, text, SITE + rip).into_iter().next().expect("a jump");
        let stub = Page::new(PAGE).stub(text, SITE + rip, &jump).expect("room for a stub");
        let decoded = decode(&stub);
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
        assert_eq!(stub.jump.len(), 5);
    }

    #[test]
    fn branches_keep_their_conditions_and_their_targets() {
        for condition in 0..16 {
            // syscall; jcc +0x10; mov $1,%ebx
            let code = [0x0f, 0x05, 0x70 | condition, 0x10, 0xbb, 1, 0, 0, 0];
            let moved = vec![SITE + 2..SITE + 4, SITE + 4..SITE + 9];
            let text = Text { start: SITE, bytes: &code };
            let form = Form::Behind { moved };
            let jump = &Jump::all(&form, text, SITE + 2)[1];
            let start = place_for(jump).expect("a place");
            let stub = Page::new(start).stub(text, SITE + 2, jump).expect("room for a stub");
            let decoded = decode(&stub);
            let original = text.decode(SITE + 2).next().unwrap();
            assert_eq!(decoded[3].condition_code(), original.condition_code());
            assert_eq!(decoded[3].near_branch_target(), SITE + 4 + 0x10);
            assert_eq!(stub.moved[&(SITE + 2)], decoded[3].ip());
            // Behind it what was behind it, and the way back.
            assert_eq!(decoded[4].code(), Code::Mov_r32_imm32);
            assert_eq!(decoded[5].near_branch_target(), SITE + 9);
        }
        // syscall; jmp -0x20 (rel32)
        let code = [0x0f, 0x05, 0xe9, 0xe0, 0xff, 0xff, 0xff];
        let form = Form::Behind { moved: std::iter::once(SITE + 2..SITE + 7).collect() };
        let (_, decoded) = stub_of(&code, 2, &form);
        // The call comes back behind itself, where rcx becomes what the `syscall` leaves there.
        assert_eq!(decoded[0].ip_rel_memory_address(), decoded[2].ip());
        assert_eq!((decoded[2].code(), decoded[2].ip_rel_memory_address()), (Code::Lea_r64_m, SITE + 2));
        assert_eq!(decoded[3].code(), Code::Jmp_rel32_64);
        assert_eq!(decoded[3].near_branch_target(), SITE + 7 - 0x20);
    }

    /// All ways of dividing the bytes behind a `syscall` into instructions.
    fn divisions(len: usize) -> Vec<Vec<usize>> {
        if len == 0 {
            return vec![Vec::new()];
        }
        let first =
            |first: usize| divisions(len - first).into_iter().map(move |rest| [vec![first], rest].concat());
        (1..=len).flat_map(first).collect()
    }

    #[test]
    fn a_jump_is_a_breakpoint_wherever_an_instruction_began() {
        for lengths in divisions(4) {
            // push %rax with prefixes that do nothing
            let behind = lengths.iter().flat_map(|&len| [vec![0x2e; len - 1], vec![0x50]].concat());
            let code: Vec<u8> = [0x0f, 0x05].into_iter().chain(behind).collect();
            let text = Text { start: SITE, bytes: &code };
            let moved = text.decode(SITE + 2).map(|moved| moved.ip()..moved.next_ip()).collect();
            for jump in Jump::all(&Form::Behind { moved }, text, SITE + 2) {
                // Breakpoints come and go with the jump.
                assert!(jump.breakpoints.iter().all(|at| (SITE..jump.end()).contains(at)), "{jump:?}");
                let start = place_for(&jump).unwrap_or(SITE.wrapping_sub(0x3333_4000));
                let Some(stub) = Page::new(start).stub(text, SITE + 2, &jump) else {
                    // Where each byte is given, the place is a matter of luck.
                    assert!(jump.given()[2..] == [true, true] || jump.given()[3], "{jump:?}");
                    continue;
                };
                let patch = Text { start: SITE, bytes: &stub.jump };
                assert_eq!(
                    patch.decode(SITE).next().unwrap().near_branch_target(),
                    stub.start,
                    "{lengths:?}"
                );
                let mut at = SITE + 2;
                for len in &lengths {
                    if let Some(&[byte]) = patch.get(at..at + 1) {
                        assert_eq!(byte, INT3, "{lengths:?}");
                        assert!(stub.moved.contains_key(&at));
                    }
                    at += *len as u64;
                }
            }
        }
    }

    #[test]
    fn stubs_of_many_sites_do_not_overlap() {
        let mut page = Page::new(PAGE);
        let mut ends = BTreeMap::new();
        for site in 0..2000u64 {
            let start = SITE + 8 * site;
            // syscall; cmp $-4095,%rax, whose stub has to be at certain places; or mov $1,%eax; syscall, whose may be anywhere.
            let (code, rip, form) = if site % 2 == 0 {
                let moved = std::iter::once(start + 2..start + 8).collect();
                (&[0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff][..], start + 2, Form::Behind { moved })
            } else {
                (
                    &[0xb8, 1, 0, 0, 0, 0x0f, 0x05][..],
                    start + 7,
                    Form::Before { at: start, moved: start..start + 5 },
                )
            };
            let text = Text { start, bytes: code };
            let jump = Jump::all(&form, text, rip).into_iter().next().expect("a jump");
            if let Some(stub) = page.stub(text, rip, &jump) {
                assert_eq!(ends.insert(stub.start, stub.start + stub.bytes.len() as u64), None);
            }
        }
        assert!(ends.len() > 1200, "{} stubs", ends.len());
        assert!(ends.iter().zip(ends.iter().skip(1)).all(|((_, end), (next, _))| end <= next));
        assert!(ends.iter().all(|(&start, &end)| start >= PAGE + 8 && end <= PAGE + PAGE_LEN));
    }

    /// The best place for a page of stubs when there is nothing but the site's page.
    fn place_for(jump: &Jump) -> Option<u64> {
        let is_free = |start: &u64| start.abs_diff(SITE) > PAGE_LEN;
        Places::new(vec![jump.clone()], vec![Region::DEFAULT.range()]).near(SITE).find(is_free)
    }
}
