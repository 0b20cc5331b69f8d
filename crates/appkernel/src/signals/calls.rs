//! The system calls about signals.

use std::time::Duration;

use process_vm_exec::Errno;
use rustix::process::{Pid, Signal};

use super::{Action, AlternateStack, bit, frame, index, valid};
use crate::{
    abi::{Answer, Args, Record, from_int, int, u32_at, u64_at},
    files::is_ours,
    guest::GuestMemory,
    task::{GENERAL_PROTECTION, Task},
};

/// The size of the kernel's `sigset_t`.
const SET_SIZE: u64 = 8;
/// The smallest alternate stack (`MINSIGSTKSZ`).
const ALTERNATE_MIN: u64 = 2048;

/// rt_sigaction(2)
pub(crate) fn rt_sigaction(task: &mut Task, [signal, new, old, set_size, ..]: Args) -> Answer {
    let signal = int(signal);
    if set_size != SET_SIZE || !valid(signal) {
        return Err(Errno::INVAL);
    }
    let before = *task.signals.action(signal);
    if new != 0 {
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
            return Err(Errno::INVAL);
        }
        let record: [u8; 32] = task.space.fetch(new)?;
        task.signals.actions[index(signal)] = Action {
            handler: u64_at(&record, 0),
            flags: u64_at(&record, 8),
            restorer: u64_at(&record, 16),
            mask: u64_at(&record, 24),
        };
        if task.signals.is_ignored(signal) {
            task.signals.pending.retain(|pending| pending.info.signal() != signal);
        }
    }
    if old != 0 {
        let record = Record::<32>::new()
            .put(0, before.handler.to_ne_bytes())
            .put(8, before.flags.to_ne_bytes())
            .put(16, before.restorer.to_ne_bytes())
            .put(24, before.mask.to_ne_bytes());
        task.space.store(old, record.bytes())?;
    }
    Ok(0)
}

/// rt_sigprocmask(2)
pub(crate) fn rt_sigprocmask(task: &mut Task, [how, set, old, set_size, ..]: Args) -> Answer {
    if set_size != SET_SIZE {
        return Err(Errno::INVAL);
    }
    let before = task.signals.mask;
    if set != 0 {
        let set = task.space.fetch_u64(set)?;
        let mask = match int(how) {
            libc::SIG_BLOCK => before | set,
            libc::SIG_UNBLOCK => before & !set,
            libc::SIG_SETMASK => set,
            _ => return Err(Errno::INVAL),
        };
        task.signals.set_mask(mask);
    }
    if old != 0 {
        task.space.store(old, &before.to_ne_bytes())?;
    }
    Ok(0)
}

/// rt_sigreturn(2)
pub(crate) fn rt_sigreturn(task: &mut Task, _: Args) -> Answer {
    if frame::pop(task).is_err() {
        task.raise_fault(&GENERAL_PROTECTION);
    }
    Ok(0)
}

/// rt_sigpending(2)
pub(crate) fn rt_sigpending(task: &mut Task, [set, set_size, ..]: Args) -> Answer {
    if set_size > SET_SIZE {
        return Err(Errno::INVAL);
    }
    let pending = task.signals.pending.iter().fold(0, |set, pending| set | bit(pending.info.signal()));
    task.space.store(set, &(pending & task.signals.mask).to_ne_bytes())?;
    Ok(0)
}

/// rt_sigsuspend(2)
pub(crate) fn rt_sigsuspend(task: &mut Task, [set, set_size, ..]: Args) -> Answer {
    if set_size != SET_SIZE {
        return Err(Errno::INVAL);
    }
    let set = task.space.fetch_u64(set)?;
    task.signals.saved_mask = Some(task.signals.mask);
    task.signals.set_mask(set);
    pause(task, [0; 6])
}

/// pause(2)
pub(crate) fn pause(task: &mut Task, _: Args) -> Answer {
    if !task.signals.is_deliverable() {
        task.sleep(None)?;
    }
    Err(Errno::INTR)
}

/// sigaltstack(2)
pub(crate) fn sigaltstack(task: &mut Task, [new, old, ..]: Args) -> Answer {
    let before = task.signals.alternate;
    let on_it = before.contains(task.context.registers().rsp);
    if new != 0 {
        let record: [u8; 24] = task.space.fetch(new)?;
        let wanted = AlternateStack {
            addr: u64_at(&record, 0),
            flags: u32_at(&record, 8).cast_signed(),
            len: u64_at(&record, 16),
        };
        if on_it {
            return Err(Errno::PERM);
        }
        task.signals.alternate = if wanted.flags & libc::SS_DISABLE != 0 {
            AlternateStack::NONE
        } else if wanted.len < ALTERNATE_MIN {
            return Err(Errno::NOMEM);
        } else {
            AlternateStack { flags: 0, ..wanted }
        };
    }
    if old != 0 {
        let flags = if on_it { libc::SS_ONSTACK } else { before.flags };
        task.space.store(old, AlternateStack { flags, ..before }.to_record().bytes())?;
    }
    Ok(0)
}

/// kill(2)
pub(crate) fn kill(task: &mut Task, [pid, signal, ..]: Args) -> Answer {
    send(task, int(pid), int(signal), libc::SI_USER)
}

/// tkill(2)
pub(crate) fn tkill(task: &mut Task, [tid, signal, ..]: Args) -> Answer {
    send_to_thread(task, int(tid), int(signal))
}

/// tgkill(2)
pub(crate) fn tgkill(task: &mut Task, [group, tid, signal, ..]: Args) -> Answer {
    if int(group) != task.identity.pid {
        return Err(Errno::SRCH);
    }
    send_to_thread(task, int(tid), int(signal))
}

fn send_to_thread(task: &mut Task, tid: i32, signal: i32) -> Answer {
    if tid != task.identity.pid {
        return Err(if tid <= 0 { Errno::INVAL } else { Errno::SRCH });
    }
    send(task, tid, signal, libc::SI_TKILL)
}

/// Signals to itself (or to its process group, of which it can reach nobody else) stay inside; others go to the
/// host with the caller's rights.
fn send(task: &mut Task, pid: i32, signal: i32, code: i32) -> Answer {
    if signal != 0 && !valid(signal) {
        return Err(Errno::INVAL);
    }
    if pid == task.identity.pid || pid == 0 {
        if signal != 0 {
            task.raise(signal, code);
        }
        return Ok(0);
    }
    let other = Pid::from_raw(pid.max(0)).ok_or(Errno::PERM)?;
    // The supervisor's processes and threads are not there for a guest.
    if is_ours(task, pid) != Ok(false) {
        return Err(Errno::SRCH);
    }
    match Signal::from_named_raw(signal) {
        None if signal == 0 => rustix::process::test_kill_process(other)?,
        None => return Err(Errno::INVAL),
        Some(signal) => rustix::process::kill_process(other, signal)?,
    }
    Ok(0)
}

/// rt_sigtimedwait(2)
pub(crate) fn rt_sigtimedwait(task: &mut Task, [set, info, timeout, set_size, ..]: Args) -> Answer {
    if set_size != SET_SIZE {
        return Err(Errno::INVAL);
    }
    let set = task.space.fetch_u64(set)?;
    let timeout = if timeout == 0 { None } else { Some(task.fetch_duration(timeout)?) };
    for attempt in 0..2 {
        let found = task.signals.pending.iter().position(|pending| set & bit(pending.info.signal()) != 0);
        if let Some(pending) = found.and_then(|found| task.signals.pending.remove(found)) {
            if info != 0 {
                task.space.store(info, pending.info.as_bytes())?;
            }
            return Ok(from_int(pending.info.signal()));
        }
        if attempt == 0 && timeout != Some(Duration::ZERO) {
            // Only timers can make a signal pending while the one task sleeps.
            let _ = task.sleep(timeout);
            task.wants_attention();
        }
    }
    Err(Errno::AGAIN)
}
