//! A process to look at and to attach to, for the tests of `pvx call` and `pvx inspect`.
#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use process_vm_exec::{Errno, LiveProcess, Sysno};
use tempfile::TempDir;

/// A `sleep`, or a shell, in a directory and process group of its own. It ends with the value.
#[derive(Debug)]
pub(crate) struct Target {
    child: Child,
    directory: TempDir,
}

impl Target {
    /// Starts it and waits until it sleeps: before that it is not yet the program.
    pub(crate) fn start() -> Self {
        Self::spawn(&["sleep", "1000"]).waits_until("it sleeps", Self::sleeps)
    }

    /// Starts it, if this library attaches to processes at all; says so otherwise.
    pub(crate) fn attachable() -> Option<Self> {
        Self::start().if_attachable()
    }

    /// A shell instead, that has come to a command in `script` which it waits for.
    pub(crate) fn attachable_shell(script: &str) -> Option<Self> {
        Self::spawn(&["sh", "-c", script])
            .waits_until("it waits for a child", Self::waits_for_child)
            .if_attachable()
    }

    /// The program of `own.c`, if it can be built.
    pub(crate) fn attachable_with_things_of_its_own() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // It sleeps, as its name says.
        let program = directory.path().join("sleep");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/live/own.c");
        let built = Command::new("gcc").args(["-O1", "-pthread", "-o"]).arg(&program).arg(source).status();
        let Ok(status) = built else {
            println!("SKIP: gcc is not installed");
            return None;
        };
        assert!(status.success(), "{source} is not compiled");
        let program = program.to_str().expect("UTF-8");
        Self::spawn(&[program]).waits_until("it sleeps", Self::sleeps).if_attachable()
    }

    fn spawn(command: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let child = Command::new(command[0])
            .args(&command[1..])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("it starts");
        Self { child, directory }
    }

    fn waits_until(self, what: &str, test: impl Fn(&Self) -> bool) -> Self {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !test(&self) {
            assert!(Instant::now() < deadline, "it does not come to this: {what}");
            thread::sleep(Duration::from_millis(5));
        }
        self
    }

    fn if_attachable(self) -> Option<Self> {
        // pvx is no ancestor of the target, and from 1 on Yama lets only those and root attach (ptrace(2)).
        let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
        if !matches!(scope.trim(), "" | "0") && !rustix::process::geteuid().is_root() {
            println!("SKIP: kernel.yama.ptrace_scope={} lets only root attach", scope.trim());
            return None;
        }
        match LiveProcess::attach_pid(self.number()) {
            Err(error) if error.errno() == Errno::NOSYS => {
                println!("SKIP: {error}");
                None
            }
            Err(error) => panic!("a child of one's own can be attached to: {error}"),
            Ok(space) => {
                space.detach().expect("it is still there");
                Some(self)
            }
        }
    }

    fn number(&self) -> i32 {
        i32::try_from(self.child.id()).expect("numbers of processes are positive")
    }

    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// As the kernel names it: without symbolic links.
    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.path().canonicalize().expect("it exists")
    }

    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.pid()).join(name)
    }

    /// Whether it waits in one of these calls. The file is only readable for those who may trace the process.
    fn is_in(&self, calls: &[Sysno]) -> bool {
        let line = fs::read_to_string(self.proc("syscall")).unwrap_or_default();
        let number = line.split(' ').next().and_then(|word| word.parse().ok());
        number.and_then(Sysno::new).is_some_and(|call| calls.contains(&call))
    }

    /// A call that was interrupted goes on as restart_syscall(2).
    fn sleeps(&self) -> bool {
        let name = fs::read_to_string(self.proc("comm")).unwrap_or_default();
        name == "sleep\n" && self.is_in(&[Sysno::clock_nanosleep, Sysno::nanosleep, Sysno::restart_syscall])
    }

    fn waits_for_child(&self) -> bool {
        self.is_in(&[Sysno::wait4, Sysno::waitid])
    }

    /// Whether a shell still waits for its child.
    pub(crate) fn is_in_its_wait(&self) -> bool {
        self.comes_to(Self::waits_for_child)
    }

    /// Whether it lives and sleeps its old sleep.
    pub(crate) fn is_unharmed(&self) -> bool {
        self.comes_to(Self::sleeps)
    }

    /// A thread that was stopped needs a moment to get back to where it was.
    fn comes_to(&self, test: impl Fn(&Self) -> bool) -> bool {
        soon(|| test(self))
    }

    pub(crate) fn link(&self, name: &str) -> Option<PathBuf> {
        fs::read_link(self.proc(name)).ok()
    }

    pub(crate) fn descriptors(&self) -> Vec<OsString> {
        let mut names: Vec<_> = fs::read_dir(self.proc("fd"))
            .expect("it has descriptors")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn maps(&self) -> String {
        fs::read_to_string(self.proc("maps")).expect("it has maps")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // A shell's children, too: all are in its group.
        if let Some(group) = rustix::process::Pid::from_raw(self.number()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Whether something comes true in a few seconds.
pub(crate) fn soon(test: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !test() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Whether `pid` is a thread of the kernel: such have no memory to map.
pub(crate) fn is_kernel_thread(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.is_empty())
        && fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| !status.contains("VmSize"))
}
