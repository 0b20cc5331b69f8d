//! What targets do while somebody is attached: fork, execute, stop, end; and who attaches after whom.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use process_vm_exec::{
    Context, Errno, Error, Exit, LiveProcess, Mapping, Owner, Pid, Protection, SignalSet, Sysno,
};
use rustix::process::{Resource, Rlimit};

use crate::{
    common::{
        Execute as _, Numbers, attached, attached_with, executor_of, kill, rounds, soon, this_program, turn,
    },
    target::{Report, Target},
    trace::{Trace, assert_no_trace, assert_no_trace_but, has_region, numbers, state_and_parent, traces},
};

/// A target that is attached to.
fn pair(options: &[&str]) -> Option<(Target, LiveProcess)> {
    let target = Target::start(options)?;
    let space = attached(target.pid());
    space.execute(Sysno::getpid, [0; 6]).expect("getpid");
    Some((target, space))
}

/// A space whose process is gone says so, and nothing hangs.
#[track_caller]
fn assert_dead(space: LiveProcess) {
    soon("the space is dead", || {
        matches!(
            space.execute(Sysno::getpid, [0; 6]),
            Err(Error::Dead | Error::Space { errno: Errno::SRCH, .. })
        )
    });
    let executor = space.executor().map(Pid::as_raw_pid);
    drop(space);
    soon("the executor is gone", || executor.is_none_or(|pid| traces(pid) == [Trace::Gone]));
}

/// The executor has copies of what the target has open when it is made: they must not stay for as long as it does.
#[test]
fn pipes_of_the_target_end_while_somebody_is_attached() {
    /// Longer than the target waits for the end of a pipe.
    const WHILE: Duration = Duration::from_millis(700);
    let _turn = turn();
    let Some(mut target) = Target::start(&["--threads=1", "--workers=eof", "--slack-ms=500"]) else { return };
    for _ in 0..5 {
        let before = target.report();
        // Nothing of ours goes into its table then, for which that would be emptied.
        let space = attached_with(LiveProcess::builder().directory(Owner::Target), target.pid());
        thread::sleep(WHILE);
        target.check_goes_on(&before);
        space.detach().expect("detaching");
    }
    target.quit();
}

#[test]
fn a_forked_child_has_nothing_of_ours_and_lives_on() {
    let _turn = turn();
    let Some((mut target, space)) = pair(&["--workers=spin,nanosleep,tick"]) else { return };
    let mut children = Vec::new();
    for _ in 0..5 {
        target.say("fork");
        let line = target.line();
        let child: i32 = line.strip_prefix("CHILD ").and_then(|pid| pid.parse().ok()).expect("a child");
        assert!(!has_region(child), "the child {child} has our pages");
        space.execute(Sysno::getpid, [0; 6]).expect("getpid");
        children.push(child);
    }
    space.detach().expect("detaching");
    assert_no_trace_but(
        target.pid(),
        |trace| matches!(trace, Trace::Child(pid, _) if children.contains(pid)),
    );
    for child in children {
        assert_no_trace(child);
        kill(child, libc::SIGKILL);
    }
    target.report();
}

/// The same while calls are made all the time.
#[test]
fn forks_and_vforks_go_on_beside_calls() {
    let _turn = turn();
    for options in [&["--workers=children,vfork,spin"] as &[_], &["--threads=1", "--workers=children,vfork"]]
    {
        let Some((mut target, space)) = pair(options) else { return };
        let before = target.report();
        for _ in rounds(20_000) {
            space.execute(Sysno::getpid, [0; 6]).expect("getpid");
        }
        // Both kinds, since then.
        let goes_on = |report: &Report| {
            ["children", "vfork"].iter().all(|kind| report.number(kind) > before.number(kind) + 2)
        };
        soon("children come and go", || goes_on(&target.report()));
        space.detach().expect("detaching");
        assert_no_trace(target.pid());
        target.quit();
    }
}

#[test]
fn a_target_that_executes_a_program_is_a_new_one() {
    let _turn = turn();
    for options in [&["--threads=1"] as &[_], &["--threads=4", "--workers=spin,nanosleep"]] {
        let Some((mut target, space)) = pair(options) else { return };
        target.say("exec");
        let first = Report(target.line());
        assert_eq!(first.number("pid"), target.first.number("pid"));
        // The old memory lives or dies with its executor; the new one has nothing of it.
        assert!(!has_region(target.pid()), "the new program has our pages");
        drop(space);
        assert_no_trace(target.pid());
        let space = attached(target.pid());
        let mut bytes = [0; 8];
        space.read(first.number("word"), &mut bytes).expect("its memory");
        assert_eq!(u64::from_ne_bytes(bytes), 0x0123_4567_89ab_cdef);
        space.detach().expect("detaching");
        assert_no_trace(target.pid());
        target.check_goes_on(&first);
        target.quit();
    }
}

#[test]
fn a_target_that_exits_does_so_at_once() {
    let _turn = turn();
    for options in [&["--threads=1"] as &[_], &["--threads=4", "--workers=spin,nanosleep"]] {
        let Some((mut target, space)) = pair(options) else { return };
        target.say("exit 23");
        assert_eq!(target.end().0.code(), Some(23));
        assert_dead(space);
    }
}

#[test]
fn a_target_that_ends_well_says_so() {
    let _turn = turn();
    let Some((target, space)) = pair(&["--workers=spin,nanosleep,children"]) else { return };
    target.quit();
    assert_dead(space);
}

/// The executor has more tasks than its leader then, and all of them have to be waited for.
#[test]
fn a_target_that_is_killed_during_a_run_ends_it() {
    let _turn = turn();
    let Some((target, space)) = pair(&["--threads=1"]) else { return };
    let code = space.map(Mapping::anonymous(4096, Protection::READ | Protection::WRITE)).expect("mmap");
    // jmp .
    space.write(code, &[0xeb, 0xfe]).expect("written");
    space.protect(code, 4096, Protection::READ | Protection::EXEC).expect("mprotect");
    let mut ctx = Context::new(code, 0);
    let exit = thread::scope(|scope| {
        let run = scope.spawn(|| space.run(&mut ctx, &SignalSet::all()));
        thread::sleep(Duration::from_millis(30));
        kill(target.pid(), libc::SIGKILL);
        run.join().expect("no panic")
    });
    assert!(matches!(exit, Ok(Exit::Died(_))), "{exit:?}");
    target.end();
    drop(ctx);
    assert_dead(space);
}

#[test]
fn a_target_that_is_killed_is_dead() {
    let _turn = turn();
    for _ in rounds(20) {
        let Some((target, space)) = pair(&["--threads=2", "--workers=spin,nanosleep"]) else { return };
        kill(target.pid(), libc::SIGKILL);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&target.end().0), Some(libc::SIGKILL));
        assert_dead(space);
    }
}

#[test]
fn a_target_that_is_killed_while_calls_are_made_hangs_nobody() {
    let _turn = turn();
    for round in rounds(20) {
        let Some((target, space)) = pair(&["--threads=2", "--workers=spin,nanosleep"]) else { return };
        let pid = target.pid();
        let killer = thread::spawn(move || {
            thread::sleep(Duration::from_micros(u64::from(round % 20) * 100));
            kill(pid, libc::SIGKILL);
        });
        soon("calls fail", || space.execute(Sysno::getpid, [0; 6]).is_err());
        killer.join().expect("the killer");
        target.end();
        assert_dead(space);
    }
}

#[test]
fn a_stopped_target_stays_stopped_and_goes_on_when_told() {
    let _turn = turn();
    // Without children, for which a stopped target would not wait, and epoll_wait, which says EINTR after a stop.
    let workers = "--workers=spin,nanosleep,poll,queue,tick";
    for options in [&[workers, "--threads=1", "--slack-ms=60000"] as &[_], &[workers, "--slack-ms=60000"]] {
        let Some(mut target) = Target::start(options) else { return };
        let pid = target.pid();
        kill(pid, libc::SIGSTOP);
        soon("it is stopped", || traces(pid).iter().any(|trace| matches!(trace, Trace::Stopped(..))));
        let is_stop = |trace: &Trace| matches!(trace, Trace::Stopped(_, 'T'));
        for _ in rounds(50) {
            let space = attached(pid);
            space.execute(Sysno::getpid, [0; 6]).expect("getpid of a stopped target");
            space.detach().expect("detaching");
            assert_no_trace_but(pid, is_stop);
            let stopped = traces(pid).into_iter().filter(is_stop).count();
            assert_eq!(stopped, numbers(&format!("/proc/{pid}/task")).len(), "tasks that are stopped");
        }
        kill(pid, libc::SIGCONT);
        let first = target.first.clone();
        target.check_goes_on(&first);
        assert_no_trace(pid);
        target.quit();
    }
}

/// At any moment: the kernel may give the signal to each thread of the process, also to one that is there only meanwhile.
#[test]
fn a_stop_that_comes_while_somebody_attaches_is_kept() {
    let _turn = turn();
    let workers = "--workers=spin,nanosleep,poll,queue,tick";
    for options in [&[workers, "--threads=1", "--slack-ms=60000"] as &[_], &[workers, "--slack-ms=60000"]] {
        let Some(mut target) = Target::start(options) else { return };
        let pid = target.pid();
        let is_stopped = || traces(pid).iter().any(|trace| matches!(trace, Trace::Stopped(_, 'T')));
        let mut numbers = Numbers::new(11);
        for _ in rounds(250) {
            let at = Instant::now() + Duration::from_micros(numbers.below(1500));
            let stopper = thread::spawn(move || {
                while Instant::now() < at {
                    std::hint::spin_loop();
                }
                kill(pid, libc::SIGSTOP);
            });
            attached(pid).detach().expect("detaching");
            stopper.join().expect("the signal is sent");
            soon("it is stopped", is_stopped);
            kill(pid, libc::SIGCONT);
            soon("it goes on", || !is_stopped());
        }
        let first = target.first.clone();
        target.check_goes_on(&first);
        assert_no_trace(pid);
        target.quit();
    }
}

#[test]
fn a_target_that_is_stopped_while_attached_answers() {
    let _turn = turn();
    let Some((mut target, space)) = pair(&["--slack-ms=60000", "--workers=spin,nanosleep"]) else { return };
    let pid = target.pid();
    kill(pid, libc::SIGSTOP);
    soon("it is stopped", || traces(pid).iter().any(|trace| matches!(trace, Trace::Stopped(_, 'T'))));
    space.execute(Sysno::getpid, [0; 6]).expect("the executor is not stopped with it");
    space.detach().expect("detaching");
    kill(pid, libc::SIGCONT);
    assert_no_trace(pid);
    let first = target.first.clone();
    target.check_goes_on(&first);
    target.quit();
}

#[test]
fn two_take_turns() {
    let _turn = turn();
    let Some(mut target) = Target::start(&["--workers=spin,nanosleep,epoll,tick"]) else { return };
    let pid = target.pid();
    let mut executors = Vec::new();
    for _ in rounds(100) {
        let space = thread::spawn(move || attached(pid)).join().expect("a supervisor");
        executors.push(space.execute(Sysno::getpid, [0; 6]).expect("getpid"));
        // One at a time: the second is refused, or has what it needs beside the first.
        if let Ok(second) = LiveProcess::attach_pid(pid) {
            second.execute(Sysno::getpid, [0; 6]).expect("getpid of the second");
            second.detach().expect("detaching the second");
        }
        space.execute(Sysno::getpid, [0; 6]).expect("getpid of the first, which is still there");
        space.detach().expect("detaching");
    }
    executors.dedup();
    assert!(executors.len() > 1, "each attachment has an executor of its own");
    assert_no_trace(pid);
    target.report();
    target.quit();
}

#[test]
fn detaching_waits_for_a_call_that_another_thread_makes() {
    let _turn = turn();
    let Some(target) = Target::start(&["--workers=spin,tick"]) else { return };
    let pid = target.pid();
    for _ in rounds(50) {
        let space = attached(pid);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        space.execute(Sysno::getpid, [0; 6]).expect("getpid");
                    }
                });
            }
            thread::sleep(Duration::from_millis(2));
            stop.store(true, Ordering::Relaxed);
        });
        space.detach().expect("detaching");
        assert!(!has_region(pid));
    }
    assert_no_trace(pid);
    target.quit();
}

#[test]
fn a_dropped_space_leaves_no_trace_either() {
    let _turn = turn();
    let Some(target) = Target::start(&["--workers=spin,tick,children"]) else { return };
    for _ in rounds(100) {
        let space = attached(target.pid());
        space.execute(Sysno::getpid, [0; 6]).expect("getpid");
        drop(space);
        assert_no_trace(target.pid());
    }
    target.quit();
}

/// The thread that attached is no tracer any more, nor a parent: it may end.
#[test]
fn a_space_survives_the_thread_that_attached() {
    let _turn = turn();
    let Some(target) = Target::start(&["--workers=spin,tick"]) else { return };
    let pid = target.pid();
    let space = thread::spawn(move || attached(pid)).join().expect("a thread");
    thread::sleep(Duration::from_millis(50));
    for _ in 0..10 {
        space.execute(Sysno::getpid, [0; 6]).expect("getpid");
    }
    space.detach().expect("detaching");
    assert_no_trace(pid);
    target.quit();
}

/// The kernel lets a thread take the end of what it traces, and for a child of the same process that is the end.
#[test]
fn a_child_that_ends_meanwhile_is_still_there_for_who_waits_for_it() {
    let _turn = turn();
    for round in 0..300 {
        let mut child = std::process::Command::new("true").spawn().expect("a child");
        thread::sleep(Duration::from_micros(round * 5));
        let space = LiveProcess::attach_pid(child.id().try_into().expect("a pid"));
        let status = child.wait().unwrap_or_else(|error| panic!("round {round}: {error}, {space:?}"));
        assert!(status.success(), "round {round}: {status}");
    }
}

#[test]
fn the_end_of_an_executor_that_shares_with_the_target_ends_the_attachment() {
    let _turn = turn();
    let Some(target) = Target::start(&["--workers=spin,nanosleep,tick"]) else { return };
    // What has ended stays to be seen: executors are children of whom orphans go to, and that waits for them late.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("prctl");
    for _ in 0..5 {
        let space = attached_with(LiveProcess::builder().files(Owner::Target), target.pid());
        let sharer = space.execute(Sysno::getpid, [0; 6]).expect("getpid");
        assert_ne!(i32::try_from(sharer), Ok(executor_of(&space)), "another executor makes the calls");
        kill(sharer.try_into().expect("a pid"), libc::SIGKILL);
        assert_dead(space);
        assert_no_trace(target.pid());
    }
    rustix::process::set_child_subreaper(None).expect("prctl");
    target.quit();
}

#[test]
fn detaching_needs_no_descriptor() {
    let _turn = turn();
    let Some(target) = Target::start(&["--workers=spin,nanosleep,tick"]) else { return };
    let space = attached(target.pid());
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(200), ..limit })
        .expect("a lower limit");
    let all: Vec<_> = std::iter::from_fn(|| rustix::io::dup(std::io::stdout()).ok()).collect();
    let detached = space.detach();
    drop(all);
    rustix::process::setrlimit(Resource::Nofile, limit).expect("the limit from before");
    detached.expect("detaching");
    assert_no_trace(target.pid());
    target.quit();
}

#[test]
fn an_executor_that_cannot_be_removed_is_not_said_to_be() {
    let _turn = turn();
    let Some(target) = Target::start(&["--workers=spin,nanosleep,tick"]) else { return };
    let space = attached(target.pid());
    let executor = executor_of(&space);
    // SAFETY: somebody else traces it: this thread, as long as it lives.
    assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SEIZE, executor, 0, 0) }, 0);
    assert!(matches!(space.detach(), Err(Error::Host { errno: Errno::PERM, .. })));
    assert!(has_region(target.pid()), "it is still there");
}

/// Set in the processes of this claim: who gets orphans, and who attaches to the process of this number.
const REAPER: &str = "PVX_ATTACH_REAPER";
const SUPERVISOR: &str = "PVX_ATTACH_SUPERVISOR";

/// There are inits that wait for nobody.
#[test]
fn a_supervisor_that_exits_leaves_no_janitor() {
    const NAME: &str = "life::a_supervisor_that_exits_leaves_no_janitor";
    if let Some(pid) = std::env::var(SUPERVISOR).ok().and_then(|pid| pid.parse().ok()) {
        for _ in 0..3 {
            attached(pid).detach().expect("detaching");
        }
        assert_eq!(children_called("pvx-janitor"), 1);
    } else if let Ok(pid) = std::env::var(REAPER) {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("prctl");
        let supervisor = this_program(NAME).env(SUPERVISOR, pid).status().expect("the test runs itself");
        assert!(supervisor.success(), "{supervisor}");
        assert_eq!(children_called("pvx-janitor"), 0);
    } else {
        let _turn = turn();
        let Some(target) = Target::start(&["--workers=spin,nanosleep,tick"]) else { return };
        let reaper = this_program(NAME).env(REAPER, target.pid().to_string()).status();
        assert!(reaper.expect("the test runs itself").success());
        assert_no_trace(target.pid());
        target.quit();
    }
}

fn children_called(name: &str) -> usize {
    let own = std::process::id().cast_signed();
    let is_one = |pid: &i32| {
        state_and_parent(&format!("/proc/{pid}/stat")).is_some_and(|(_, parent)| parent == own)
            && std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    numbers("/proc").iter().filter(|pid| is_one(pid)).count()
}
