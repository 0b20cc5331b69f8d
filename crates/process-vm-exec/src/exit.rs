//! Why a run ended. The enums are closed: who matches on them has to see to each reason, and learns of a new one from the
//! compiler.

use crate::signal::SigInfo;

/// Why [`AddressSpace::run`](crate::Space::run) came back.
#[derive(Clone, Copy, Debug)]
pub enum Exit {
    /// The guest made a system call; it has not been executed. [`Context::syscall`](crate::Context::syscall) tells
    /// which, [`Context::set_return`](crate::Context::set_return) answers it.
    Syscall,
    /// An instruction of the guest could not complete. RIP is the instruction's own (a fault) or the next
    /// one's (a trap, such as `int3` or a single step), as the processor has it. After a page fault, map the page and run
    /// again: the instruction is executed anew.
    Fault(Fault),
    /// A signal from outside arrived for the guest.
    Signal(SigInfo),
    /// An [`Interrupter`](crate::Interrupter) ended the run.
    Interrupted,
    /// The task behind the address space is gone; every later run says the same.
    Died(WaitStatus),
}

/// A system call that a guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// The number, as it was in `rax`. For the x32 ABI it has bit 30 set.
    pub nr: u64,
    /// The six arguments: `rdi rsi rdx r10 r8 r9`, or `ebx ecx edx esi edi ebp` for [`Arch::I386`].
    pub args: [u64; 6],
    /// The ABI of the entry.
    pub arch: Arch,
}

/// The ABI by which a system call entered the kernel (`AUDIT_ARCH_*` of `linux/audit.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// The `syscall` instruction.
    X86_64,
    /// `int 0x80`: another table of numbers and other argument registers.
    I386,
}

/// An exception that the processor raised in guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The signal that Linux makes of it: `SIGSEGV`, `SIGBUS`, `SIGILL`, `SIGFPE` or `SIGTRAP`.
    pub signal: i32,
    /// `si_code` of the signal, such as `SEGV_ACCERR` (sigaction(2)).
    pub code: i32,
    /// The address concerned (`si_addr`): of the memory for page faults, of the instruction for most others,
    /// 0 where the processor tells none (general protection).
    pub addr: u64,
    /// What the guest tried to do there; `None` if it was no page fault.
    pub access: Option<Access>,
    /// The exception's vector: 0 divide error, 1 debug, 3 breakpoint, 6 invalid opcode, 13 general
    /// protection, 14 page fault, 16 x87, 17 alignment check, 19 SIMD.
    pub trapno: u32,
    /// The exception's error code as Linux shows it to a handler (`REG_ERR` of its `ucontext_t`), 0 for exceptions
    /// without one. The `ptrace` engine, which the kernel does not tell it, infers that of page faults.
    pub error_code: u32,
}

/// What a faulting instruction tried to do with its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It read data.
    Read,
    /// It wrote data.
    Write,
    /// It fetched an instruction.
    Execute,
}

/// How a task ended, as wait(2) reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStatus {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Signaled(i32),
}
