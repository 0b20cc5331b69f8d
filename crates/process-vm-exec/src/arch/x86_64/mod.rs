//! The x86-64 processor: its registers, and what it can do.

pub(crate) mod page_fault;
pub(crate) mod xstate;

use crate::error::{Error, Result};

/// The registers of one flow of control.
///
/// The order is the mailbox's: first what the answer to a system call needs, then the five words that `iretq`
/// takes, then the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the processor's registers, by their own names")]
pub struct Registers {
    pub rax: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub r10: u64,
    pub r8: u64,
    pub r9: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub rbx: u64,
    pub rbp: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rcx: u64,
    pub r11: u64,
    pub fs_base: u64,
    pub gs_base: u64,
}

impl Registers {
    /// Number and arguments of a call by the `syscall` instruction.
    pub(crate) const fn call(&self) -> [u64; 7] {
        [self.rax, self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }

    /// Number and arguments of a call by `int 0x80`.
    pub(crate) const fn i386_call(&self) -> [u64; 7] {
        [self.rax, self.rbx, self.rcx, self.rdx, self.rsi, self.rdi, self.rbp]
    }
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            rax: 0,
            rdi: 0,
            rsi: 0,
            rdx: 0,
            r10: 0,
            r8: 0,
            r9: 0,
            rip: 0,
            cs: USER_CS,
            rflags: RFLAGS_ALWAYS_SET,
            rsp: 0,
            ss: USER_SS,
            rbx: 0,
            rbp: 0,
            r12: 0,
            r13: 0,
            r14: 0,
            r15: 0,
            rcx: 0,
            r11: 0,
            fs_base: 0,
            gs_base: 0,
        }
    }
}

/// A full barrier: what follows is done after everybody can see the writes before. As Linux's `smp_mb()`
/// (arch/x86/include/asm/barrier.h): an `mfence`, which the standard library's fence is, takes several times as long.
#[inline]
pub(crate) fn full_barrier() {
    // SAFETY: a locked instruction that changes nothing, on the top of this task's stack.
    unsafe { std::arch::asm!("lock or dword ptr [rsp], 0") };
}

/// The 64-bit user code segment (`__USER_CS`, arch/x86/include/asm/segment.h).
pub(crate) const USER_CS: u64 = 0x33;
/// The user data segment (`__USER_DS`).
pub(crate) const USER_SS: u64 = 0x2b;
/// Bit 1 of RFLAGS reads as one always.
const RFLAGS_ALWAYS_SET: u64 = 1 << 1;

/// The 32-bit user code segment (`__USER32_CS`).
pub(crate) const USER32_CS: u64 = 0x23;
/// What user space may change: CF PF AF ZF SF TF DF OF NT AC ID (Intel SDM, volume 1, 3.4.3), as ptrace(2) lets it.
const RFLAGS_USER: u64 = 0x24_4dd5;
/// IF: interrupts are on in user space.
const RFLAGS_IF: u64 = 1 << 9;
/// TF: the processor stops after each instruction.
pub(crate) const RFLAGS_TF: u64 = 1 << 8;
/// User addresses are below this (`TASK_SIZE_MAX` with four levels).
pub(crate) const USER_END: u64 = 0x7fff_ffff_f000;

/// From here on addresses are the kernel's, or none.
const NOT_CANONICAL: u64 = 1 << 47;

/// Makes `registers` what the processor accepts in user space, or says why that cannot be.
pub(crate) fn validate(registers: &mut Registers) -> Result<()> {
    if registers.rip >= NOT_CANONICAL {
        return Err(Error::Context("RIP is not a user address"));
    }
    if registers.fs_base >= USER_END || registers.gs_base >= USER_END {
        return Err(Error::Context("a segment base is not a user address"));
    }
    if ![USER_CS, USER32_CS].contains(&registers.cs) || registers.ss != USER_SS {
        return Err(Error::Context("CS or SS is not a user segment (0x33 or 0x23, and 0x2b)"));
    }
    if registers.cs == USER32_CS && registers.rip > u32::MAX.into() {
        return Err(Error::Context("RIP is beyond what code of 32 bits (CS 0x23) can reach"));
    }
    registers.rflags = registers.rflags & RFLAGS_USER | RFLAGS_ALWAYS_SET | RFLAGS_IF;
    Ok(())
}
