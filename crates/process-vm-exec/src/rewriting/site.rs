//! Recognising call sites: what can be put in place of a `syscall` instruction that has just trapped.
//!
//! Two forms. In both, whoever comes to an instruction of the site, from wherever, still finds it:
//!
//! - [`Form::Before`]: a `mov $imm, %reg` or `lea` of at least five bytes stands before the `syscall`; a jump replaces it,
//!   and what follows it stays. Code that comes there, or to the `syscall`, traps as before.
//! - [`Form::Behind`]: a jump replaces the `syscall` and what follows it, often the `cmp` that looks for an error. The
//!   stub is where the jump's own bytes are breakpoints at the beginning of each instruction behind the `syscall`: code
//!   that comes there faults, and goes on in the stub. (Instruction punning: Chamith et al., PLDI 2017.)

use std::ops::Range;

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};

use crate::arch::x86_64::Registers;

/// Length of `syscall`.
pub(crate) const SYSCALL: u64 = 2;
/// Length of `jmp rel32`.
pub(super) const JUMP: u64 = 5;
/// How many bytes on either side of a site are looked at.
pub const WINDOW: u64 = 192;
/// As many bytes behind a `syscall` as the longest jump in its place takes.
const LONGEST_BEHIND: u64 = JUMP + 1 - SYSCALL;

/// How a site can be rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Replace the instruction at `at`; it and all others up to the `syscall` are `moved`.
    Before { at: u64, moved: Range<u64> },
    /// Replace the `syscall` and these instructions behind it, each with its address: as many as there are of those that
    /// the longest jump overwrites, and enough for the shortest.
    Behind { moved: Vec<Range<u64>> },
}

/// A stretch of a guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    pub(super) start: u64,
    pub(super) bytes: &'a [u8],
}

impl<'a> Text<'a> {
    /// What is at `start`, as far as there are addresses.
    pub fn new(start: u64, bytes: &'a [u8]) -> Self {
        let most = usize::try_from(u64::MAX - start).unwrap_or(usize::MAX);
        Self { start, bytes: &bytes[..bytes.len().min(most)] }
    }

    /// What of it is near `rip`.
    pub(super) fn around(&self, rip: u64) -> Self {
        let start = self.start.max(rip.saturating_sub(WINDOW));
        let end = self.end().min(rip.saturating_add(WINDOW));
        Self { start, bytes: self.get(start..end).unwrap_or(&[]) }
    }

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

/// The forms for the site whose `syscall` ends at `registers.rip`, which has just trapped with these registers: the one
/// whose calls are the fastest first.
pub(super) fn recognise(text: Text<'_>, registers: &Registers) -> Vec<Form> {
    let rip = registers.rip;
    let Some(syscall) = rip.checked_sub(SYSCALL).filter(|&at| text.get(at..rip) == Some(&[0x0f, 0x05]))
    else {
        return Vec::new();
    };
    let run = run_before(text, syscall, NEAR);
    if run.is_empty() {
        // The `syscall` may be part of another instruction as well: it stays.
        return Vec::new();
    }
    [before(&run, registers), behind(text, rip)].into_iter().flatten().collect()
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
        // The x87 unit keeps the address of its last instruction, which can be read.
        && !instruction.cpuid_features().contains(&CpuidFeature::FPU)
        && (!instruction.is_ip_rel_memory_operand() || instruction.memory_base() == Register::RIP)
}

/// How far back all ways of decoding must agree on what stands before a `syscall`.
const NEAR: usize = 24;
/// The same for branches past it, which only have to be sure where there are any.
const FAR: usize = 96;

/// The instructions that lead to `end`, the nearest first, as far back as all ways of decoding what is before
/// agree on them: bytes that look like an instruction may be the end of a longer one, the `syscall` among them. The ways
/// begin at least `nearest` bytes before.
fn run_before(text: Text<'_>, end: u64, nearest: usize) -> Vec<Instruction> {
    const WAYS: usize = 48;
    let farthest = nearest + WAYS;
    let starts = end.saturating_sub(farthest as u64).max(text.start)
        ..end.saturating_sub(nearest as u64).max(text.start + 1);
    let Some(bytes) = text.get(starts.start..text.end()) else { return Vec::new() };
    let mut decoder = Decoder::with_ip(64, bytes, starts.start, DecoderOptions::NONE);
    // Ways meet soon: each address is decoded once.
    let mut decoded: Vec<Option<Instruction>> = vec![None; farthest];
    // How many of the ways that lead to the end pass through an address.
    let mut passing = vec![0; farthest];
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
    for at in (starts.end - 1..end).rev() {
        let index = distance(starts.start, at);
        match &decoded[index] {
            Some(instruction) if passing[index] > 0 => {
                // Some way passes here; if others do not, nothing is sure from here on. If all do, they go on to what
                // was found last, as there is nothing between.
                if passing[index] != leading || instruction.is_invalid() {
                    break;
                }
                run.push(*instruction);
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

fn is_filler(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
}

/// The instructions behind the `syscall` that ends at `rip`, if they are sure to be those that others come to.
fn behind(text: Text<'_>, rip: u64) -> Option<Form> {
    let mut moved: Vec<Range<u64>> = Vec::new();
    let mut targets = None;
    let mut ends_flow = false;
    for instruction in text.decode(rip).take_while(|instruction| instruction.ip() < rip + LONGEST_BEHIND) {
        // What nothing runs into may be anything: decoded in the wrong way, it has other beginnings. Nothing but
        // filler follows a function, and what a branch leads to is an instruction.
        if ends_flow && !is_filler(&instruction) {
            let targets = targets.get_or_insert_with(|| targets_before(text, rip));
            if !targets.contains(&instruction.ip()) {
                break;
            }
        }
        let is_branch = instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near();
        let flow = instruction.flow_control();
        ends_flow = matches!(
            flow,
            FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch
        );
        // Code that knows whether its neighbours run passes by a `lock` alone.
        let moves = !instruction.has_lock_prefix()
            && !instruction.is_invalid()
            && (is_branch
                || is_movable(&instruction)
                || instruction.mnemonic() == Mnemonic::Int3
                || matches!(flow, FlowControl::Return | FlowControl::IndirectBranch));
        if !moves {
            break;
        }
        moved.push(instruction.ip()..instruction.next_ip());
    }
    (moved.last()?.end - rip >= JUMP - SYSCALL).then_some(Form::Behind { moved })
}

/// Where the branches before the `syscall` that ends at `rip` lead.
fn targets_before(text: Text<'_>, rip: u64) -> Vec<u64> {
    let run = run_before(text, rip - SYSCALL, FAR);
    let is_branch =
        |instruction: &&Instruction| instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near();
    run.iter().filter(is_branch).map(Instruction::near_branch_target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: u64 = 0x40_1000;

    /// The forms of the `syscall` in `bytes`, which are at [`SITE`], with one-byte instructions before and `ud2` behind.
    fn forms_of(bytes: &[u8], registers: Registers) -> Vec<Form> {
        let end = bytes.windows(2).position(|two| two == [0x0f, 0x05]).expect("a syscall") + 2;
        let mut text = vec![0x50; 192];
        text.extend(bytes);
        text.extend([0x0f, 0x0b].repeat(100));
        let registers = Registers { rip: SITE + end as u64, ..registers };
        recognise(Text { start: SITE - 192, bytes: &text }, &registers)
    }

    fn before_of(bytes: &[u8], registers: Registers) -> Option<Form> {
        forms_of(bytes, registers).into_iter().find(|form| matches!(form, Form::Before { .. }))
    }

    /// The form of a call of number 0 without a move before it, and with `bytes` behind it.
    fn behind_of(behind: &[u8]) -> Option<Form> {
        let forms = forms_of(&[&[0x31, 0xc0, 0x0f, 0x05], behind].concat(), Registers::default());
        forms.into_iter().next()
    }

    /// Instructions of these lengths move from behind the call.
    fn moved(lengths: &[u64]) -> Option<Form> {
        let mut at = SITE + 4;
        let range = |len: &u64| {
            at += len;
            at - len..at
        };
        Some(Form::Behind { moved: lengths.iter().map(range).collect() })
    }

    #[test]
    fn a_move_of_the_number_before_the_call_is_replaced() {
        let form = before_of(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05], Registers { rax: 39, ..Registers::default() });
        assert_eq!(form, Some(Form::Before { at: SITE, moved: SITE..SITE + 5 }));
    }

    #[test]
    fn a_move_that_does_not_explain_the_register_is_left_alone() {
        let registers = Registers { rax: 40, ..Registers::default() };
        assert_eq!(before_of(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05], registers), None);
    }

    #[test]
    fn what_any_register_was_moved_to_is_seen() {
        let set: [fn(&mut Registers); 14] = [
            |registers| registers.rax = 7,
            |registers| registers.rdx = 7,
            |registers| registers.rbx = 7,
            |registers| registers.rsp = 7,
            |registers| registers.rbp = 7,
            |registers| registers.rsi = 7,
            |registers| registers.rdi = 7,
            |registers| registers.r8 = 7,
            |registers| registers.r9 = 7,
            |registers| registers.r10 = 7,
            |registers| registers.r12 = 7,
            |registers| registers.r13 = 7,
            |registers| registers.r14 = 7,
            |registers| registers.r15 = 7,
        ];
        // As instructions number them, without rcx and r11, which a `syscall` changes.
        for (number, set) in [0u8, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 15].into_iter().zip(set) {
            let prefix: &[u8] = if number < 8 { &[] } else { &[0x41] };
            let code = [prefix, &[0xb8 | (number & 7), 7, 0, 0, 0, 0x0f, 0x05]].concat();
            let mut registers = Registers::default();
            assert_eq!(before_of(&code, registers), None, "register {number}");
            set(&mut registers);
            assert!(before_of(&code, registers).is_some(), "register {number}");
        }
    }

    #[test]
    fn what_is_shorter_than_a_jump_is_not_replaced_by_one() {
        // lea 8(%rdi),%rsi; syscall
        let registers = Registers { rdi: 0x1000, rsi: 0x1008, ..Registers::default() };
        assert_eq!(before_of(&[0x48, 0x8d, 0x77, 0x08, 0x0f, 0x05], registers), None);
    }

    #[test]
    fn a_call_that_half_of_all_ways_of_decoding_miss_is_left_alone() {
        // cmp $0x3c,%al, whose constant is the same instruction: every other way ends in the middle of the `syscall`.
        let code = [&[0x3c; 100][..], &[0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff]].concat();
        assert_eq!(forms_of(&code, Registers::default()), []);
    }

    #[test]
    fn bytes_of_a_longer_instruction_are_not_taken_for_a_move() {
        let registers = Registers { rax: 39, ..Registers::default() };
        // movabs $..., %rcx, whose immediate ends in b8 27 00 00 00; then syscall.
        let form = before_of(&[0x48, 0xb9, 1, 2, 3, 0xb8, 39, 0, 0, 0, 0x0f, 0x05], registers);
        assert!(!matches!(form, Some(Form::Before { at, .. }) if at == SITE + 5), "{form:?}");
        // mov $39, %r8d: one prefix more than the move to eax.
        let form = before_of(&[0x41, 0xb8, 39, 0, 0, 0, 0x0f, 0x05], registers);
        assert!(!matches!(form, Some(Form::Before { at, .. }) if at == SITE + 1), "{form:?}");
    }

    #[test]
    fn a_move_farther_away_is_replaced_and_what_follows_moves_too() {
        // mov $1,%eax; xor %edi,%edi; mov %rbx,%rsi; syscall
        let code = [0xb8, 1, 0, 0, 0, 0x31, 0xff, 0x48, 0x89, 0xde, 0x0f, 0x05];
        let registers = Registers { rax: 1, ..Registers::default() };
        let form = Some(Form::Before { at: SITE, moved: SITE..SITE + 10 });
        assert_eq!(before_of(&code, registers), form);
        // With another number in the register, something else came here.
        assert_eq!(before_of(&code, Registers { rax: 2, ..registers }), None);
    }

    #[test]
    fn a_move_whose_effect_is_gone_is_left_alone() {
        // mov $1,%eax; mov %ebx,%eax; syscall
        let code = [0xb8, 1, 0, 0, 0, 0x89, 0xd8, 0x0f, 0x05];
        assert_eq!(before_of(&code, Registers { rax: 1, ..Registers::default() }), None);
    }

    #[test]
    fn nothing_moves_over_a_branch_or_a_floating_point_instruction() {
        // jz; call; call *%rbx; fldz, whose address can be read afterwards
        for between in [&[0x74, 0x00][..], &[0xe8, 0, 0, 0, 0], &[0xff, 0xd3], &[0xd9, 0xee]] {
            let code = [&[0xb8, 1, 0, 0, 0], between, &[0x0f, 0x05]].concat();
            let registers = Registers { rax: 1, ..Registers::default() };
            assert_eq!(before_of(&code, registers), None, "{between:x?}");
        }
    }

    #[test]
    fn an_address_that_is_seen_in_its_register_explains_a_lea() {
        // lea 8(%rsp),%rsi; syscall
        let code = [0x48, 0x8d, 0x74, 0x24, 0x08, 0x0f, 0x05];
        let registers = Registers { rsp: 0x1000, rsi: 0x1008, ..Registers::default() };
        let form = Some(Form::Before { at: SITE, moved: SITE..SITE + 5 });
        assert_eq!(before_of(&code, registers), form);
        assert_eq!(before_of(&code, Registers { rsi: 0x1009, ..registers }), None);
        // lea 0x10(%rip),%rdi; mov %ebx,%eax; syscall
        let code = [0x48, 0x8d, 0x3d, 0x10, 0, 0, 0, 0x89, 0xd8, 0x0f, 0x05];
        let registers = Registers { rdi: SITE + 0x17, ..Registers::default() };
        let form = Some(Form::Before { at: SITE, moved: SITE..SITE + 9 });
        assert_eq!(before_of(&code, registers), form);
        // lea 8(%rsi,...),%rsi says nothing about what was there before.
        let code = [0x48, 0x8d, 0xb4, 0x26, 8, 0, 0, 0, 0x0f, 0x05];
        assert_eq!(before_of(&code, Registers::default()), None);
    }

    #[test]
    fn what_stands_behind_a_call_moves_branches_and_returns_included() {
        let cases: [(&[u8], &[u64]); 8] = [
            // cmp $-4095,%rax
            (&[0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff], &[6]),
            // test %eax,%eax; js +0x20
            (&[0x85, 0xc0, 0x78, 0x20], &[2, 2]),
            // jne to what is behind it; pop %rbx
            (&[0x75, 0x00, 0x5b], &[2, 1]),
            // jmp rel32; the instruction behind it is not touched
            (&[0xe9, 0, 1, 0, 0, 0x55], &[5]),
            // pop %rbx; pop %rbp; ret
            (&[0x5b, 0x5d, 0xc3], &[1, 1, 1]),
            // ret; two bytes of filler; push %rbp
            (&[0xc3, 0x66, 0x90, 0x55], &[1, 2, 1]),
            // ret; int3; int3
            (&[0xc3, 0xcc, 0xcc], &[1, 1, 1]),
            // mov 0x100(%rip),%rdx
            (&[0x48, 0x8b, 0x15, 0, 1, 0, 0], &[7]),
        ];
        for (behind, lengths) in cases {
            assert_eq!(behind_of(behind), moved(lengths), "{behind:x?}");
        }
    }

    #[test]
    fn what_says_where_it_is_or_is_not_sure_to_be_an_instruction_stays() {
        for behind in [
            // call, which pushes its address; loop, which has no longer form
            &[0xe8, 0, 1, 0, 0][..],
            &[0xe2, 0x10, 0x90],
            // jmp rel8 and ret with something behind that nothing is known to come to
            &[0xeb, 0x20, 0x55],
            &[0xc3, 0x55, 0x55],
            &[0xc3, 0x31, 0xc0],
            // lock xadd, which may be entered behind its prefix; fldz
            &[0xf0, 0x48, 0x0f, 0xc1, 0x07],
            &[0xd9, 0xee, 0x90],
        ] {
            assert_eq!(behind_of(behind), None, "{behind:x?}");
        }
    }

    #[test]
    fn what_a_branch_before_the_call_leads_to_is_sure_to_be_an_instruction() {
        // je to the move; forty bytes; xor %eax,%eax; syscall; ret; mov %ebx,%eax
        let code = [&[0x74, 45][..], &[0x50; 40], &[0x31, 0xc0, 0x0f, 0x05, 0xc3, 0x89, 0xd8]].concat();
        let rip = SITE + 46;
        let moved = [rip..rip + 1, rip + 1..rip + 3].to_vec();
        assert_eq!(forms_of(&code, Registers::default()), [Form::Behind { moved }]);
    }

    #[test]
    fn registers_that_a_hostile_guest_makes_up_find_no_site() {
        let bytes = [0x0f, 0x05].repeat(200);
        for rip in [0, 1, 2, u64::MAX - 1, u64::MAX] {
            for start in [0, SITE] {
                let registers = Registers { rip, ..Registers::default() };
                assert_eq!(recognise(Text { start, bytes: &bytes }, &registers), [], "{rip:#x}");
            }
        }
    }
}
