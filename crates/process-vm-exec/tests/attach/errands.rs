//! Errands that threads are not sent on, or do not come back from in the usual way.

use std::{
    env, fs,
    io::Read,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use process_vm_exec::{Call, Errno, Error, LiveProcess, Sysno};

use crate::{
    common::{
        Killed, Numbers, attached, kill, kill_sharers_of_memory, rounds, scratch, skip, soon, this_program,
        turn,
    },
    target::{Report, Target, compile},
    threads::{GETTID, gettid_in, tasks},
    trace::{Trace, assert_no_trace, assert_no_trace_but, descendants, has_region, state_and_parent},
};

/// Set in a supervisor that is to send a process's main thread on errands: its number, and how.
const SENDER: &str = "PVX_ATTACH_SENDER";
/// Refused with this number; says why.
#[track_caller]
fn refused(space: &LiveProcess, tid: i32, calls: &[Call], errno: Errno) -> String {
    match space.batch_in_thread(tid, calls) {
        Err(Error::Thread { tid: named, why, errno: found }) => {
            assert_eq!((named, found), (tid, errno), "{why}");
            why.to_string()
        }
        other => panic!("{other:?}"),
    }
}

/// A thread that is in a vfork for four seconds, beside one that waits for it and ends with its result.
const LONG_VFORK: &str = "\
#define _GNU_SOURCE
#include <pthread.h>
#include <unistd.h>
static void *start(void *unused)
{
    if (vfork() == 0) {
        sleep(4);
        _exit(0);
    }
    return unused;
}
int main(void)
{
    pthread_t thread;
    pthread_create(&thread, 0, start, 0);
    pthread_join(thread, 0);
    return 7;
}
";

/// Has the kernel tell it of its system calls (Syscall User Dispatch) whenever its selector says so, which is never.
const DISPATCHER: &str = "\
#include <sys/prctl.h>
#include <unistd.h>
static char selector;
int main(void)
{
    if (prctl(59, 1, 0, 0, &selector))
        return 1;
    write(1, \"\", 1);
    for (;;)
        pause();
}
";

fn is_before_linux_6_4() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's version");
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) < (Some(6), Some(4))
}

/// Detaches from a target, which has gone on since it was started, goes on, and has nothing of ours.
fn part(space: LiveProcess, mut target: Target) {
    space.detach().expect("detaching");
    let first = target.first.clone();
    target.check_goes_on(&first);
    assert_no_trace(target.pid());
    target.quit();
}

#[test]
fn a_thread_that_does_not_stop_is_refused_and_let_go() {
    let _turn = turn();
    fs::write(scratch().join("vfork.c"), LONG_VFORK).expect("the source is written");
    let program = match compile("vfork", "vfork.c", &[]) {
        Ok(program) => program,
        Err(why) => return skip(&why),
    };
    let mut target = Killed(Command::new(program).spawn().expect("it starts"));
    let pid = target.pid();
    let sleeper = || {
        let is_stuck =
            |tid: &i32| state_and_parent(&format!("/proc/{tid}/stat")).is_some_and(|(state, _)| state == 'D');
        tasks(pid).into_iter().find(is_stuck)
    };
    soon("a thread is in its vfork", || sleeper().is_some());
    let stuck = sleeper().expect("a thread");
    let space = attached(pid);
    let before = Instant::now();
    refused(&space, stuck, &[GETTID], Errno::BUSY);
    assert!(before.elapsed() < Duration::from_secs(3));
    assert_eq!(gettid_in(&space, pid), Some(pid));
    space.detach().expect("detaching");
    assert_eq!(target.0.wait().expect("its status").code(), Some(7));
}

#[test]
fn a_thread_that_dispatches_its_calls_to_itself_is_not_sent_on_errands() {
    fs::write(scratch().join("dispatcher.c"), DISPATCHER).expect("the source is written");
    let program = match compile("dispatcher", "dispatcher.c", &[]) {
        Ok(program) => program,
        Err(why) => return skip(&why),
    };
    let _turn = turn();
    let mut target = Killed(Command::new(program).stdout(Stdio::piped()).spawn().expect("the program"));
    let mut byte = [0];
    if target.0.stdout.take().expect("its output").read_exact(&mut byte).is_err() {
        return skip("no Syscall User Dispatch here");
    }
    let pid = target.pid();
    let space = attached(pid);
    if is_before_linux_6_4() {
        skip("this kernel does not tell who dispatches its calls");
    } else {
        let why = refused(&space, pid, &[GETTID], Errno::PERM);
        assert!(why.contains("dispatches"), "{why}");
    }
    space.detach().expect("detaching");
    assert_no_trace(pid);
}

#[test]
fn a_parent_in_vfork_is_refused_soon_or_answers() {
    let _turn = turn();
    let Some(target) = Target::start(&["--threads=1", "--workers=vfork"]) else { return };
    let pid = target.pid();
    let space = attached(pid);
    for _ in 0..50 {
        let before = Instant::now();
        match space.batch_in_thread(pid, &[GETTID]) {
            Ok(results) => assert_eq!(results, [Ok(pid.unsigned_abs().into())]),
            Err(error) => assert_eq!(error.errno(), Errno::BUSY, "{error}"),
        }
        assert!(before.elapsed() < Duration::from_secs(4));
    }
    part(space, target);
}

#[test]
fn calls_that_would_not_leave_the_thread_as_it_was_are_refused() {
    let _turn = turn();
    let Some(target) = Target::start(&["--threads=1", "--workers=spin"]) else { return };
    let pid = target.pid();
    let space = attached(pid);
    use Sysno as S;
    for nr in [
        S::exit,
        S::exit_group,
        S::execve,
        S::clone,
        S::clone3,
        S::vfork,
        S::rt_sigreturn,
        S::rt_sigprocmask,
        S::nanosleep,
        S::futex,
    ] {
        let why = refused(&space, pid, &[GETTID, Call::new(nr)], Errno::OPNOTSUPP);
        assert!(why.contains(nr.name()), "{why}");
    }
    let unmap = Call::with_args(S::munmap, [0x7000_0000_0000, 4096, 0, 0, 0, 0]);
    assert!(matches!(space.batch_in_thread(pid, &[unmap]), Err(Error::Reserved { .. })));
    refused(&space, pid, &[GETTID; 1025], Errno::TOOBIG);
    let many = space.batch_in_thread(pid, &[GETTID; 1024]).expect("as many as it can make");
    assert!(many.iter().all(|told| *told == Ok(pid.unsigned_abs().into())));
    assert_eq!(space.batch_in_thread(pid, &[]).expect("nothing"), []);
    part(space, target);
}

#[test]
fn what_is_no_thread_of_the_process_is_refused() {
    let _turn = turn();
    let Some(target) = Target::start(&["--threads=1", "--workers=spin"]) else { return };
    let space = attached(target.pid());
    let ours = i32::try_from(std::process::id()).expect("a pid");
    for tid in [0, -1, 1, ours, i32::MAX] {
        refused(&space, tid, &[GETTID], Errno::SRCH);
        assert!(space.thread(tid).is_err());
    }
    space.detach().expect("detaching");
    target.quit();
}

#[test]
fn a_process_that_has_executed_another_program_is_refused() {
    let _turn = turn();
    for _ in 0..20 {
        let Some(mut target) = Target::start(&["--threads=1", "--workers=spin,tick"]) else { return };
        let pid = target.pid();
        let space = attached(pid);
        target.say("exec");
        soon("it is refused", || space.batch_in_thread(pid, &[GETTID]).is_err());
        // It starts anew.
        assert_eq!(Report(target.line()).number("pid"), u64::from(pid.unsigned_abs()));
        drop(space);
        assert_no_trace(pid);
        target.quit();
    }
}

/// By a filter that kills for calls that are not in its list, and one that says EPERM.
#[test]
fn calls_that_a_filter_does_not_allow_are_not_made() {
    if !rustix::process::geteuid().is_root() {
        return skip("to look at the target's seccomp filter takes CAP_SYS_ADMIN");
    }
    let _turn = turn();
    let getppid = Call::with_args(Sysno::getppid, [0; 6]);
    let workers = "--workers=spin,nanosleep,poll,futex,queue,tick";
    for options in [&["--seccomp=closed", workers, "--threads=1"], &["--seccomp", workers, "--slack-task"]] {
        let Some(mut target) = Target::start(options) else { return };
        let pid = target.pid();
        let space = attached(pid);
        let mut before = target.first.clone();
        for _ in rounds(50) {
            for tid in tasks(pid) {
                let why = refused(&space, tid, &[GETTID, getppid], Errno::PERM);
                assert!(why.contains("getppid"), "{why}");
                assert_eq!(gettid_in(&space, tid), Some(tid));
                space.thread(tid).expect("its state");
            }
            before = target.check_goes_on(&before);
        }
        space.detach().expect("detaching");
        assert_no_trace(pid);
        target.quit();
    }
}

#[test]
fn a_call_that_waits_is_given_up() {
    let _turn = turn();
    let Some(target) = Target::start(&["--threads=1", "--workers=nanosleep,spin", "--slack-ms=60000"]) else {
        return;
    };
    let pid = target.pid();
    let space = attached(pid);
    let pause = Call::with_args(Sysno::pause, [0; 6]);
    refused(&space, pid, &[pause, GETTID], Errno::TIME);
    assert_eq!(gettid_in(&space, pid), Some(pid));
    part(space, target);
}

/// What a supervisor is that sends a thread away: again and again, or for long; no test of its own.
#[test]
fn sender() {
    let Ok(orders) = env::var(SENDER) else { return };
    let (pid, how) = orders.split_once(' ').expect("a pid, and how");
    let pid = pid.parse().expect("a pid");
    let space = LiveProcess::attach_pid(pid).expect("attaching");
    if how == "often" {
        loop {
            assert_eq!(gettid_in(&space, pid), Some(pid));
        }
    }
    let pause = Call::with_args(Sysno::pause, [0; 6]);
    let _ = space.batch_in_thread(pid, &[pause]);
}

fn send(pid: i32, how: &str) -> Child {
    let mut supervisor = this_program("errands::sender");
    supervisor.env(SENDER, format!("{pid} {how}")).stdout(Stdio::null());
    supervisor.spawn().expect("the test runs itself")
}

/// The system call that the main thread of a process waits in, and where.
fn waits_in(pid: i32) -> Option<(i64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    let (nr, ip) = (text.split(' ').next()?, text.trim_end().rsplit("0x").next()?);
    Some((nr.parse().ok()?, u64::from_str_radix(ip, 16).ok()?))
}

/// By the janitor, who must not remove the instructions under it: with a call that does not end, and stopped.
#[test]
fn a_thread_whose_supervisor_dies_comes_back_from_its_errand() {
    let _turn = turn();
    let Some(mut target) =
        Target::start(&["--threads=1", "--workers=nanosleep,spin,poll", "--slack-ms=60000"])
    else {
        return;
    };
    let pid = target.pid();
    for round in 0..10 {
        let mut supervisor = send(pid, "for long");
        soon("it is on its errand", || {
            waits_in(pid).is_some_and(|(nr, ip)| nr == libc::SYS_pause && ip >> 44 == 7)
        });
        if round % 2 == 1 {
            kill(pid, libc::SIGSTOP);
        }
        supervisor.kill().expect("SIGKILL");
        supervisor.wait().expect("its status");
        assert_no_trace_but(pid, |trace| round % 2 == 1 && matches!(trace, Trace::Stopped(_, 'T')));
        kill(pid, libc::SIGCONT);
        let before = target.report();
        target.check_goes_on(&before);
    }
    assert_no_trace(pid);
    target.quit();
}

/// Janitor and supervisor are killed; what they have put in stays then, and nobody minds.
#[test]
fn a_thread_that_nobody_brings_back_comes_back_by_itself() {
    let _turn = turn();
    let mut numbers = Numbers::new(7);
    for workers in
        ["spin,queue", "nanosleep,queue", "poll,spin,queue", "futex,queue"].into_iter().cycle().take(60)
    {
        let workers = format!("--workers={workers}");
        let Some(mut target) = Target::start(&["--threads=1", &workers]) else { return };
        let pid = target.pid();
        let mut supervisor = send(pid, "often");
        let child = i32::try_from(supervisor.id()).expect("a pid");
        soon("it has attached", || has_region(pid));
        thread::sleep(Duration::from_millis(20));
        kill_janitor_of(child);
        thread::sleep(Duration::from_micros(numbers.below(500)));
        supervisor.kill().expect("SIGKILL");
        supervisor.wait().expect("its status");
        let before = target.report();
        target.check_goes_on(&before);
        let is_left = |trace: &Trace| matches!(trace, Trace::Mapping(_) | Trace::SameMemory(_));
        assert_no_trace_but(pid, is_left);
        kill_sharers_of_memory(pid);
        target.quit();
    }
}

fn kill_janitor_of(supervisor: i32) {
    let janitor = descendants(supervisor).into_iter().find(|&pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "pvx-janitor\n")
    });
    kill(janitor.expect("a janitor"), libc::SIGKILL);
}

/// What is left of an attachment may still be needed by a thread that a debugger, say, keeps from being looked at.
#[test]
fn what_is_left_stays_while_a_thread_may_be_in_it() {
    let _turn = turn();
    let Some(target) = Target::start(&["--threads=2", "--workers=spin"]) else { return };
    let pid = target.pid();
    let mut supervisor = send(pid, "often");
    soon("it has attached", || has_region(pid));
    kill_janitor_of(i32::try_from(supervisor.id()).expect("a pid"));
    supervisor.kill().expect("SIGKILL");
    supervisor.wait().expect("its status");
    kill_sharers_of_memory(pid);
    assert_no_trace_but(pid, |trace| matches!(trace, Trace::Mapping(_)));
    let others: Vec<_> = tasks(pid).into_iter().filter(|&tid| tid != pid).collect();
    thread::scope(|scope| {
        let debugger = scope.spawn(|| {
            for &tid in &others {
                // SAFETY: PTRACE_SEIZE needs no memory of ours; the tracees go on when this thread ends.
                assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0) }, 0);
            }
            LiveProcess::attach_pid(pid).map(drop).map_err(|error| error.errno())
        });
        assert_eq!(debugger.join().expect("no panic"), Err(Errno::BUSY));
    });
    attached(pid).detach().expect("detaching");
    assert_no_trace(pid);
    target.quit();
}
