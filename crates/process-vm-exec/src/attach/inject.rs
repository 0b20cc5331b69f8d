//! Single system calls by a stopped, traced executor, before it has a mailbox and after.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::stop::wait_asleep_until;
use crate::ptrace::{NO_SYSCALL, Stop, get_registers, request, set_registers, wait_for_stop};

/// Has `tid`, which is traced with `PTRACE_O_TRACESYSGOOD`, execute one system call by the `syscall` instruction at
/// `site`, and stops it again before anything else. The target can write what is at `site`, so this may last until
/// somebody kills the task.
pub(super) fn call(tid: i32, site: u64, nr: i64, args: [u64; 6]) -> Result<u64, Errno> {
    call_and_wait(tid, site, (nr, args), || Some(wait_for_stop(tid)))
}

/// The same; `ETIME` if the task does not stop soon. Allocates nothing.
pub(super) fn call_soon(tid: i32, site: u64, nr: i64, args: [u64; 6]) -> Result<u64, Errno> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let deadline = Instant::now() + PATIENCE;
    call_and_wait(tid, site, (nr, args), || wait_asleep_until(tid, deadline))
}

fn call_and_wait(
    tid: i32,
    site: u64,
    (nr, args): (i64, [u64; 6]),
    wait: impl Fn() -> Option<Stop>,
) -> Result<u64, Errno> {
    let registers = get_registers(tid)?;
    let [rdi, rsi, rdx, r10, r8, r9] = args;
    let rax = nr.cast_unsigned();
    let call = libc::user_regs_struct {
        rip: site,
        rax,
        orig_rax: NO_SYSCALL,
        rdi,
        rsi,
        rdx,
        r10,
        r8,
        r9,
        ..registers
    };
    set_registers(tid, &call)?;
    // The stops at its entry and at its end. Not a single step, whose signal would be delivered if we died.
    let mut stops = 0;
    while stops < 2 {
        request(libc::PTRACE_SYSCALL, tid, 0, 0)?;
        match wait().ok_or(Errno::TIME)? {
            Stop::Syscall => stops += 1,
            // There is no such instruction any more.
            Stop::Signal(libc::SIGSEGV | libc::SIGBUS | libc::SIGILL) => return Err(Errno::FAULT),
            Stop::Signal(_) | Stop::Event | Stop::Group => {}
            Stop::Gone(_) => return Err(Errno::SRCH),
        }
    }
    result_of(get_registers(tid)?.rax)
}

/// What the kernel left in `rax`: `-errno` is in -4095 to -1.
pub(super) fn result_of(rax: u64) -> Result<u64, Errno> {
    match rax.cast_signed() {
        negative @ -4095..=-1 => Err(Errno::from_raw_os_error(i32::try_from(-negative).expect("small"))),
        _ => Ok(rax),
    }
}
