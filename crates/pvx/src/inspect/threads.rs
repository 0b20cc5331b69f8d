//! The threads of a process: /proc/PID/task/TID.

use std::{fs, path::Path};

use process_vm_exec::Sysno;
use procfs::process::{Process, Task};
use serde::Serialize;

use super::{
    report::hex,
    signals::names,
    visits::{AlternateStack, OwnSettings, Rseq},
};

/// One thread.
#[derive(Debug, Serialize)]
pub(crate) struct Thread {
    pub(crate) tid: i32,
    /// Its number in the namespace that it lives in: the one by which a task in the process knows it.
    pub(crate) tid_inside: i32,
    pub(crate) name: String,
    /// Whether it runs the kernel's code only, as the threads of io_uring(7) do. It is not visited.
    pub(crate) is_kernels: bool,
    /// `sleeping`, `running`, ...
    pub(crate) state: String,
    /// The system call that it waits in; null if it is in none, or that is not known.
    pub(crate) call: Option<WaitingCall>,
    /// Null where they cannot be known: while the thread runs, above all.
    pub(crate) registers: Option<Registers>,
    /// Signals that it blocks, and those that wait for it alone.
    pub(crate) blocked: Vec<String>,
    pub(crate) pending: Vec<String>,
    /// The head of its list of robust futexes (get_robust_list(2)); null if the process was not asked, or refused.
    pub(crate) robust_list: Option<Address>,
    /// What follows is null if the thread was not visited, or refused.
    pub(crate) alternate_stack: Option<AlternateStack>,
    pub(crate) rseq: Option<Rseq>,
    pub(crate) own_settings: Option<OwnSettings>,
}

/// A system call that has not returned.
#[derive(Debug, Serialize)]
pub(crate) struct WaitingCall {
    pub(crate) name: String,
    pub(crate) args: [Address; 6],
}

/// The registers that can be seen without stopping a thread, and those that cannot.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Registers {
    pub(crate) rip: Address,
    pub(crate) rsp: Address,
    #[serde(flatten)]
    pub(crate) others: Others,
}

/// Null unless the thread was stopped for them.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Others {
    pub(crate) rax: Option<Address>,
    pub(crate) rbx: Option<Address>,
    pub(crate) rcx: Option<Address>,
    pub(crate) rdx: Option<Address>,
    pub(crate) rsi: Option<Address>,
    pub(crate) rdi: Option<Address>,
    pub(crate) rbp: Option<Address>,
    pub(crate) r8: Option<Address>,
    pub(crate) r9: Option<Address>,
    pub(crate) r10: Option<Address>,
    pub(crate) r11: Option<Address>,
    pub(crate) r12: Option<Address>,
    pub(crate) r13: Option<Address>,
    pub(crate) r14: Option<Address>,
    pub(crate) r15: Option<Address>,
    pub(crate) rflags: Option<Address>,
    pub(crate) fs_base: Option<Address>,
    pub(crate) gs_base: Option<Address>,
}

/// A register's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Address(#[serde(serialize_with = "hex")] pub(crate) u64);

/// `PF_IO_WORKER`, `PF_USER_WORKER` and `PF_KTHREAD` (include/linux/sched.h).
const KERNELS: u32 = 0x10 | 0x4000 | 0x20_0000;

/// All threads, by number. One that ends meanwhile is left out.
pub(crate) fn threads(process: &Process) -> Result<Vec<Thread>, procfs::ProcError> {
    let mut threads: Vec<_> =
        process.tasks()?.filter_map(|task| task.ok().and_then(|task| Thread::of(&task))).collect();
    threads.sort_by_key(|thread| thread.tid);
    Ok(threads)
}

impl Registers {
    fn where_it_is(rip: Address, rsp: Address) -> Self {
        Self { rip, rsp, others: Others::default() }
    }

    /// All of them.
    pub(crate) fn of(registers: &process_vm_exec::Registers) -> Self {
        let r = registers;
        let some = |value| Some(Address(value));
        let others = Others {
            rax: some(r.rax),
            rbx: some(r.rbx),
            rcx: some(r.rcx),
            rdx: some(r.rdx),
            rsi: some(r.rsi),
            rdi: some(r.rdi),
            rbp: some(r.rbp),
            r8: some(r.r8),
            r9: some(r.r9),
            r10: some(r.r10),
            r11: some(r.r11),
            r12: some(r.r12),
            r13: some(r.r13),
            r14: some(r.r14),
            r15: some(r.r15),
            rflags: some(r.rflags),
            fs_base: some(r.fs_base),
            gs_base: some(r.gs_base),
        };
        Self { others, ..Self::where_it_is(Address(r.rip), Address(r.rsp)) }
    }
}

impl Thread {
    fn of(task: &Task) -> Option<Self> {
        let stat = task.stat().ok()?;
        let status = task.status().ok()?;
        // Not everybody may read it: it asks for the rights of a tracer.
        let path = Path::new("/proc").join(task.pid.to_string()).join("task").join(task.tid.to_string());
        let (call, registers) =
            fs::read_to_string(path.join("syscall")).map_or((None, None), |line| where_it_is(&line));
        Some(Self {
            tid: task.tid,
            tid_inside: status.nspid.and_then(|numbers| numbers.last().copied()).unwrap_or(task.tid),
            name: stat.comm,
            is_kernels: stat.flags & KERNELS != 0,
            state: state(stat.state),
            call,
            registers,
            blocked: names(status.sigblk),
            pending: names(status.sigpnd),
            robust_list: None,
            alternate_stack: None,
            rseq: None,
            own_settings: None,
        })
    }
}

/// Reads proc_pid_syscall(5): `running`, or a call's number and arguments, stack pointer and instruction pointer. A
/// thread that waits for something else than a call, such as a page, shows -1 and the pointers alone, which `procfs`
/// does not expect.
fn where_it_is(line: &str) -> (Option<WaitingCall>, Option<Registers>) {
    let words: Vec<_> = line.split_whitespace().collect();
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok().map(Address);
    let registers = match words[..] {
        [.., rsp, rip] => number(rip).zip(number(rsp)).map(|(rip, rsp)| Registers::where_it_is(rip, rsp)),
        _ => None,
    };
    // What threads of the kernel show: they have no registers of a program, and call nobody.
    if registers == Some(Registers::where_it_is(Address(0), Address(0))) {
        return (None, None);
    }
    let call = match words[..] {
        [call, ref args @ .., _, _] => call.parse::<usize>().ok().and_then(|call| {
            let args: Option<Vec<Address>> = args.iter().map(|word| number(word)).collect();
            Some(WaitingCall {
                name: Sysno::new(call).map_or_else(|| call.to_string(), |call| call.name().to_owned()),
                args: args?.try_into().ok()?,
            })
        }),
        _ => None,
    };
    (call, registers)
}

/// The letters of proc_pid_stat(5), in words.
pub(crate) fn state(letter: char) -> String {
    match letter {
        'R' => "running",
        'S' => "sleeping",
        'D' => "waiting, not to be disturbed",
        'T' => "stopped",
        't' => "stopped by a tracer",
        'Z' => "ended, not yet waited for",
        'X' | 'x' => "dead",
        'I' => "idle",
        'P' => "parked",
        _ => return letter.to_string(),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_thread_shows_its_call_and_two_registers() {
        let (call, registers) = where_it_is("35 0x1 0x2 0x0 0x0 0x0 0x0 0x7000 0x1000\n");
        let call = call.expect("a call");
        assert_eq!((call.name.as_str(), call.args), ("nanosleep", [1, 2, 0, 0, 0, 0].map(Address)));
        assert_eq!(registers, Some(Registers::where_it_is(Address(0x1000), Address(0x7000))));
    }

    #[test]
    fn a_thread_that_waits_for_something_else_shows_the_registers() {
        let (call, registers) = where_it_is("-1 0x7000 0x1000\n");
        assert!(call.is_none());
        assert_eq!(registers, Some(Registers::where_it_is(Address(0x1000), Address(0x7000))));
    }

    #[test]
    fn a_running_thread_shows_neither_nor_does_one_of_the_kernel() {
        assert!(matches!(where_it_is("0 0x0 0x0 0x0 0x0 0x0 0x0 0x0 0x0\n"), (None, None)));
        assert!(matches!(where_it_is("running\n"), (None, None)));
    }

    #[test]
    fn every_thread_of_this_process_is_found() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel::<()>();
        let work = move || {
            let _ = ready.send(());
            receive.recv()
        };
        let thread = std::thread::Builder::new().name("looked-for".into()).spawn(work).unwrap();
        // A thread gives itself its name, before anything else.
        is_ready.recv().unwrap();
        let threads = threads(&Process::myself().unwrap()).unwrap();
        assert!(threads.iter().any(|thread| thread.name == "looked-for"), "{threads:?}");
        drop(send);
        let _ = thread.join();
    }
}
