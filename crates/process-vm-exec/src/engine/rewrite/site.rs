//! Recognising call sites: what can be put in place of a `syscall` instruction that has just trapped.
//!
//! Three forms, best first. In each, whatever else jumps to an instruction of the site still finds one:
//!
//! - [`Form::Before`]: a `mov $imm, %reg` or `lea` of at least five bytes stands before the `syscall`; a `jmp rel32`
//!   replaces it, and what follows it stays. Code that jumps there, or to the `syscall`, traps as before.
//! - [`Form::Padding`]: a `jmp rel8` replaces the `syscall` alone, to a `jmp rel32` in bytes that are never executed.
//! - [`Form::After`]: a `jmp rel32` replaces the `syscall` and what follows it, often the `cmp` that looks for an
//!   error and its branch, if nothing nearby jumps in between.

use std::ops::Range;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

use crate::arch::x86_64::Registers;

/// Length of `syscall`.
pub(super) const SYSCALL: u64 = 2;
/// Length of `jmp rel32`.
pub(super) const JUMP: u64 = 5;
/// Length of `jmp rel8`.
const SHORT_JUMP: u64 = 2;
/// How far on either side of a site code is looked at.
pub(super) const WINDOW: u64 = 2048;

/// How a site can be rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Replace the instruction at `at`; it and all others up to the `syscall` are `moved`.
    Before { at: u64, moved: Range<u64> },
    /// Replace the `syscall`, by way of the padding at `padding`.
    Padding { padding: u64 },
    /// Replace the `syscall` and these instructions behind it, each with its address.
    After { moved: Vec<Range<u64>> },
}

/// A stretch of code, and where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    pub(super) start: u64,
    pub(super) bytes: &'a [u8],
}

impl<'a> Text<'a> {
    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub(super) fn get(&self, range: Range<u64>) -> Option<&'a [u8]> {
        let index = |addr: u64| usize::try_from(addr.checked_sub(self.start)?).ok();
        self.bytes.get(index(range.start)?..index(range.end)?)
    }

    /// The instructions from `from` on, as a straight sweep finds them.
    pub(super) fn decode(&self, from: u64) -> impl Iterator<Item = Instruction> + use<'a> {
        let bytes = self.get(from..self.end()).unwrap_or(&[]);
        let mut decoder = Decoder::with_ip(64, bytes, from, DecoderOptions::NONE);
        std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
    }
}

/// The form for the site whose `syscall` ends at `registers.rip`, which has just trapped with these registers.
/// `alone` says that no other context runs in the space.
pub(super) fn recognise(text: Text<'_>, registers: &Registers, alone: bool) -> Option<Form> {
    let syscall = registers.rip - SYSCALL;
    if text.get(syscall..registers.rip)? != [0x0f, 0x05] {
        return None;
    }
    let run = run_before(text, syscall);
    if run.is_empty() {
        // The `syscall` may be part of another instruction as well: it stays.
        return None;
    }
    let before = before(&run, registers);
    // Where a loop or a shared tail jumps past the instruction that would be replaced, those calls would go on trapping.
    let is_bypassed = |form: &Form| match form {
        Form::Before { moved, .. } => is_jumped_into(text, moved.start + 1..registers.rip - 1),
        _ => false,
    };
    let (best, last) = if before.as_ref().is_some_and(is_bypassed) { (None, before) } else { (before, None) };
    best.or_else(|| padding(text, registers.rip))
        .or_else(|| alone.then(|| after(text, registers.rip)).flatten())
        .or(last)
}

/// `run` is what stands before the `syscall`, the nearest instruction first.
fn before(run: &[Instruction], registers: &Registers) -> Option<Form> {
    let end = run.first()?.next_ip();
    let mut later = Written::default();
    for instruction in run {
        match explained(instruction, registers, &later) {
            // What the instruction is said to have done must be what is seen.
            Some(value) if value_of(registers, instruction.op0_register())? != value => return None,
            Some(_) if instruction.len() as u64 >= JUMP => {
                return Some(Form::Before { at: instruction.ip(), moved: instruction.ip()..end });
            }
            _ => {}
        }
        if !is_movable(instruction) {
            return None;
        }
        later.add(instruction);
    }
    None
}

/// What `instruction` must have left in its first operand, if that can still be seen behind all that came `later`.
fn explained(instruction: &Instruction, registers: &Registers, later: &Written) -> Option<u64> {
    let sees = |register| !later.contains(register);
    if instruction.op0_kind() != OpKind::Register || !sees(instruction.op0_register()) {
        return None;
    }
    match instruction.code() {
        Code::Mov_r32_imm32 | Code::Mov_rm64_imm32 | Code::Mov_r64_imm64 => {
            value_of(registers, instruction.op0_register()).map(|_| instruction.immediate(1))
        }
        Code::Lea_r64_m => {
            value_of(registers, instruction.op0_register())?;
            let target = instruction.op0_register();
            instruction.virtual_address(1, 0, |register, _, _| match register {
                // As what an address is relative to; `lea` looks at no segment.
                Register::ES | Register::CS | Register::SS | Register::DS | Register::FS | Register::GS => {
                    Some(0)
                }
                _ if register == target || !sees(register) => None,
                _ => value_of(registers, register),
            })
        }
        _ => None,
    }
}

/// The registers that some instructions write.
#[derive(Default)]
struct Written(Vec<Register>);

impl Written {
    fn add(&mut self, instruction: &Instruction) {
        let mut factory = InstructionInfoFactory::new();
        let used = factory.info(instruction).used_registers();
        let writes = |access| !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead);
        self.0.extend(
            used.iter().filter(|used| writes(used.access())).map(|used| used.register().full_register()),
        );
    }

    fn contains(&self, register: Register) -> bool {
        self.0.contains(&register.full_register())
    }
}

/// Does the instruction do the same at another address, with its displacement or target adjusted? Then the flow
/// goes on behind it.
fn is_movable(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::Next
        && !instruction.is_invalid()
        // The signal that a division may raise tells the address.
        && !matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv)
        && (!instruction.is_ip_rel_memory_operand() || instruction.memory_base() == Register::RIP)
}

/// The instructions that lead to `end`, the nearest first, as far back as all ways of decoding what is before
/// agree on them: bytes that look like an instruction may be the end of a longer one, the `syscall` among them.
fn run_before(text: Text<'_>, end: u64) -> Vec<Instruction> {
    const FARTHEST: usize = 72;
    const NEAREST: u64 = 24;
    let starts = (end - FARTHEST as u64).max(text.start)..(end - NEAREST).max(text.start + 1);
    let Some(bytes) = text.get(starts.start..text.end()) else { return Vec::new() };
    let mut decoder = Decoder::with_ip(64, bytes, starts.start, DecoderOptions::NONE);
    // Ways meet soon: each address is decoded once.
    let mut decoded: Vec<Option<Instruction>> = vec![None; FARTHEST];
    // How many of the ways that lead to the end pass through an address.
    let mut passing = vec![0; FARTHEST];
    let (mut ways, mut leading) = (0, 0);
    for start in starts.clone() {
        ways += 1;
        let mut way = Vec::new();
        let mut at = start;
        let mut last_is_valid = false;
        while at < end {
            let index = distance(starts.start, at);
            let instruction = *decoded[index].get_or_insert_with(|| {
                let _ = decoder.set_position(index);
                decoder.set_ip(at);
                decoder.decode()
            });
            way.push(index);
            last_is_valid = !instruction.is_invalid();
            at = instruction.next_ip();
        }
        if at == end && last_is_valid {
            leading += 1;
            for index in way {
                passing[index] += 1;
            }
        }
    }
    if 2 * leading <= ways {
        return Vec::new();
    }
    let mut run = Vec::new();
    let mut next = end;
    for at in (starts.end - 1..end).rev() {
        let index = distance(starts.start, at);
        match &decoded[index] {
            Some(instruction) if passing[index] > 0 => {
                // Some way passes here; if others do not, nothing is sure from here on.
                if passing[index] != leading || instruction.next_ip() != next || instruction.is_invalid() {
                    break;
                }
                run.push(*instruction);
                next = at;
            }
            _ => {}
        }
    }
    run
}

fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to - from).expect("addresses of one stretch of text")
}

fn value_of(registers: &Registers, register: Register) -> Option<u64> {
    use Register as R;
    Some(match register.full_register() {
        R::RAX => registers.rax,
        R::RDI => registers.rdi,
        R::RSI => registers.rsi,
        R::RDX => registers.rdx,
        R::R10 => registers.r10,
        R::R8 => registers.r8,
        R::R9 => registers.r9,
        R::RBX => registers.rbx,
        R::RBP => registers.rbp,
        R::RSP => registers.rsp,
        R::R12 => registers.r12,
        R::R13 => registers.r13,
        R::R14 => registers.r14,
        R::R15 => registers.r15,
        // Where an instruction is relative to its own address, that has been counted in.
        R::RIP => 0,
        _ => return None,
    })
}

/// Bytes between functions, reachable by a short jump from the end of the `syscall` at `rip`, that nothing executes:
/// `int3`s and `nop`s behind a `ret` or `jmp`, up to an aligned address.
fn padding(text: Text<'_>, rip: u64) -> Option<Form> {
    const ALIGNMENT: u64 = 16;
    let jump_end = rip - SYSCALL + SHORT_JUMP;
    let reach = jump_end - 128 + SYSCALL..jump_end + 127 - JUMP;
    // Whoever decodes from this site on is in step with the processor; what lies behind is known for sure.
    let mut ends_flow = false;
    let mut run: Option<u64> = None;
    for instruction in text.decode(rip) {
        if instruction.ip() > reach.end + ALIGNMENT {
            break;
        }
        let is_filler = is_filler(&instruction);
        if is_filler && (ends_flow || run.is_some()) {
            let start = *run.get_or_insert(instruction.ip());
            let end = instruction.next_ip();
            if end.is_multiple_of(ALIGNMENT) {
                if end - start >= JUMP && start <= reach.end && start >= reach.start {
                    return Some(Form::Padding { padding: start });
                }
                run = None;
            }
        } else {
            run = None;
        }
        if instruction.is_invalid() {
            break;
        }
        ends_flow = matches!(
            instruction.flow_control(),
            FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch
        );
    }
    None
}

fn is_filler(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
        || instruction.code() == Code::Xchg_rm16_r16
            && instruction.op0_register() == instruction.op1_register()
}

fn after(text: Text<'_>, rip: u64) -> Option<Form> {
    let site = rip - SYSCALL;
    let mut moved = Vec::new();
    let mut targets = Vec::new();
    let mut ends_flow = false;
    for instruction in text.decode(rip) {
        let is_branch = instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near();
        if ends_flow {
            // What others may come to from afar stays where it is.
            if !is_filler(&instruction) {
                return None;
            }
        } else if is_branch {
            targets.push(instruction.near_branch_target());
            ends_flow = instruction.flow_control() == FlowControl::UnconditionalBranch;
        } else if instruction.flow_control() == FlowControl::Return && !instruction.is_invalid() {
            ends_flow = true;
        } else if !is_movable(&instruction) {
            return None;
        }
        moved.push(instruction.ip()..instruction.next_ip());
        if instruction.next_ip() - site >= JUMP {
            break;
        }
    }
    let end = moved.last()?.end;
    let inside = site + 1..end;
    let is_free = end - site >= JUMP
        && !targets.iter().any(|target| inside.contains(target))
        && !is_jumped_into(text, inside);
    is_free.then_some(Form::After { moved })
}

/// Does any branch nearby, in whatever way the bytes are decoded, lead into `range`?
fn is_jumped_into(text: Text<'_>, range: Range<u64>) -> bool {
    const WAYS: u64 = 4;
    if !may_be_jumped_into(text, &range) {
        return false;
    }
    // Ways meet soon: each instruction is decoded once.
    let mut seen = vec![false; text.bytes.len()];
    (text.start..text.start + WAYS).any(|start| {
        text.decode(start)
            .take_while(|instruction| {
                !std::mem::replace(&mut seen[distance(text.start, instruction.ip())], true)
            })
            .any(|instruction| {
                let near = matches!(
                    instruction.op0_kind(),
                    OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
                );
                near && range.contains(&instruction.near_branch_target())
            })
    })
}

/// Are there bytes that could be a branch into `range`? Much cheaper than to decode them, and mostly there are none.
fn may_be_jumped_into(text: Text<'_>, range: &Range<u64>) -> bool {
    let mut before = 0;
    text.bytes.iter().zip(text.start..).enumerate().any(|(index, (&opcode, at))| {
        let previous = std::mem::replace(&mut before, opcode);
        let operand = &text.bytes[index + 1..];
        let target = match (previous, opcode) {
            // jcc, loop, jrcxz, jmp rel8
            (_, 0x70..=0x7f | 0xe0..=0xe3 | 0xeb) => {
                operand.first().map(|&byte| (at + 2).wrapping_add_signed(i64::from(byte.cast_signed())))
            }
            // call and jmp rel32, jcc rel32, xbegin
            (_, 0xe8 | 0xe9) | (0x0f, 0x80..=0x8f) | (0xc7, 0xf8) => operand
                .first_chunk()
                .map(|&bytes| (at + 5).wrapping_add_signed(i64::from(i32::from_le_bytes(bytes)))),
            _ => None,
        };
        target.is_some_and(|target| range.contains(&target))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: u64 = 0x40_1000;

    /// Text with `bytes` at [`SITE`], one-byte instructions before, and `ud2` behind.
    fn text_with(bytes: &[u8]) -> Vec<u8> {
        let mut text = vec![0x50; 64];
        text.extend(bytes);
        text.extend([0x0f, 0x0b].repeat(100));
        text
    }

    fn recognise_at(bytes: &[u8], syscall_end: u64, rax: u64) -> Option<Form> {
        let bytes = text_with(bytes);
        let registers = Registers { rip: SITE + syscall_end, rax, ..Registers::default() };
        recognise(Text { start: SITE - 64, bytes: &bytes }, &registers, true)
    }

    #[test]
    fn a_move_of_the_number_before_the_call_is_replaced() {
        let form = recognise_at(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05], 7, 39);
        assert_eq!(form, Some(Form::Before { at: SITE, moved: SITE..SITE + 5 }));
    }

    #[test]
    fn a_move_that_does_not_explain_the_register_is_left_alone() {
        assert_eq!(recognise_at(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05], 7, 40), None);
    }

    #[test]
    fn bytes_of_a_longer_instruction_are_not_taken_for_a_move() {
        // movabs $..., %rcx, whose immediate ends in b8 27 00 00 00; then syscall.
        let form = recognise_at(&[0x48, 0xb9, 1, 2, 3, 0xb8, 39, 0, 0, 0, 0x0f, 0x05], 12, 39);
        assert!(!matches!(form, Some(Form::Before { at, .. }) if at == SITE + 5), "{form:?}");
        // mov $39, %r8d: one prefix more than the move to eax.
        let form = recognise_at(&[0x41, 0xb8, 39, 0, 0, 0, 0x0f, 0x05], 8, 39);
        assert!(!matches!(form, Some(Form::Before { at, .. }) if at == SITE + 1), "{form:?}");
    }

    #[test]
    fn the_compare_behind_a_bare_call_moves() {
        let form = recognise_at(
            &[0x31, 0xc0, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0x73, 0x01, 0xc3],
            4,
            0,
        );
        assert_eq!(form, Some(Form::After { moved: std::iter::once(SITE + 4..SITE + 10).collect() }));
    }

    #[test]
    fn a_call_whose_successor_is_jumped_to_is_left_alone() {
        // The last instruction jumps to the cmp.
        let form =
            recognise_at(&[0x31, 0xc0, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0x73, 0xf8], 4, 0);
        assert_eq!(form, None);
    }

    #[test]
    fn padding_behind_a_return_is_used() {
        // xor %eax,%eax; syscall; ret; nopw up to 16.
        let mut code = vec![0x31, 0xc0, 0x0f, 0x05, 0xc3];
        code.extend([0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0x90]);
        assert_eq!(recognise_at(&code, 4, 0), Some(Form::Padding { padding: SITE + 5 }));
    }

    fn recognise_with(bytes: &[u8], registers: Registers, alone: bool) -> Option<Form> {
        let end = bytes.windows(2).position(|two| two == [0x0f, 0x05]).expect("a syscall") + 2;
        let text = text_with(bytes);
        let registers = Registers { rip: SITE + end as u64, ..registers };
        recognise(Text { start: SITE - 64, bytes: &text }, &registers, alone)
    }

    #[test]
    fn a_move_farther_away_is_replaced_and_what_follows_moves_too() {
        // mov $1,%eax; xor %edi,%edi; mov %rbx,%rsi; syscall
        let code = [0xb8, 1, 0, 0, 0, 0x31, 0xff, 0x48, 0x89, 0xde, 0x0f, 0x05];
        let registers = Registers { rax: 1, ..Registers::default() };
        let form = Some(Form::Before { at: SITE, moved: SITE..SITE + 10 });
        assert_eq!(recognise_with(&code, registers, false), form);
        // With another number in the register, something else came here.
        assert_eq!(recognise_with(&code, Registers { rax: 2, ..registers }, false), None);
    }

    #[test]
    fn a_move_whose_effect_is_gone_is_left_alone() {
        // mov $1,%eax; mov %ebx,%eax; syscall
        let code = [0xb8, 1, 0, 0, 0, 0x89, 0xd8, 0x0f, 0x05];
        assert_eq!(recognise_with(&code, Registers { rax: 1, ..Registers::default() }, false), None);
    }

    #[test]
    fn nothing_moves_over_a_branch_or_a_division() {
        for between in [&[0x74, 0x00][..], &[0xe8, 0, 0, 0, 0], &[0xf7, 0xf3], &[0xff, 0xd3]] {
            let code = [&[0xb8, 1, 0, 0, 0], between, &[0x0f, 0x05]].concat();
            let registers = Registers { rax: 1, ..Registers::default() };
            assert_eq!(recognise_with(&code, registers, false), None, "{between:x?}");
        }
    }

    #[test]
    fn an_address_that_is_seen_in_its_register_explains_a_lea() {
        // lea 8(%rsp),%rsi; syscall
        let code = [0x48, 0x8d, 0x74, 0x24, 0x08, 0x0f, 0x05];
        let registers = Registers { rsp: 0x1000, rsi: 0x1008, ..Registers::default() };
        let form = Some(Form::Before { at: SITE, moved: SITE..SITE + 5 });
        assert_eq!(recognise_with(&code, registers, false), form);
        assert_eq!(recognise_with(&code, Registers { rsi: 0x1009, ..registers }, false), None);
        // lea 0x10(%rip),%rdi; mov %ebx,%eax; syscall
        let code = [0x48, 0x8d, 0x3d, 0x10, 0, 0, 0, 0x89, 0xd8, 0x0f, 0x05];
        let registers = Registers { rdi: SITE + 0x17, ..Registers::default() };
        let form = Some(Form::Before { at: SITE, moved: SITE..SITE + 9 });
        assert_eq!(recognise_with(&code, registers, false), form);
        // lea 8(%rsi,...),%rsi says nothing about what was there before.
        let code = [0x48, 0x8d, 0xb4, 0x26, 8, 0, 0, 0, 0x0f, 0x05];
        assert_eq!(recognise_with(&code, Registers::default(), false), None);
    }

    #[test]
    fn a_loop_that_jumps_past_the_move_gets_another_form_if_there_is_one() {
        // mov $1,%eax; again: xor %edi,%edi; syscall; cmp $-4095,%rax; jae again
        let code = [0xb8, 1, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05, 0x48, 0x3d, 1, 0xf0, 0xff, 0xff, 0x73, 0xf4];
        let registers = Registers { rax: 1, ..Registers::default() };
        let after = Form::After { moved: std::iter::once(SITE + 9..SITE + 15).collect() };
        assert_eq!(recognise_with(&code, registers, true), Some(after));
        let before = Form::Before { at: SITE, moved: SITE..SITE + 7 };
        assert_eq!(recognise_with(&code, registers, false), Some(before));
    }

    #[test]
    fn branches_and_returns_behind_a_bare_call_move() {
        let moved = |lengths: &[u64]| {
            let mut at = SITE + 4;
            let range = |len: &u64| {
                at += len;
                at - len..at
            };
            Some(Form::After { moved: lengths.iter().map(range).collect() })
        };
        let cases: [(&[u8], &[u64]); 6] = [
            // test %eax,%eax; js +0x20
            (&[0x85, 0xc0, 0x78, 0x20], &[2, 2]),
            // jne +0x20; pop %rbx
            (&[0x75, 0x20, 0x5b], &[2, 1]),
            // jmp rel32; the instruction behind it is not touched
            (&[0xe9, 0, 1, 0, 0, 0x55], &[5]),
            // pop %rbx; pop %rbp; ret
            (&[0x5b, 0x5d, 0xc3], &[1, 1, 1]),
            // ret; two bytes that nothing executes
            (&[0xc3, 0x66, 0x90, 0x55], &[1, 2]),
            // mov 0x100(%rip),%rdx
            (&[0x48, 0x8b, 0x15, 0, 1, 0, 0], &[7]),
        ];
        for (behind, lengths) in cases {
            let code = [&[0x31, 0xc0, 0x0f, 0x05], behind].concat();
            assert_eq!(recognise_with(&code, Registers::default(), true), moved(lengths), "{behind:x?}");
            assert_eq!(recognise_with(&code, Registers::default(), false), None, "{behind:x?}");
        }
    }

    #[test]
    fn what_pushes_its_address_or_may_be_entered_from_afar_stays() {
        // call; loop; jmp rel8 with code behind it; ret with code behind it; jne into the bytes that would go
        for behind in [
            &[0xe8, 0, 1, 0, 0][..],
            &[0xe2, 0x10, 0x90],
            &[0xeb, 0x20, 0x55],
            &[0xc3, 0x55, 0x55],
            &[0x75, 0x00, 0x5b],
        ] {
            let code = [&[0x31, 0xc0, 0x0f, 0x05], behind].concat();
            assert_eq!(recognise_with(&code, Registers::default(), true), None, "{behind:x?}");
        }
    }

    #[test]
    fn every_near_branch_that_decodes_is_found_by_its_bytes() {
        let branches: [&[u8]; 9] = [
            &[0x74, 0xfd],
            &[0xe2, 0xfd],
            &[0xe3, 0xfd],
            &[0xeb, 0xfd],
            &[0xe8, 0xfa, 0xff, 0xff, 0xff],
            &[0xe9, 0xfa, 0xff, 0xff, 0xff],
            &[0x0f, 0x85, 0xf9, 0xff, 0xff, 0xff],
            &[0xc7, 0xf8, 0xf9, 0xff, 0xff, 0xff],
            &[0xf2, 0xe9, 0xf9, 0xff, 0xff, 0xff],
        ];
        for branch in branches {
            // Each leads to the byte before it.
            let bytes = [&[0x90; 8], branch, &[0x90; 8]].concat();
            let text = Text { start: SITE, bytes: &bytes };
            assert!(is_jumped_into(text, SITE + 7..SITE + 8), "{branch:x?}");
            assert!(!is_jumped_into(text, SITE + 2..SITE + 7), "{branch:x?}");
        }
    }
}
