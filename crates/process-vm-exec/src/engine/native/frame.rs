//! What process_vm_exec(2) takes and gives: registers and extended state as in a signal's frame.

use crate::arch::x86_64::{Registers, xstate};

/// Extended state as in a signal's frame: an XSAVE area with magic numbers in it and behind it
/// (arch/x86/include/uapi/asm/sigcontext.h).
#[derive(Debug)]
pub(super) struct Fpu(Vec<Line>);

/// XSAVE wants areas aligned so.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Fpu {
    /// `struct _fpx_sw_bytes`.
    const SOFTWARE: usize = 464;
    const MAGIC1: u32 = 0x4650_5853;
    const MAGIC2: u32 = 0x4650_5845;

    pub(super) fn initial() -> Self {
        // A line more for the number behind the area.
        let mut fpu = Self(vec![Line([0; 64]); xstate::size() / 64 + 1]);
        fpu.set(&xstate::initial());
        fpu
    }

    pub(super) fn set(&mut self, area: &[u8]) {
        let size = u32::try_from(xstate::used()).expect("a few kilobytes");
        let [low, high] = [xstate::mask(), xstate::mask() >> 32].map(|half| (half & 0xffff_ffff) as u32);
        // magic1, extended_size, xfeatures, xstate_size.
        let software = [Self::MAGIC1, size + 4, low, high, size].map(u32::to_ne_bytes);
        self.put(0, area);
        self.put(Self::SOFTWARE, software.as_flattened());
        self.put(xstate::used(), &Self::MAGIC2.to_ne_bytes());
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (at, &byte) in (offset..).zip(bytes) {
            self.0[at / 64].0[at % 64] = byte;
        }
    }

    pub(super) fn area(&self) -> Vec<u8> {
        let mut area: Vec<u8> = self.0.iter().flat_map(|line| line.0).take(xstate::used()).collect();
        area.resize(xstate::size(), 0);
        xstate::tidy(&mut area);
        area
    }
}

/// `struct process_vm_exec_context`; `mcontext_t` is `struct sigcontext` by another name.
#[repr(C)]
pub(super) struct Frame {
    context: libc::mcontext_t,
    fs_base: u64,
    gs_base: u64,
}

impl Frame {
    pub(super) fn new(registers: &Registers, fpu: &mut Fpu) -> Self {
        // SAFETY: integers and a pointer, for which zeroes are a value.
        let mut frame: Self = unsafe { std::mem::zeroed() };
        let r = registers;
        let values = [
            (libc::REG_RAX, r.rax),
            (libc::REG_RDI, r.rdi),
            (libc::REG_RSI, r.rsi),
            (libc::REG_RDX, r.rdx),
            (libc::REG_R10, r.r10),
            (libc::REG_R8, r.r8),
            (libc::REG_R9, r.r9),
            (libc::REG_RIP, r.rip),
            (libc::REG_EFL, r.rflags),
            (libc::REG_RSP, r.rsp),
            (libc::REG_RBX, r.rbx),
            (libc::REG_RBP, r.rbp),
            (libc::REG_R12, r.r12),
            (libc::REG_R13, r.r13),
            (libc::REG_R14, r.r14),
            (libc::REG_R15, r.r15),
            (libc::REG_RCX, r.rcx),
            (libc::REG_R11, r.r11),
            // cs, gs, fs and ss, 16 bits each.
            (libc::REG_CSGSFS, r.cs | r.ss << 48),
        ];
        for (register, value) in values {
            frame.context.gregs[register.unsigned_abs() as usize] = value.cast_signed();
        }
        frame.context.fpregs = fpu.0.as_mut_ptr().cast();
        (frame.fs_base, frame.gs_base) = (registers.fs_base, registers.gs_base);
        frame
    }

    pub(super) fn get(&self, register: libc::c_int) -> u64 {
        self.context.gregs[register.unsigned_abs() as usize].cast_unsigned()
    }

    pub(super) fn registers(&self) -> Registers {
        let segments = self.get(libc::REG_CSGSFS);
        Registers {
            rax: self.get(libc::REG_RAX),
            rdi: self.get(libc::REG_RDI),
            rsi: self.get(libc::REG_RSI),
            rdx: self.get(libc::REG_RDX),
            r10: self.get(libc::REG_R10),
            r8: self.get(libc::REG_R8),
            r9: self.get(libc::REG_R9),
            rip: self.get(libc::REG_RIP),
            cs: segments & 0xffff,
            rflags: self.get(libc::REG_EFL),
            rsp: self.get(libc::REG_RSP),
            ss: segments >> 48,
            rbx: self.get(libc::REG_RBX),
            rbp: self.get(libc::REG_RBP),
            r12: self.get(libc::REG_R12),
            r13: self.get(libc::REG_R13),
            r14: self.get(libc::REG_R14),
            r15: self.get(libc::REG_R15),
            rcx: self.get(libc::REG_RCX),
            r11: self.get(libc::REG_R11),
            fs_base: self.fs_base,
            gs_base: self.gs_base,
        }
    }
}
