//! Call-site rewriting is not to be noticed. Every engine has to pass, so that none is special.

use std::{
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use iced_x86::{IcedError, code_asm::*};
use process_vm_exec::{AddressSpace, Context, Engine, Exit, Mapping, Protection, Rewriting, SignalSet};

use crate::common::{CODE, DATA, Guest, NR, PAGE, READ_EXEC, READ_WRITE, STACK_TOP, asm, claims, soak};

/// `top: add $1,%rbx; mov $NR,%eax; syscall; jmp top`
fn counted_calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.add(rbx, 1)?;
    a.mov(eax, NR)?;
    a.syscall()?;
    a.jmp(top)
}

/// Where the `syscall` of the first `mov $nr,%eax; syscall` in `code` is.
fn syscall_in(code: &[u8]) -> u64 {
    let at = code.windows(2).position(|two| two == [0x0f, 0x05]).expect("a syscall");
    CODE + at as u64
}

/// `mov $constant,%rcx; mov %rcx,%rdx; mov $NR+1,%eax; syscall`, where the constant contains
/// `mov $NR,%eax; syscall`.
fn constant_with_a_site_inside() -> (Vec<u8>, u64) {
    let mut constant = vec![0xb8];
    constant.extend(NR.to_le_bytes());
    constant.extend([0x0f, 0x05, 0x90]);
    let constant = u64::from_le_bytes(constant.try_into().expect("eight bytes"));
    let code = asm(|a| {
        a.mov(rcx, constant)?;
        a.mov(rdx, rcx)?;
        a.mov(eax, NR + 1)?;
        a.syscall()
    });
    assert_eq!(code[2..10], constant.to_le_bytes());
    (code, constant)
}

/// A loop of these calls makes them in order, and again and again.
#[track_caller]
fn check_numbers(
    engine: Engine,
    numbers: &[u64],
    calls: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let mut guest = Guest::new(engine, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        calls(a)?;
        a.add(rbx, 1)?;
        a.jmp(top)
    });
    for round in 0..30 {
        for &nr in numbers {
            assert_eq!(guest.call().nr, nr, "round {round}");
            assert_eq!(guest.ctx.registers().rbx, round);
        }
    }
}

claims! {
    fn a_site_called_a_thousand_times_behaves_the_same_each_time(engine) {
        let mut guest = Guest::new(engine, counted_calls);
        for round in 1..=1000 {
            let call = guest.call();
            assert_eq!((call.nr, guest.ctx.registers().rbx), (u64::from(NR), round));
            assert_eq!(guest.ctx.registers().rip, CODE + 11, "round {round}");
            guest.ctx.set_return(round);
        }
    }

    fn a_jump_straight_to_the_syscall_of_a_site_works_with_any_number(engine) {
        let mut guest = Guest::new(engine, counted_calls);
        for _ in 0..50 {
            guest.call();
        }
        let site = syscall_in(&asm(counted_calls));
        for nr in [1, 60, 500, u64::from(NR) + 1, u64::MAX] {
            let mut other = guest.another(1);
            (other.regs().rip, other.regs().rax) = (site, nr);
            let call = other.call();
            assert_eq!(call.nr, nr);
            assert_eq!(other.ctx.registers().rip, site + 2);
        }
        for _ in 0..5 {
            assert_eq!(guest.call().nr, u64::from(NR));
        }
    }

    fn an_interrupt_between_the_two_instructions_of_a_site_is_resumed(engine) {
        let mut guest = Guest::new(engine, counted_calls);
        // As if stopped right behind the `mov`: before the site was ever used, and after.
        let site = syscall_in(&asm(counted_calls));
        for _ in 0..20 {
            (guest.regs().rip, guest.regs().rax) = (site, 99);
            assert_eq!(guest.call().nr, 99);
            assert_eq!(guest.call().nr, u64::from(NR));
        }
    }

    fn bytes_of_a_site_inside_a_longer_instruction_are_left_alone(engine) {
        let (code, constant) = constant_with_a_site_inside();
        let mut guest = Guest::with_code(engine, &code);
        for round in 0..50 {
            guest.regs().rip = CODE;
            assert_eq!(guest.call().nr, u64::from(NR) + 1);
            assert_eq!(guest.ctx.registers().rdx, constant, "the constant changed in round {round}");
        }
    }

    /// The same bytes as an instruction's constant and, entered in its middle, as a call.
    fn overlapping_instructions_keep_both_their_meanings(engine) {
        let (code, constant) = constant_with_a_site_inside();
        let mut guest = Guest::with_code(engine, &code);
        for round in 0..20 {
            guest.regs().rip = CODE;
            assert_eq!(guest.call().nr, u64::from(NR) + 1);
            assert_eq!(guest.ctx.registers().rdx, constant, "the constant changed in round {round}");
            guest.regs().rip = CODE + 2;
            assert_eq!(guest.call().nr, u64::from(NR), "round {round}");
        }
    }

    fn writable_text_is_left_alone(engine) {
        let space = AddressSpace::builder().engine(engine).create().expect("an address space");
        let everything = READ_WRITE | Protection::EXEC;
        space.map(Mapping::anonymous(PAGE, everything).at(CODE)).expect("memory");
        let code = asm(counted_calls);
        space.write(CODE, &code).expect("memory");
        let mut ctx = Context::new(CODE, 0);
        for _ in 0..100 {
            assert!(matches!(space.run(&mut ctx, &SignalSet::all()), Ok(Exit::Syscall)));
        }
        let mut found = vec![0; code.len()];
        space.read(CODE, &mut found).expect("memory");
        assert_eq!(found, code);
    }

    fn a_guest_that_changes_its_own_number_makes_the_new_call(engine) {
        let space = AddressSpace::builder().engine(engine).create().expect("an address space");
        let everything = READ_WRITE | Protection::EXEC;
        space.map(Mapping::anonymous(PAGE, everything).at(CODE)).expect("memory");
        // add $1,(CODE + 1 + the length of the add); the immediate of the mov grows with each round.
        let code = asm(|a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.add(dword_ptr(CODE + 0x21), 1)?;
            a.nops_with_size(0x20 - 8)?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.jmp(top)
        });
        assert_eq!(code[0x20], 0xb8, "the mov is where it is changed");
        space.write(CODE, &code).expect("memory");
        let mut ctx = Context::new(CODE, 0);
        for round in 1..=50 {
            match space.run(&mut ctx, &SignalSet::all()) {
                Ok(Exit::Syscall) => assert_eq!(ctx.syscall().nr, u64::from(NR) + round),
                other => panic!("{other:?}"),
            }
        }
    }

    fn new_code_in_place_of_rewritten_code_runs_as_it_is(engine) {
        let mut guest = Guest::new(engine, counted_calls);
        for _ in 0..20 {
            guest.call();
        }
        let page = Mapping::anonymous(PAGE, READ_WRITE).at(CODE);
        for nr in [NR + 5, NR + 6] {
            guest.space.map(page).expect("fresh memory");
            let code = asm(|a| {
                let mut top = a.create_label();
                a.set_label(&mut top)?;
                a.sub(rbx, 1)?;
                a.mov(eax, nr)?;
                a.syscall()?;
                a.jmp(top)
            });
            guest.space.write(CODE, &code).expect("memory");
            guest.space.protect(CODE, PAGE, READ_EXEC).expect("memory");
            guest.regs().rip = CODE;
            for _ in 0..20 {
                assert_eq!(guest.call().nr, u64::from(nr));
            }
        }
    }

    fn a_fault_in_new_code_is_where_it_is_and_not_at_a_call_of_the_old(engine) {
        const SITE: usize = 0x40;
        // xor %eax,%eax; syscall; ret, with padding behind it, called in a loop.
        let mut code = asm(|a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.call(CODE + SITE as u64)?;
            a.jmp(top)
        });
        code.resize(SITE, 0xcc);
        code.extend([0x31, 0xc0, 0x0f, 0x05, 0xc3, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0x90]);
        let mut guest = Guest::with_code(engine, &code);
        for _ in 0..20 {
            assert_eq!(guest.call().nr, 0);
        }
        guest.space.map(Mapping::anonymous(PAGE, READ_WRITE).at(CODE)).expect("fresh memory");
        guest.space.write(CODE, &[0xf4; SITE + 16]).expect("hlt, and no more of the old code");
        guest.space.protect(CODE, PAGE, READ_EXEC).expect("memory");
        for at in SITE..SITE + 16 {
            guest.regs().rip = CODE + at as u64;
            let exit = guest.space.run(&mut guest.ctx, &SignalSet::all()).expect("a run");
            assert!(matches!(exit, Exit::Fault(fault) if fault.signal == libc::SIGSEGV), "{exit:?}");
            assert_eq!(guest.ctx.registers().rip, CODE + at as u64);
        }
    }

    fn text_that_is_protected_again_keeps_working(engine) {
        let mut guest = Guest::new(engine, counted_calls);
        for round in 0..30 {
            guest.call();
            if round % 3 == 0 {
                guest.space.protect(CODE, PAGE, READ_WRITE).expect("text");
                guest.space.protect(CODE, PAGE, READ_EXEC).expect("text");
            }
        }
        assert_eq!(guest.ctx.registers().rbx, 30);
    }

    fn a_site_across_two_pages_works(engine) {
        // Each split of the seven bytes over the page boundary.
        for before in 1..7 {
            let mut code = vec![0x90; 4096 - before];
            code.extend([0xb8]);
            code.extend(NR.to_le_bytes());
            code.extend([0x0f, 0x05]);
            let start = CODE + 4096 - before as u64;
            // jmp back to the site
            code.extend([0xeb, 0xf7]);
            let mut guest = Guest::with_code(engine, &code);
            guest.regs().rip = start;
            for round in 0..20 {
                assert_eq!(guest.call().nr, u64::from(NR), "{before} bytes before the boundary, round {round}");
                assert_eq!(guest.ctx.registers().rip, start + 7);
            }
        }
    }

    fn a_number_zeroed_by_xor_works(engine) {
        check_numbers(engine, &[0], |a| {
            a.xor(eax, eax)?;
            a.syscall()
        });
    }

    fn a_number_of_sixty_four_bits_works(engine) {
        check_numbers(engine, &[0x1234_5678_9abc_def0], |a| {
            a.mov(rax, 0x1234_5678_9abc_def0u64)?;
            a.syscall()
        });
    }

    fn a_number_with_its_sign_extended_works(engine) {
        check_numbers(engine, &[(-2i64).cast_unsigned()], |a| {
            a.mov(rax, -2i64)?;
            a.syscall()
        });
    }

    fn the_number_minus_one_works(engine) {
        check_numbers(engine, &[u64::MAX], |a| {
            a.mov(rax, -1i64)?;
            a.syscall()
        });
    }

    fn a_number_from_the_stack_works(engine) {
        check_numbers(engine, &[60], |a| {
            a.push(60)?;
            a.pop(rax)?;
            a.syscall()
        });
    }

    fn an_instruction_between_number_and_call_works(engine) {
        check_numbers(engine, &[1], |a| {
            a.mov(eax, 1)?;
            a.nop()?;
            a.syscall()
        });
    }

    fn instructions_between_number_and_call_do_what_they_did(engine) {
        let value = 0x1122_3344_5566_7788;
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            let mut constant = a.create_label();
            a.set_label(&mut top)?;
            a.mov(eax, NR)?;
            a.mov(rdi, qword_ptr(constant))?;
            a.lea(rsi, qword_ptr(rbx + rbx * 2))?;
            a.syscall()?;
            a.add(rbx, 1)?;
            a.jmp(top)?;
            a.set_label(&mut constant)?;
            a.dq(&[value])
        });
        for round in 0..30 {
            let call = guest.call();
            assert_eq!((call.nr, call.args[0], call.args[1]), (u64::from(NR), value, 3 * round), "round {round}");
            assert_eq!(guest.ctx.registers().rip, CODE + 5 + 7 + 4 + 2);
        }
    }

    fn a_fault_between_number_and_call_is_where_it_was(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.mov(eax, NR)?;
            a.mov(rdi, qword_ptr(rbx))?;
            a.syscall()?;
            a.jmp(top)
        });
        guest.regs().rbx = DATA;
        for round in 0..30 {
            assert_eq!(guest.call().nr, u64::from(NR), "round {round}");
            guest.regs().rbx = 8;
            assert_eq!(guest.fault().addr, 8);
            assert_eq!(guest.ctx.registers().rip, CODE + 5, "round {round}");
            guest.regs().rbx = DATA;
        }
    }

    fn a_branch_right_behind_a_call_without_a_number_leads_where_it_led(engine) {
        let mut guest = Guest::new(engine, |a| {
            let (mut top, mut even) = (a.create_label(), a.create_label());
            a.set_label(&mut top)?;
            a.push(0)?;
            a.pop(rax)?;
            a.add(rbx, 1)?;
            a.test(rbx, 1)?;
            a.syscall()?;
            a.je(even)?;
            a.add(r12, 1)?;
            a.jmp(top)?;
            a.set_label(&mut even)?;
            a.add(r13, 1)?;
            a.jmp(top)
        });
        for round in 0..40u64 {
            assert_eq!(guest.call().nr, 0);
            let registers = guest.ctx.registers();
            assert_eq!((registers.r12, registers.r13), (round.div_ceil(2), round / 2), "round {round}");
        }
    }

    fn a_return_right_behind_a_call_without_a_number_returns(engine) {
        let mut guest = Guest::new(engine, |a| {
            let (mut top, mut function) = (a.create_label(), a.create_label());
            a.set_label(&mut top)?;
            a.call(function)?;
            a.add(rbx, 1)?;
            a.jmp(top)?;
            a.set_label(&mut function)?;
            a.push(0)?;
            a.pop(rax)?;
            a.push(r12)?;
            a.syscall()?;
            a.pop(r12)?;
            a.ret()
        });
        for round in 0..30 {
            assert_eq!(guest.call().nr, 0);
            assert_eq!(guest.ctx.registers().rbx, round);
        }
    }

    fn a_constant_read_right_behind_a_call_without_a_number_is_found(engine) {
        let value = 0x1122_3344_5566_7788;
        let mut guest = Guest::new(engine, |a| {
            let (mut top, mut constant) = (a.create_label(), a.create_label());
            a.set_label(&mut top)?;
            a.push(0)?;
            a.pop(rax)?;
            a.syscall()?;
            a.mov(rbx, qword_ptr(constant))?;
            a.jmp(top)?;
            a.set_label(&mut constant)?;
            a.dq(&[value])
        });
        guest.call();
        for _ in 0..30 {
            guest.regs().rbx = 0;
            assert_eq!(guest.call().nr, 0);
            assert_eq!(guest.ctx.registers().rbx, value);
        }
    }

    fn a_site_right_behind_a_call_without_a_number_works(engine) {
        check_numbers(engine, &[0, u64::from(NR)], |a| {
            a.xor(eax, eax)?;
            a.syscall()?;
            a.mov(eax, NR)?;
            a.syscall()
        });
    }

    fn sites_of_all_forms_side_by_side_work(engine) {
        check_numbers(engine, &[0, u64::from(NR), 5, 60, 1, 2], |a| {
            a.xor(eax, eax)?;
            a.syscall()?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.mov(rax, 5u64)?;
            a.syscall()?;
            a.push(60)?;
            a.pop(rax)?;
            a.syscall()?;
            a.mov(eax, 1)?;
            a.nop()?;
            a.syscall()?;
            a.mov(eax, 2)?;
            a.syscall()
        });
    }

    fn a_jump_right_behind_a_call_works(engine) {
        // Other code comes to the instruction behind a call too, as the end of a loop does.
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            let mut behind = a.create_label();
            a.set_label(&mut top)?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.set_label(&mut behind)?;
            a.add(rbx, 1)?;
            a.test(rbx, 1)?;
            a.jne(behind)?;
            a.jmp(top)
        });
        for round in 0..50 {
            guest.call();
            assert_eq!(guest.ctx.registers().rbx, 2 * round);
        }
    }

    fn code_that_runs_into_a_call_without_a_number_works(engine) {
        // The same `syscall` for two numbers.
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            let mut call = a.create_label();
            a.set_label(&mut top)?;
            a.xor(rbx, 1)?;
            a.mov(eax, NR + 1)?;
            a.je(call)?;
            a.mov(eax, NR)?;
            a.set_label(&mut call)?;
            a.syscall()?;
            a.nop()?;
            a.nop()?;
            a.nop()?;
            a.jmp(top)
        });
        for round in 1..=50u64 {
            assert_eq!(guest.call().nr, u64::from(NR) + u64::from(round % 2 == 0), "round {round}");
        }
    }

    fn hundreds_of_sites_each_keep_their_number(engine) {
        const SITES: u32 = 600;
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            for nr in 0..SITES {
                a.mov(eax, nr)?;
                a.syscall()?;
                a.lea(rbx, qword_ptr(rbx + 1))?;
            }
            a.jmp(top)
        });
        for round in 0..4 {
            for nr in 0..u64::from(SITES) {
                assert_eq!(guest.call().nr, nr, "round {round}");
                assert_eq!(guest.ctx.registers().rbx, round * u64::from(SITES) + nr);
            }
        }
    }

    fn threads_that_hammer_a_fresh_site_all_get_their_answers(engine) {
        for fresh in 0..10 {
            let first = Guest::new(engine, counted_calls);
            let start = Arc::new(Barrier::new(6));
            let threads: Vec<_> = (1..=6)
                .map(|number| {
                    let (mut guest, start) = (first.another(number), Arc::clone(&start));
                    thread::spawn(move || {
                        start.wait();
                        for round in 1..=60 {
                            let call = guest.call();
                            assert_eq!((call.nr, guest.ctx.registers().rbx), (u64::from(NR), round), "space {fresh}");
                            assert_eq!(guest.ctx.registers().rip, CODE + 11);
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("a thread");
            }
        }
    }

    fn interrupts_in_the_middle_of_calls_leave_sensible_registers(engine) {
        let mut guest = Guest::new(engine, counted_calls);
        let interrupter = guest.ctx.interrupter();
        let end = Instant::now() + soak();
        let sender = thread::spawn(move || {
            while Instant::now() < end {
                interrupter.interrupt();
                thread::sleep(Duration::from_micros(30));
            }
        });
        let code_end = CODE + asm(counted_calls).len() as u64;
        let mut calls = 0;
        while !sender.is_finished() {
            match guest.run() {
                Exit::Syscall => {
                    calls += 1;
                    guest.ctx.set_return(calls);
                }
                Exit::Interrupted => {
                    // The guest is in its own code, never in a trampoline.
                    let rip = guest.ctx.registers().rip;
                    assert!((CODE..code_end).contains(&rip), "{rip:#x} after {calls} calls");
                    assert_eq!(guest.ctx.registers().rsp, STACK_TOP);
                }
                other => panic!("{other:?}"),
            }
            let made = guest.ctx.registers().rbx;
            assert!(made == calls || made == calls + 1, "{made} made, {calls} reported");
        }
        sender.join().expect("the sender");
    }

    fn a_call_and_a_fault_take_turns_at_rewritten_sites(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.ud2()?;
            a.jmp(top)
        });
        for _ in 0..100 {
            guest.call();
            assert_eq!(guest.fault().signal, libc::SIGILL);
            guest.regs().rip += 2;
        }
    }

    fn flow_that_leaves_a_call_by_another_context_is_not_confused(engine) {
        let mut one = Guest::new(engine, counted_calls);
        for _ in 0..20 {
            one.call();
        }
        // A copy of a context that stands behind a rewritten call, run in turn with its original.
        let mut copy = Guest { space: Arc::clone(&one.space), ctx: one.ctx.try_clone().expect("a copy") };
        for round in 1..=20 {
            one.call();
            copy.call();
            assert_eq!(one.ctx.registers().rbx, 20 + round);
            assert_eq!(copy.ctx.registers().rbx, 20 + round);
        }
    }

    fn rewriting_can_be_switched_off(engine) {
        let space = AddressSpace::builder().engine(engine).rewriting(Rewriting::Off).create().expect("a space");
        space.map(Mapping::anonymous(PAGE, READ_WRITE).at(CODE)).expect("memory");
        let code = asm(counted_calls);
        space.write(CODE, &code).expect("memory");
        space.protect(CODE, PAGE, READ_EXEC).expect("memory");
        let mut ctx = Context::new(CODE, DATA);
        for _ in 0..50 {
            assert!(matches!(space.run(&mut ctx, &SignalSet::all()), Ok(Exit::Syscall)));
        }
        let mut found = vec![0; code.len()];
        space.read(CODE, &mut found).expect("memory");
        assert_eq!(found, code);
    }
}
