//! Call-site rewriting is not to be noticed. Every engine has to pass, so that none is special.

use std::{
    env, fs,
    fs::File,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, PermissionsExt},
    },
    path::PathBuf,
    process,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU32, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use iced_x86::{IcedError, code_asm::*};
use process_vm_exec::{
    AddressSpace, Context, Engine, EngineError, Error, Exit, Interrupter, Mapping, Protection, Registers,
    Rewriting, SignalSet,
};
use rustix::fs::MemfdFlags;

use crate::common::{
    ALONE, CODE, CODE_LEN, DATA, Guest, NR, Numbers, PAGE, READ_EXEC, READ_WRITE, STACK_TOP, alone, asm,
    claims, is_emulated, kill, pid_of, skip, soak,
};
use crate::planned::{is_planned, planned};

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

/// A function in a file of its own that makes one call and jumps to its beginning.
fn call_of(nr: u32) -> Vec<u8> {
    asm(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(eax, nr)?;
        a.syscall()?;
        a.jmp(top)
    })
}

/// A file that is gone when this is.
#[derive(Debug)]
struct TextFile(PathBuf);

impl TextFile {
    fn new(text: &[u8]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::at(env::temp_dir().join(format!("pvx-rewriting-{}-{number}", process::id())), text)
    }

    fn at(path: PathBuf, text: &[u8]) -> Self {
        let mut page = text.to_vec();
        page.resize(usize::try_from(2 * PAGE).expect("two pages"), 0xf4);
        fs::write(&path, page).expect("a file");
        Self(path)
    }

    fn to_read(&self) -> File {
        File::open(&self.0).expect("the file")
    }

    fn to_write(&self) -> File {
        File::options().read(true).write(true).open(&self.0).expect("the file")
    }
}

/// A guest with two pages of text from a file, privately mapped.
fn mapped(engine: Engine, file: &File) -> Guest {
    let space = AddressSpace::builder().engine(engine).create().expect("an address space");
    space.map(Mapping::file(file.as_fd(), 0, 2 * PAGE, READ_EXEC).at(CODE)).expect("text");
    Guest::in_space(space)
}

impl Drop for TextFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Interrupts a context when it is dropped.
#[derive(Debug)]
struct InterruptsAtTheEnd(Interrupter);

impl Drop for InterruptsAtTheEnd {
    fn drop(&mut self) {
        self.0.interrupt();
    }
}

/// Makes `rounds` calls from the start of the text, all of which must have this number.
#[track_caller]
fn check_calls(guest: &mut Guest, nr: u32, rounds: u32) {
    guest.regs().rip = CODE;
    for round in 0..rounds {
        assert_eq!(guest.call().nr, u64::from(nr), "round {round}");
    }
}

/// Where the random part of a random program begins.
const RANDOM_CODE: u64 = CODE + 0x400;
/// Where it finds its entries.
const ENTRIES: u64 = DATA;

/// A program of random instructions, calls among them, that is entered at a random instruction again and again.
fn random_program(numbers: &mut Numbers) -> (Vec<u8>, Vec<u64>) {
    let pick = |numbers: &mut Numbers, from: &[&[u8]]| {
        let index = numbers.below(from.len() as u64);
        from[usize::try_from(index).expect("small")].to_vec()
    };
    // Short ones, to have all divisions of the bytes behind a call; moves of numbers, and addresses, to stand before one.
    let plain: [&[u8]; 18] = [
        &[0x90],
        &[0x66, 0x90],
        &[0x0f, 0x1f, 0x00],
        &[0x50],
        &[0x58],
        &[0x31, 0xc0],
        &[0x85, 0xc0],
        &[0x48, 0xff, 0xc3],
        &[0x48, 0x01, 0xc3],
        &[0x48, 0x8d, 0x5b, 0x07],
        &[0x89, 0xd8],
        &[0xb8, 39, 0, 0, 0],
        &[0x48, 0xc7, 0xc0, 0xfe, 0xff, 0xff, 0xff],
        &[0x48, 0x8d, 0x7c, 0x24, 0x08],
        &[0x48, 0x8d, 0x35, 0x10, 0, 0, 0],
        &[0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff],
        &[0x41, 0x50],
        &[0xcc],
    ];
    let branches: [&[u8]; 4] = [&[0x74], &[0x75], &[0x78], &[0xeb]];
    let mut code = Vec::new();
    let mut starts = Vec::new();
    let mut jumps = Vec::new();
    for _ in 0..90 {
        starts.push(code.len());
        match numbers.below(10) {
            0..3 => code.extend([0x0f, 0x05]),
            3 => {
                code.extend(pick(numbers, &branches));
                jumps.push((code.len(), starts.len() + usize::try_from(numbers.below(5)).expect("small")));
                code.push(0);
            }
            _ => code.extend(pick(numbers, &plain)),
        }
    }
    // Enough for the last branches, and the end.
    for _ in 0..6 {
        starts.push(code.len());
        code.push(0x90);
    }
    for (at, target) in jumps {
        code[at] = u8::try_from(starts[target] - at - 1).expect("a few instructions");
    }
    let dispatch = asm(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(rcx, 6_364_136_223_846_793_005u64)?;
        a.imul_2(r12, rcx)?;
        a.add(r12, 1)?;
        a.mov(rcx, r12)?;
        a.shr(rcx, 56)?;
        a.mov(rsp, r14)?;
        a.jmp(qword_ptr(r13 + rcx * 8))
    });
    let mut program = dispatch;
    program.resize(usize::try_from(RANDOM_CODE - CODE).expect("small"), 0x90);
    program.extend(&code);
    let end = i32::try_from(program.len()).expect("a short program") + 5;
    program.push(0xe9);
    program.extend((-end).to_le_bytes());
    let entries = (0..256)
        .map(|_| {
            let index = usize::try_from(numbers.below(starts.len() as u64 - 6)).expect("small");
            RANDOM_CODE + starts[index] as u64
        })
        .collect();
    (program, entries)
}

/// What a random program does: at each exit, by which signal it came, if by one, and the registers.
fn trace(guest: &mut Guest, seed: u64, exits: usize) -> Vec<(i32, Registers)> {
    let stack_top = guest.ctx.registers().rsp;
    let registers = guest.regs();
    (registers.r12, registers.r13, registers.r14) = (seed, ENTRIES, stack_top - 512);
    (0..exits)
        .map(|exit| {
            let signal = match guest.run() {
                Exit::Syscall => 0,
                Exit::Fault(fault) => fault.signal,
                other => panic!("{other:?} at exit {exit}"),
            };
            let seen = *guest.ctx.registers();
            if is_planned() {
                // Who applies plans loads all registers, but for flags that only the kernel may change.
                guest.regs();
            }
            guest.ctx.set_return(Ok(exit as u64 % 3));
            (signal, seen)
        })
        .collect()
}

fn random_guest(engine: Engine, program: &[u8], entries: &[u64]) -> Guest {
    let guest = Guest::with_code(engine, program);
    let entries: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    guest.space.write(ENTRIES, &entries).expect("the entries");
    guest
}

#[track_caller]
fn check_same(found: &[(i32, Registers)], expected: &[(i32, Registers)], seed: u64) {
    for (exit, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "program {seed}, exit {exit}");
    }
}

// Those about guests whose text stays as it is: what changes it is for whoever applies plans.
planned! {
    a_site_called_a_thousand_times_behaves_the_same_each_time,
    a_jump_straight_to_the_syscall_of_a_site_works_with_any_number,
    an_interrupt_between_the_two_instructions_of_a_site_is_resumed,
    bytes_of_a_site_inside_a_longer_instruction_are_left_alone,
    overlapping_instructions_keep_both_their_meanings,
    a_site_across_two_pages_works,
    a_number_zeroed_by_xor_works,
    a_number_of_sixty_four_bits_works,
    a_number_with_its_sign_extended_works,
    the_number_minus_one_works,
    a_number_from_the_stack_works,
    an_instruction_between_number_and_call_works,
    instructions_between_number_and_call_do_what_they_did,
    a_fault_between_number_and_call_is_where_it_was,
    a_branch_right_behind_a_call_without_a_number_leads_where_it_led,
    a_return_right_behind_a_call_without_a_number_returns,
    a_constant_read_right_behind_a_call_without_a_number_is_found,
    a_site_right_behind_a_call_without_a_number_works,
    sites_of_all_forms_side_by_side_work,
    a_jump_right_behind_a_call_works,
    code_that_runs_into_a_call_without_a_number_works,
    hundreds_of_sites_each_keep_their_number,
    threads_that_hammer_a_fresh_site_all_get_their_answers,
    interrupts_in_the_middle_of_calls_leave_sensible_registers,
    a_call_and_a_fault_take_turns_at_rewritten_sites,
    flow_that_leaves_a_call_by_another_context_is_not_confused,
    code_that_comes_to_the_instruction_behind_a_call_from_anywhere_finds_it,
    a_loop_that_jumps_past_the_move_of_its_number_is_rewritten_all_the_same,
    a_breakpoint_of_the_guests_own_behind_a_call_is_its_own,
    a_division_between_number_and_call_faults_where_it_is,
    random_programs_that_are_entered_anywhere_do_the_same_as_under_trap,
}

claims! {
    fn a_site_called_a_thousand_times_behaves_the_same_each_time(engine) {
        let mut guest = Guest::new(engine, counted_calls);
        for round in 1..=1000 {
            let call = guest.call();
            assert_eq!((call.nr, guest.ctx.registers().rbx), (u64::from(NR), round));
            assert_eq!(guest.ctx.registers().rip, CODE + 11, "round {round}");
            guest.ctx.set_return(Ok(round));
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
                    guest.ctx.set_return(Ok(calls));
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
        let copy = one.ctx.try_clone().expect("a copy");
        let mut copy = one.with_context(copy);
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

    fn code_that_comes_to_the_instruction_behind_a_call_from_anywhere_finds_it(engine) {
        // Every other round jumps past the call by a register, from farther away than anybody looks.
        let mut guest = Guest::new(engine, |a| {
            let (mut top, mut behind, mut far) = (a.create_label(), a.create_label(), a.create_label());
            a.set_label(&mut top)?;
            a.push(0)?;
            a.pop(rax)?;
            a.syscall()?;
            a.set_label(&mut behind)?;
            a.cmp(rax, -4095)?;
            a.jmp(far)?;
            a.nops_with_size(4000)?;
            a.set_label(&mut far)?;
            a.add(rbx, 1)?;
            a.lea(rcx, qword_ptr(behind))?;
            a.lea(rdx, qword_ptr(top))?;
            a.test(rbx, 1)?;
            a.cmovne(rcx, rdx)?;
            a.jmp(rcx)
        });
        for round in 0..30 {
            assert_eq!(guest.call().nr, 0);
            assert_eq!(guest.ctx.registers().rbx, [0, 1][usize::from(round > 0)] + 2 * u64::saturating_sub(round, 1));
        }
        assert_eq!(guest.rewritten_sites(), usize::from(engine == Engine::Rewrite));
    }

    fn a_call_that_others_jump_past_all_the_time_is_left_alone(engine) {
        let mut guest = Guest::new(engine, |a| {
            let (mut top, mut behind) = (a.create_label(), a.create_label());
            a.set_label(&mut top)?;
            a.push(0)?;
            a.pop(rax)?;
            a.push(20)?;
            a.pop(r12)?;
            a.syscall()?;
            a.set_label(&mut behind)?;
            a.cmp(rax, -4095)?;
            a.add(rbx, 1)?;
            a.sub(r12, 1)?;
            a.jne(behind)?;
            a.jmp(top)
        });
        for round in 0..30 {
            assert_eq!(guest.call().nr, 0);
            assert_eq!(guest.ctx.registers().rbx, 20 * round);
        }
        assert_eq!(guest.space.rewritten_sites(), 0);
    }

    fn a_loop_that_jumps_past_the_move_of_its_number_is_rewritten_all_the_same(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut again = a.create_label();
            a.mov(eax, NR)?;
            a.set_label(&mut again)?;
            a.xor(edi, edi)?;
            a.syscall()?;
            a.cmp(rax, -4095)?;
            a.jb(again)
        });
        for _ in 0..200 {
            assert_eq!(guest.call().nr, u64::from(NR));
            guest.ctx.set_return(Ok(u64::from(NR)));
        }
        assert_eq!(guest.ctx.calls().rewritten > 150, engine == Engine::Rewrite, "{:?}", guest.ctx.calls());
    }

    fn a_fork_may_come_to_an_instruction_that_its_parents_call_has_moved(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.xor(eax, eax)?;
            a.syscall()?;
            a.add(rbx, 1)?;
            a.jmp(top)
        });
        for _ in 0..20 {
            assert_eq!(guest.call().nr, 0);
        }
        let fork = guest.space.fork().expect("a fork");
        let behind = guest.ctx.registers().rip;
        let mut child = Guest::in_space(fork);
        for round in 1..20 {
            child.regs().rip = behind;
            assert_eq!((child.call().nr, child.ctx.registers().rbx), (0, round));
        }
        assert_eq!(child.space.rewritten_sites(), usize::from(engine == Engine::Rewrite));
    }

    fn a_breakpoint_of_the_guests_own_behind_a_call_is_its_own(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.push(0)?;
            a.pop(rax)?;
            a.syscall()?;
            a.int3()?;
            a.add(rbx, 1)?;
            a.jmp(top)
        });
        for round in 0..30 {
            assert_eq!(guest.call().nr, 0);
            let behind = guest.ctx.registers().rip;
            assert_eq!((guest.fault().signal, guest.ctx.registers().rip), (libc::SIGTRAP, behind + 1));
            // Once more, by a jump.
            guest.regs().rip = behind;
            assert_eq!((guest.fault().signal, guest.ctx.registers().rip), (libc::SIGTRAP, behind + 1));
            assert_eq!(guest.ctx.registers().rbx, round);
        }
        // It was not taken for one of ours again and again, until the site was given up.
        assert_eq!(guest.rewritten_sites(), usize::from(engine == Engine::Rewrite));
    }

    fn a_division_between_number_and_call_faults_where_it_is(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.lea(rsi, qword_ptr(rsp + 8))?;
            a.div(ecx)?;
            a.syscall()?;
            a.jmp(top)
        });
        for round in 0..30 {
            let registers = guest.regs();
            (registers.rip, registers.rax, registers.rdx, registers.rcx) = (CODE, 60, 0, 2);
            assert_eq!(guest.call().nr, 30, "round {round}");
            let registers = guest.regs();
            (registers.rip, registers.rcx) = (CODE, 0);
            let fault = guest.fault();
            assert_eq!((fault.signal, fault.addr, guest.ctx.registers().rip), (libc::SIGFPE, CODE + 5, CODE + 5));
        }
    }

    fn random_programs_that_are_entered_anywhere_do_the_same_as_under_trap(engine) {
        let mut rewritten = 0;
        for seed in 0..60 {
            let (program, entries) = random_program(&mut Numbers::new(seed));
            let expected = trace(&mut random_guest(Engine::Trap, &program, &entries), seed, 300);
            let mut guest = random_guest(engine, &program, &entries);
            check_same(&trace(&mut guest, seed, 300), &expected, seed);
            rewritten += guest.ctx.calls().rewritten;
        }
        assert_eq!(rewritten > 2000, engine == Engine::Rewrite, "{rewritten} calls from rewritten sites");
    }

    /// Two contexts run the same text, while its protection is set again and again.
    fn random_programs_of_two_threads_do_the_same_while_their_protection_changes(engine) {
        for seed in 100..120 {
            let (program, entries) = random_program(&mut Numbers::new(seed));
            let run = |engine, is_changed: bool| {
                let first = random_guest(engine, &program, &entries);
                let space = Arc::clone(&first.space);
                let guests = [first.another(0), first.another(8)];
                let running = AtomicU32::new(2);
                thread::scope(|scope| {
                    let threads = guests.map(|mut guest| {
                        let running = &running;
                        scope.spawn(move || {
                            let found = trace(&mut guest, seed, 400);
                            running.fetch_sub(1, Ordering::SeqCst);
                            found
                        })
                    });
                    while is_changed && running.load(Ordering::SeqCst) != 0 {
                        space.protect(CODE, CODE_LEN, READ_EXEC | Protection::WRITE).expect("writable text");
                        space.protect(CODE, CODE_LEN, READ_EXEC).expect("text");
                        thread::sleep(Duration::from_micros(200));
                    }
                    threads.map(|thread| thread.join().expect("a thread"))
                })
            };
            let expected = run(Engine::Trap, false);
            let found = run(engine, true);
            for (found, expected) in found.iter().zip(&expected) {
                check_same(found, expected, seed);
            }
        }
    }

    /// As a debugger writes it, past all that we know of.
    fn what_somebody_has_written_over_a_rewritten_site_stays(engine) {
        let mut guest = Guest::new(engine, counted_calls);
        for _ in 0..20 {
            guest.call();
        }
        let memory = format!("/proc/{}/mem", pid_of(&guest.space));
        let memory = File::options().write(true).open(memory).expect("the guest's memory");
        memory.write_all_at(&call_of(NR + 1), CODE).expect("text");
        guest.space.protect(CODE, PAGE, READ_EXEC).expect("text");
        check_calls(&mut guest, NR + 1, 20);
    }

    /// As a compiler does that stops a thread, replaces its code and lets it go on.
    fn code_that_is_replaced_while_its_thread_is_stopped_runs_and_stays(engine) {
        let mut guest = Guest::with_code(engine, &call_of(NR));
        // Another context, so that the space has had several.
        guest.another(1).call();
        let space = Arc::clone(&guest.space);
        let interrupter = guest.ctx.interrupter();
        let (seen, calls) = (AtomicU64::new(0), AtomicU64::new(0));
        let (is_stopped, stopped) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let (seen, calls) = (&seen, &calls);
            // However this ends, the thread does too: it is interrupted, and finds nobody who says that it goes on.
            let go_on = go_on;
            let interrupts = InterruptsAtTheEnd(interrupter);
            let runner = scope.spawn(move || {
                loop {
                    match guest.run() {
                        Exit::Syscall => {
                            seen.store(guest.ctx.syscall().nr, Ordering::SeqCst);
                            calls.fetch_add(1, Ordering::SeqCst);
                            guest.ctx.set_return(Ok(0));
                        }
                        Exit::Interrupted => {
                            is_stopped.send(()).expect("the claim waits");
                            if goes_on.recv().is_err() {
                                return;
                            }
                        }
                        other => panic!("{other:?} at {:#x}", guest.ctx.registers().rip),
                    }
                }
            });
            let make_calls = |count| {
                let before = calls.load(Ordering::SeqCst);
                while calls.load(Ordering::SeqCst) < before + count {
                    assert!(!runner.is_finished(), "the thread makes its calls");
                    std::hint::spin_loop();
                }
            };
            let end = Instant::now() + soak();
            let mut nr = NR;
            while Instant::now() < end {
                make_calls(5);
                space.protect(CODE, PAGE, READ_EXEC | Protection::WRITE).expect("writable text");
                let mut text = [0; 5];
                space.read(CODE, &mut text).expect("text");
                assert_eq!(text, call_of(nr)[..5], "writable text is as the guest has written it");
                interrupts.0.interrupt();
                stopped.recv().expect("the thread runs");
                nr += 1;
                space.write(CODE, &call_of(nr)).expect("new text");
                space.protect(CODE, PAGE, READ_EXEC).expect("text");
                space.read(CODE, &mut text).expect("text");
                assert_eq!(text, call_of(nr)[..5], "nobody has undone the guest's change");
                go_on.send(()).expect("the thread runs");
                // The first may be of the old code, behind whose `mov` the thread was stopped.
                make_calls(3);
                assert_eq!(seen.load(Ordering::SeqCst), u64::from(nr));
            }
        });
    }

    fn what_is_written_to_a_file_that_is_open_for_writing_is_seen_in_its_text(engine) {
        let file = TextFile::new(&call_of(NR));
        let writer = file.to_write();
        let mut guest = mapped(engine, &writer);
        check_calls(&mut guest, NR, 20);
        writer.write_all_at(&call_of(NR + 1), 0).expect("the file");
        check_calls(&mut guest, NR + 1, 20);
    }

    fn what_is_written_to_a_memory_file_is_seen_in_its_text(engine) {
        let file = File::from(rustix::fs::memfd_create("text", MemfdFlags::CLOEXEC).expect("a memory file"));
        file.write_all_at(&call_of(NR), 0).expect("the file");
        file.set_len(2 * PAGE).expect("the file");
        let mut guest = mapped(engine, &file);
        check_calls(&mut guest, NR, 20);
        file.write_all_at(&call_of(NR + 1), 0).expect("the file");
        check_calls(&mut guest, NR + 1, 20);
    }

    fn what_is_written_to_a_file_that_is_opened_later_is_seen_in_its_text_and_in_forks(engine) {
        let file = TextFile::new(&call_of(NR));
        let mut guest = mapped(engine, &file.to_read());
        check_calls(&mut guest, NR, 20);
        assert_eq!(guest.ctx.calls().rewritten > 0, engine == Engine::Rewrite);
        let fork = guest.space.fork().expect("a fork");
        let mut child = Guest::in_space(fork);
        let mut other = mapped(engine, &file.to_read());
        check_calls(&mut other, NR, 20);
        let writer = file.to_write();
        writer.write_all_at(&call_of(NR + 1), 0).expect("the file");
        for guest in [&mut guest, &mut child, &mut other] {
            check_calls(guest, NR + 1, 20);
        }
        // And from then on.
        writer.write_all_at(&call_of(NR + 2), 0).expect("the file");
        check_calls(&mut guest, NR + 2, 20);
    }

    /// What was planned from its old text must not come after the writer, who holds up nobody when he is done.
    fn what_is_written_to_a_file_while_its_first_site_is_rewritten_is_seen_in_its_text(engine) {
        if engine == Engine::Native && is_emulated() {
            // Nothing is rewritten there. Whether it is the emulator's or the kernel's call is open.
            return skip("under QEMU's emulator an old instruction was executed once in some 300 rounds");
        }
        let mut numbers = Numbers::new(17);
        for round in 0..100 {
            let file = TextFile::new(&call_of(NR));
            let mut guest = mapped(engine, &file.to_read());
            guest.regs().rip = CODE;
            let (path, delay) = (file.0.clone(), Duration::from_micros(numbers.below(400)));
            let writer = thread::spawn(move || {
                thread::sleep(delay);
                let file = File::options().write(true).open(path).expect("the file");
                file.write_all_at(&call_of(NR + 1), 0).expect("the file");
            });
            while !writer.is_finished() {
                guest.call();
            }
            writer.join().expect("the writer");
            guest.regs().rip = CODE;
            assert_eq!(guest.call().nr, u64::from(NR + 1), "round {round}");
            check_calls(&mut guest, NR + 1, 20);
        }
    }

    fn what_is_written_to_one_of_several_files_is_seen_in_its_text(engine) {
        alone(engine, module_path!(), "what_is_written_to_one_of_several_files_is_seen_in_its_text", || {
            let files = [NR, NR + 10].map(|nr| TextFile::new(&call_of(nr)));
            let mut guests = files.each_ref().map(|file| mapped(engine, &file.to_read()));
            for (guest, nr) in guests.iter_mut().zip([NR, NR + 10]) {
                check_calls(guest, nr, 20);
                assert_eq!(guest.ctx.calls().rewritten > 0, engine == Engine::Rewrite);
            }
            let [first, second] = &mut guests;
            files[0].to_write().write_all_at(&call_of(NR + 1), 0).expect("the file");
            assert_eq!(second.rewritten_sites(), usize::from(engine == Engine::Rewrite), "nobody wants that file");
            check_calls(first, NR + 1, 20);
            files[1].to_write().write_all_at(&call_of(NR + 11), 0).expect("the file");
            check_calls(second, NR + 11, 20);
        });
    }

    /// It has copies of what its parent knows of leases, and not the thread that is told of their ends.
    fn what_is_written_to_a_file_is_seen_in_the_text_of_a_forked_supervisors_guests(engine) {
        if matches!(engine, Engine::Ptrace | Engine::Native) {
            // Their tasks are a thread's, which has not been forked.
            return;
        }
        let claim = "what_is_written_to_a_file_is_seen_in_the_text_of_a_forked_supervisors_guests";
        alone(engine, module_path!(), claim, || {
            let files = [NR, NR + 10].map(|nr| TextFile::new(&call_of(nr)));
            let mut parents = mapped(engine, &files[0].to_read());
            check_calls(&mut parents, NR, 20);
            // SAFETY: the child uses what is its own copy, and memory of the C library, which sees to that, and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let check = || {
                    // With that ends nothing of its parent's.
                    drop(parents);
                    for (file, nr) in files.iter().zip([NR, NR + 10]) {
                        let mut guest = mapped(engine, &file.to_read());
                        check_calls(&mut guest, nr, 20);
                        assert_eq!(guest.ctx.calls().rewritten > 0, engine == Engine::Rewrite);
                        file.to_write().write_all_at(&call_of(nr + 1), 0).expect("the file");
                        check_calls(&mut guest, nr + 1, 20);
                    }
                };
                let has_failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err();
                // SAFETY: ends this process.
                unsafe { libc::_exit(has_failed.into()) }
            }
            let mut status = 0;
            // SAFETY: the status may be written.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "the child's claims");
            check_calls(&mut parents, NR + 1, 20);
        });
    }

    fn plans_are_for_the_engine_whose_stubs_they_have(engine) {
        let space = AddressSpace::builder().engine(engine).rewriting(Rewriting::Planned).create();
        match engine {
            Engine::Rewrite => assert_eq!(space.expect("a space").engine(), engine),
            _ => assert!(matches!(space, Err(Error::Engine { why: EngineError::Plans, .. })), "{space:?}"),
        }
    }

    /// Who neither owns a file nor has rights over it gets no lease.
    fn a_file_that_only_its_owner_can_write_to_is_rewritten_without_a_lease_and_no_other(engine) {
        const NOBODY: u32 = 65534;
        let claim = "a_file_that_only_its_owner_can_write_to_is_rewritten_without_a_lease_and_no_other";
        // SAFETY: geteuid(2) takes nothing.
        if unsafe { libc::geteuid() } != 0 && env::var_os(ALONE).is_none() {
            return skip("only root can have files that it then has no rights over");
        }
        alone(engine, module_path!(), claim, || {
            // Whose directory it is can remove them.
            let directory = tempfile::tempdir().expect("a directory");
            std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).expect("its owner");
            let files = [0o644, 0o666].map(|mode| {
                let file = TextFile::at(directory.path().join(format!("{mode:o}")), &call_of(NR));
                fs::set_permissions(&file.0, fs::Permissions::from_mode(mode)).expect("permissions");
                (file, mode)
            });
            // SAFETY: these take integers; no other thread of this process relies on its rights.
            let lost = unsafe {
                libc::setgroups(0, std::ptr::null()) == 0
                    && libc::setresgid(NOBODY, NOBODY, NOBODY) == 0
                    && libc::setresuid(NOBODY, NOBODY, NOBODY) == 0
                    && libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
            };
            assert!(lost, "{}", std::io::Error::last_os_error());
            for (file, mode) in &files {
                let mut guest = mapped(engine, &file.to_read());
                check_calls(&mut guest, NR, 20);
                let is_rewritten = guest.ctx.calls().rewritten > 0;
                assert_eq!(is_rewritten, engine == Engine::Rewrite && *mode == 0o644, "{mode:o}");
            }
        });
    }

    fn what_the_guest_has_changed_in_its_private_text_stays_when_the_file_is_written_to(engine) {
        let file = TextFile::new(&call_of(NR));
        let mut guest = mapped(engine, &file.to_read());
        guest.space.protect(CODE, PAGE, READ_WRITE).expect("writable text");
        guest.space.write(CODE, &call_of(NR + 5)).expect("text");
        guest.space.protect(CODE, PAGE, READ_EXEC).expect("text");
        check_calls(&mut guest, NR + 5, 20);
        file.to_write().write_all_at(&call_of(NR + 1), 0).expect("the file");
        check_calls(&mut guest, NR + 5, 20);
    }

    fn a_page_that_was_rewritten_and_restored_is_the_files_again(engine) {
        let file = TextFile::new(&call_of(NR));
        let mut guest = mapped(engine, &file.to_read());
        check_calls(&mut guest, NR, 20);
        guest.space.protect(CODE, PAGE, READ_EXEC).expect("text");
        file.to_write().write_all_at(&call_of(NR + 1), 0).expect("the file");
        check_calls(&mut guest, NR + 1, 20);
    }

    fn a_space_that_is_stopped_keeps_nobody_from_writing_and_sees_it_when_it_goes_on(engine) {
        let file = TextFile::new(&call_of(NR));
        let mut guest = mapped(engine, &file.to_read());
        check_calls(&mut guest, NR, 20);
        kill(pid_of(&guest.space), libc::SIGSTOP);
        file.to_write().write_all_at(&call_of(NR + 1), 0).expect("the file");
        kill(pid_of(&guest.space), libc::SIGCONT);
        // Those signals may be reported at any time.
        let mut next_call = || loop {
            guest.regs().rip = CODE;
            match guest.run() {
                Exit::Syscall => return guest.ctx.syscall().nr,
                Exit::Signal(info) => assert!([libc::SIGSTOP, libc::SIGCONT].contains(&info.signal()), "{info:?}"),
                other => panic!("{other:?}"),
            }
        };
        while next_call() == u64::from(NR) {}
        for round in 0..20 {
            assert_eq!(next_call(), u64::from(NR + 1), "round {round}");
        }
    }

    /// Not until the kernel loses its patience with a lease, after 45 seconds.
    fn whoever_opens_a_file_for_writing_does_not_wait_for_a_space_that_is_stopped(engine) {
        let file = TextFile::new(&call_of(NR));
        let mut guest = mapped(engine, &file.to_read());
        check_calls(&mut guest, NR, 20);
        kill(pid_of(&guest.space), libc::SIGSTOP);
        let start = Instant::now();
        drop(file.to_write());
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        guest.space.kill();
    }

    fn a_space_that_gives_a_file_up_late_does_not_keep_others_from_rewriting_it(engine) {
        let file = TextFile::new(&call_of(NR));
        let mut late = mapped(engine, &file.to_read());
        check_calls(&mut late, NR, 20);
        kill(pid_of(&late.space), libc::SIGSTOP);
        drop(file.to_write());
        let mut other = mapped(engine, &file.to_read());
        check_calls(&mut other, NR, 20);
        assert_eq!(other.ctx.calls().rewritten > 0, engine == Engine::Rewrite);
        // And that is given up like any other.
        file.to_write().write_all_at(&call_of(NR + 1), 0).expect("the file");
        check_calls(&mut other, NR + 1, 20);
        late.space.kill();
    }

    fn files_whose_text_is_gone_are_not_kept_open(engine) {
        alone(engine, module_path!(), "files_whose_text_is_gone_are_not_kept_open", || {
            let open = || fs::read_dir("/proc/self/fd").expect("descriptors").count();
            let first = TextFile::new(&call_of(NR));
            let mut guest = mapped(engine, &first.to_read());
            check_calls(&mut guest, NR, 4);
            let before = open();
            // More than are rewritten at once in one space, and than are left open by then.
            for number in 0..100u32 {
                let file = TextFile::new(&call_of(NR + number));
                guest
                    .space
                    .map(Mapping::file(file.to_read().as_fd(), 0, 2 * PAGE, READ_EXEC).at(CODE))
                    .expect("text in place of the last file's");
                check_calls(&mut guest, NR + number, 4);
            }
            assert!(open() <= before + 1, "{before} descriptors before, {} after", open());
            let others: Vec<TextFile> = (0..100).map(|number| TextFile::new(&call_of(NR + number))).collect();
            for (number, file) in (0..100u32).zip(&others) {
                let at = DATA + u64::from(number) * 2 * PAGE;
                guest.space.map(Mapping::file(file.to_read().as_fd(), 0, 2 * PAGE, READ_EXEC).at(at)).expect("text");
                for _ in 0..4 {
                    guest.regs().rip = at;
                    assert_eq!(guest.call().nr, u64::from(NR + number));
                }
            }
            assert!(open() <= before + 70, "{before} descriptors before, {} after", open());
        });
    }
}
