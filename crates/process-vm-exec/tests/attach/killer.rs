//! The killer test: a supervisor dies at any moment of attaching, calling and detaching, and its target does not mind.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read},
    process::{ChildStdout, Stdio},
    thread,
    time::{Duration, Instant},
};

use process_vm_exec::{LiveProcess, Sysno};

use crate::{
    common::{Execute as _, Killed, Numbers, attached, rounds, soon, this_program, turn},
    target::Target,
    threads::gettid_in,
    trace::{assert_no_trace, descendants, numbers},
};

/// Set in supervisors that are to be killed: what to do, the pid of the target to do it with, and those of others to have as well.
const SUPERVISOR: &str = "PVX_ATTACH_SUPERVISOR";

/// How often each of the tests kills: with three of them and two targets each, more than 2,000 times in all.
const KILLS: u32 = 350;
/// How often when soaking, unless the time is over before.
const KILLS_WHEN_SOAKING: usize = 17_000;

/// What a supervisor is doing when it is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// It attaches, and detaches again.
    Attach,
    /// It calls, once attached for good.
    Call,
    /// It detaches, first from a space that it says it has.
    Detach,
    /// It sends threads on errands, once attached for good.
    Errand,
}

/// What a supervisor is when it is not the test itself; no test of its own.
#[test]
fn supervisor() {
    let Ok(orders) = env::var(SUPERVISOR) else { return };
    let (moment, pids) = orders.split_once(' ').expect("a moment and pids");
    let mut pids = pids.split(' ').map(|pid| pid.parse().expect("a pid"));
    let pid = pids.next().expect("a pid");
    let _others: Vec<_> = pids.map(attached).collect();
    // The first time costs more: afterwards it is as it always is.
    drop(attached(pid));
    let attach = || LiveProcess::attach_pid(pid).expect("attaching");
    match moment {
        "Attach" => {
            println!("\nREADY");
            loop {
                attach().detach().expect("detaching");
            }
        }
        "Call" => {
            let space = attach();
            println!("\nREADY");
            loop {
                space.execute(Sysno::getpid, [0; 6]).expect("getpid");
            }
        }
        "Detach" => {
            let space = attach();
            println!("\nREADY");
            space.execute(Sysno::getpid, [0; 6]).expect("getpid");
            space.detach().expect("detaching");
            loop {
                let space = attach();
                space.execute(Sysno::sched_yield, [0; 6]).expect("sched_yield");
                space.detach().expect("detaching");
            }
        }
        "Errand" => {
            let space = attach();
            println!("\nREADY");
            loop {
                for tid in numbers(&format!("/proc/{pid}/task")) {
                    assert_eq!(gettid_in(&space, tid), Some(tid));
                }
            }
        }
        other => panic!("what is {other}?"),
    }
}

/// Starts a supervisor, which is ready when this returns.
fn start(pids: &[i32], moment: Moment) -> (Killed, BufReader<ChildStdout>) {
    let orders = pids.iter().fold(format!("{moment:?}"), |orders, pid| format!("{orders} {pid}"));
    let mut supervisor = this_program("killer::supervisor")
        .env(SUPERVISOR, orders)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test runs itself");
    let mut output = BufReader::new(supervisor.stdout.take().expect("its output"));
    let supervisor = Killed(supervisor);
    let mut line = String::new();
    while output.read_line(&mut line).expect("its output") != 0 {
        match line.trim() {
            "READY" => return (supervisor, output),
            _ => line.clear(),
        }
    }
    panic!("a supervisor of {pids:?} has ended before it was killed")
}

/// When a process was started: tells it from a later one with its number. A zombie counts as gone: when the first of
/// all processes reaps it is not our affair.
fn start_time(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18).map(str::to_owned),
    }
}

fn wait_for(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::yield_now();
    }
}

/// Kills at a random microsecond, hundreds of times; `within_us` is some rounds of what the supervisor does.
fn kill_often(moment: Moment, within_us: u64, options: &[&str]) {
    let _turn = turn();
    let Some(mut target) = Target::start(options) else { return };
    let pid = target.pid();
    let mut before = target.first.clone();
    let mut numbers = Numbers::new(within_us);
    let mut killed = 0;
    for kill in rounds(KILLS).take(KILLS_WHEN_SOAKING) {
        let (mut supervisor, mut output) = start(&[pid], moment);
        // All that the supervisor has started, now and then: to look it up takes longer than to kill.
        let started: Vec<_> = if kill % 8 == 0 {
            descendants(supervisor.pid()).into_iter().map(|pid| (pid, start_time(pid))).collect()
        } else {
            Vec::new()
        };
        wait_for(Duration::from_micros(numbers.below(within_us)));
        supervisor.0.kill().expect("SIGKILL");
        let status = supervisor.0.wait().expect("its status");
        let mut rest = String::new();
        let _ = output.read_to_string(&mut rest);
        assert_eq!(status.code(), None, "it ended by itself, with {status}: {rest}");
        if start_time(pid).is_none() {
            panic!("the target has ended: {:?}", target.end());
        }
        assert_no_trace(pid);
        soon("all that the supervisor started is gone", || {
            started.iter().all(|(pid, time)| time.is_none() || start_time(*pid) != *time)
        });
        if kill % 8 == 0 {
            before = target.check_goes_on(&before);
        }
        killed += 1;
    }
    eprintln!("{moment:?}: {killed} supervisors killed");
    // And it can be attached to as if nothing had been.
    let space = attached(pid);
    space.execute(Sysno::getpid, [0; 6]).expect("getpid");
    space.detach().expect("detaching");
    assert_no_trace(pid);
    target.quit();
}

/// Without epoll_wait: the kernel ends that when a thread is stopped, and who dies within the microsecond before it can
/// be made to go on leaves it ended.
const ONE_THREAD: &[&str] =
    &["--threads=1", "--workers=spin,nanosleep,poll,futex,read,queue,children,eof", "--long-ms=30"];
/// One that computes, so that supervisors get their share of two processors too.
const MANY_THREADS: &[&str] = &["--workers=spin,nanosleep,epoll,sigtimedwait,children,eof,tick"];
/// Each of them is stopped: without epoll_wait and sigtimedwait, as above.
const MANY_VISITED: &[&str] = &["--workers=spin,nanosleep,poll,futex,children,eof,tick"];

#[test]
fn a_supervisor_that_dies_while_it_attaches_leaves_no_trace() {
    kill_often(Moment::Attach, 3000, MANY_THREADS);
}

#[test]
fn a_supervisor_that_dies_while_it_attaches_to_one_thread_leaves_no_trace() {
    kill_often(Moment::Attach, 3001, ONE_THREAD);
}

#[test]
fn a_supervisor_that_dies_while_it_calls_leaves_no_trace() {
    kill_often(Moment::Call, 500, MANY_THREADS);
}

#[test]
fn a_supervisor_that_dies_while_it_calls_in_one_thread_leaves_no_trace() {
    kill_often(Moment::Call, 501, ONE_THREAD);
}

#[test]
fn a_supervisor_that_dies_while_it_detaches_leaves_no_trace() {
    kill_often(Moment::Detach, 1000, MANY_THREADS);
}

#[test]
fn a_supervisor_that_dies_while_it_detaches_from_one_thread_leaves_no_trace() {
    kill_often(Moment::Detach, 1001, ONE_THREAD);
}

#[test]
fn a_supervisor_that_dies_while_threads_are_on_errands_leaves_no_trace() {
    kill_often(Moment::Errand, 1500, MANY_VISITED);
}

#[test]
fn a_supervisor_that_dies_while_the_only_thread_is_on_an_errand_leaves_no_trace() {
    kill_often(Moment::Errand, 501, ONE_THREAD);
}

/// One janitor removes everything, from one target after the other.
#[test]
fn a_supervisor_of_several_targets_that_dies_leaves_no_trace_in_any() {
    let _turn = turn();
    let kinds = [ONE_THREAD, MANY_THREADS, ONE_THREAD, MANY_THREADS];
    let targets: Vec<_> = kinds.into_iter().filter_map(Target::start).collect();
    let mut pids: Vec<_> = targets.iter().map(Target::pid).collect();
    if pids.len() < kinds.len() {
        return;
    }
    let mut numbers = Numbers::new(4);
    for moment in [Moment::Call, Moment::Attach, Moment::Detach].into_iter().cycle().take(30) {
        let (mut supervisor, _output) = start(&pids, moment);
        wait_for(Duration::from_micros(numbers.below(1000)));
        supervisor.0.kill().expect("SIGKILL");
        supervisor.0.wait().expect("its status");
        pids.iter().copied().for_each(assert_no_trace);
        pids.rotate_left(1);
    }
    for mut target in targets {
        let first = target.first.clone();
        target.check_goes_on(&first);
        target.quit();
    }
}
