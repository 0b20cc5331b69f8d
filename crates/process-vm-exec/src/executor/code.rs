//! The resident code as bytes, and the image of the keeper made of it.

use std::arch::global_asm;
use std::mem::offset_of;
use std::ops::Range;

use super::layout::{self, kind, op};
use super::region::Region;
use super::{handoff, machine};
use crate::arch::x86_64::{Registers, USER_CS, USER_SS};

/// The signal by which an [`Interrupter`](crate::Interrupter) reaches an executor: one that Linux never raises
/// (signal(7)), and not a real-time signal, for those are refused when the user's queue is full.
pub(crate) const INTERRUPT_SIGNAL: i32 = libc::SIGSTKFLT;

/// The signals that an instruction can raise, bit n for signal n.
const SYNCHRONOUS: u64 = 1 << libc::SIGSYS
    | 1 << libc::SIGSEGV
    | 1 << libc::SIGBUS
    | 1 << libc::SIGFPE
    | 1 << libc::SIGILL
    | 1 << libc::SIGTRAP;

/// Can an instruction raise this signal?
pub(crate) const fn is_synchronous(signal: i32) -> bool {
    signal < 64 && SYNCHRONOUS >> signal & 1 != 0
}

/// All other signals, as a `sigset_t`: bit n - 1 for signal n.
pub(crate) const ASYNCHRONOUS: u64 = !(SYNCHRONOUS >> 1);

/// `AUDIT_ARCH_X86_64` (linux/audit.h).
pub(crate) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// Where `ucontext_t` has the n-th word of `struct sigcontext_64` (asm/sigcontext.h, asm/ucontext.h).
const fn context_offset(word: usize) -> usize {
    40 + 8 * word
}

/// [`layout::RECORD`], as offsets of fields are.
const RECORD: usize = 0x400;
const _: () = assert!(RECORD as u64 == layout::RECORD);

global_asm!(
    include_str!("code.S"),
    CODE = const layout::CODE,
    PARAMS = const layout::PARAMS,
    COMMANDS = const layout::COMMANDS,
    SIZE = const layout::SIZE,
    CONTROL = const layout::CONTROL,
    CONTROL_LEN = const layout::CONTROL_LEN,
    RESULT = const layout::RESULT,
    MAILBOXES = const layout::MAILBOXES,
    MAILBOX_STRIDE = const layout::MAILBOX_STRIDE,
    MAILBOX_TO_COMMAND = const (layout::MAILBOX_STRIDE / layout::COMMAND_STRIDE).ilog2(),
    SIZE_BITS = const layout::SIZE.ilog2(),
    ARENA_FD = const layout::ARENA_FD,
    SLEEPING = const layout::SLEEPING,
    CPU = const layout::CPU,
    NO_YIELD = const layout::NO_YIELD,
    PENALTY = const layout::PENALTY,
    FEWEST_WAITS_WITHOUT_YIELD = const handoff::FEWEST_WAITS_WITHOUT_YIELD,
    MOST_WAITS_WITHOUT_YIELD = const handoff::MOST_WAITS_WITHOUT_YIELD,
    PAUSES = const layout::PAUSES,
    PAUSE = const handoff::PAUSE,
    PAUSE_SHIFT = const handoff::PAUSE.ilog2(),
    MOST_PAUSES = const handoff::MOST_PAUSES,
    QUICK_LOOKS = const machine::QUICK_LOOKS,
    LOOKS = const machine::LOOKS,
    PATIENCE_TICKS = const layout::PATIENCE_TICKS,
    COUNT = const layout::COUNT,
    ENTRIES = const layout::ENTRIES,
    ONE = const layout::ONE,
    TAG = const layout::TAG,
    STARTED_TAG = const layout::STARTED_TAG,
    KEY = const layout::KEY,
    ENTRY = const layout::ENTRY,
    INTERRUPT = const layout::INTERRUPT,
    ALTSTACK = const layout::ALTSTACK,
    FLAVOUR = const layout::FLAVOUR,
    COMMAND_WORD = const layout::COMMAND_WORD,
    RECORD = const RECORD,
    PENDING = const layout::PENDING,
    TRAP = const layout::TRAP,
    SIGINFO = const layout::SIGINFO,
    PENDING_SIGINFO = const layout::PENDING_SIGINFO,
    STACK_TOP = const layout::STACK_TOP,
    XSTATE = const layout::XSTATE,
    BUDGET_TICKS = const layout::BUDGET_TICKS,
    YIELD_TICKS = const layout::YIELD_TICKS,
    XMASK = const layout::XMASK,
    DISPATCH = const layout::DISPATCH,
    TRACED = const layout::TRACED,
    SIGMASK = const layout::SIGMASK,
    FILTER = const layout::FILTER,
    PARENT = const layout::PARENT,
    ANSWER = const op::ANSWER,
    LOAD = const op::LOAD,
    SAVE_XSTATE = const op::SAVE_XSTATE,
    LOAD_XSTATE = const op::LOAD_XSTATE,
    DONE = const kind::DONE,
    CALL = const kind::CALL,
    TRAPPED_CALL = const kind::TRAPPED_CALL,
    SIGNAL = const kind::SIGNAL,
    INTERRUPTED = const kind::INTERRUPTED,
    BROKEN = const kind::BROKEN,
    INTERRUPT_SIGNAL = const INTERRUPT_SIGNAL,
    SYNCHRONOUS = const SYNCHRONOUS,
    ASYNCHRONOUS = const ASYNCHRONOUS,
    AUDIT_ARCH_X86_64 = const AUDIT_ARCH_X86_64,
    USER_CS = const USER_CS,
    USER_SS = const USER_SS,
    REGISTERS = const size_of::<Registers>() / 8,
    RAX = const RECORD + offset_of!(Registers, rax),
    RDI = const RECORD + offset_of!(Registers, rdi),
    RSI = const RECORD + offset_of!(Registers, rsi),
    RDX = const RECORD + offset_of!(Registers, rdx),
    R10 = const RECORD + offset_of!(Registers, r10),
    R8 = const RECORD + offset_of!(Registers, r8),
    R9 = const RECORD + offset_of!(Registers, r9),
    RIP = const RECORD + offset_of!(Registers, rip),
    CS = const RECORD + offset_of!(Registers, cs),
    RFLAGS = const RECORD + offset_of!(Registers, rflags),
    RSP = const RECORD + offset_of!(Registers, rsp),
    SS = const RECORD + offset_of!(Registers, ss),
    RBX = const RECORD + offset_of!(Registers, rbx),
    RBP = const RECORD + offset_of!(Registers, rbp),
    R12 = const RECORD + offset_of!(Registers, r12),
    R13 = const RECORD + offset_of!(Registers, r13),
    R14 = const RECORD + offset_of!(Registers, r14),
    R15 = const RECORD + offset_of!(Registers, r15),
    RCX = const RECORD + offset_of!(Registers, rcx),
    R11 = const RECORD + offset_of!(Registers, r11),
    FS_BASE = const RECORD + offset_of!(Registers, fs_base),
    GS_BASE = const RECORD + offset_of!(Registers, gs_base),
    UC_R8 = const context_offset(0),
    UC_R9 = const context_offset(1),
    UC_R10 = const context_offset(2),
    UC_R11 = const context_offset(3),
    UC_R12 = const context_offset(4),
    UC_R13 = const context_offset(5),
    UC_R14 = const context_offset(6),
    UC_R15 = const context_offset(7),
    UC_RDI = const context_offset(8),
    UC_RSI = const context_offset(9),
    UC_RBP = const context_offset(10),
    UC_RBX = const context_offset(11),
    UC_RDX = const context_offset(12),
    UC_RAX = const context_offset(13),
    UC_RCX = const context_offset(14),
    UC_RSP = const context_offset(15),
    UC_RIP = const context_offset(16),
    UC_RFLAGS = const context_offset(17),
    UC_CS = const context_offset(18),
    UC_SS = const context_offset(18) + 6,
    UC_ERR = const context_offset(19),
    UC_CR2 = const context_offset(22),
    UC_FPSTATE = const context_offset(23),
    UC_SIGMASK = const context_offset(32),
    SYS_mmap = const libc::SYS_mmap,
    SYS_prctl = const libc::SYS_prctl,
    SYS_getppid = const libc::SYS_getppid,
    SYS_exit_group = const libc::SYS_exit_group,
    SYS_close_range = const libc::SYS_close_range,
    SYS_sigaltstack = const libc::SYS_sigaltstack,
    SYS_seccomp = const libc::SYS_seccomp,
    SYS_sched_yield = const libc::SYS_sched_yield,
    SYS_futex = const libc::SYS_futex,
    SYS_rt_sigprocmask = const libc::SYS_rt_sigprocmask,
    SYS_rt_sigreturn = const libc::SYS_rt_sigreturn,
    options(att_syntax)
);

unsafe extern "C" {
    static process_vm_exec_code: u8;
    static process_vm_exec_code_end: u8;
    static process_vm_exec_adopt_slot: u8;
    static process_vm_exec_service: u8;
    static process_vm_exec_service_call: u8;
    static process_vm_exec_handler: u8;
    static process_vm_exec_sigreturn: u8;
    static process_vm_exec_trampoline: u8;
    static process_vm_exec_number: u8;
}

/// The resident code, as it is in every region but for the region's number.
fn template() -> &'static [u8] {
    let (start, end) = (&raw const process_vm_exec_code, &raw const process_vm_exec_code_end);
    // SAFETY: code.S defines both labels, in this order, in one section of constant bytes.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// The resident code of a region.
fn bytes(region: Region) -> Vec<u8> {
    let mut bytes = template().to_vec();
    let number = i32::try_from(region.start() / layout::SIZE).expect("addresses have 47 bits");
    let at = usize::try_from(offset_of_label(&raw const process_vm_exec_number)).expect("64-bit");
    bytes[at..at + 4].copy_from_slice(&(-number).to_le_bytes());
    bytes
}

/// The same, filled up to whole words.
pub(crate) fn bytes_in_words(region: Region) -> Vec<u8> {
    let mut words = bytes(region);
    words.resize(words.len().next_multiple_of(8), 0);
    words
}

/// How far behind the beginning of the code a label of it is.
fn offset_of_label(label: *const u8) -> u64 {
    label as u64 - &raw const process_vm_exec_code as u64
}

/// The address that a label of the code has in a guest.
fn address_of(region: Region, label: *const u8) -> u64 {
    region.address(layout::CODE) + offset_of_label(label)
}

/// Where the code is in a guest.
pub(crate) fn range(region: Region) -> Range<u64> {
    region.address(layout::CODE)..address_of(region, &raw const process_vm_exec_code_end)
}

/// Where a service task begins that has its request in `rbp`, its result in `rbx`, and in `r12d` the word it starts with.
pub(crate) fn service(region: Region) -> u64 {
    address_of(region, &raw const process_vm_exec_service)
}

/// Where a new process maps the slot that is its own.
pub(crate) fn adopting(region: Region) -> Range<u64> {
    address_of(region, &raw const process_vm_exec_adopt_slot)..service(region)
}

/// A `syscall` instruction.
pub(crate) fn syscall(region: Region) -> u64 {
    address_of(region, &raw const process_vm_exec_service_call)
}

/// The signal handler of executors.
pub(crate) fn handler(region: Region) -> u64 {
    address_of(region, &raw const process_vm_exec_handler)
}

/// Their `sa_restorer`.
pub(crate) fn restorer(region: Region) -> u64 {
    address_of(region, &raw const process_vm_exec_sigreturn)
}

/// Where rewritten call sites go.
pub(crate) fn trampoline(region: Region) -> u64 {
    address_of(region, &raw const process_vm_exec_trampoline)
}

/// An executable (elf(5)) with nothing but the code, mapped where the region begins, entered at its first byte.
pub(crate) fn image(region: Region) -> Vec<u8> {
    let code = bytes(region);
    let header_len = layout::CODE;
    let len = header_len + code.len() as u64;
    let mut image = Vec::new();
    // Elf64_Ehdr: class 64, little endian, ET_EXEC, x86-64, program headers behind it.
    image.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend(2u16.to_le_bytes());
    image.extend(62u16.to_le_bytes());
    image.extend(1u32.to_le_bytes());
    image.extend(region.address(layout::CODE).to_le_bytes());
    image.extend(64u64.to_le_bytes());
    image.extend(0u64.to_le_bytes());
    image.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    // Elf64_Phdr: PT_LOAD r-x of the whole file, and PT_GNU_STACK rw-.
    for (kind, flags, addr, size, align) in
        [(1u32, 5u32, region.start(), len, 0x1000), (0x6474_e551, 6, 0, 0, 16)]
    {
        image.extend(kind.to_le_bytes());
        image.extend(flags.to_le_bytes());
        for word in [0, addr, addr, size, size, align] {
            image.extend(u64::to_le_bytes(word));
        }
    }
    image.resize(usize::try_from(header_len).expect("a page"), 0);
    image.extend_from_slice(&code);
    image
}
