//! A process to look at and to attach to, for the tests of `pvx call` and `pvx inspect`.
#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use process_vm_exec::{AddressSpace, Errno};
use tempfile::TempDir;

/// A `sleep` in a directory of its own. It ends with the value.
#[derive(Debug)]
pub(crate) struct Target {
    child: Child,
    directory: TempDir,
}

impl Target {
    /// Starts it and waits until it sleeps: before that it is not yet the program.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let child = Command::new("sleep")
            .arg("1000")
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sleep starts");
        let target = Self { child, directory };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !target.sleeps() {
            assert!(Instant::now() < deadline, "it does not come to sleep");
            thread::sleep(Duration::from_millis(5));
        }
        target
    }

    /// Starts it, if this library attaches to processes at all; says so otherwise.
    pub(crate) fn attachable() -> Option<Self> {
        let target = Self::start();
        match AddressSpace::attach_pid(target.number()) {
            Err(error) if error.errno() == Errno::NOSYS => {
                println!("SKIP: {error}");
                None
            }
            Err(error) => panic!("a child of one's own can be attached to: {error}"),
            Ok(space) => {
                space.detach().expect("it is still there");
                Some(target)
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

    /// clock_nanosleep is number 230 (syscalls(2)). The file is only readable for those who may trace the process.
    fn sleeps(&self) -> bool {
        let call = fs::read_to_string(self.proc("syscall")).unwrap_or_default();
        let name = fs::read_to_string(self.proc("comm")).unwrap_or_default();
        name == "sleep\n" && call.starts_with("230 ")
    }

    /// Whether it lives and sleeps its old sleep.
    pub(crate) fn is_unharmed(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.sleeps() {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
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
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether `pid` is a thread of the kernel: such have no memory to map.
pub(crate) fn is_kernel_thread(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.is_empty())
        && fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| !status.contains("VmSize"))
}
