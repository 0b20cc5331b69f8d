//! The errand as bytes in the region, what a thread needs to know to go back by itself, and how one is brought back.

use std::arch::global_asm;
use std::ops::Range;

use super::bootstrap::way_back;
use super::stop::Stopped;
use crate::call::Call;
use crate::executor::arena::Slot;
use crate::executor::layout;
use crate::executor::region::Region;
use crate::memory;
use crate::ptrace::NO_SYSCALL;

global_asm!(
    include_str!("back.S"),
    include_str!("errand.S"),
    SYS_rt_sigprocmask = const libc::SYS_rt_sigprocmask,
    WAIT = const WAIT,
    options(att_syntax)
);

/// How often a thread looks for its tracer to take it back: for some ten milliseconds. A tracer that is late finds it gone, which
/// is as good unless the thread has got into another system call, that has to be interrupted then.
const WAIT: u32 = 1 << 20;

/// As many calls as one errand can have.
pub(crate) const MAX_CALLS: usize = 1024;

/// Offset of the calls: number and arguments, one after the other.
const CALLS: u64 = layout::ERRAND + 0x1000;
/// Offset of the registers and the signal mask of a thread that is not back yet, for whoever brings it back.
const STATE: u64 = layout::ERRAND + 0x800;
/// Offset of the results.
const RESULTS: u64 = layout::ERRAND_RESULT + 8;

unsafe extern "C" {
    static process_vm_exec_errand: u8;
    static process_vm_exec_errand_data: u8;
}

/// Puts an errand into the region, for a thread in this state, and gives the registers with which it begins.
pub(super) fn prepare(slot: &Slot, thread: &Stopped, calls: &[Call<'_>]) -> libc::user_regs_struct {
    const INTERRUPTS_ON: u64 = 0x202;
    let data = [!0, thread.signal_mask].into_iter().chain(way_back(&thread.registers_by_itself()));
    let bytes: Vec<u8> = code().iter().copied().chain(data.flat_map(u64::to_ne_bytes)).collect();
    debug_assert!(layout::ERRAND + bytes.len() as u64 <= STATE);
    slot.write_bytes(layout::ERRAND, &bytes);
    slot.write(STATE, thread.to_words());
    for (at, call) in (CALLS..).step_by(56).zip(calls) {
        let [a, b, c, d, e, f] = call.args();
        slot.write(at, [i64::from(call.nr().id()).cast_unsigned(), a, b, c, d, e, f]);
    }
    slot.write(layout::ERRAND_RESULT, 0u64);
    libc::user_regs_struct {
        rip: range(slot.region()).start,
        rbx: slot.address(CALLS),
        r12: slot.address(RESULTS),
        r13: calls.len() as u64,
        r14: slot.address(layout::ERRAND_RESULT),
        orig_rax: NO_SYSCALL,
        eflags: INTERRUPTS_ON,
        ..*thread.registers()
    }
}

/// Have all calls been made?
pub(super) fn is_done(slot: &Slot) -> bool {
    slot.u32(layout::ERRAND_RESULT).load(std::sync::atomic::Ordering::Acquire) != 0
}

/// What the kernel left in `rax` for each of the calls.
pub(super) fn results(slot: &Slot, count: usize) -> Vec<u64> {
    (RESULTS..).step_by(8).take(count).map(|at| slot.read(at)).collect()
}

/// Where a thread is while it is on an errand.
pub(super) fn range(region: Region) -> Range<u64> {
    let start = region.address(layout::ERRAND);
    start..start + code().len() as u64
}

/// The state of a thread that is not back yet, from before. Allocates nothing.
pub(super) fn state_of(region: Region, tid: i32) -> Option<Stopped> {
    let mut words = [[0; 8]; Stopped::WORDS];
    memory::read_at_once(tid, region.address(STATE), words.as_flattened_mut()).ok()?;
    Some(Stopped::from_words(tid, words.map(u64::from_ne_bytes)))
}

/// Its instructions; the data comes after them.
fn code() -> &'static [u8] {
    let (start, end) = (&raw const process_vm_exec_errand, &raw const process_vm_exec_errand_data);
    // SAFETY: errand.S defines both labels, in this order, in one section of constant bytes.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}
