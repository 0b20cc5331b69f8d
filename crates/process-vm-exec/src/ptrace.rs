//! The requests of ptrace(2) that are used here. Nothing allocates: the janitor calls these in a forked process.

use std::ffi::c_void;

use rustix::io::Errno;

use crate::exit::WaitStatus;

pub(crate) const NT_X86_XSTATE: usize = 0x202;
pub(crate) const PTRACE_GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
/// In `orig_rax`: the task is not in a system call that could be restarted.
pub(crate) const NO_SYSCALL: u64 = !0;

/// Why a traced task stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    Syscall,
    Signal(i32),
    /// An event of ptrace, such as the answer to `PTRACE_INTERRUPT`.
    Event,
    /// The same, while the whole process is stopped by job control.
    Group,
    /// The whole process has been killed; this is how.
    Gone(WaitStatus),
}

pub(crate) fn request(
    request: libc::c_uint,
    tid: libc::pid_t,
    addr: usize,
    data: usize,
) -> rustix::io::Result<libc::c_long> {
    // SAFETY: the callers pass for `data` what the request takes (ptrace(2)): nothing, options, or the address of a
    // live structure of its type; requests on tasks that are not ours fail.
    let result = unsafe { libc::ptrace(request, tid, addr as *mut c_void, data as *mut c_void) };
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// Begins to trace a task that goes on meanwhile, so that system-call stops are told from others.
pub(crate) fn seize(tid: libc::pid_t) -> rustix::io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, libc::PTRACE_O_TRACESYSGOOD.unsigned_abs() as usize).map(drop)
}

/// The signals that the task blocks; where it waits with others blocked (ppoll(2)), those it will block after that.
pub(crate) fn get_signal_mask(tid: libc::pid_t) -> rustix::io::Result<u64> {
    let mut mask = 0u64;
    request(PTRACE_GETSIGMASK, tid, size_of_val(&mask), (&raw mut mask) as usize)?;
    Ok(mask)
}

/// Sets the signals that the task blocks.
pub(crate) fn set_signal_mask(tid: libc::pid_t, mask: u64) -> rustix::io::Result<()> {
    request(PTRACE_SETSIGMASK, tid, size_of_val(&mask), (&raw const mask) as usize).map(drop)
}

pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::SRCH)
}

pub(crate) fn get_registers(tid: libc::pid_t) -> rustix::io::Result<libc::user_regs_struct> {
    // SAFETY: integers, for which zeroes are a value.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, tid, 0, (&raw mut registers) as usize)?;
    Ok(registers)
}

pub(crate) fn set_registers(tid: libc::pid_t, registers: &libc::user_regs_struct) -> rustix::io::Result<()> {
    request(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(registers) as usize).map(drop)
}

/// Gives the task the x87 and SSE state of a processor just initialised, but for the first vector registers.
pub(crate) fn set_vectors(tid: libc::pid_t, vectors: &[u64]) -> rustix::io::Result<()> {
    // SAFETY: integers, for which zeroes are a value.
    let mut state: libc::user_fpregs_struct = unsafe { std::mem::zeroed() };
    (state.cwd, state.mxcsr) = (0x37f, 0x1f80);
    for (vector, &low) in state.xmm_space.chunks_exact_mut(4).zip(vectors) {
        let [a, b, c, d, e, f, g, h] = low.to_le_bytes();
        (vector[0], vector[1]) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    }
    request(libc::PTRACE_SETFPREGS, tid, 0, (&raw const state) as usize).map(drop)
}

/// Waits until the task stops or is gone.
pub(crate) fn wait_for_stop(tid: libc::pid_t) -> Stop {
    loop {
        match wait(tid, 0) {
            Ok(Some(stop)) => return stop,
            Ok(None) | Err(Errno::INTR) => {}
            Err(_) => return Stop::Gone(WaitStatus::Signaled(libc::SIGKILL)),
        }
    }
}

/// Has a thread of somebody's process stopped, or ended? The same is said until it has been let go on.
pub(crate) fn look_for_stop(tid: libc::pid_t) -> Option<Stop> {
    let gone = Stop::Gone(WaitStatus::Signaled(libc::SIGKILL));
    look_for(libc::P_PID, tid, tid).map_or(Some(gone), |found| found.map(|(_, stop)| stop))
}

/// Takes the end of a thread that leads no process, which [`look_for_stop`] leaves: nobody else waits for that.
pub(crate) fn reap(tid: libc::pid_t) {
    let _ = wait(tid, libc::__WNOTHREAD | libc::WNOHANG);
}

/// The next task of those that this thread traces to stop or end, if there is one. If that is `thread`, a thread of
/// somebody's process that has ended, it is found again and again.
pub(crate) fn look_for_any_beside(thread: libc::pid_t) -> rustix::io::Result<Option<(libc::pid_t, Stop)>> {
    look_for(libc::P_ALL, 0, thread)
}

/// Looks first, and takes only what is about other tasks than `thread`. The stop of that is not taken: if its tracer dies
/// between that and letting it go on, the signal that it has stopped for is lost (`wait_task_stopped` in kernel/exit.c clears
/// what `ptrace_signal` looks at). Nor is its end: if its process is a child of ours, we would have taken that from
/// whoever waits for it (`wait_task_zombie`).
fn look_for(
    which: libc::idtype_t,
    id: libc::pid_t,
    thread: libc::pid_t,
) -> rustix::io::Result<Option<(libc::pid_t, Stop)>> {
    const NO_HANG: libc::c_int = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
    let options = NO_HANG | libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT;
    // SAFETY: integers, for which zeroes are a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is valid for the call.
    if unsafe { libc::waitid(which, id.unsigned_abs(), &raw mut info, options) } != 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel fills in the fields of a child's signal, or leaves zeroes.
    let (found, status) = unsafe { (info.si_pid(), info.si_status()) };
    if found == 0 {
        return Ok(None);
    }
    if found != thread {
        return wait_for(found, NO_HANG);
    }
    Ok(Some((
        found,
        match info.si_code {
            libc::CLD_EXITED => Stop::Gone(WaitStatus::Exited(status)),
            libc::CLD_KILLED | libc::CLD_DUMPED => Stop::Gone(WaitStatus::Signaled(status)),
            _ => stop_of(libc::W_STOPCODE(status)),
        },
    )))
}

fn wait(tid: libc::pid_t, options: libc::c_int) -> rustix::io::Result<Option<Stop>> {
    wait_for(tid, options).map(|found| found.map(|(_, stop)| stop))
}

fn wait_for(who: libc::pid_t, options: libc::c_int) -> rustix::io::Result<Option<(libc::pid_t, Stop)>> {
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    match unsafe { libc::waitpid(who, &raw mut status, libc::__WALL | options) } {
        0 => Ok(None),
        tid if tid > 0 => Ok(Some((tid, stop_of(status)))),
        _ => Err(last_errno()),
    }
}

fn stop_of(status: libc::c_int) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Gone(WaitStatus::Exited(libc::WEXITSTATUS(status)));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Gone(WaitStatus::Signaled(libc::WTERMSIG(status)));
    }
    let is_event = status >> 16 != 0;
    match libc::WSTOPSIG(status) {
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU if is_event => Stop::Group,
        _ if is_event => Stop::Event,
        SYSCALL_STOP => Stop::Syscall,
        signal => Stop::Signal(signal),
    }
}

/// A system-call stop under `PTRACE_O_TRACESYSGOOD`.
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    use std::thread;

    use super::*;

    fn is_traced(pid: libc::pid_t) -> bool {
        let status = crate::procfs::read(format!("/proc/{pid}/status")).expect("the status of a child");
        !status.contains("TracerPid:\t0\n")
    }

    /// As the kernel lets a thread go whose tracer dies.
    #[test]
    fn a_signal_that_has_been_seen_arrives_though_its_tracer_ends_there() {
        const SIGNALLED: &str = "trap 'exit 7' USR1; echo ready; read line; exit 8";
        for _ in 0..5 {
            let mut child = Command::new("sh")
                .args(["-c", SIGNALLED])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a shell");
            let pid = libc::pid_t::try_from(child.id()).expect("a pid");
            let mut line = String::new();
            BufReader::new(child.stdout.take().expect("its output"))
                .read_line(&mut line)
                .expect("its output");
            assert_eq!(line, "ready\n", "it has set its trap");
            let tracer = thread::spawn(move || {
                seize(pid).expect("PTRACE_SEIZE of a child");
                // SAFETY: kill only sends a signal.
                assert_eq!(unsafe { libc::kill(pid, libc::SIGUSR1) }, 0);
                loop {
                    match look_for_stop(pid) {
                        Some(Stop::Signal(libc::SIGUSR1)) => break,
                        Some(Stop::Signal(signal)) => {
                            let signal = usize::try_from(signal).expect("a number");
                            request(libc::PTRACE_CONT, pid, 0, signal).expect("PTRACE_CONT");
                        }
                        Some(other) => panic!("{other:?}"),
                        None => thread::yield_now(),
                    }
                }
            });
            tracer.join().expect("the tracer");
            // A thread has been joined before the kernel lets its tracees go (`exit_mm` and `exit_notify` in
            // kernel/exit.c), and until then a wait of this process takes the tracee's stop.
            while is_traced(pid) {
                thread::yield_now();
            }
            // A shell that has got the signal executes the trap, whatever it reads.
            drop(child.stdin.take());
            let status = child.wait().expect("its status");
            assert_eq!((status.code(), status.signal()), (Some(7), None));
        }
    }
}
