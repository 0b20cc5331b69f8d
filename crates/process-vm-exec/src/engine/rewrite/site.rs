//! Recognising call sites: what can be put in place of a `syscall` instruction that has just trapped.
//!
//! Three forms, best first. In each, whatever else jumps to an instruction of the site still finds one:
//!
//! - [`Form::Before`]: a `mov $imm, %reg` of at least five bytes stands before the `syscall`; a `jmp rel32` replaces
//!   it and the `syscall` stays. Code that jumps to the `syscall` traps as before.
//! - [`Form::Padding`]: a `jmp rel8` replaces the `syscall` alone, to a `jmp rel32` in bytes that are never executed.
//! - [`Form::After`]: a `jmp rel32` replaces the `syscall` and what follows it, often the `cmp` that looks for an
//!   error, if nothing nearby jumps in between.

use std::ops::Range;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind};

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
    /// Replace the instruction at `at` that stands before the `syscall`.
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
    fn decode(&self, from: u64) -> impl Iterator<Item = Instruction> + use<'a> {
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
    let previous = instruction_before(text, syscall)?;
    before(text, previous, registers)
        .or_else(|| padding(text, registers.rip))
        .or_else(|| alone.then(|| after(text, registers.rip)).flatten())
}

fn before(text: Text<'_>, instruction: Instruction, registers: &Registers) -> Option<Form> {
    let is_move =
        matches!(instruction.code(), Code::Mov_r32_imm32 | Code::Mov_rm64_imm32 | Code::Mov_r64_imm64);
    if !is_move || instruction.op0_kind() != OpKind::Register || (instruction.len() as u64) < JUMP {
        return None;
    }
    // What the instruction is said to have done must be what is seen.
    (value_of(registers, &instruction)? == instruction.immediate(1))
        .then(|| Form::Before { at: instruction.ip(), moved: instruction.ip()..instruction.next_ip() })
}

/// The instruction that ends at `end`, if the ways of decoding what is before agree on it: bytes that look like an
/// instruction may be the end of a longer one, the `syscall` among them.
fn instruction_before(text: Text<'_>, end: u64) -> Option<Instruction> {
    const FARTHEST: u64 = 72;
    const NEAREST: u64 = 24;
    let starts = (end - FARTHEST).max(text.start)..(end - NEAREST).max(text.start + 1);
    let mut found: Option<Instruction> = None;
    let (mut ways, mut agreeing) = (0, 0);
    for start in starts {
        ways += 1;
        let last = text.decode(start).take_while(|instruction| instruction.ip() < end).last()?;
        if last.next_ip() != end || last.is_invalid() {
            continue;
        }
        match found {
            Some(other) if other.ip() != last.ip() => return None,
            _ => found = Some(last),
        }
        agreeing += 1;
    }
    found.filter(|_| 2 * agreeing > ways)
}

fn value_of(registers: &Registers, mov: &Instruction) -> Option<u64> {
    use iced_x86::Register as R;
    Some(match mov.op0_register().full_register() {
        R::RAX => registers.rax,
        R::RDI => registers.rdi,
        R::RSI => registers.rsi,
        R::RDX => registers.rdx,
        R::R10 => registers.r10,
        R::R8 => registers.r8,
        R::R9 => registers.r9,
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
    matches!(instruction.mnemonic(), iced_x86::Mnemonic::Nop | iced_x86::Mnemonic::Int3)
        || instruction.code() == Code::Xchg_rm16_r16
            && instruction.op0_register() == instruction.op1_register()
}

fn after(text: Text<'_>, rip: u64) -> Option<Form> {
    let site = rip - SYSCALL;
    let mut moved = Vec::new();
    for instruction in text.decode(rip) {
        let movable = instruction.flow_control() == FlowControl::Next
            && !instruction.is_invalid()
            && !instruction.is_ip_rel_memory_operand();
        if !movable {
            return None;
        }
        moved.push(instruction.ip()..instruction.next_ip());
        if instruction.next_ip() - site >= JUMP {
            break;
        }
    }
    let end = moved.last()?.end;
    (!is_jumped_into(text, site + 1..end)).then_some(Form::After { moved })
}

/// Does any branch nearby, in whatever way the bytes are decoded, lead into `range`?
fn is_jumped_into(text: Text<'_>, range: Range<u64>) -> bool {
    const WAYS: u64 = 4;
    (text.start..text.start + WAYS).any(|start| {
        text.decode(start).any(|instruction| {
            let near = matches!(
                instruction.op0_kind(),
                OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
            );
            near && range.contains(&instruction.near_branch_target())
        })
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
        assert_eq!(form, Some(Form::After { moved: vec![SITE + 4..SITE + 10] }));
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
}
