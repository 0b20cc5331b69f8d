//! The checks themselves: they hold for a target that is left alone, and fail for one that is not.

use std::{thread, time::Duration};

use crate::{
    common::{kill, soon, turn},
    target::{Linked, Target},
    trace::{Trace, assert_no_trace, has_same_memory, numbers, state_and_parent, traces},
};

/// A request of ptrace(2) without data; its result.
fn ptrace(request: libc::c_uint, pid: i32) -> libc::c_long {
    // SAFETY: none of the requests used here makes the kernel read or write memory of this process.
    unsafe { libc::ptrace(request, pid, 0usize, 0usize) }
}

/// Waits for a stop of a task that this thread traces.
fn wait_for_stop(pid: i32) {
    let mut status = 0;
    // SAFETY: the kernel writes to `status`, which lives until then.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    assert!(waited == pid && libc::WIFSTOPPED(status), "{waited} has status {status:#x}");
}

/// Stops a task by ptrace(2) and lets it go, as careless tools do.
fn stop_once(pid: i32) {
    assert_eq!(ptrace(libc::PTRACE_SEIZE, pid), 0, "{}", std::io::Error::last_os_error());
    assert_eq!(ptrace(libc::PTRACE_INTERRUPT, pid), 0);
    wait_for_stop(pid);
    assert_eq!(ptrace(libc::PTRACE_DETACH, pid), 0);
}

fn left_alone(linked: Linked, options: &[&str]) {
    let _turn = turn();
    let Some(mut target) = Target::start_linked(linked, options) else { return };
    assert_no_trace(target.pid());
    thread::sleep(Duration::from_secs(1));
    let first = target.first.clone();
    target.check_goes_on(&first);
    assert_no_trace(target.pid());
    target.quit();
}

#[test]
fn a_target_that_is_left_alone_finds_nothing_wrong() {
    left_alone(Linked::Dynamically, &[]);
    left_alone(Linked::Statically, &["--threads=16", "--wall"]);
    left_alone(Linked::Dynamically, &["--threads=1", "--long-ms=50"]);
}

#[test]
fn special_targets_that_are_left_alone_find_nothing_wrong() {
    left_alone(Linked::Dynamically, &["--workers=altstack,tiny,vfork,children,clock"]);
    left_alone(Linked::Dynamically, &["--seccomp"]);
    left_alone(Linked::Statically, &["--seccomp=closed", "--workers=spin,poll,futex,timer,tick"]);
}

#[test]
fn a_stop_makes_the_largest_gap_grow() {
    let _turn = turn();
    let Some(mut target) = Target::start(&["--workers=clock,tick", "--slack-ms=60000"]) else { return };
    thread::sleep(Duration::from_millis(100));
    kill(target.pid(), libc::SIGSTOP);
    thread::sleep(Duration::from_millis(700));
    kill(target.pid(), libc::SIGCONT);
    thread::sleep(Duration::from_millis(50));
    let report = target.report();
    for gap in ["clock_gap_max_ns", "tick_gap_max_ns"] {
        assert!(report.number(gap) >= 600_000_000, "{gap} is {}", report.number(gap));
    }
    target.quit();
}

#[test]
fn a_stop_makes_a_wait_late() {
    let _turn = turn();
    let Some(target) = Target::start(&["--workers=nanosleep", "--slack-ms=100"]) else { return };
    thread::sleep(Duration::from_millis(100));
    kill(target.pid(), libc::SIGSTOP);
    thread::sleep(Duration::from_millis(800));
    kill(target.pid(), libc::SIGCONT);
    let (status, last) = target.end();
    assert_eq!(status.code(), Some(1));
    assert!(last.as_ref().is_some_and(|line| line.contains("came back late")), "{last:?}");
}

/// These end with `EINTR` at a stop (signal(7)), and their callers see it, if nobody takes care.
#[test]
fn a_careless_stop_is_found_by_those_who_wait() {
    let _turn = turn();
    for (kind, call) in [
        ("epoll", "epoll_wait returned -1, errno 4"),
        ("epoll_forever", "epoll_wait without timeout returned -1, errno 4"),
        ("sigtimedwait", "sigtimedwait returned -1, errno 4"),
        ("semtimedop", "semtimedop returned -1, errno 4"),
        ("recv", "recv with a timeout returned -1, errno 4"),
    ] {
        let workers = format!("--workers={kind}");
        let Some(target) = Target::start(&["--threads=1", &workers]) else { return };
        let pid = target.pid();
        while numbers("/proc").contains(&pid)
            && state_and_parent(&format!("/proc/{pid}/stat")).is_some_and(|(state, _)| state != 'Z')
        {
            thread::sleep(Duration::from_millis(5));
            if ptrace(libc::PTRACE_SEIZE, pid) != 0 {
                continue;
            }
            ptrace(libc::PTRACE_INTERRUPT, pid);
            let mut status = 0;
            // SAFETY: the kernel writes to `status`, which lives until then.
            unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
            if libc::WIFEXITED(status) {
                break;
            }
            ptrace(libc::PTRACE_DETACH, pid);
        }
        let last = target.last_line();
        assert!(last.as_ref().is_some_and(|line| line.contains(call)), "{kind}: {last:?}");
    }
}

/// A wait that is restarted by the kernel is none of those.
#[test]
fn a_careless_stop_is_no_matter_for_other_waits() {
    let _turn = turn();
    let waits = "nanosleep,clock_nanosleep,poll,ppoll,select,futex,read,pause,sigsuspend";
    let Some(mut target) = Target::start(&["--threads=1", &format!("--workers={waits}"), "--long-ms=50"])
    else {
        return;
    };
    let before = target.first.clone();
    for _ in 0..100 {
        stop_once(target.pid());
        thread::sleep(Duration::from_millis(5));
    }
    target.check_goes_on(&before);
    target.quit();
}

#[test]
fn a_tracer_is_a_trace() {
    let _turn = turn();
    let Some(target) = Target::start(&["--threads=1", "--workers=spin"]) else { return };
    let pid = target.pid();
    assert_no_trace(pid);
    assert_eq!(ptrace(libc::PTRACE_SEIZE, pid), 0, "{}", std::io::Error::last_os_error());
    assert!(
        matches!(traces(pid)[..], [Trace::Traced(tid, tracer)] if tid == pid && tracer > 0),
        "{:?}",
        traces(pid)
    );
    assert_eq!(ptrace(libc::PTRACE_INTERRUPT, pid), 0);
    wait_for_stop(pid);
    assert!(traces(pid).contains(&Trace::Stopped(pid, 't')), "{:?}", traces(pid));
    assert_eq!(ptrace(libc::PTRACE_DETACH, pid), 0);
    assert_no_trace(pid);
    target.quit();
}

#[test]
fn a_task_with_the_same_memory_and_a_child_are_traces() {
    let _turn = turn();
    let Some(target) = Target::start(&["--threads=1", "--workers=vfork"]) else { return };
    let pid = target.pid();
    let (mut child, mut memory) = (false, false);
    soon("the child in vfork is seen", || {
        for trace in traces(pid) {
            child |= matches!(trace, Trace::Child(other, _) if other != pid);
            memory |= matches!(trace, Trace::SameMemory(other) if other != pid);
        }
        // Where kcmp(2) is refused, nobody can tell.
        child && (memory || !has_same_memory(pid, pid))
    });
    assert_no_trace(pid);
    target.quit();
}

#[test]
fn a_stop_is_a_trace_and_an_end_too() {
    let _turn = turn();
    let Some(target) = Target::start(&["--threads=1", "--workers=spin"]) else { return };
    let pid = target.pid();
    kill(pid, libc::SIGSTOP);
    soon("the stop is seen", || traces(pid).contains(&Trace::Stopped(pid, 'T')));
    kill(pid, libc::SIGKILL);
    soon("the end is seen", || traces(pid) == [Trace::Gone]);
}
