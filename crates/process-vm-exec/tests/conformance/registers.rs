//! General registers go in and out unchanged.

use std::time::Duration;

use iced_x86::{IcedError, code_asm::*};
use process_vm_exec::Registers;

use crate::common::{CODE, DATA, Guest, NR, Numbers, STACK_TOP, claims, fill};

/// `top: store all registers to DATA; mov $NR,%eax; syscall; jmp top`
fn store_and_call(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    for (slot, reg) in
        (0..).zip([rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15])
    {
        a.mov(qword_ptr(DATA + slot * 8), reg)?;
    }
    a.mov(eax, NR)?;
    a.syscall()?;
    a.jmp(top)
}

/// In the order in which [`store_and_call`] stores them.
fn in_order(regs: &Registers) -> [u64; 16] {
    [
        regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp, regs.r8, regs.r9,
        regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]
}

fn stored(guest: &Guest) -> [u64; 16] {
    std::array::from_fn(|slot| guest.peek(DATA + slot as u64 * 8))
}

claims! {
    planned;

    fn every_general_register_that_the_supervisor_sets_is_seen_by_the_guest(engine) {
        let mut guest = Guest::new(engine, store_and_call);
        let mut numbers = Numbers::new(1);
        // Many rounds: the later ones go through rewritten sites.
        for round in 0..50 {
            fill(guest.regs(), &mut numbers);
            guest.regs().rsp = STACK_TOP - 8 * numbers.below(100);
            let expected = in_order(guest.ctx.registers());
            guest.call();
            assert_eq!(stored(&guest), expected, "round {round}");
        }
    }

    fn every_general_register_survives_a_system_call(engine) {
        let mut guest = Guest::new(engine, store_and_call);
        let mut numbers = Numbers::new(2);
        for round in 0..50 {
            fill(guest.regs(), &mut numbers);
            let before = *guest.ctx.registers();
            let call = guest.call();
            let after = *guest.ctx.registers();
            // The processor puts RIP and RFLAGS into RCX and R11 at `syscall`.
            let expected = Registers {
                rax: u64::from(NR), rcx: after.rcx, r11: after.r11, rip: after.rip, rflags: after.rflags, ..before
            };
            assert_eq!(after, expected, "round {round}");
            assert_eq!(call.nr, u64::from(NR));
            assert_eq!(call.args, [before.rdi, before.rsi, before.rdx, before.r10, before.r8, before.r9]);
        }
    }

    fn after_a_system_call_rip_is_behind_the_instruction(engine) {
        let mut guest = Guest::new(engine, |a| { a.mov(eax, NR)?; a.syscall() });
        for _ in 0..20 {
            guest.regs().rip = CODE;
            guest.call();
            assert_eq!(guest.ctx.registers().rip, CODE + 7);
        }
    }

    fn a_system_call_leaves_rip_in_rcx_and_rflags_in_r11(engine) {
        let mut guest = Guest::new(engine, store_and_call);
        for round in 0..20 {
            guest.call();
            let regs = guest.ctx.registers();
            assert_eq!(regs.rcx, regs.rip, "round {round}");
            assert_eq!(regs.r11 & 0xcd5, regs.rflags & 0xcd5, "round {round}");
        }
    }

    fn the_answer_is_what_the_guest_finds_in_rax(engine) {
        let mut guest = Guest::new(engine, store_and_call);
        guest.call();
        for answer in [0, 1, u64::MAX, 0x8000_0000_0000_0000, (-38i64).cast_unsigned(), 0xffff_ffff] {
            guest.ctx.set_return(Ok(answer));
            guest.call();
            assert_eq!(guest.peek(DATA), answer);
        }
    }

    fn every_register_is_exact_at_an_interrupt(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.jmp(top)
        });
        let mut numbers = Numbers::new(3);
        for _ in 0..20 {
            fill(guest.regs(), &mut numbers);
            guest.regs().rsp = numbers.next();
            let before = *guest.ctx.registers();
            guest.spin_for(Duration::from_millis(2));
            let after = *guest.ctx.registers();
            assert_eq!(Registers { rflags: before.rflags, ..after }, before);
        }
    }

    fn every_register_is_exact_at_a_fault(engine) {
        let mut guest = Guest::new(engine, |a| a.ud2());
        let mut numbers = Numbers::new(4);
        for _ in 0..50 {
            fill(guest.regs(), &mut numbers);
            guest.regs().rsp = numbers.next();
            let before = *guest.ctx.registers();
            guest.fault();
            let after = *guest.ctx.registers();
            assert_eq!(Registers { rflags: before.rflags, ..after }, before);
        }
    }

    fn a_system_call_with_a_senseless_stack_pointer_is_reported(engine) {
        let mut guest = Guest::new(engine, store_and_call);
        for stack in [0, 1, 8, 0x1234_5678_9abc, u64::MAX, 0x8000_0000_0000_0000, 0xffff_8000_0000_0000] {
            for _ in 0..4 {
                guest.regs().rsp = stack;
                assert_eq!(guest.call().nr, u64::from(NR));
                assert_eq!(guest.ctx.registers().rsp, stack);
            }
        }
    }

    /// The ABI gives the guest 128 bytes under its stack pointer.
    fn the_red_zone_is_left_alone(engine) {
        let mut guest = Guest::new(engine, store_and_call);
        let mut numbers = Numbers::new(5);
        for round in 0..200 {
            let zone: Vec<u8> = (0..128).map(|_| numbers.byte()).collect();
            let stack = STACK_TOP - 64 - 8 * numbers.below(50);
            guest.regs().rsp = stack;
            guest.space.write(stack - 128, &zone).expect("a stack");
            guest.call();
            guest.call();
            let mut found = vec![0; 128];
            guest.space.read(stack - 128, &mut found).expect("a stack");
            assert_eq!(found, zone, "round {round}");
        }
    }

    fn the_red_zone_is_left_alone_by_faults_and_interrupts(engine) {
        let mut guest = Guest::new(engine, |a| {
            a.ud2()?;
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.jmp(top)
        });
        let zone = [0x5a; 256];
        let stack = STACK_TOP - 128;
        for _ in 0..10 {
            guest.space.write(stack - 128, &zone).expect("a stack");
            *guest.regs() = Registers { rip: CODE, rsp: stack, ..Registers::default() };
            guest.fault();
            guest.regs().rip += 2;
            guest.spin_for(Duration::from_millis(1));
            let mut found = [0; 256];
            guest.space.read(stack - 128, &mut found).expect("a stack");
            assert_eq!(found, zone);
        }
    }

    fn the_supervisor_can_send_the_guest_elsewhere_at_an_exit(engine) {
        let mut guest = Guest::new(engine, |a| {
            a.mov(eax, NR)?;
            a.syscall()?;
            a.ud2()?;
            a.mov(eax, NR + 1)?;
            a.syscall()?;
            a.ud2()
        });
        for _ in 0..20 {
            guest.regs().rip = CODE;
            assert_eq!(guest.call().nr, u64::from(NR));
            guest.regs().rip = CODE + 9;
            assert_eq!(guest.call().nr, u64::from(NR) + 1);
        }
    }
}
