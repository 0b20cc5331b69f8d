//! What belongs to the calling thread: `errno`, and its segment bases.

use std::arch::asm;
use std::sync::OnceLock;

use process_vm_exec::Errno;

use crate::abi::Bases;

/// Sets `errno`.
pub(crate) fn set_errno(errno: Errno) {
    // SAFETY: errno(3) of the calling thread is an int that it may write.
    unsafe { *libc::__errno_location() = errno.raw_os_error() };
}

/// The calling thread's FS and GS base.
pub(crate) fn bases() -> Bases {
    static BY_INSTRUCTION: OnceLock<bool> = OnceLock::new();
    // HWCAP2_FSGSBASE (arch/x86/include/uapi/asm/hwcap2.h): the kernel lets user space use the instructions.
    let by_instruction = *BY_INSTRUCTION.get_or_init(|| rustix::param::linux_hwcap().1 & (1 << 1) != 0);
    if by_instruction {
        let (fs, gs): (u64, u64);
        // SAFETY: they only read the bases, and the kernel says that they may be executed.
        unsafe {
            asm!("rdfsbase {}", "rdgsbase {}", out(reg) fs, out(reg) gs, options(nomem, nostack, preserves_flags));
        }
        return Bases { fs, gs };
    }
    const ARCH_GET_FS: i32 = 0x1003;
    const ARCH_GET_GS: i32 = 0x1004;
    Bases { fs: base_by_call(ARCH_GET_FS), gs: base_by_call(ARCH_GET_GS) }
}

/// arch_prctl(2).
fn base_by_call(which: i32) -> u64 {
    let mut base = 0u64;
    // SAFETY: the call stores one word at the address of `base`.
    unsafe { libc::syscall(libc::SYS_arch_prctl, which, &raw mut base) };
    base
}
