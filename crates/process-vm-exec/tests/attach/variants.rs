//! Attach, call, detach, hundreds of times, over each variant of the target: it notices nothing.

use std::{os::unix::ffi::OsStrExt, process::Command, thread, time::Duration};

use process_vm_exec::{AttachError, Call, Error, LiveProcess, Sysno};

use crate::{
    common::{Execute as _, Numbers, attached, rounds, skip, turn},
    target::{Linked, Report, Target},
    trace::{Trace, assert_no_trace, assert_no_trace_but, has_region},
};

/// How often each variant is attached to at least.
const ROUNDS: u32 = 80;
/// All waits that can do without a partner.
const WAITS: &str = "--workers=nanosleep,clock_nanosleep,poll,ppoll,select,epoll,epoll_forever,futex,read,\
                     sigtimedwait,sigsuspend,semtimedop,pause";
/// All kinds but `recv`, whose timeout is the socket's: each visit begins it anew.
const ALL: &str = "--workers=spin,nanosleep,clock_nanosleep,poll,ppoll,select,epoll,epoll_forever,futex,read,\
                   sigtimedwait,sigsuspend,semtimedop,pause,timer,alarm,queue,children,eof,tick";

fn storm(linked: Linked, options: &[&str], least: u32) {
    let _turn = turn();
    if let Some(target) = Target::start_linked(linked, options) {
        eprintln!("{options:?}: {}", storm_over(target, least).0);
    }
}

fn storm_over(mut target: Target, least: u32) -> Report {
    let pid = target.pid();
    let mut numbers = Numbers::new(u64::from(least));
    let mut before = target.first.clone();
    for round in rounds(least) {
        let space = LiveProcess::attach_pid(pid).unwrap_or_else(|error| {
            // What it says itself is of more interest.
            target.report();
            panic!("attaching: {error}")
        });
        let executor = space.execute(Sysno::getpid, [0; 6]).expect("getpid");
        assert_ne!(executor, u64::try_from(pid).expect("a pid"), "the executor is a process of its own");
        if round % 4 == 0 {
            let yields = [Call::with_args(Sysno::sched_yield, [0; 6]); 8];
            let results = space.batch(&yields).expect("a batch");
            assert!(
                results.iter().all(|result| matches!(result, Ok(process_vm_exec::Returned { value: 0, .. }))),
                "{results:?}"
            );
        }
        thread::sleep(Duration::from_micros(numbers.below(1000)));
        space.detach().expect("detaching");
        assert!(!has_region(pid), "detached, and its pages are there");
        // Waits are to be longer than the time between two rounds as well as shorter.
        thread::sleep(Duration::from_micros(numbers.below(8000)));
        if round % 50 == 49 {
            // If it has ended, it says why.
            before = target.check_goes_on(&before);
            assert_no_trace(pid);
        }
    }
    assert_no_trace(pid);
    target.quit()
}

fn dynamic(options: &[&str]) {
    storm(Linked::Dynamically, options, ROUNDS);
}

#[test]
fn one_thread_that_computes() {
    storm(Linked::Dynamically, &["--threads=1", "--workers=spin"], 400);
}

#[test]
fn one_thread_in_each_wait() {
    for wait in WAITS.trim_start_matches("--workers=").split(',') {
        storm(Linked::Dynamically, &["--threads=1", &format!("--workers={wait}")], 60);
    }
}

#[test]
fn one_thread_that_does_everything() {
    dynamic(&["--threads=1", ALL]);
}

#[test]
fn one_thread_in_a_static_program() {
    storm(Linked::Statically, &["--threads=1", ALL], ROUNDS);
}

#[test]
fn a_thread_for_each_kind() {
    storm(Linked::Dynamically, &[ALL], 200);
}

#[test]
fn a_thread_for_each_kind_in_a_static_program() {
    storm(Linked::Statically, &[ALL], ROUNDS);
}

#[test]
fn sixteen_threads() {
    dynamic(&["--threads=16", ALL]);
}

#[test]
fn sixteen_threads_that_compute() {
    dynamic(&["--threads=16", "--workers=spin"]);
}

#[test]
fn sixteen_threads_in_all_waits() {
    dynamic(&["--threads=16", WAITS]);
}

#[test]
fn clocks() {
    dynamic(&["--workers=clock,tick"]);
}

#[test]
fn a_thread_that_signals_find_nowhere_else() {
    storm(Linked::Dynamically, &["--threads=1", "--workers=interrupted"], 400);
}

#[test]
fn restartable_sequences() {
    let _ = rseq(&["--workers=rseq,rseq,rseq,rseq"]);
    let _ = rseq(&["--threads=1", "--workers=rseq"]);
}

/// The C library may have no rseq.
fn rseq(options: &[&str]) -> Option<()> {
    let works = {
        let _turn = turn();
        let target = std::panic::catch_unwind(|| Target::start(options));
        match target {
            Ok(target) => target.map(Target::quit),
            Err(why) if why.downcast_ref::<String>().is_some_and(|why| why.contains("no rseq")) => {
                skip("the C library registers no rseq");
                None
            }
            Err(why) => std::panic::resume_unwind(why),
        }
    };
    works?;
    storm(Linked::Dynamically, options, 500);
    Some(())
}

#[test]
fn a_handler_on_an_alternate_stack() {
    dynamic(&["--threads=1", "--workers=altstack"]);
    dynamic(&["--workers=altstack,altstack,spin"]);
}

#[test]
fn a_stack_without_room() {
    storm(Linked::Dynamically, &["--threads=1", "--workers=tiny"], 500);
    dynamic(&["--workers=tiny,tiny"]);
}

#[test]
fn signals_and_timers() {
    dynamic(&["--threads=1", "--workers=queue,timer,alarm"]);
    dynamic(&["--workers=queue,queue,timer,alarm,sigsuspend,pause"]);
}

#[test]
fn children_and_pipes() {
    dynamic(&["--threads=1", "--workers=children,eof"]);
    dynamic(&["--workers=children,eof,eof"]);
}

#[test]
fn a_parent_in_vfork() {
    dynamic(&["--threads=1", "--workers=vfork"]);
    dynamic(&["--workers=vfork,children,spin"]);
}

#[test]
fn a_target_of_another_user() {
    let _turn = turn();
    if !rustix::process::geteuid().is_root() {
        return skip("to attach to another user's process takes CAP_SYS_PTRACE");
    }
    let launcher = ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups"];
    let Some(target) = Target::start_by(&launcher, &[ALL]) else { return };
    let status = std::fs::read_to_string(format!("/proc/{}/status", target.pid())).expect("its status");
    assert!(status.contains("Uid:\t65533\t65533"), "{status}");
    storm_over(target, ROUNDS);
}

/// The kernel cuts names at 15 bytes, in the middle of a letter if need be.
#[test]
fn a_target_whose_name_is_no_text() {
    let _turn = turn();
    let name = std::ffi::OsStr::from_bytes(b"pvx-\xff-\xc3");
    let Some(target) = Target::start_as(name, &["--workers=spin,nanosleep"]) else { return };
    storm_over(target, 5);
}

/// A command that makes namespaces of every kind for the command that follows; none where that is not allowed.
fn in_namespaces() -> Option<Vec<&'static str>> {
    let launcher = vec![
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount",
        "--mount-proc",
        "--uts",
        "--ipc",
        "--net",
        "--cgroup",
    ];
    let allowed = Command::new(launcher[0]).args(&launcher[1..]).arg("true").status();
    if allowed.is_ok_and(|status| status.success()) {
        return Some(launcher);
    }
    skip("unshare(1) makes no namespaces here");
    None
}

#[test]
fn a_target_in_namespaces_of_its_own() {
    let _turn = turn();
    let Some(mut launcher) = in_namespaces() else { return };
    // The shell is the init there.
    launcher.extend(["sh", "-c", "\"$@\"; exit $?", "sh"]);
    let Some(target) = Target::start_by(&launcher, &[ALL]) else { return };
    for name in ["user", "pid", "mnt", "uts", "ipc", "net", "cgroup"] {
        let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/{name}")).expect("a namespace");
        assert_ne!(namespace("self"), namespace(&target.pid().to_string()));
    }
    storm_over(target, ROUNDS);
}

/// It gets all orphans, and so the executor: it may not be surprised at that, and has to take its end.
#[test]
fn a_target_that_is_the_init_of_a_pid_namespace() {
    let _turn = turn();
    let Some(launcher) = in_namespaces() else { return };
    let all_but_children = ALL.replace(",children", "");
    let Some(mut target) = Target::start_by(&launcher, &[&all_but_children]) else { return };
    for _ in rounds(ROUNDS) {
        attached(target.pid()).detach().expect("detaching");
        assert_no_trace_but(target.pid(), |trace| matches!(trace, Trace::Child(_, 'Z')));
        target.report();
    }
}

/// Else attaching is refused, which `a_filter_that_kills` sees.
fn filters_can_be_suspended() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip("to suspend the target's seccomp filter takes CAP_SYS_ADMIN");
    }
    is_root
}

#[test]
fn a_filter_that_allows_what_the_program_needs() {
    if !filters_can_be_suspended() {
        return;
    }
    dynamic(&["--seccomp", "--threads=1"]);
    dynamic(&["--seccomp"]);
}

#[test]
fn a_filter_that_allows_what_attaching_needs_too() {
    if !filters_can_be_suspended() {
        return;
    }
    dynamic(&["--seccomp=open", "--threads=1"]);
    dynamic(&["--seccomp=open"]);
}

/// A filter that kills for clone and mmap: attaching works all the same, or is refused and the target lives.
#[test]
fn a_filter_that_kills() {
    let _turn = turn();
    let options =
        ["--seccomp=closed", "--workers=spin,nanosleep,poll,epoll,futex,sigtimedwait,timer,queue,eof,tick"];
    for threads in ["--threads=1", "--threads=10"] {
        let Some(mut target) = Target::start(&[options[0], options[1], threads]) else { return };
        let pid = target.pid();
        let mut before = target.first.clone();
        let mut works = 0;
        for _ in rounds(ROUNDS) {
            match LiveProcess::attach_pid(pid) {
                Ok(space) => {
                    assert!(has_region(pid), "attached to {pid}, and the library's pages are not there");
                    space.execute(Sysno::getpid, [0; 6]).expect("getpid");
                    space.detach().expect("detaching");
                    works += 1;
                }
                Err(Error::Attach { why, .. }) => {
                    assert!(matches!(why, AttachError::Seccomp | AttachError::SeccompStays), "{why}");
                }
                Err(other) => panic!("{other:?}"),
            }
            before = target.check_goes_on(&before);
        }
        eprintln!("{threads}: attached {works} times to a target whose filter kills");
        assert_no_trace(pid);
        target.quit();
    }
}

/// Nothing of a target is mixed up with another one's.
#[test]
fn several_targets_at_once() {
    let _turn = turn();
    let options = ["--workers=spin,nanosleep,epoll,eof", "--slack-ms=2000"];
    let targets: Option<Vec<_>> = (0..4).map(|_| Target::start(&options)).collect();
    let Some(mut targets) = targets else { return };
    for _ in rounds(ROUNDS / 4) {
        let spaces: Vec<_> = targets.iter().map(|target| attached(target.pid())).collect();
        let executors: std::collections::BTreeSet<_> =
            spaces.iter().map(|space| space.execute(Sysno::getpid, [0; 6]).expect("getpid")).collect();
        assert_eq!(executors.len(), targets.len());
        for (space, target) in spaces.iter().zip(&targets) {
            let mut bytes = [0; 8];
            space.read(target.first.number("word"), &mut bytes).expect("its memory");
            assert_eq!(u64::from_ne_bytes(bytes), 0x0123_4567_89ab_cdef);
        }
    }
    for target in &mut targets {
        assert_no_trace(target.pid());
        target.report();
    }
    targets.into_iter().for_each(|target| drop(target.quit()));
}
