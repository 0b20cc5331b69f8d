//! What a process knows about itself, changes about itself, and how it ends.

use std::ffi::CStr;

use nix::unistd::Pid;
use process_vm_exec::{Errno, Sysno, WaitStatus};
use rustix::rand::GetRandomFlags;

use crate::{
    abi::{Answer, Args, PAGE, errno, from_int, int, size, uint},
    files::{AT_FDCWD, Last, is_ours},
    guest::GuestMemory,
    program::{EXECUTABLE, Program},
    task::{Next, Task},
};

/// How much `execve` takes as arguments and environment.
pub(crate) const ARGUMENTS_MAX: u64 = 2 << 20;

/// exit(2) and exit_group(2): with one task they are the same.
pub(crate) fn exit(task: &mut Task, [status, ..]: Args) -> Answer {
    task.next = Next::End(WaitStatus::Exited(int(status) & 0xff));
    Ok(0)
}

/// execve(2)
pub(crate) fn execve(task: &mut Task, [path, args, env, ..]: Args) -> Answer {
    execveat(task, [from_int(AT_FDCWD), path, args, env, 0, 0])
}

/// execveat(2)
pub(crate) fn execveat(task: &mut Task, [dir, path, args, env, flags, _]: Args) -> Answer {
    if int(flags) & !libc::AT_SYMLINK_NOFOLLOW != 0 {
        return Err(Errno::INVAL);
    }
    let last = Last::from_flags(int(flags));
    let mut budget = ARGUMENTS_MAX;
    let mut args = task.space.fetch_strings(args, &mut budget)?;
    let env = task.space.fetch_strings(env, &mut budget)?;
    let path = task.space.fetch_path(path)?;
    if args.is_empty() {
        args.push(c"".to_owned());
    }
    let open = |path: &CStr| task.open_object(&task.object_at(dir, path, last)?, EXECUTABLE);
    let program = Program::open_by(&open, &path, args, env).map_err(|error| error.errno())?;
    task.replace_program(&program)?;
    Ok(0)
}

/// getpid(2) and gettid(2): this process's own number, so that it is the guest's across `execve`.
pub(crate) fn getpid(task: &mut Task, _: Args) -> Answer {
    Ok(from_int(task.identity.pid))
}

/// getppid(2)
pub(crate) fn getppid(_: &mut Task, _: Args) -> Answer {
    Ok(rustix::process::getppid().map_or(0, |pid| from_int(pid.as_raw_pid())))
}

/// The process that a call means: the guest itself for 0 and its own number. Processes and threads of the supervisor
/// are not there for a guest.
fn process(task: &Task, pid: u64) -> Result<Pid, Errno> {
    match int(pid) {
        pid if pid == 0 || pid == task.identity.pid => Ok(Pid::from_raw(0)),
        pid if pid < 0 || is_ours(task, pid) != Ok(false) => Err(Errno::SRCH),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// getpgid(2). A group of another pid namespace has the number 0.
pub(crate) fn getpgid(task: &mut Task, [pid, ..]: Args) -> Answer {
    let group = nix::unistd::getpgid(Some(process(task, pid)?)).map_err(errno)?;
    Ok(from_int(group.as_raw()))
}

/// getpgrp(2)
pub(crate) fn getpgrp(task: &mut Task, _: Args) -> Answer {
    getpgid(task, [0; 6])
}

/// getsid(2)
pub(crate) fn getsid(task: &mut Task, [pid, ..]: Args) -> Answer {
    let session = nix::unistd::getsid(Some(process(task, pid)?)).map_err(errno)?;
    Ok(from_int(session.as_raw()))
}

/// setpgid(2)
pub(crate) fn setpgid(task: &mut Task, [pid, group, ..]: Args) -> Answer {
    let group = Pid::from_raw(int(group));
    nix::unistd::setpgid(process(task, pid)?, group).map_err(errno)?;
    Ok(0)
}

/// setsid(2)
pub(crate) fn setsid(_: &mut Task, _: Args) -> Answer {
    Ok(from_int(rustix::process::setsid()?.as_raw_pid()))
}

/// getrandom(2)
pub(crate) fn getrandom(task: &mut Task, [addr, len, flags, ..]: Args) -> Answer {
    let mut bytes = [0; 256];
    let mut done = 0;
    while done < len {
        let part = size((len - done).min(256));
        let part =
            rustix::rand::getrandom(&mut bytes[..part], GetRandomFlags::from_bits_retain(uint(flags)))?;
        match task.space.store(addr.wrapping_add(done), &bytes[..part]) {
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
            Ok(()) => done += part as u64,
        }
    }
    Ok(done)
}

/// A call that writes a record to where the guest wants it and does nothing else; executed in the guest's
/// space, by a task of the guest's process.
fn in_space(task: &Task, call: Sysno, args: Args) -> Answer {
    task.space.syscall(call, args).map_err(|error| error.errno())
}

/// uname(2)
pub(crate) fn uname(task: &mut Task, args: Args) -> Answer {
    in_space(task, Sysno::uname, args)
}

/// sysinfo(2)
pub(crate) fn sysinfo(task: &mut Task, args: Args) -> Answer {
    in_space(task, Sysno::sysinfo, args)
}

/// times(2)
pub(crate) fn times(task: &mut Task, args: Args) -> Answer {
    in_space(task, Sysno::times, args)
}

/// getrusage(2)
pub(crate) fn getrusage(task: &mut Task, args: Args) -> Answer {
    in_space(task, Sysno::getrusage, args)
}

/// sched_get_priority_max(2)
pub(crate) fn sched_get_priority_max(task: &mut Task, args: Args) -> Answer {
    in_space(task, Sysno::sched_get_priority_max, args)
}

/// sched_get_priority_min(2)
pub(crate) fn sched_get_priority_min(task: &mut Task, args: Args) -> Answer {
    in_space(task, Sysno::sched_get_priority_min, args)
}

/// sched_getaffinity(2)
pub(crate) fn sched_getaffinity(task: &mut Task, [_, len, mask, ..]: Args) -> Answer {
    let cpus = rustix::thread::sched_getaffinity(None)?;
    let words = if (64..1024).any(|cpu| cpus.is_set(cpu)) { 16 } else { 1 };
    if len < words * 8 || !len.is_multiple_of(8) {
        return Err(Errno::INVAL);
    }
    let mut bytes = [0u8; 128];
    for cpu in (0..size(words) * 64).filter(|&cpu| cpus.is_set(cpu)) {
        bytes[cpu / 8] |= 1 << (cpu % 8);
    }
    task.space.store(mask, &bytes[..size(words * 8)])?;
    Ok(words * 8)
}

/// sched_setaffinity(2): where a guest runs is the executor's business.
pub(crate) fn sched_setaffinity(_: &mut Task, _: Args) -> Answer {
    Ok(0)
}

/// sched_yield(2)
pub(crate) fn sched_yield(_: &mut Task, _: Args) -> Answer {
    rustix::thread::sched_yield();
    Ok(0)
}

/// sched_getscheduler(2): `SCHED_OTHER`.
pub(crate) fn sched_getscheduler(_: &mut Task, _: Args) -> Answer {
    Ok(0)
}

/// sched_getparam(2): priority 0.
pub(crate) fn sched_getparam(task: &mut Task, [_, param, ..]: Args) -> Answer {
    task.space.store(param, &[0; 4])?;
    Ok(0)
}

/// getpriority(2), as the kernel returns it: 20 less the nice value, which is 0.
pub(crate) fn getpriority(_: &mut Task, _: Args) -> Answer {
    Ok(20)
}

/// getcpu(2)
pub(crate) fn getcpu(task: &mut Task, [cpu, node, ..]: Args) -> Answer {
    if cpu != 0 {
        let number = uint(rustix::thread::sched_getcpu() as u64);
        task.space.store(cpu, &number.to_ne_bytes())?;
    }
    if node != 0 {
        task.space.store(node, &[0; 4])?;
    }
    Ok(0)
}

/// set_tid_address(2): there is nobody to wake when the one task ends.
pub(crate) fn set_tid_address(task: &mut Task, _: Args) -> Answer {
    getpid(task, [0; 6])
}

/// set_robust_list(2): as above.
pub(crate) fn set_robust_list(_: &mut Task, [_, len, ..]: Args) -> Answer {
    if len == 24 { Ok(0) } else { Err(Errno::INVAL) }
}

/// rseq(2): restartable sequences need the kernel's help at every preemption; programs do without.
pub(crate) fn rseq(_: &mut Task, _: Args) -> Answer {
    Err(Errno::NOSYS)
}

/// arch_prctl(2)
pub(crate) fn arch_prctl(task: &mut Task, [code, addr, ..]: Args) -> Answer {
    // asm/prctl.h
    const SET_GS: i32 = 0x1001;
    const SET_FS: i32 = 0x1002;
    const GET_FS: i32 = 0x1003;
    const GET_GS: i32 = 0x1004;
    // `TASK_SIZE_MAX` of asm/page_64_types.h
    const USER_END: u64 = (1 << 47) - PAGE;
    match int(code) {
        SET_FS | SET_GS if addr >= USER_END => Err(Errno::PERM),
        SET_FS => {
            task.context.registers_mut().fs_base = addr;
            Ok(0)
        }
        SET_GS => {
            task.context.registers_mut().gs_base = addr;
            Ok(0)
        }
        GET_FS => task.space.store(addr, &task.context.registers().fs_base.to_ne_bytes()).map(|()| 0),
        GET_GS => task.space.store(addr, &task.context.registers().gs_base.to_ne_bytes()).map(|()| 0),
        _ => Err(Errno::INVAL),
    }
}

/// prctl(2), what programs commonly ask for.
pub(crate) fn prctl(task: &mut Task, [option, arg, ..]: Args) -> Answer {
    match int(option) {
        libc::PR_SET_NAME => {
            let mut name = task.space.fetch_string(arg, 16, Errno::INVAL).or_else(|error| match error {
                Errno::INVAL => task.space.fetch::<15>(arg).map(Vec::from),
                other => Err(other),
            })?;
            name.truncate(15);
            task.identity.comm = name;
            Ok(0)
        }
        libc::PR_GET_NAME => {
            let mut name = [0; 16];
            name[..task.identity.comm.len()].copy_from_slice(&task.identity.comm);
            task.space.store(arg, &name)?;
            Ok(0)
        }
        libc::PR_GET_DUMPABLE => Ok(1),
        libc::PR_CAPBSET_READ => Ok(0),
        libc::PR_GET_KEEPCAPS
        | libc::PR_GET_NO_NEW_PRIVS
        | libc::PR_SET_DUMPABLE
        | libc::PR_SET_PDEATHSIG
        | libc::PR_SET_NO_NEW_PRIVS
        | libc::PR_SET_KEEPCAPS
        | libc::PR_SET_TIMERSLACK
        | libc::PR_SET_CHILD_SUBREAPER => Ok(0),
        _ => Err(Errno::INVAL),
    }
}

/// futex(2), for the one task there is: waking finds nobody, and waiting for somebody lasts as long as it is told.
pub(crate) fn futex(task: &mut Task, [addr, operation, value, timeout, ..]: Args) -> Answer {
    const COMMAND: i32 = !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    match int(operation) & COMMAND {
        libc::FUTEX_WAKE
        | libc::FUTEX_WAKE_BITSET
        | libc::FUTEX_REQUEUE
        | libc::FUTEX_CMP_REQUEUE
        | libc::FUTEX_WAKE_OP => Ok(0),
        command @ (libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET) => {
            if task.space.fetch_i32(addr)? != int(value) {
                return Err(Errno::AGAIN);
            }
            let timeout = match timeout {
                0 => None,
                addr => Some(task.fetch_duration(addr)?),
            };
            let timeout = match timeout {
                Some(until) if command == libc::FUTEX_WAIT_BITSET => {
                    let clock = if int(operation) & libc::FUTEX_CLOCK_REALTIME != 0 {
                        rustix::time::ClockId::Realtime
                    } else {
                        rustix::time::ClockId::Monotonic
                    };
                    Some(until.saturating_sub(crate::time::now(clock)))
                }
                relative => relative,
            };
            task.sleep(timeout)?;
            Err(Errno::TIMEDOUT)
        }
        _ => Err(Errno::NOSYS),
    }
}

/// wait4(2) and waitid(2): a task without children.
pub(crate) fn wait(_: &mut Task, _: Args) -> Answer {
    Err(Errno::CHILD)
}

/// membarrier(2): a query says that no command is supported.
pub(crate) fn membarrier(_: &mut Task, [command, ..]: Args) -> Answer {
    if int(command) == 0 { Ok(0) } else { Err(Errno::INVAL) }
}

/// personality(2): Linux, and it stays so.
pub(crate) fn personality(_: &mut Task, [persona, ..]: Args) -> Answer {
    if matches!(uint(persona), 0 | u32::MAX) { Ok(0) } else { Err(Errno::INVAL) }
}
