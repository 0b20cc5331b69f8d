//! The bootstrap as bytes, and what a thread needs to know to go back by itself.

use std::arch::global_asm;

use crate::ptrace::NO_SYSCALL;

global_asm!(
    include_str!("back.S"),
    include_str!("bootstrap.S"),
    HELPER = const SHARED | libc::CLONE_THREAD | libc::CLONE_SYSVSEM,
    PARENT = const SHARED,
    WALL = const libc::__WALL,
    SYS_rt_sigprocmask = const libc::SYS_rt_sigprocmask,
    SYS_clone = const libc::SYS_clone,
    SYS_wait4 = const libc::SYS_wait4,
    SYS_exit = const libc::SYS_exit,
    SYS_pause = const libc::SYS_pause,
    options(att_syntax)
);

/// What threads share, besides being threads. And `CLONE_PTRACE`, as in all clones here: the new task belongs to our tracer,
/// if there is one, and its parent does not stop for that.
const SHARED: libc::c_int =
    libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_PTRACE;

unsafe extern "C" {
    static process_vm_exec_bootstrap: u8;
    static process_vm_exec_cloned: u8;
    static process_vm_exec_site_exit: u8;
    static process_vm_exec_site_pause: u8;
    static process_vm_exec_bootstrap_data: u8;
    static process_vm_exec_bootstrap_end: u8;
}

/// The registers with which a thread that has `registers` begins the bootstrap, at `start`.
pub(super) fn entry(registers: &libc::user_regs_struct, start: u64) -> libc::user_regs_struct {
    const MASK_LEN: u64 = 8;
    libc::user_regs_struct {
        rip: start,
        rax: libc::SYS_rt_sigprocmask.cast_unsigned(),
        orig_rax: NO_SYSCALL,
        rdi: libc::SIG_SETMASK as u64,
        rsi: start + offset_of(&raw const process_vm_exec_bootstrap_data),
        rdx: 0,
        r10: MASK_LEN,
        r8: 0,
        ..*registers
    }
}

/// What the bootstrap is made of: the clones' flags, and the state to which the thread goes back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bootstrap<'a> {
    /// Flags of the clone that makes the executor, and of the one that makes an executor that shares things with the
    /// target; 0 for none.
    pub(super) executors: [u32; 2],
    pub(super) signal_mask: u64,
    pub(super) registers: &'a libc::user_regs_struct,
}

impl Bootstrap<'_> {
    /// The bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let [first, second] = self.executors.map(u64::from);
        let head = [!0, self.signal_mask, first | second << 32];
        let data = head.into_iter().chain(way_back(self.registers));
        let bytes: Vec<u8> = code().iter().copied().chain(data.flat_map(u64::to_le_bytes)).collect();
        debug_assert_eq!(bytes.len() as u64, len());
        bytes
    }
}

/// What back.S takes of a thread's registers: flags, general registers, and where to go.
pub(super) fn way_back(r: &libc::user_regs_struct) -> [u64; 17] {
    [
        r.eflags, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15, r.rip,
    ]
}

/// Its instructions; the data comes after them.
pub(super) fn code() -> &'static [u8] {
    let (start, end) = (&raw const process_vm_exec_bootstrap, &raw const process_vm_exec_bootstrap_data);
    // SAFETY: bootstrap.S defines both labels, in this order, in one section of constant bytes.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

fn offset_of(label: *const u8) -> u64 {
    label as u64 - &raw const process_vm_exec_bootstrap as u64
}

/// Its length.
pub(super) fn len() -> u64 {
    offset_of(&raw const process_vm_exec_bootstrap_end)
}

/// Offset of where the thread is when it has made its helper.
pub(super) fn cloned() -> u64 {
    offset_of(&raw const process_vm_exec_cloned)
}

/// Offset of a `syscall` after which a task ends.
pub(super) fn site_exit() -> u64 {
    offset_of(&raw const process_vm_exec_site_exit)
}

/// Offset of a `syscall` after which a task sleeps for ever.
pub(super) fn site_pause() -> u64 {
    offset_of(&raw const process_vm_exec_site_pause)
}
