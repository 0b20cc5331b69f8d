//! Kinds of processes that need care, of `kinds.c`: attaching works, or is refused with the reason; either way nothing stays,
//! and the next one finds the process as it was.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{ChildStdout, Command, Stdio},
    sync::OnceLock,
};

use process_vm_exec::{
    AttachError, Call, Context, DEFAULT_REGION, Errno, Error, Exit, LiveProcess, Mapping, Owner, Protection,
    SignalSet, Sysno, ThreadError,
};

use crate::{
    common::{
        Execute as _, Killed, attached, attached_with, executor_of, kill, kill_sharers_of_memory, rounds,
        scratch, skip, soon, turn,
    },
    target::compile,
    trace::{Trace, assert_no_trace, assert_no_trace_but, has_region, numbers, state_and_parent},
};

fn program() -> Option<PathBuf> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        fs::write(scratch().join("kinds.c"), include_str!("kinds.c")).expect("the source is written");
        compile("kinds", "kinds.c", &[]).map_err(|why| skip(&why)).ok()
    };
    PROGRAM.get_or_init(build).clone()
}

/// A process of this kind, as soon as it is one.
fn process(kind: &str) -> Option<Killed> {
    start(kind, |command| command).map(|(process, _)| process)
}

/// The same, started as `how` says, and what it says besides.
pub(crate) fn start(
    kind: &str,
    how: impl FnOnce(&mut Command) -> &mut Command,
) -> Option<(Killed, BufReader<ChildStdout>)> {
    let mut command = Command::new(program()?);
    command.arg(kind).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = how(&mut command).spawn().expect("the program");
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("its output"));
    output.read_line(&mut line).expect("its output");
    if line != "ready\n" {
        skip(&format!("no process can be of the kind `{kind}` here: {}", child.wait().expect("its status")));
        return None;
    }
    Some((Killed(child), output))
}

/// It goes on with what it waits for, and ends well.
#[track_caller]
fn assert_unharmed(mut process: Killed) {
    drop(process.0.stdin.take());
    let status = process.0.wait().expect("its status");
    assert!(status.success(), "{status}");
}

/// Attaches in each way, calls, and detaches; more than once, as something could have stayed.
#[track_caller]
fn is_attached_to(kind: &str, check: impl Fn(&LiveProcess, i32)) {
    let _turn = turn();
    let Some(process) = process(kind) else { return };
    let pid = process.pid();
    for _ in 0..3 {
        for builder in [LiveProcess::builder(), LiveProcess::builder().files(Owner::Target)] {
            let space = attached_with(builder, pid);
            let executor = space.execute(Sysno::getppid, [0; 6]).expect("a call");
            assert!(executor > 0);
            check(&space, pid);
            space.detach().expect("detaching");
            assert!(!has_region(pid), "the library's pages are still there");
        }
    }
    assert_unharmed(process);
}

fn may_suspend_seccomp() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip("to set the target's seccomp aside takes CAP_SYS_ADMIN");
    }
    is_root
}

#[test]
fn under_strict_seccomp() {
    if may_suspend_seccomp() {
        is_attached_to("strict", |_, _| {});
    }
}

/// To look at its filters is no way, and to make a call would kill it.
#[test]
fn threads_under_strict_seccomp_are_not_sent_on_errands() {
    if !may_suspend_seccomp() {
        return;
    }
    is_attached_to("strict", |space, pid| {
        let gettid = Call::with_args(Sysno::gettid, [0; 6]);
        let refused = space.batch_in_thread(pid, &[gettid]);
        assert!(
            matches!(&refused, Err(Error::Thread { why: ThreadError::StrictSeccomp, .. })),
            "{refused:?}"
        );
    });
}

/// Executors made for runs wait as the first one does.
#[test]
fn without_the_time_stamp_counter() {
    is_attached_to("tsc", |space, _| {
        let code = space.map(Mapping::anonymous(4096, Protection::READ | Protection::WRITE)).expect("a page");
        // mov $39, %eax; syscall
        space.write(code, &[0xb8, 39, 0, 0, 0, 0x0f, 0x05]).expect("the code");
        space.protect(code, 4096, Protection::READ | Protection::EXEC).expect("mprotect");
        let mut context = Context::new(code, 0);
        for _ in 0..3 {
            context.registers_mut().rip = code;
            assert!(matches!(space.run(&mut context, &SignalSet::all()), Ok(Exit::Syscall)));
        }
        drop(context);
        space.unmap(code, 4096).expect("munmap");
    });
}

/// The target's own setting is not ours to change.
#[test]
fn a_target_without_the_time_stamp_counter_stays_without() {
    is_attached_to("tsc", |space, pid| {
        let answer = space.scratch(8).expect("memory");
        let get_tsc = [libc::PR_GET_TSC.unsigned_abs().into(), answer.addr(), 0, 0, 0, 0];
        space.batch_in_thread(pid, &[Call::with_args(Sysno::prctl, get_tsc)]).expect("the thread")[0]
            .expect("prctl");
        let mut mode = [0; 4];
        space.read(answer.addr(), &mut mode).expect("the answer");
        assert_eq!(i32::from_ne_bytes(mode), libc::PR_TSC_SIGSEGV);
    });
}

#[test]
fn whose_main_thread_has_ended() {
    is_attached_to("leaderless", |space, pid| {
        let stat = format!("/proc/{pid}/stat");
        assert_eq!(state_and_parent(&stat).map(|(state, _)| state), Some('Z'));
        assert!(space.vdso().is_some());
        // Longer than what is known of its memory is believed.
        std::thread::sleep(std::time::Duration::from_millis(30));
        space.execute(Sysno::getpid, [0; 6]).expect("it has not executed another program");
        let other = numbers(&format!("/proc/{pid}/task")).into_iter().find(|&tid| tid != pid);
        space.thread(other.expect("a thread")).expect("its state");
    });
}

/// At any moment of the attachment.
#[test]
fn whose_main_thread_is_just_ending() {
    let _turn = turn();
    for delay in (0..2000).step_by(10) {
        let Some((process, _)) = start("leaving", |command| command.arg(delay.to_string())) else { return };
        let space = attached(process.pid());
        space.execute(Sysno::getpid, [0; 6]).expect("a call");
        space.detach().expect("detaching");
        assert_unharmed(process);
    }
}

#[test]
fn whose_threads_all_end_soon() {
    let _turn = turn();
    let Some(process) = process("restless") else { return };
    for round in rounds(30) {
        let space = LiveProcess::attach_pid(process.pid()).unwrap_or_else(|error| panic!("{round}: {error}"));
        space.execute(Sysno::getpid, [0; 6]).expect("a call");
        space.detach().expect("detaching");
    }
    assert_unharmed(process);
}

#[test]
fn with_threads_of_the_kernel() {
    is_attached_to("io_uring", |space, pid| {
        let tids = numbers(&format!("/proc/{pid}/task")).into_iter();
        let kernels = tids.filter(|tid| *tid != pid).collect::<Vec<_>>();
        assert!(!kernels.is_empty(), "io_uring has a thread there");
        for tid in kernels {
            let looked = space.thread(tid);
            assert!(matches!(&looked, Err(Error::Thread { why: ThreadError::Kernels, .. })), "{looked:?}");
        }
        space.thread(pid).expect("its own thread");
    });
}

#[test]
fn that_uses_the_librarys_addresses_itself() {
    let _turn = turn();
    let Some(process) = process("region") else { return };
    let pid = process.pid();
    for _ in 0..2 {
        let wanted = LiveProcess::builder().region(DEFAULT_REGION.start).attach_pid(pid);
        let Err(Error::Attach { why, errno, .. }) = wanted else { panic!("attached to it") };
        assert_eq!(errno, Errno::EXIST);
        assert!(matches!(why, AttachError::Region { start: 0x7000_0000_0000, .. }), "{why}");
        // Elsewhere there is room.
        let space = attached(pid);
        assert_ne!(space.region(), DEFAULT_REGION);
        space.execute(Sysno::getpid, [0; 6]).expect("getpid");
        assert!(space.thread(pid).is_ok());
        let reserved = space.unmap(space.region().start, 4096);
        assert!(matches!(reserved, Err(Error::Reserved { .. })), "{reserved:?}");
        space.detach().expect("detaching");
        soon("its pages are gone", || !has_pages_of_an_executor(pid));
    }
    assert_no_trace_but(pid, |trace| matches!(trace, Trace::Mapping(_)));
    assert_unharmed(process);
}

/// Nobody waits for memory that the process may never bring.
#[test]
fn that_holds_back_what_may_be_a_dead_executors_pages() {
    let _turn = turn();
    let Some(process) = process("withholder") else { return };
    let pid = process.pid();
    for _ in 0..2 {
        let space = attached(pid);
        assert_ne!(space.region(), DEFAULT_REGION, "these pages are the program's");
        space.execute(Sysno::getpid, [0; 6]).expect("getpid");
        space.detach().expect("detaching");
    }
    assert_no_trace_but(pid, |trace| matches!(trace, Trace::Mapping(_) | Trace::Descriptor(_)));
    assert_unharmed(process);
}

fn has_pages_of_an_executor(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps").contains("pvx-executor")
}

#[test]
fn with_a_region_of_the_supervisors_choice() {
    let _turn = turn();
    let Some(process) = process("plain") else { return };
    let pid = process.pid();
    for start in [1 << 32, 0x1234_0000_0000, 0x7fdf_0000_0000] {
        let space = attached_with(LiveProcess::builder().region(start), pid);
        assert_eq!(space.region().start, start);
        space.execute(Sysno::getpid, [0; 6]).expect("getpid");
        let twice = LiveProcess::attach_pid(pid);
        assert!(matches!(twice, Err(Error::Attach { errno: Errno::EXIST, .. })), "{twice:?}");
        let call = [Call::new(Sysno::gettid)];
        let by_itself = space.batch_in_thread(pid, &call).expect("its own thread makes calls");
        assert_eq!(by_itself, [Ok(u64::from(pid.unsigned_abs()))]);
        // Its executor is killed: whoever attaches next finds the pages wherever they are.
        kill(executor_of(&space), libc::SIGKILL);
        soon("its end is seen", || matches!(space.execute(Sysno::getpid, [0; 6]), Err(Error::Dead)));
        drop(space);
    }
    attached(pid).detach().expect("detaching");
    soon("no pages are left", || !has_pages_of_an_executor(pid));
    for start in [0, 4096, (1 << 32) + 4096, 0x7fff_0000_0000, !0] {
        let refused = LiveProcess::builder().region(start).attach_pid(pid);
        assert!(matches!(refused, Err(Error::Region { .. })), "{refused:?}");
    }
    assert_no_trace(pid);
    assert_unharmed(process);
}

#[test]
fn that_another_supervisor_is_attached_to() {
    let _turn = turn();
    let Some(process) = process("plain") else { return };
    let space = attached(process.pid());
    let Err(Error::Attach { why, errno, .. }) = LiveProcess::attach_pid(process.pid()) else {
        panic!("attached twice")
    };
    assert_eq!(errno, Errno::EXIST);
    assert_eq!(why, AttachError::Attached { executor: executor_of(&space) });
    space.detach().expect("detaching");
    assert_no_trace(process.pid());
    assert_unharmed(process);
}

/// Nobody can take its pages out then; who attaches next does.
#[test]
fn whose_executor_was_killed() {
    let _turn = turn();
    let Some(process) = process("plain") else { return };
    let pid = process.pid();
    for _ in 0..3 {
        let space = attached(pid);
        let executor = executor_of(&space);
        kill(executor, libc::SIGKILL);
        soon("its end is seen", || matches!(space.execute(Sysno::getpid, [0; 6]), Err(Error::Dead)));
        drop(space);
        soon("it is gone", || !numbers("/proc").contains(&executor));
    }
    attached(pid).detach().expect("detaching");
    assert_no_trace(pid);
    assert_unharmed(process);
}

/// Its address space may not grow by what the executor needs.
#[test]
fn that_has_no_room_for_the_executors_pages() {
    let _turn = turn();
    let Some(process) = process("plain") else { return };
    let pid = process.pid();
    let number = rustix::process::Pid::from_raw(pid).expect("a pid");
    let most = |bytes| {
        let limit = rustix::process::Rlimit { current: bytes, maximum: None };
        rustix::process::prlimit(Some(number), rustix::process::Resource::As, limit).expect("a limit")
    };
    most(Some(100 << 20));
    for builder in [LiveProcess::builder(), LiveProcess::builder().files(Owner::Target)] {
        for _ in 0..2 {
            let refused = builder.attach_pid(pid);
            assert!(matches!(refused, Err(Error::Space { errno: Errno::NOMEM, .. })), "{refused:?}");
        }
    }
    assert_no_trace(pid);
    most(None);
    attached(pid).detach().expect("detaching");
    assert_no_trace(pid);
    assert_unharmed(process);
}

/// What the target traces it never lets end, and its end is never told.
#[test]
fn that_traces_the_executors_threads() {
    let _turn = turn();
    let Some(process) = process("tracer") else { return };
    let pid = process.pid();
    let space = attached(pid);
    let executor = executor_of(&space);
    let code = space.map(Mapping::anonymous(4096, Protection::READ | Protection::WRITE)).expect("memory");
    // jmp to itself
    space.write(code, &[0xeb, 0xfe]).expect("memory");
    space.protect(code, 4096, Protection::READ | Protection::EXEC).expect("memory");
    let mut ctx = Context::new(code, 0);
    let interrupter = ctx.interrupter();
    let is_traced = || {
        numbers(&format!("/proc/{executor}/task")).into_iter().filter(|&tid| tid != executor).any(|tid| {
            let status =
                fs::read_to_string(format!("/proc/{executor}/task/{tid}/status")).unwrap_or_default();
            status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
        })
    };
    std::thread::scope(|scope| {
        scope.spawn(|| space.run(&mut ctx, &SignalSet::all()));
        soon("a thread of it is traced", is_traced);
        interrupter.kill();
    });
    drop(space.detach());
    assert_eq!(state_and_parent(&format!("/proc/{pid}/stat")).map(|(state, _)| state), Some('S'));
}

/// So that there is no room for what the supervisor sends.
#[test]
fn that_fills_the_executors_sockets() {
    let _turn = turn();
    let Some(process) = process("filler") else { return };
    let space = attached(process.pid());
    let file = fs::File::open("/dev/null").expect("a file");
    for _ in 0..2000 {
        // Whatever it comes to: it comes back.
        let _ = space.syscall(&Call::new(Sysno::fsync).fd(0, std::os::fd::AsFd::as_fd(&file)));
    }
    let _ = space.detach();
}

/// A target may write what the executor executes. That is its own loss: whoever attaches is not kept.
#[test]
fn that_overwrites_the_executors_instructions() {
    let _turn = turn();
    let Some(process) = process("rewriter") else { return };
    // It comes back at all; the target may also be too late to spoil it.
    drop(LiveProcess::attach_pid(process.pid()));
    // What it has made of the tasks that were to become executors goes round in circles.
    kill_sharers_of_memory(process.pid());
}
