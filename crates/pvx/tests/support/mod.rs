//! What tests of `pvx run` share: a directory to run programs in, natively and as guests.
#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use process_vm_exec::{Engine, EngineError};
use tempfile::TempDir;

pub(crate) const PVX: &str = env!("CARGO_BIN_EXE_pvx");
const GUESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guests");

/// The engines that work here; the others are named.
pub(crate) fn engines() -> Vec<Engine> {
    let detection = Engine::detect().expect("the machine can be looked at");
    let works = |(engine, lacks): (Engine, Option<EngineError>)| match lacks {
        None => Some(engine),
        Some(why) => {
            println!("SKIP: engine {engine}: {why}");
            None
        }
    };
    detection.engines.into_iter().filter_map(works).collect()
}

/// What a caller sees of a program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Seen {
    pub(crate) fn of(output: Output) -> Self {
        // A shell's way to say it; `pvx run` passes it on like that.
        let status = output.status.code().or(output.status.signal().map(|signal| 128 + signal));
        Self {
            status: status.expect("it exited or was killed"),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A directory to run programs in.
#[derive(Debug)]
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).expect("a file in the temporary directory");
        path
    }

    pub(crate) fn executable(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(name, contents);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its owner may");
        path
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .current_dir(self.0.path())
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn native(&self, words: &[&str]) -> Seen {
        Seen::of(self.command(words).output().expect("it is installed"))
    }

    pub(crate) fn guest(&self, options: &[&str], words: &[&str]) -> Seen {
        let all: Vec<_> = [PVX, "run"].iter().chain(options).chain(&["--"]).chain(words).copied().collect();
        Seen::of(self.command(&all).output().expect("pvx starts"))
    }

    /// Compiles a program from `guests` here; `false` if the compiler is missing.
    pub(crate) fn compile(&self, name: &str, compiler: &[&str]) -> bool {
        if which(compiler[0]).is_none() {
            println!("SKIP: {} is not installed", compiler[0]);
            return false;
        }
        let source = format!("{GUESTS}/{name}.c");
        let words = [compiler, &["-O1", "-w", "-o", name, &source]].concat();
        let built = self.native(&words);
        assert_eq!(built.status, 0, "{}", built.stderr);
        true
    }

    /// Runs a program natively and with each engine; `prepare` comes before each run.
    pub(crate) fn same_after(&self, prepare: impl Fn(), words: &[&str]) {
        if !words[0].contains('/') && which(words[0]).is_none() {
            println!("SKIP: {} is not installed", words[0]);
            return;
        }
        prepare();
        let native = self.native(words);
        for engine in engines() {
            prepare();
            assert_eq!(self.guest(&["--engine", engine.name()], words), native, "{engine}: {words:?}");
        }
    }

    pub(crate) fn same(&self, words: &[&str]) {
        self.same_after(|| (), words);
    }
}

/// Where a program is, as a shell finds it.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).exists().then(|| name.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())
}
