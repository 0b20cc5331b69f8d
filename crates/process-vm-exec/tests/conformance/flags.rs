//! RFLAGS go in and out unchanged, and the trap flag single-steps.

use iced_x86::{IcedError, code_asm::*};

use crate::common::{CODE, DATA, Guest, NR, claims};

const TF: u64 = 1 << 8;
/// CF, PF, AF, ZF, SF, DF, OF, AC: what guest and supervisor may set freely. (ID tells nothing but that CPUID
/// exists, and ptrace(2) does not set it: `FLAG_MASK` in arch/x86/kernel/ptrace.c.)
const FREE: [u64; 8] = [1, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 10, 1 << 11, 1 << 18];

fn all_free() -> u64 {
    FREE.iter().sum()
}

/// `top: pushfq; pop DATA; mov $NR,%eax; syscall; jmp top`
fn store_flags_and_call(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.pushfq()?;
    a.pop(qword_ptr(DATA))?;
    a.mov(eax, NR)?;
    a.syscall()?;
    a.jmp(top)
}

/// `top: push DATA; popfq; mov $NR,%eax; syscall; jmp top`
fn load_flags_and_call(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.push(qword_ptr(DATA))?;
    a.popfq()?;
    a.mov(eax, NR)?;
    a.syscall()?;
    a.jmp(top)
}

/// Each flag alone, none, and all of them.
fn combinations() -> Vec<u64> {
    let mut combinations = FREE.to_vec();
    combinations.extend([0, all_free()]);
    combinations
}

claims! {
    planned;

    fn every_flag_that_the_supervisor_sets_is_seen_by_the_guest(engine) {
        let mut guest = Guest::new(engine, store_flags_and_call);
        for _ in 0..5 {
            for flags in combinations() {
                guest.regs().rflags = 0x202 | flags;
                guest.call();
                assert_eq!(guest.peek(DATA) & all_free(), flags, "{flags:#x}");
            }
        }
    }

    fn every_flag_that_the_guest_sets_is_seen_by_the_supervisor(engine) {
        let mut guest = Guest::new(engine, load_flags_and_call);
        for _ in 0..5 {
            for flags in combinations() {
                guest.poke(DATA, 0x202 | flags);
                guest.call();
                assert_eq!(guest.ctx.registers().rflags & all_free(), flags, "{flags:#x}");
            }
        }
    }

    fn flags_survive_an_answer(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.push(qword_ptr(DATA))?;
            a.popfq()?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.pushfq()?;
            a.pop(qword_ptr(DATA + 8))?;
            a.jmp(top)
        });
        for _ in 0..5 {
            for flags in combinations() {
                guest.poke(DATA, 0x202 | flags);
                guest.regs().rip = CODE;
                guest.call();
                guest.ctx.set_return(Ok(0));
                guest.call();
                assert_eq!(guest.peek(DATA + 8) & all_free(), flags, "{flags:#x}");
            }
        }
    }

    fn flags_survive_a_fault(engine) {
        let mut guest = Guest::new(engine, |a| a.ud2());
        for flags in combinations() {
            guest.regs().rflags = 0x202 | flags;
            guest.fault();
            assert_eq!(guest.ctx.registers().rflags & all_free(), flags, "{flags:#x}");
        }
    }

    /// The I/O privilege level, and the flags of other processor modes, are not the guest's to have.
    fn privileged_flags_never_reach_the_guest(engine) {
        let mut guest = Guest::new(engine, store_flags_and_call);
        for flags in [3 << 12, 1 << 14, 1 << 17, 1 << 19, 1 << 20, !TF] {
            guest.regs().rflags = flags;
            guest.regs().rip = CODE;
            // Refusing such a context is as good as taking the flags out of it.
            guest.poke(DATA, 0);
            assert_eq!(guest.call().nr, u64::from(NR), "{flags:#x}");
            let seen = guest.peek(DATA);
            assert_eq!(seen & (3 << 12 | 1 << 17), 0, "asked for {flags:#x}, the guest saw {seen:#x}");
            assert_eq!(seen & 1 << 9, 1 << 9, "interrupts are off: {seen:#x}");
        }
    }

    fn the_trap_flag_steps_one_instruction(engine) {
        let mut guest = Guest::new(engine, |a| {
            for _ in 0..8 {
                a.nop()?;
            }
            a.mov(eax, NR)?;
            a.syscall()
        });
        for step in 1..=8 {
            guest.regs().rflags |= TF;
            let fault = guest.fault();
            assert_eq!((fault.signal, fault.trapno), (libc::SIGTRAP, 1), "step {step}");
            assert_eq!(fault.code, libc::TRAP_TRACE);
            assert_eq!(guest.ctx.registers().rip, CODE + step);
        }
        guest.regs().rflags &= !TF;
        assert_eq!(guest.call().nr, u64::from(NR));
    }

    fn a_step_onto_a_system_call_reports_it_and_leaves_no_trap_behind(engine) {
        let mut guest = Guest::new(engine, |a| {
            a.mov(eax, NR)?;
            a.syscall()?;
            a.nop()?;
            a.nop()?;
            a.mov(eax, NR + 1)?;
            a.syscall()
        });
        for _ in 0..5 {
            guest.regs().rip = CODE;
            guest.regs().rflags |= TF;
            assert_eq!(guest.fault().trapno, 1);
            assert_eq!(guest.ctx.registers().rip, CODE + 5);
            assert_eq!(guest.call().nr, u64::from(NR));
            assert_eq!(guest.ctx.registers().rip, CODE + 7);
            guest.ctx.set_return(Ok(0));
            guest.regs().rflags &= !TF;
            assert_eq!(guest.call().nr, u64::from(NR) + 1);
        }
    }

    fn a_guest_can_step_itself(engine) {
        let mut guest = Guest::new(engine, |a| {
            a.push(0x302)?;
            a.popfq()?;
            a.nop()?;
            a.nop()
        });
        let fault = guest.fault();
        assert_eq!((fault.signal, fault.trapno), (libc::SIGTRAP, 1));
        // `push imm32` is 5 bytes, `popfq` 1; the instruction behind it is the first that traps.
        assert_eq!(guest.ctx.registers().rip, CODE + 7);
        assert_eq!(guest.ctx.registers().rflags & TF, TF);
    }
}
