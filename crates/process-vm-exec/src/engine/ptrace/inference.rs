//! What the processor said about a fault, inferred: ptrace(2) tells neither its vector nor its error code.

use std::fs::File;
use std::os::unix::fs::FileExt;

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register, UsedMemory,
};
use rustix::process::Pid;

use crate::arch::x86_64::{Registers, USER_END, page_fault, xstate};
use crate::exit::{Access, Fault};
use crate::maps::{self, Map};
use crate::signal::SigInfo;

/// `si_code` of SIGSEGV where memory is mapped (include/uapi/asm-generic/siginfo.h).
const SEGV_ACCERR: i32 = 2;
const SEGV_PKUERR: i32 = 4;
const GENERAL_PROTECTION: u32 = 13;
const PAGE: u64 = 4096;
/// No instruction is longer.
const MAX_LEN: usize = 15;

/// The fault for which the task with these registers has stopped. `None` for a process that is dead already.
pub(super) fn fault(info: &SigInfo, registers: &Registers, xstate: &[u8], process: Option<Pid>) -> Fault {
    let stopped = Stopped { info, registers, process };
    let trapno = trapno(info, xstate);
    let (access, error_code) = match trapno {
        page_fault::VECTOR => {
            let instruction = stopped.instruction();
            let access = stopped.access(&instruction);
            (Some(access), stopped.page_fault_error(access))
        }
        GENERAL_PROTECTION => (None, gate_error(&stopped.instruction())),
        _ => (None, 0),
    };
    Fault { signal: info.signal(), code: info.code(), addr: info.addr(), access, trapno, error_code }
}

struct Stopped<'a> {
    info: &'a SigInfo,
    registers: &'a Registers,
    process: Option<Pid>,
}

impl Stopped<'_> {
    /// The instruction at RIP, whatever the protection of its page is.
    fn instruction(&self) -> Instruction {
        let mut code = [0; MAX_LEN];
        let len = self
            .open("mem")
            .and_then(|memory| memory.read_at(&mut code, self.registers.rip).ok())
            .unwrap_or(0);
        Decoder::with_ip(64, &code[..len], self.registers.rip, DecoderOptions::NONE).decode()
    }

    fn access(&self, instruction: &Instruction) -> Access {
        let addr = self.info.addr();
        let len = if instruction.is_invalid() { MAX_LEN } else { instruction.len() };
        let is_in_instruction = addr.wrapping_sub(self.registers.rip) < len as u64;
        let is_executable = || self.map(addr).is_some_and(|map| map.is_executable());
        // What has been fetched from a file is not missing there.
        if is_in_instruction && (self.info.signal() == libc::SIGBUS || !is_executable()) {
            return Access::Execute;
        }
        let mut factory = InstructionInfoFactory::new();
        let operands = factory.info(instruction).used_memory();
        // Of some operands neither address nor size can be told: they are asked last.
        let is_concerned = |operand: &&UsedMemory| self.range_of(instruction, operand).contains(&addr);
        let concerned: Vec<_> = operands.iter().filter(is_concerned).collect();
        let candidates = if concerned.is_empty() { operands.iter().collect() } else { concerned };
        if candidates.into_iter().any(writes) { Access::Write } else { Access::Read }
    }

    /// Where an operand is; empty if that cannot be told.
    fn range_of(&self, instruction: &Instruction, operand: &UsedMemory) -> std::ops::Range<u64> {
        let size = match operand.memory_size().size() {
            // A repeated one's is not told: RSI and RDI show the element that failed.
            0 => instruction.memory_size().size(),
            size => size,
        };
        match operand.virtual_address(0, |register, _, _| value_of(self.registers, register)) {
            Some(start) => start..start.saturating_add(size as u64),
            None => 0..0,
        }
    }

    fn page_fault_error(&self, access: Access) -> u32 {
        let kind = match access {
            Access::Read => 0,
            Access::Write => page_fault::WRITE,
            Access::Execute => page_fault::FETCH,
        };
        let state = match self.info.code() {
            SEGV_PKUERR => page_fault::PROTECTION | page_fault::KEY,
            _ if self.info.addr() >= USER_END => page_fault::PROTECTION,
            SEGV_ACCERR if self.is_present() => page_fault::PROTECTION,
            _ => 0,
        };
        page_fault::USER | kind | state
    }

    /// Has the processor a page there? Not where nothing at all is allowed.
    fn is_present(&self) -> bool {
        const PRESENT: u64 = 1 << 63;
        let addr = self.info.addr();
        let mut entry = [0; 8];
        self.map(addr).is_some_and(|map| map.is_accessible())
            && self
                .open("pagemap")
                .is_some_and(|pages| pages.read_exact_at(&mut entry, addr / PAGE * 8).is_ok())
            && u64::from_ne_bytes(entry) & PRESENT != 0
    }

    fn map(&self, addr: u64) -> Option<Map> {
        maps::of(self.process?).ok()?.into_iter().find(|map| map.range.contains(&addr))
    }

    fn open(&self, file: &str) -> Option<File> {
        File::open(format!("/proc/{}/{file}", self.process?.as_raw_nonzero())).ok()
    }
}

fn writes(operand: &UsedMemory) -> bool {
    use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
    matches!(operand.access(), Write | ReadWrite | CondWrite | ReadCondWrite)
}

/// The error code of a general protection fault: of `int n` whose gate user space may not use, its selector; of most
/// others 0.
fn gate_error(instruction: &Instruction) -> u32 {
    const IN_IDT: u32 = 1 << 1;
    if instruction.mnemonic() == Mnemonic::Int {
        u32::from(instruction.immediate8()) << 3 | IN_IDT
    } else {
        0
    }
}

/// A general register or segment base, for computing an operand's address.
fn value_of(registers: &Registers, register: Register) -> Option<u64> {
    use Register as R;
    let value = match register.full_register() {
        R::RAX => registers.rax,
        R::RBX => registers.rbx,
        R::RCX => registers.rcx,
        R::RDX => registers.rdx,
        R::RSI => registers.rsi,
        R::RDI => registers.rdi,
        R::RBP => registers.rbp,
        R::RSP => registers.rsp,
        R::R8 => registers.r8,
        R::R9 => registers.r9,
        R::R10 => registers.r10,
        R::R11 => registers.r11,
        R::R12 => registers.r12,
        R::R13 => registers.r13,
        R::R14 => registers.r14,
        R::R15 => registers.r15,
        R::FS => registers.fs_base,
        R::GS => registers.gs_base,
        R::CS | R::DS | R::ES | R::SS => 0,
        _ => return None,
    };
    Some(if register.size() == 4 { value & 0xffff_ffff } else { value })
}

/// The exception's vector, from what Linux makes of it (arch/x86/kernel/traps.c).
fn trapno(info: &SigInfo, xstate: &[u8]) -> u32 {
    const SI_KERNEL: i32 = 0x80;
    const FPE_INTDIV: i32 = 1;
    match (info.signal(), info.code()) {
        (libc::SIGSEGV, SI_KERNEL) => GENERAL_PROTECTION,
        (libc::SIGSEGV, _) => page_fault::VECTOR,
        (libc::SIGBUS, libc::BUS_ADRALN) => 17,
        (libc::SIGBUS, SI_KERNEL) => 12,
        (libc::SIGBUS, _) => page_fault::VECTOR,
        (libc::SIGILL, _) => 6,
        (libc::SIGTRAP, SI_KERNEL) => 3,
        (libc::SIGTRAP, _) => 1,
        (libc::SIGFPE, FPE_INTDIV) => 0,
        _ if xstate::has_x87_exception(xstate) => 16,
        _ => 19,
    }
}
