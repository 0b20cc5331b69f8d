//! Each kind of exception comes with its signal, vector, address and access.

use std::{
    fs::{self, File},
    os::fd::AsFd,
};

use iced_x86::{IcedError, code_asm::*};
use process_vm_exec::{Access, Fault, Mapping, Protection, Registers};

use crate::common::{
    CODE, CODE_LEN, DATA, DATA_LEN, Guest, NR, PAGE, READ, READ_WRITE, UNMAPPED, asm_at, claims, is_emulated,
    skip,
};

/// `si_code` of signals that the kernel raises for want of a better word.
const SI_KERNEL: i32 = 0x80;
const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
/// `si_code` of SIGFPE (include/uapi/asm-generic/siginfo.h).
const FPE_INTDIV: i32 = 1;
const FPE_FLTDIV: i32 = 3;
const FPE_FLTINV: i32 = 7;
const PAGE_FAULT: u32 = 14;
const GENERAL_PROTECTION: u32 = 13;
/// The error code of page faults (Intel SDM, volume 3, 4.7).
const PRESENT: u32 = 1 << 0;
const WRITE: u32 = 1 << 1;
const USER: u32 = 1 << 2;
const FETCH: u32 = 1 << 4;

fn segv(code: i32, addr: u64, access: Access, error_code: u32) -> Fault {
    Fault { signal: libc::SIGSEGV, code, addr, access: Some(access), trapno: PAGE_FAULT, error_code }
}

fn read_at_rdi(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, dword_ptr(rdi))
}

fn write_at_rdi(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dword_ptr(rdi), eax)
}

fn jump_to_rdi(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.jmp(rdi)
}

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// The fault of a program whose RDI holds `addr`.
fn fault_of(guest: &mut Guest, addr: u64) -> Fault {
    guest.regs().rdi = addr;
    guest.fault()
}

/// An instruction that raises an exception at its own address.
fn check_exception(engine: process_vm_exec::Engine, program: Program, signal: i32, trapno: u32) -> Fault {
    let mut guest = Guest::new(engine, program);
    let fault = guest.fault();
    assert_eq!((fault.signal, fault.trapno), (signal, trapno), "{fault:?}");
    assert_eq!((guest.ctx.registers().rip, fault.access), (CODE, None), "{fault:?}");
    fault
}

claims! {
    planned;

    fn reading_unmapped_memory_is_told_with_its_address(engine) {
        let mut guest = Guest::new(engine, read_at_rdi);
        for addr in [0, 0xfff, UNMAPPED, UNMAPPED + 123, 0x7fff_ffff_e000] {
            assert_eq!(fault_of(&mut guest, addr), segv(SEGV_MAPERR, addr, Access::Read, USER));
            assert_eq!(guest.ctx.registers().rip, CODE);
        }
    }

    fn writing_unmapped_memory_is_told_with_its_address(engine) {
        let mut guest = Guest::new(engine, write_at_rdi);
        for addr in [0, UNMAPPED + 8] {
            assert_eq!(fault_of(&mut guest, addr), segv(SEGV_MAPERR, addr, Access::Write, USER | WRITE));
        }
    }

    fn executing_unmapped_memory_is_told_with_its_address(engine) {
        for addr in [0, UNMAPPED + 1] {
            let mut guest = Guest::new(engine, jump_to_rdi);
            assert_eq!(fault_of(&mut guest, addr), segv(SEGV_MAPERR, addr, Access::Execute, USER | FETCH));
            assert_eq!(guest.ctx.registers().rip, addr);
        }
    }

    fn writing_read_only_memory_is_an_access_error(engine) {
        let mut guest = Guest::new(engine, write_at_rdi);
        guest.space.protect(DATA, 2 * PAGE, READ).expect("data");
        assert_eq!(guest.peek(DATA), 0);
        let error = USER | WRITE | PRESENT;
        assert_eq!(fault_of(&mut guest, DATA + 4), segv(SEGV_ACCERR, DATA + 4, Access::Write, error));
        assert_eq!(fault_of(&mut guest, CODE), segv(SEGV_ACCERR, CODE, Access::Write, error));
        // Nobody has touched it, so there is no page.
        let untouched = DATA + PAGE;
        assert_eq!(fault_of(&mut guest, untouched), segv(SEGV_ACCERR, untouched, Access::Write, USER | WRITE));
    }

    fn executing_data_is_an_access_error(engine) {
        let mut guest = Guest::new(engine, jump_to_rdi);
        guest.space.write(DATA, &[0x90, 0x90]).expect("data");
        assert_eq!(fault_of(&mut guest, DATA), segv(SEGV_ACCERR, DATA, Access::Execute, USER | FETCH | PRESENT));
    }

    fn reading_protected_memory_is_an_access_error(engine) {
        let mut guest = Guest::new(engine, read_at_rdi);
        guest.space.write(DATA, &[7]).expect("data");
        guest.space.protect(DATA, PAGE, Protection::empty()).expect("data");
        // To the processor it is not there.
        assert_eq!(fault_of(&mut guest, DATA + 8), segv(SEGV_ACCERR, DATA + 8, Access::Read, USER));
    }

    fn executing_protected_memory_is_a_fetch_whatever_is_there(engine) {
        let mut guest = Guest::new(engine, |a| a.jmp(rax));
        // `add %al,(%rax)`, which would write to the very address.
        guest.space.write(DATA, &[0, 0]).expect("data");
        guest.regs().rax = DATA;
        assert_eq!(guest.fault(), segv(SEGV_ACCERR, DATA, Access::Execute, USER | FETCH | PRESENT));
        guest.space.protect(DATA, PAGE, Protection::empty()).expect("data");
        assert_eq!(guest.fault(), segv(SEGV_ACCERR, DATA, Access::Execute, USER | FETCH));
    }

    fn an_instruction_that_goes_on_in_a_page_that_cannot_be_executed_is_a_fetch_there(engine) {
        let end = CODE + CODE_LEN;
        let mut guest = Guest::new(engine, jump_to_rdi);
        let mut bytes = asm_at(end - 3, |a| a.mov(rax, 0x1122_3344_5566_7788u64));
        guest.text_changes();
        guest.space.protect(CODE, CODE_LEN, READ_WRITE).expect("code");
        bytes.truncate(3);
        guest.space.write(end - 3, &bytes).expect("code");
        guest.space.protect(CODE, CODE_LEN, READ | Protection::EXEC).expect("code");
        guest.regs().rdi = end - 3;
        assert_eq!(guest.fault(), segv(SEGV_MAPERR, end, Access::Execute, USER | FETCH));
        assert_eq!(guest.ctx.registers().rip, end - 3);
    }

    fn repeated_instructions_tell_which_of_their_operands_failed(engine) {
        let copy: Program = |a| a.rep().movsb();
        let fill: Program = |a| a.rep().stosq();
        let backwards: Program = |a| { a.std()?; a.rep().movsq() };
        let compare: Program = |a| a.repe().cmpsb();
        let hole = UNMAPPED;
        let cases = [
            (copy, hole, DATA, hole, Access::Write),
            (copy, DATA, hole, hole, Access::Read),
            (copy, DATA + DATA_LEN - 4, DATA, DATA + DATA_LEN, Access::Write),
            (copy, DATA, DATA + DATA_LEN - 4, DATA + DATA_LEN, Access::Read),
            (fill, hole, DATA, hole, Access::Write),
            (backwards, DATA, DATA + PAGE, DATA - 8, Access::Write),
            (backwards, DATA + PAGE, DATA, DATA - 8, Access::Read),
            (compare, hole, DATA, hole, Access::Read),
        ];
        for (program, to, from, addr, access) in cases {
            let mut guest = Guest::new(engine, program);
            let registers = Registers { rdi: to, rsi: from, rcx: 64, ..*guest.ctx.registers() };
            *guest.regs() = registers;
            let error = if access == Access::Write { USER | WRITE } else { USER };
            assert_eq!(guest.fault(), segv(SEGV_MAPERR, addr, access, error), "{to:#x} {from:#x}");
        }
    }

    fn instructions_that_read_and_write_are_writes(engine) {
        let programs: [Program; 4] = [
            |a| a.lock().add(dword_ptr(rdi), 1),
            |a| a.xchg(dword_ptr(rdi), eax),
            |a| a.lock().cmpxchg16b(xmmword_ptr(rdi)),
            |a| a.xsave64(ptr(rdi)),
        ];
        for program in programs {
            let mut guest = Guest::new(engine, program);
            guest.space.protect(DATA, PAGE, READ).expect("data");
            assert_eq!(guest.peek(DATA), 0);
            let fault = fault_of(&mut guest, DATA);
            assert_eq!(
                (fault.signal, fault.access, fault.error_code),
                (libc::SIGSEGV, Some(Access::Write), USER | WRITE | PRESENT),
                "{fault:?}"
            );
        }
    }

    fn a_fault_that_the_supervisor_mends_goes_on_where_it_was(engine) {
        let mut guest = Guest::new(engine, |a| {
            a.mov(eax, dword_ptr(rdi))?;
            a.mov(ebx, eax)?;
            a.mov(eax, NR)?;
            a.syscall()
        });
        assert_eq!(fault_of(&mut guest, UNMAPPED), segv(SEGV_MAPERR, UNMAPPED, Access::Read, USER));
        guest.space.map(Mapping::anonymous(PAGE, READ_WRITE).at(UNMAPPED)).expect("memory");
        guest.poke(UNMAPPED, 99);
        guest.call();
        assert_eq!(guest.ctx.registers().rbx, 99);
    }

    fn an_address_that_is_not_canonical_is_a_general_protection_fault(engine) {
        let mut guest = Guest::new(engine, read_at_rdi);
        // With four levels of page tables or five.
        for addr in [1 << 56, 0x1234_5678_9abc_def0] {
            let fault = fault_of(&mut guest, addr);
            assert_eq!((fault.signal, fault.trapno), (libc::SIGSEGV, GENERAL_PROTECTION), "{fault:?}");
            assert_eq!((fault.code, fault.addr), (SI_KERNEL, 0), "{fault:?}");
        }
    }

    fn kernel_addresses_are_out_of_reach(engine) {
        let mut guest = Guest::new(engine, read_at_rdi);
        let addr = 0xffff_ffff_8000_0000;
        let fault = fault_of(&mut guest, addr);
        assert_eq!(fault, segv(SEGV_MAPERR, addr, Access::Read, USER | PRESENT));
    }

    fn a_jump_into_the_hole_of_addresses_is_reported(engine) {
        for addr in [0x8000_0000_0000, 0xffff_8000_0000_0000] {
            let mut guest = Guest::new(engine, jump_to_rdi);
            let fault = fault_of(&mut guest, addr);
            assert_eq!(fault.signal, libc::SIGSEGV, "{fault:?}");
        }
    }

    fn a_breakpoint_is_a_trap_behind_its_instruction(engine) {
        let mut guest = Guest::new(engine, |a| a.int3());
        let fault = guest.fault();
        assert_eq!((fault.signal, fault.trapno, fault.access), (libc::SIGTRAP, 3, None), "{fault:?}");
        assert_eq!(guest.ctx.registers().rip, CODE + 1);
    }

    fn an_invalid_instruction_is_told_with_its_address(engine) {
        let fault = check_exception(engine, |a| a.ud2(), libc::SIGILL, 6);
        assert_eq!(fault.addr, CODE);
    }

    fn a_division_by_zero_is_told_with_its_address(engine) {
        let fault = check_exception(engine, |a| a.div(ecx), libc::SIGFPE, 0);
        assert_eq!((fault.code, fault.addr), (FPE_INTDIV, CODE));
    }

    fn privileged_instructions_are_general_protection_faults(engine) {
        let programs: [Program; 5] =
            [|a| a.hlt(), |a| a.cli(), |a| a.in_(al, dx), |a| a.wrmsr(), |a| a.mov(cr0, rax)];
        for program in programs {
            let fault = check_exception(engine, program, libc::SIGSEGV, GENERAL_PROTECTION);
            assert_eq!((fault.code, fault.addr), (SI_KERNEL, 0), "{fault:?}");
            assert_eq!(fault.error_code, 0, "{fault:?}");
        }
    }

    fn a_software_interrupt_that_only_the_kernel_may_raise_is_told_with_its_gate(engine) {
        if is_emulated() {
            return skip("QEMU's emulator tells another gate");
        }
        let fault = check_exception(engine, |a| a.int(0x81), libc::SIGSEGV, GENERAL_PROTECTION);
        assert_eq!((fault.code, fault.addr, fault.error_code), (SI_KERNEL, 0, 0x81 << 3 | 2), "{fault:?}");
    }

    fn a_misaligned_access_with_the_ac_flag_is_a_bus_error(engine) {
        if is_emulated() {
            return skip("QEMU's emulator does not check alignment");
        }
        let mut guest = Guest::new(engine, read_at_rdi);
        guest.regs().rflags |= 1 << 18;
        let fault = fault_of(&mut guest, DATA + 1);
        assert_eq!((fault.signal, fault.trapno, fault.code), (libc::SIGBUS, 17, libc::BUS_ADRALN), "{fault:?}");
        assert_eq!(guest.ctx.registers().rip, CODE);
    }

    fn an_unmasked_sse_exception_is_reported(engine) {
        if is_emulated() {
            return skip("QEMU's emulator does not raise SSE exceptions");
        }
        let mut guest = Guest::new(engine, |a| {
            a.ldmxcsr(dword_ptr(DATA))?;
            a.xorps(xmm0, xmm0)?;
            a.divps(xmm0, xmm0)
        });
        guest.poke(DATA, 0);
        let fault = guest.fault();
        assert_eq!((fault.signal, fault.trapno, fault.code), (libc::SIGFPE, 19, FPE_FLTINV), "{fault:?}");
    }

    fn an_unmasked_x87_exception_is_reported(engine) {
        let mut guest = Guest::new(engine, |a| {
            a.fninit()?;
            a.fldcw(word_ptr(DATA))?;
            a.fld1()?;
            a.fldz()?;
            a.fdivp(st1, st0)?;
            a.wait()
        });
        guest.poke(DATA, 0x0340);
        let fault = guest.fault();
        assert_eq!((fault.signal, fault.trapno, fault.code), (libc::SIGFPE, 16, FPE_FLTDIV), "{fault:?}");
    }

    fn an_access_past_a_files_end_is_a_bus_error(engine) {
        let path = std::env::temp_dir().join(format!("pvx-conformance-{}-{engine}", std::process::id()));
        fs::write(&path, [7; 100]).expect("a file");
        let file = File::open(&path).expect("a file");
        fs::remove_file(&path).expect("a file");
        let mut guest = Guest::new(engine, read_at_rdi);
        guest.space.map(Mapping::file(file.as_fd(), 0, 2 * PAGE, READ).at(UNMAPPED)).expect("a mapping");
        assert_eq!(guest.peek(UNMAPPED) & 0xff, 7);
        let fault = fault_of(&mut guest, UNMAPPED + PAGE + 8);
        assert_eq!((fault.signal, fault.code), (libc::SIGBUS, libc::BUS_ADRERR), "{fault:?}");
        assert_eq!(fault.addr, UNMAPPED + PAGE + 8);
        assert_eq!((fault.access, fault.error_code), (Some(Access::Read), USER), "{fault:?}");
    }

    fn faults_with_a_senseless_stack_pointer_are_reported(engine) {
        let mut guest = Guest::new(engine, read_at_rdi);
        for stack in [0, 7, UNMAPPED, 0x8000_0000_0000, u64::MAX] {
            guest.regs().rsp = stack;
            assert_eq!(fault_of(&mut guest, UNMAPPED), segv(SEGV_MAPERR, UNMAPPED, Access::Read, USER));
            assert_eq!(guest.ctx.registers().rsp, stack);
        }
    }

    fn a_start_outside_of_all_memory_is_a_fault(engine) {
        let mut guest = Guest::new(engine, |a| a.nop());
        for rip in [0, UNMAPPED, 0x7fff_ffff_e000] {
            guest.regs().rip = rip;
            let fault = guest.fault();
            assert_eq!((fault.signal, fault.addr, fault.access), (libc::SIGSEGV, rip, Some(Access::Execute)));
        }
    }

    fn a_start_that_is_not_canonical_never_runs(engine) {
        let guest = Guest::new(engine, |a| a.nop());
        for rip in [0x8000_0000_0000, 0xffff_8000_0000_0000, 0x1234_5678_9abc_def0] {
            let mut ctx = process_vm_exec::Context::new(rip, 0);
            let result = guest.space.run(&mut ctx, &process_vm_exec::SignalSet::all());
            match result {
                Err(_) => {}
                Ok(process_vm_exec::Exit::Fault(fault)) => assert_eq!(fault.signal, libc::SIGSEGV),
                Ok(other) => panic!("{rip:#x}: {other:?}"),
            }
        }
    }

    fn faults_and_system_calls_take_turns(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.mov(ecx, dword_ptr(rdi))?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.ud2()?;
            a.jmp(top)
        });
        guest.regs().rdi = UNMAPPED;
        for _ in 0..300 {
            assert_eq!(guest.fault().trapno, PAGE_FAULT);
            guest.regs().rip += 2;
            guest.call();
            assert_eq!(guest.fault().trapno, 6);
            guest.regs().rip += 2;
        }
    }

    fn code_that_is_not_there_yet_can_be_paged_in(engine) {
        let mut guest = Guest::new(engine, jump_to_rdi);
        fault_of(&mut guest, UNMAPPED);
        let late = asm_at(UNMAPPED, |a| { a.mov(eax, NR)?; a.syscall() });
        guest.space.map(Mapping::anonymous(PAGE, READ_WRITE).at(UNMAPPED)).expect("memory");
        guest.space.write(UNMAPPED, &late).expect("memory");
        if guest.space.protect(UNMAPPED, PAGE, READ | Protection::EXEC).is_err() {
            return skip("no executable memory");
        }
        assert_eq!(guest.call().nr, u64::from(NR));
    }
}
