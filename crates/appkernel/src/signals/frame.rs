//! The frame that a handler finds on its stack, and the way back from it
//! (Linux arch/x86/kernel/signal_64.c, `struct rt_sigframe`; arch/x86/include/uapi/asm/sigcontext.h).

use process_vm_exec::{Errno, Registers};

use super::{Action, AlternateStack, Pending};
use crate::{
    abi::{Record, i64_at, size, u32_at, u64_at},
    guest::GuestMemory,
    task::{Next, Task},
};

/// The bytes below the stack pointer that belong to whatever was interrupted (System V ABI).
const RED_ZONE: u64 = 128;

/// Offsets in the frame: return address, `struct ucontext`, `siginfo_t`.
const UCONTEXT: usize = 8;
const UC_STACK: usize = UCONTEXT + 16;
const REGISTERS: usize = UCONTEXT + 40;
const SEGMENTS: usize = REGISTERS + 144;
const TRAP_ERROR: usize = REGISTERS + 152;
const TRAP_NUMBER: usize = REGISTERS + 160;
const OLD_MASK: usize = REGISTERS + 168;
const TRAP_ADDR: usize = REGISTERS + 176;
const FPSTATE: usize = REGISTERS + 184;
const SIGMASK: usize = UCONTEXT + 296;
const SIGINFO: usize = UCONTEXT + 304;
const FRAME: usize = SIGINFO + 128;

/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`.
const UC_FLAGS: u64 = 7;
/// `struct _fpx_sw_bytes`: its place in the area of FXSAVE, and its two magic numbers.
const SW_BYTES: usize = 464;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// The area of FXSAVE, which every XSAVE area begins with.
const FXSAVE: usize = 512;

/// Flags that a handler starts without: trap, direction, resume.
const FLAGS_CLEARED: u64 = 1 << 8 | 1 << 10 | 1 << 16;
/// Flags that a guest may set by returning from a handler: CF PF AF ZF SF TF DF OF AC.
const FLAGS_RESTORED: u64 = 0x4_0dd5;

/// The registers in the order of `struct sigcontext_64`.
fn in_order(registers: &mut Registers) -> [&mut u64; 18] {
    let r = registers;
    [
        &mut r.r8,
        &mut r.r9,
        &mut r.r10,
        &mut r.r11,
        &mut r.r12,
        &mut r.r13,
        &mut r.r14,
        &mut r.r15,
        &mut r.rdi,
        &mut r.rsi,
        &mut r.rbp,
        &mut r.rbx,
        &mut r.rdx,
        &mut r.rax,
        &mut r.rcx,
        &mut r.rsp,
        &mut r.rip,
        &mut r.rflags,
    ]
}

/// Puts a frame on the guest's stack and points its registers at the handler.
pub(super) fn push(task: &mut Task, pending: &Pending, action: &Action, mask: u64) -> Result<(), Errno> {
    let mut registers = *task.context.registers();
    let alternate = task.signals.alternate;
    let top = if action.has(libc::SA_ONSTACK)
        && alternate.flags & libc::SS_DISABLE == 0
        && !alternate.contains(registers.rsp)
    {
        alternate.addr.wrapping_add(alternate.len)
    } else {
        registers.rsp.wrapping_sub(RED_ZONE)
    };

    let xstate = frame_xstate(task)?;
    let fpstate = top.wrapping_sub(xstate.len() as u64) & !63;
    let frame = (fpstate.wrapping_sub(FRAME as u64) & !15).wrapping_sub(8);

    let mut record = Record::<FRAME>::new()
        .put(0, action.restorer.to_ne_bytes())
        .put(UCONTEXT, UC_FLAGS.to_ne_bytes())
        .put(UC_STACK, *alternate.to_record().bytes())
        .put(SEGMENTS, segments(&registers).to_ne_bytes())
        .put(TRAP_ERROR, pending.trap.error.to_ne_bytes())
        .put(TRAP_NUMBER, pending.trap.number.to_ne_bytes())
        .put(OLD_MASK, mask.to_ne_bytes())
        .put(TRAP_ADDR, pending.trap.addr.to_ne_bytes())
        .put(FPSTATE, fpstate.to_ne_bytes())
        .put(SIGMASK, mask.to_ne_bytes())
        .put(SIGINFO, *pending.info.as_bytes());
    for (index, register) in in_order(&mut registers).into_iter().enumerate() {
        record = record.put(REGISTERS + index * 8, register.to_ne_bytes());
    }
    task.space.store(fpstate, &xstate)?;
    task.space.store(frame, record.bytes())?;

    registers.rsp = frame;
    registers.rip = action.handler;
    registers.rdi = pending.info.signal().cast_unsigned().into();
    registers.rsi = frame + SIGINFO as u64;
    registers.rdx = frame + UCONTEXT as u64;
    registers.rax = 0;
    registers.rflags &= !FLAGS_CLEARED;
    *task.context.registers_mut() = registers;
    task.next = Next::Jump;
    Ok(())
}

/// Takes the registers back from the frame under the stack pointer (rt_sigreturn(2)).
pub(super) fn pop(task: &mut Task) -> Result<(), Errno> {
    // The handler's `ret` has taken the return address off the stack.
    let frame = task.context.registers().rsp.wrapping_sub(8);
    let record: [u8; FRAME] = task.space.fetch(frame)?;
    let mut registers = *task.context.registers();
    let flags = registers.rflags;
    for (index, register) in in_order(&mut registers).into_iter().enumerate() {
        *register = u64_at(&record, REGISTERS + index * 8);
    }
    registers.rflags = flags & !FLAGS_RESTORED | registers.rflags & FLAGS_RESTORED;
    *task.context.registers_mut() = registers;
    task.signals.set_mask(u64_at(&record, SIGMASK));
    task.signals.alternate = AlternateStack {
        addr: u64_at(&record, UC_STACK),
        flags: i32::from_ne_bytes(crate::abi::field(&record, UC_STACK + 8)),
        len: i64_at(&record, UC_STACK + 16).cast_unsigned(),
    };
    restore_xstate(task, u64_at(&record, FPSTATE))?;
    task.next = Next::Jump;
    Ok(())
}

/// `cs`, `gs`, `fs` and `ss`, 16 bits each.
fn segments(registers: &Registers) -> u64 {
    registers.cs & 0xffff | (registers.ss & 0xffff) << 48
}

/// The extended state with the marks by which its size is known.
fn frame_xstate(task: &mut Task) -> Result<Vec<u8>, Errno> {
    let mut bytes = task.context.xstate().map_err(|error| error.errno())?.to_vec();
    let len = u32::try_from(bytes.len()).map_err(|_| Errno::INVAL)?;
    if bytes.len() < FXSAVE + 64 {
        bytes.resize(FXSAVE, 0);
        return Ok(bytes);
    }
    let features = u64_at(&bytes, FXSAVE);
    bytes[SW_BYTES..SW_BYTES + 4].copy_from_slice(&MAGIC1.to_ne_bytes());
    bytes[SW_BYTES + 4..SW_BYTES + 8].copy_from_slice(&(len + 4).to_ne_bytes());
    bytes[SW_BYTES + 8..SW_BYTES + 16].copy_from_slice(&(features | 3).to_ne_bytes());
    bytes[SW_BYTES + 16..SW_BYTES + 20].copy_from_slice(&len.to_ne_bytes());
    bytes.extend(MAGIC2.to_ne_bytes());
    Ok(bytes)
}

/// Loads the extended state that the frame points to; without one, the state is the initial one.
fn restore_xstate(task: &mut Task, addr: u64) -> Result<(), Errno> {
    let mut bytes = task.context.xstate().map_err(|error| error.errno())?.to_vec();
    if addr == 0 {
        return Ok(());
    }
    let legacy: [u8; FXSAVE] = task.space.fetch(addr)?;
    let len = size(u32_at(&legacy, SW_BYTES + 16).into());
    let wanted =
        if u32_at(&legacy, SW_BYTES) == MAGIC1 && len <= bytes.len() && len > FXSAVE { len } else { FXSAVE };
    task.space.fetch_into(addr, &mut bytes[..wanted])?;
    bytes[SW_BYTES..FXSAVE].fill(0);
    task.context.set_xstate(&bytes).map_err(|error| error.errno())
}
