//! Each kind of exception comes with its signal, vector, address and access.

use std::{
    fs::{self, File},
    os::fd::AsFd,
};

use iced_x86::{IcedError, code_asm::*};
use process_vm_exec::{Access, Fault, Mapping, Protection};

use crate::common::{
    CODE, DATA, Guest, NR, PAGE, READ, READ_WRITE, UNMAPPED, asm_at, claims, is_emulated, skip,
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

fn segv(code: i32, addr: u64, access: Access) -> Fault {
    Fault { signal: libc::SIGSEGV, code, addr, access, trapno: PAGE_FAULT }
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
    assert_eq!(guest.ctx.registers().rip, CODE, "{fault:?}");
    fault
}

claims! {
    fn reading_unmapped_memory_is_told_with_its_address(engine) {
        let mut guest = Guest::new(engine, read_at_rdi);
        for addr in [0, 0xfff, UNMAPPED, UNMAPPED + 123, 0x7fff_ffff_e000] {
            assert_eq!(fault_of(&mut guest, addr), segv(SEGV_MAPERR, addr, Access::Read));
            assert_eq!(guest.ctx.registers().rip, CODE);
        }
    }

    fn writing_unmapped_memory_is_told_with_its_address(engine) {
        let mut guest = Guest::new(engine, write_at_rdi);
        for addr in [0, UNMAPPED + 8] {
            assert_eq!(fault_of(&mut guest, addr), segv(SEGV_MAPERR, addr, Access::Write));
        }
    }

    fn executing_unmapped_memory_is_told_with_its_address(engine) {
        for addr in [0, UNMAPPED + 1] {
            let mut guest = Guest::new(engine, jump_to_rdi);
            assert_eq!(fault_of(&mut guest, addr), segv(SEGV_MAPERR, addr, Access::Execute));
            assert_eq!(guest.ctx.registers().rip, addr);
        }
    }

    fn writing_read_only_memory_is_an_access_error(engine) {
        let mut guest = Guest::new(engine, write_at_rdi);
        guest.space.protect(DATA, PAGE, READ).expect("data");
        assert_eq!(fault_of(&mut guest, DATA + 4), segv(SEGV_ACCERR, DATA + 4, Access::Write));
        assert_eq!(fault_of(&mut guest, CODE), segv(SEGV_ACCERR, CODE, Access::Write));
    }

    fn executing_data_is_an_access_error(engine) {
        let mut guest = Guest::new(engine, jump_to_rdi);
        guest.space.write(DATA, &[0x90, 0x90]).expect("data");
        assert_eq!(fault_of(&mut guest, DATA), segv(SEGV_ACCERR, DATA, Access::Execute));
    }

    fn reading_protected_memory_is_an_access_error(engine) {
        let mut guest = Guest::new(engine, read_at_rdi);
        guest.space.protect(DATA, PAGE, Protection::empty()).expect("data");
        assert_eq!(fault_of(&mut guest, DATA + 8), segv(SEGV_ACCERR, DATA + 8, Access::Read));
    }

    fn a_fault_that_the_supervisor_mends_goes_on_where_it_was(engine) {
        let mut guest = Guest::new(engine, |a| {
            a.mov(eax, dword_ptr(rdi))?;
            a.mov(ebx, eax)?;
            a.mov(eax, NR)?;
            a.syscall()
        });
        assert_eq!(fault_of(&mut guest, UNMAPPED), segv(SEGV_MAPERR, UNMAPPED, Access::Read));
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
        assert_eq!((fault.signal, fault.addr, fault.access), (libc::SIGSEGV, addr, Access::Read), "{fault:?}");
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
        assert_eq!((fault.signal, fault.trapno), (libc::SIGTRAP, 3), "{fault:?}");
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
        let programs: [Program; 6] =
            [|a| a.hlt(), |a| a.cli(), |a| a.in_(al, dx), |a| a.wrmsr(), |a| a.mov(cr0, rax), |a| a.int(0x81)];
        for program in programs {
            let fault = check_exception(engine, program, libc::SIGSEGV, GENERAL_PROTECTION);
            assert_eq!((fault.code, fault.addr), (SI_KERNEL, 0), "{fault:?}");
        }
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
    }

    fn faults_with_a_senseless_stack_pointer_are_reported(engine) {
        let mut guest = Guest::new(engine, read_at_rdi);
        for stack in [0, 7, UNMAPPED, 0x8000_0000_0000, u64::MAX] {
            guest.regs().rsp = stack;
            assert_eq!(fault_of(&mut guest, UNMAPPED), segv(SEGV_MAPERR, UNMAPPED, Access::Read));
            assert_eq!(guest.ctx.registers().rsp, stack);
        }
    }

    fn a_start_outside_of_all_memory_is_a_fault(engine) {
        let mut guest = Guest::new(engine, |a| a.nop());
        for rip in [0, UNMAPPED, 0x7fff_ffff_e000] {
            guest.regs().rip = rip;
            let fault = guest.fault();
            assert_eq!((fault.signal, fault.addr, fault.access), (libc::SIGSEGV, rip, Access::Execute));
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
