//! Visits to threads: what they are asked is so, and they notice nothing.

use std::{
    env,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use process_vm_exec::{AddressSpace, Call, Errno, Error, Rseq, Sysno};

use crate::{
    common::{Numbers, attached, kill, rounds, skip, soon, this_program, turn},
    target::{Linked, Report, Target},
    trace::{Trace, assert_no_trace, assert_no_trace_but, descendants, has_region, numbers, traces},
};

/// Set in a supervisor that is to send a process's main thread on errands: its number, and how.
const SENDER: &str = "PVX_ATTACH_SENDER";
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

const GETTID: Call = Call { nr: Sysno::gettid, args: [0; 6] };

/// The number that the kernel tells a thread; nothing if the thread has ended, as helpers of other supervisors do.
#[track_caller]
pub(crate) fn gettid_in(space: &AddressSpace, tid: i32) -> Option<i32> {
    match space.batch_in_thread(tid, &[GETTID]) {
        Ok(results) => Some(results[0].expect("gettid cannot fail").try_into().expect("a number")),
        Err(error) if error.errno() == Errno::SRCH => None,
        Err(error) => panic!("{error}"),
    }
}

/// Refused with this number; says why.
#[track_caller]
fn refused(space: &AddressSpace, tid: i32, calls: &[Call], errno: Errno) -> String {
    match space.batch_in_thread(tid, calls) {
        Err(Error::Thread { tid: named, why, errno: found }) => {
            assert_eq!((named, found), (tid, errno), "{why}");
            why
        }
        other => panic!("{other:?}"),
    }
}

fn tasks(pid: i32) -> Vec<i32> {
    numbers(&format!("/proc/{pid}/task"))
}

/// The alternate stack (address, flags, length) that the kernel tells a thread of.
fn alternate_stack(space: &AddressSpace, tid: i32) -> (u64, u32, u64) {
    let scratch = space.scratch(24).expect("scratch memory");
    let ask = Call { nr: Sysno::sigaltstack, args: [0, scratch.addr(), 0, 0, 0, 0] };
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
    let Some(space) = attached(pid) else { return };
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
        let Some(space) = attached(pid) else { return };
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
    let Some(mut target) = Target::start(&["--workers=pause,nanosleep"]) else { return };
    let pid = target.pid();
    let Some(space) = attached(pid) else { return };
    let Report(_) = target.report();
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
        let Some(space) = attached(pid) else { return };
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

/// Where a thread does not stop, nobody waits for ever, and the thread is let go when it does.
#[test]
fn a_parent_in_vfork_is_refused_soon_or_answers() {
    let _turn = turn();
    let Some(mut target) = Target::start(&["--threads=1", "--workers=vfork"]) else { return };
    let pid = target.pid();
    let Some(space) = attached(pid) else { return };
    for _ in 0..50 {
        let before = Instant::now();
        match space.batch_in_thread(pid, &[GETTID]) {
            Ok(results) => assert_eq!(results, [Ok(pid.unsigned_abs().into())]),
            Err(error) => assert_eq!(error.errno(), Errno::BUSY, "{error}"),
        }
        assert!(before.elapsed() < Duration::from_secs(4));
    }
    space.detach().expect("detaching");
    let first = target.first.clone();
    target.check_goes_on(&first);
    assert_no_trace(pid);
    target.quit();
}

#[test]
fn calls_that_would_not_leave_the_thread_as_it_was_are_refused() {
    let _turn = turn();
    let Some(mut target) = Target::start(&["--threads=1", "--workers=spin"]) else { return };
    let pid = target.pid();
    let Some(space) = attached(pid) else { return };
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
        let why = refused(&space, pid, &[GETTID, Call { nr, args: [0; 6] }], Errno::OPNOTSUPP);
        assert!(why.contains(nr.name()), "{why}");
    }
    let unmap = Call { nr: S::munmap, args: [0x7000_0000_0000, 4096, 0, 0, 0, 0] };
    assert!(matches!(space.batch_in_thread(pid, &[unmap]), Err(Error::Reserved { .. })));
    refused(&space, pid, &[GETTID; 1025], Errno::TOOBIG);
    let many = space.batch_in_thread(pid, &[GETTID; 1024]).expect("as many as it can make");
    assert!(many.iter().all(|told| *told == Ok(pid.unsigned_abs().into())));
    assert_eq!(space.batch_in_thread(pid, &[]).expect("nothing"), []);
    space.detach().expect("detaching");
    let first = target.first.clone();
    target.check_goes_on(&first);
    target.quit();
}

#[test]
fn what_is_no_thread_of_the_process_is_refused() {
    let _turn = turn();
    let Some(target) = Target::start(&["--threads=1", "--workers=spin"]) else { return };
    let Some(space) = attached(target.pid()) else { return };
    let ours = i32::try_from(std::process::id()).expect("a pid");
    for tid in [0, -1, 1, ours, i32::MAX] {
        refused(&space, tid, &[GETTID], Errno::SRCH);
        assert!(space.thread(tid).is_err());
    }
    let created = AddressSpace::create().expect("a space");
    refused(&created, created.pid(), &[GETTID], Errno::OPNOTSUPP);
    space.detach().expect("detaching");
    target.quit();
}

/// By a filter that kills for calls that are not in its list, and one that says EPERM.
#[test]
fn calls_that_a_filter_does_not_allow_are_not_made() {
    if !rustix::process::geteuid().is_root() {
        return skip("to look at the target's seccomp filter takes CAP_SYS_ADMIN");
    }
    let _turn = turn();
    let getppid = Call { nr: Sysno::getppid, args: [0; 6] };
    let workers = "--workers=spin,nanosleep,poll,futex,queue,tick";
    for options in [&["--seccomp=closed", workers, "--threads=1"], &["--seccomp", workers, "--slack-task"]] {
        let Some(mut target) = Target::start(options) else { return };
        let pid = target.pid();
        let Some(space) = attached(pid) else { return };
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
    let Some(mut target) = Target::start(&["--threads=1", "--workers=nanosleep,spin", "--slack-ms=60000"])
    else {
        return;
    };
    let pid = target.pid();
    let Some(space) = attached(pid) else { return };
    let pause = Call { nr: Sysno::pause, args: [0; 6] };
    refused(&space, pid, &[pause, GETTID], Errno::TIME);
    assert_eq!(gettid_in(&space, pid), Some(pid));
    space.detach().expect("detaching");
    let first = target.first.clone();
    target.check_goes_on(&first);
    assert_no_trace(pid);
    target.quit();
}

/// What a supervisor is that sends a thread away: again and again, or for long; no test of its own.
#[test]
fn sender() {
    let Ok(orders) = env::var(SENDER) else { return };
    let (pid, how) = orders.split_once(' ').expect("a pid, and how");
    let pid = pid.parse().expect("a pid");
    let space = AddressSpace::attach_pid(pid).expect("attaching");
    if how == "often" {
        loop {
            assert_eq!(gettid_in(&space, pid), Some(pid));
        }
    }
    let pause = Call { nr: Sysno::pause, args: [0; 6] };
    let _ = space.batch_in_thread(pid, &[pause]);
}

fn send(pid: i32, how: &str) -> Child {
    let mut supervisor = this_program("threads::sender");
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
        let janitor = descendants(child).into_iter().find(|&pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "pvx-janitor\n")
        });
        kill(janitor.expect("a janitor"), libc::SIGKILL);
        thread::sleep(Duration::from_micros(numbers.below(500)));
        supervisor.kill().expect("SIGKILL");
        supervisor.wait().expect("its status");
        let before = target.report();
        target.check_goes_on(&before);
        let is_left = |trace: &Trace| matches!(trace, Trace::Mapping(_) | Trace::SameMemory(_));
        assert_no_trace_but(pid, is_left);
        for trace in traces(pid) {
            if let Trace::SameMemory(executor) = trace {
                kill(executor, libc::SIGKILL);
            }
        }
        target.quit();
    }
}
