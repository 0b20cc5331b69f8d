//! Who cannot be attached to, and what is said then; nothing of it has changed.

use std::{
    fs,
    process::{Command, Stdio},
};

use process_vm_exec::{Errno, Error, LiveProcess};

use crate::{
    common::{Killed, has, scratch, skip, soon, this_program, turn},
    target::Target,
    trace::{assert_no_trace, numbers, state_and_parent},
};

/// Set in a process that is to lose root's rights and try.
const VICTIM: &str = "PVX_ATTACH_UNPRIVILEGED";
const NOBODY: u32 = 65534;

/// Attaching is refused with one of these numbers; says why.
#[track_caller]
fn refused(pid: i32, errnos: &[Errno]) -> String {
    match LiveProcess::attach_pid(pid) {
        Err(error) => {
            let Error::Attach { pid: named, ref why, errno } = error else { panic!("{error:?}") };
            assert!(errnos.contains(&errno), "{errno:?} is none of {errnos:?}: {error}");
            assert_eq!(named, pid);
            why.to_string()
        }
        Ok(_) => panic!("attached to {pid}"),
    }
}

#[test]
fn a_process_that_is_not_there() {
    let mut child = Command::new("true").spawn().expect("a child");
    child.wait().expect("its status");
    refused(child.id().try_into().expect("a pid"), &[Errno::SRCH]);
    refused(i32::MAX, &[Errno::SRCH]);
}

#[test]
fn numbers_that_name_no_process() {
    for pid in [0, -1, i32::MIN] {
        refused(pid, &[Errno::SRCH, Errno::INVAL]);
    }
}

#[test]
fn a_zombie() {
    let child = Killed(Command::new("true").spawn().expect("a child"));
    let stat = format!("/proc/{}/stat", child.pid());
    soon("it is a zombie", || state_and_parent(&stat).is_some_and(|(state, _)| state == 'Z'));
    refused(child.pid(), &[Errno::SRCH]);
    assert_eq!(state_and_parent(&stat).map(|(state, _)| state), Some('Z'), "its status is still there");
}

#[test]
fn a_thread_of_the_kernel() {
    // It has no program.
    let is_kernels = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| status.contains("\nKthread:\t1"))
    };
    match numbers("/proc").into_iter().find(is_kernels) {
        Some(pid) => drop(refused(pid, &[Errno::PERM, Errno::ACCESS, Errno::INVAL])),
        None => skip("no thread of the kernel is visible here"),
    }
}

#[test]
fn this_process_itself() {
    let pid = std::process::id().try_into().expect("a pid");
    refused(pid, &[Errno::INVAL, Errno::PERM]);
}

#[test]
fn a_thread_that_is_no_process() {
    let _turn = turn();
    let Some(target) = Target::start(&["--workers=spin,tick"]) else { return };
    let pid = target.pid();
    let thread = numbers(&format!("/proc/{pid}/task")).into_iter().find(|&tid| tid != pid).expect("a thread");
    refused(thread, &[Errno::SRCH, Errno::INVAL, Errno::NOENT]);
    assert_no_trace(pid);
    target.quit();
}

#[test]
fn a_process_that_somebody_traces_is_told_by_whom() {
    let _turn = turn();
    let Some(target) = Target::start(&["--threads=1", "--workers=spin,nanosleep"]) else { return };
    let pid = target.pid();
    // SAFETY: neither request makes the kernel read or write memory of this process.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0usize, 0usize) };
    assert_eq!(seized, 0, "{}", std::io::Error::last_os_error());
    let why = refused(pid, &[Errno::PERM, Errno::BUSY]);
    let me = std::process::id().to_string();
    // SAFETY: gettid(2) takes nothing.
    let my_thread = unsafe { libc::gettid() }.to_string();
    assert!(why.contains(&me) || why.contains(&my_thread), "not named: {why}");
    // The tracer does not lose it.
    // SAFETY: as above; the wait writes to `status`, which lives until then.
    unsafe {
        let mut status = 0;
        assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0usize, 0usize), 0);
        assert_eq!(libc::waitpid(pid, &raw mut status, libc::__WALL), pid);
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, pid, 0usize, 0usize), 0);
    }
    assert_no_trace(pid);
    target.quit();
}

#[test]
fn a_process_of_another_user() {
    if let Some(pid) = std::env::var(VICTIM).ok().and_then(|pid| pid.parse().ok()) {
        // SAFETY: these take integers; no other thread of this process relies on its rights.
        let lost = unsafe {
            libc::setgroups(0, std::ptr::null()) == 0
                && libc::setresgid(NOBODY, NOBODY, NOBODY) == 0
                && libc::setresuid(NOBODY, NOBODY, NOBODY) == 0
        };
        assert!(lost, "{}", std::io::Error::last_os_error());
        refused(pid, &[Errno::PERM, Errno::ACCESS]);
        return;
    }
    // SAFETY: geteuid(2) takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return skip("only root can start processes of two users");
    }
    let _turn = turn();
    let Some(target) = Target::start(&["--workers=spin,tick"]) else { return };
    let status = this_program("refusals::a_process_of_another_user")
        .env(VICTIM, target.pid().to_string())
        .status()
        .expect("the test runs itself");
    assert!(status.success(), "without rights: {status}");
    assert_no_trace(target.pid());
    target.quit();
}

/// Without a C library, as there hardly is one: it waits in pause (29).
const PROGRAM_OF_32_BITS: &str =
    "void _start(void)\n{\n    for (;;)\n        __asm__ volatile(\"int $0x80\" : : \"a\"(29));\n}\n";

#[test]
fn a_program_of_32_bits() {
    if !has("gcc") {
        return skip("no gcc");
    }
    let _turn = turn();
    let (source, program) = (scratch().join("32.c"), scratch().join("32"));
    fs::write(&source, PROGRAM_OF_32_BITS).expect("the source is written");
    let built = Command::new("gcc")
        .args(["-m32", "-nostdlib", "-static", "-ffreestanding", "-o"])
        .args([&program, &source])
        .stderr(Stdio::null())
        .status();
    if !built.is_ok_and(|status| status.success()) {
        return skip("no programs of 32 bits can be built here");
    }
    let Ok(child) = Command::new(&program).spawn() else { return skip("no programs of 32 bits run here") };
    let mut child = Killed(child);
    // Until it has executed the program, it is a copy of this one.
    let stat = format!("/proc/{}/stat", child.pid());
    soon("it runs", || {
        fs::read_link(format!("/proc/{}/exe", child.pid())).is_ok_and(|exe| exe == program)
            && state_and_parent(&stat).is_some_and(|(state, _)| state == 'S')
    });
    let why =
        refused(child.pid(), &[Errno::NOEXEC, Errno::INVAL, Errno::OPNOTSUPP, Errno::NOTSUP, Errno::PERM]);
    assert!(why.contains("32"), "{why}");
    assert_no_trace(child.pid());
    assert!(matches!(child.0.try_wait(), Ok(None)), "it still lives");
}
