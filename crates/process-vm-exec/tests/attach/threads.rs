//! Visits to threads: what they are asked is so, and they notice nothing.

use std::{thread, time::Duration};

use process_vm_exec::{Call, Errno, LiveProcess, Rseq, Sysno};

use crate::{
    common::{Numbers, attached, kill, rounds, soon, turn},
    target::{Linked, Target},
    trace::{Trace, assert_no_trace, assert_no_trace_but, numbers, traces},
};

/// How often each variant's threads are visited at least.
const VISITS: u32 = 400;
const WAITS: [&str; 13] = [
    "nanosleep",
    "clock_nanosleep",
    "poll",
    "ppoll",
    "select",
    "epoll",
    "epoll_forever",
    "futex",
    "read",
    "sigtimedwait",
    "sigsuspend",
    "semtimedop",
    "pause",
];

pub(crate) const GETTID: Call = Call::with_args(Sysno::gettid, [0; 6]);

/// The number that the kernel tells a thread; nothing if the thread has ended, as helpers of other supervisors do.
#[track_caller]
pub(crate) fn gettid_in(space: &LiveProcess, tid: i32) -> Option<i32> {
    match space.batch_in_thread(tid, &[GETTID]) {
        Ok(results) => Some(results[0].expect("gettid cannot fail").try_into().expect("a number")),
        Err(error) if error.errno() == Errno::SRCH => None,
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn tasks(pid: i32) -> Vec<i32> {
    numbers(&format!("/proc/{pid}/task"))
}

/// The alternate stack (address, flags, length) that the kernel tells a thread of.
fn alternate_stack(space: &LiveProcess, tid: i32) -> (u64, u32, u64) {
    let scratch = space.scratch(24).expect("scratch memory");
    let ask = Call::with_args(Sysno::sigaltstack, [0, scratch.addr(), 0, 0, 0, 0]);
    assert_eq!(space.batch_in_thread(tid, &[GETTID, ask]).expect("asking")[1], Ok(0));
    let mut words = [[0; 8]; 3];
    space.read(scratch.addr(), words.as_flattened_mut()).expect("what it said");
    let [addr, flags, len] = words.map(u64::from_ne_bytes);
    (addr, u32::try_from(flags & 0xffff_ffff).expect("32 bits"), len)
}

fn storm(linked: Linked, options: &[&str], least: u32) {
    let _turn = turn();
    let Some(mut target) = Target::start_linked(linked, options) else { return };
    let pid = target.pid();
    let space = attached(pid);
    let mut numbers = Numbers::new(u64::from(least));
    let mut before = target.first.clone();
    for round in rounds(least) {
        for tid in tasks(pid) {
            match round % 4 {
                0 => drop(space.thread(tid)),
                _ => assert!(gettid_in(&space, tid).is_none_or(|told| told == tid)),
            }
        }
        thread::sleep(Duration::from_micros(numbers.below(6000)));
        if round % 100 == 99 {
            before = target.check_goes_on(&before);
        }
    }
    space.detach().expect("detaching");
    assert_no_trace(pid);
    let report = target.quit();
    eprintln!("{options:?}: {}", report.0);
}

fn dynamic(options: &[&str]) {
    storm(Linked::Dynamically, options, VISITS);
}

#[test]
fn a_thread_that_computes_notices_nothing() {
    dynamic(&["--threads=1", "--workers=spin"]);
}

#[test]
fn one_thread_in_each_wait_notices_nothing() {
    for wait in WAITS {
        storm(Linked::Dynamically, &["--threads=1", &format!("--workers={wait}")], 150);
    }
}

#[test]
fn sixteen_threads_in_all_waits_notice_nothing() {
    let workers = format!("--workers={}", WAITS.join(","));
    storm(Linked::Dynamically, &["--threads=16", &workers], 100);
    storm(Linked::Statically, &["--threads=16", &workers], 100);
}

#[test]
fn threads_with_signals_and_timers_notice_nothing() {
    dynamic(&["--threads=1", "--workers=queue,timer,alarm"]);
    storm(Linked::Dynamically, &["--workers=queue,queue,timer,alarm,children,eof,tick,spin"], 200);
}

#[test]
fn a_stack_without_room_is_not_touched() {
    dynamic(&["--threads=1", "--workers=tiny"]);
}

#[test]
fn a_handler_on_an_alternate_stack_notices_nothing() {
    dynamic(&["--threads=1", "--workers=altstack"]);
}

#[test]
fn restartable_sequences_start_anew() {
    let has_rseq = {
        let _turn = turn();
        let Some(target) = Target::start(&["--threads=1", "--workers=nanosleep"]) else { return };
        target.quit().number("rseq_area") != 0
    };
    if has_rseq {
        storm(Linked::Dynamically, &["--workers=rseq,rseq"], 300);
    }
}

#[test]
fn the_alternate_stack_is_the_one_that_the_thread_has_set() {
    const SS_ONSTACK: u32 = 1;
    const SS_DISABLE: u32 = 2;
    let _turn = turn();
    for options in
        [&["--threads=1", "--workers=altstack"], &["--threads=3", "--workers=spin,altstack,nanosleep"]]
    {
        let Some(mut target) = Target::start(options) else { return };
        let pid = target.pid();
        let space = attached(pid);
        let report = target.report();
        let owner = i32::try_from(report.number("alternate_stack_tid")).expect("a number");
        for tid in tasks(pid) {
            let (addr, flags, len) = alternate_stack(&space, tid);
            if tid == owner {
                assert_eq!((addr, len), (report.number("alternate_stack"), 64 << 10));
                assert!(flags == 0 || flags == SS_ONSTACK, "{flags}");
            } else {
                assert_eq!(flags, SS_DISABLE);
            }
        }
        space.detach().expect("detaching");
        target.quit();
    }
}

#[test]
fn the_state_of_a_thread_is_what_it_knows_of_itself() {
    let _turn = turn();
    let Some(target) = Target::start(&["--workers=pause,nanosleep"]) else { return };
    let pid = target.pid();
    let space = attached(pid);
    let state = space.thread(pid).expect("its state");
    assert_eq!(state.registers.cs, 0x33);
    let stack = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let stack = stack.lines().find(|line| line.ends_with("[stack]")).expect("a stack");
    let (start, end) = stack.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
    let range = [start, end].map(|end| u64::from_str_radix(end, 16).expect("an address"));
    assert!((range[0]..range[1]).contains(&state.registers.rsp), "{state:x?}");
    let mut own = [0; 8];
    space.read(state.registers.fs_base, &mut own).expect("its thread-local storage");
    assert_eq!(u64::from_ne_bytes(own), state.registers.fs_base, "a thread pointer points to itself");
    match (state.rseq, target.first.number("rseq_area")) {
        (Rseq::Unknown, _) | (Rseq::None, 0) => {}
        (Rseq::Registered { addr, len, signature }, area) => {
            assert_eq!((addr, signature), (area, 0x5305_3053));
            assert!(len >= 32, "{len}");
        }
        (Rseq::None, area) => panic!("it has one at {area:#x}"),
    }
    space.detach().expect("detaching");
    target.quit();
}

#[test]
fn a_stopped_target_stays_stopped() {
    let _turn = turn();
    let workers = "--workers=spin,nanosleep,poll,queue,tick";
    for options in [&[workers, "--threads=1", "--slack-ms=60000"] as &[_], &[workers, "--slack-ms=60000"]] {
        let Some(mut target) = Target::start(options) else { return };
        let pid = target.pid();
        let space = attached(pid);
        kill(pid, libc::SIGSTOP);
        let stopped =
            || traces(pid).into_iter().filter(|trace| matches!(trace, Trace::Stopped(_, 'T'))).count();
        soon("it is stopped", || stopped() == tasks(pid).len());
        for _ in rounds(50) {
            for tid in tasks(pid) {
                assert_eq!(gettid_in(&space, tid), Some(tid));
                space.thread(tid).expect("its state");
            }
            soon("it is stopped again", || stopped() == tasks(pid).len());
        }
        space.detach().expect("detaching");
        assert_no_trace_but(pid, |trace| matches!(trace, Trace::Stopped(_, 'T')));
        kill(pid, libc::SIGCONT);
        let first = target.first.clone();
        target.check_goes_on(&first);
        target.quit();
    }
}
