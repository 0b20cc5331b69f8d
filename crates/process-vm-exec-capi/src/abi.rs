//! What callers and this crate agree on: flags, `struct sigcontext`, and the `siginfo_t` of an exit.

use process_vm_exec::{Arch, Errno, Fault, Registers, SigInfo, Syscall};

bitflags::bitflags! {
    /// The flags of `process_vm_exec.h`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Flags: u64 {
        /// Execute the system call that the context describes.
        const SYSCALL = 1 << 0;
        /// `pid` is a pidfd.
        const PIDFD = 1 << 1;
        /// FS and GS base follow the context.
        const EXTENDED = 1 << 2;
    }
}

/// `struct sigcontext` of 64-bit code (arch/x86/include/uapi/asm/sigcontext.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct SigContext {
    pub(crate) r8: u64,
    pub(crate) r9: u64,
    pub(crate) r10: u64,
    pub(crate) r11: u64,
    pub(crate) r12: u64,
    pub(crate) r13: u64,
    pub(crate) r14: u64,
    pub(crate) r15: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rbp: u64,
    pub(crate) rbx: u64,
    pub(crate) rdx: u64,
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) rsp: u64,
    pub(crate) rip: u64,
    pub(crate) eflags: u64,
    pub(crate) cs: u16,
    pub(crate) gs: u16,
    pub(crate) fs: u16,
    /// `__pad0` in C libraries. 0 means the usual one, as in frames of kernels before 4.7.
    pub(crate) ss: u16,
    pub(crate) err: u64,
    pub(crate) trapno: u64,
    pub(crate) oldmask: u64,
    pub(crate) cr2: u64,
    pub(crate) fpstate: u64,
    pub(crate) reserved: [u64; 8],
}

/// `struct process_vm_exec_context` of `process_vm_exec.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct ExtendedContext {
    pub(crate) context: SigContext,
    pub(crate) bases: Bases,
}

/// Segment bases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Bases {
    pub(crate) fs: u64,
    pub(crate) gs: u64,
}

/// The user segments (arch/x86/include/asm/segment.h): code of 64 and of 32 bits, and data.
const CODE_SEGMENTS: [u16; 2] = [0x33, 0x23];
const DATA_SEGMENT: u16 = 0x2b;
/// From here on addresses are the kernel's, or not canonical.
const USER_END: u64 = 1 << 47;

impl SigContext {
    /// The registers to load.
    ///
    /// # Errors
    /// `EINVAL` if a processor in user mode cannot have them.
    pub(crate) fn registers(&self, bases: Bases) -> Result<Registers, Errno> {
        let ss = if self.ss == 0 { DATA_SEGMENT } else { self.ss };
        let bad_segment = !CODE_SEGMENTS.contains(&self.cs) || ss != DATA_SEGMENT;
        if bad_segment || [self.rip, bases.fs, bases.gs].into_iter().any(|address| address >= USER_END) {
            return Err(Errno::INVAL);
        }
        Ok(Registers {
            rax: self.rax,
            rdi: self.rdi,
            rsi: self.rsi,
            rdx: self.rdx,
            r10: self.r10,
            r8: self.r8,
            r9: self.r9,
            rip: self.rip,
            cs: self.cs.into(),
            rflags: self.eflags,
            rsp: self.rsp,
            ss: ss.into(),
            rbx: self.rbx,
            rbp: self.rbp,
            r12: self.r12,
            r13: self.r13,
            r14: self.r14,
            r15: self.r15,
            rcx: self.rcx,
            r11: self.r11,
            fs_base: bases.fs,
            gs_base: bases.gs,
        })
    }

    /// Stores what the code left. `fs`, `gs`, `oldmask` and `fpstate` are the caller's and stay.
    pub(crate) fn store(&mut self, registers: &Registers) {
        let segment = |selector: u64| u16::try_from(selector).unwrap_or(0);
        *self = Self {
            r8: registers.r8,
            r9: registers.r9,
            r10: registers.r10,
            r11: registers.r11,
            r12: registers.r12,
            r13: registers.r13,
            r14: registers.r14,
            r15: registers.r15,
            rdi: registers.rdi,
            rsi: registers.rsi,
            rbp: registers.rbp,
            rbx: registers.rbx,
            rdx: registers.rdx,
            rax: registers.rax,
            rcx: registers.rcx,
            rsp: registers.rsp,
            rip: registers.rip,
            eflags: registers.rflags,
            cs: segment(registers.cs),
            ss: segment(registers.ss),
            err: 0,
            trapno: 0,
            cr2: 0,
            ..*self
        };
    }

    /// Stores what the processor said about a fault.
    pub(crate) fn store_fault(&mut self, fault: &Fault) {
        self.trapno = fault.trapno.into();
        self.err = fault.error_code.into();
        if fault.access.is_some() {
            self.cr2 = fault.addr;
        }
    }
}

/// `si_code` of the `SIGSYS` of Syscall User Dispatch (include/uapi/asm-generic/siginfo.h).
const SYS_USER_DISPATCH: i32 = 2;
/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386` (include/uapi/linux/audit.h).
const ARCH_X86_64: u32 = 0xc000_003e;
const ARCH_I386: u32 = 0x4000_0003;

/// The `SIGSYS` that reports a system call; `after` is the address behind its instruction.
pub(crate) fn syscall_info(syscall: &Syscall, after: u64) -> SigInfo {
    let arch = match syscall.arch {
        Arch::X86_64 => ARCH_X86_64,
        Arch::I386 => ARCH_I386,
    };
    let mut bytes = head(libc::SIGSYS, SYS_USER_DISPATCH);
    bytes[16..24].copy_from_slice(&after.to_ne_bytes());
    // `si_syscall` is an int: the lower half of rax.
    bytes[24..28].copy_from_slice(&syscall.nr.to_ne_bytes()[..4]);
    bytes[28..32].copy_from_slice(&arch.to_ne_bytes());
    SigInfo::from_bytes(bytes)
}

/// The signal that the kernel would make of a fault.
pub(crate) fn fault_info(fault: &Fault) -> SigInfo {
    let mut bytes = head(fault.signal, fault.code);
    bytes[16..24].copy_from_slice(&fault.addr.to_ne_bytes());
    SigInfo::from_bytes(bytes)
}

/// `si_signo` and `si_code`; `si_errno` and the rest are 0.
fn head(signal: i32, code: i32) -> [u8; 128] {
    let mut bytes = [0; 128];
    bytes[..4].copy_from_slice(&signal.to_ne_bytes());
    bytes[8..12].copy_from_slice(&code.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_as_long_as_in_c() {
        assert_eq!(size_of::<SigContext>(), 256);
        assert_eq!(std::mem::offset_of!(SigContext, fpstate), 184);
        assert_eq!(size_of::<ExtendedContext>(), 272);
    }

    #[test]
    fn a_context_that_no_processor_can_have_is_refused() {
        let good = SigContext { cs: 0x33, rip: 0x1000, ..<_>::default() };
        assert!(good.registers(Bases::default()).is_ok());
        for bad in [
            SigContext { cs: 0, ..good },
            SigContext { cs: 0x10, ..good },
            SigContext { ss: 0x18, ..good },
            SigContext { rip: 1 << 47, ..good },
        ] {
            assert_eq!(bad.registers(Bases::default()), Err(Errno::INVAL));
        }
        assert_eq!(good.registers(Bases { fs: !0, gs: 0 }), Err(Errno::INVAL));
    }

    #[test]
    fn what_is_stored_is_what_will_be_loaded() {
        let registers = Registers { rax: 1, r15: 2, rip: 3, rsp: 4, rflags: 0x202, ..<_>::default() };
        let mut context = SigContext { fpstate: 5, ..<_>::default() };
        context.store(&registers);
        assert_eq!(context.registers(Bases::default()), Ok(registers));
        assert_eq!(context.fpstate, 5);
    }
}
