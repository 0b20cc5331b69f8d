//! Building C programs with the library.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;

pub(crate) const CRATE: &str = env!("CARGO_MANIFEST_DIR");
pub(crate) const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-pedantic", "-Werror"];
/// What a Rust static library needs of the system: `rustc --print native-static-libs`, but for what unwinds stacks, which gcc
/// has for each kind of program.
pub(crate) const SYSTEM_LIBRARIES: [&str; 4] = ["-lrt", "-lpthread", "-lm", "-ldl"];

/// Does this machine have the command? If not, says that a test is skipped.
pub(crate) fn has(command: &str) -> bool {
    let is_there = Command::new(command).arg("--version").output().is_ok()
        || Command::new("sh").args(["-c", &format!("command -v {command}")]).output().is_ok_and(succeeded);
    if !is_there {
        println!("SKIP: {command} is not installed");
    }
    is_there
}

fn succeeded(output: Output) -> bool {
    output.status.success()
}

/// The directory of this build: `target/release`, for example.
pub(crate) fn build_directory() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    test.ancestors().nth(2).expect("target/release/deps/test").to_owned()
}

/// Builds the libraries, in the profile of this test: cargo does not for a test that does not link them.
pub(crate) fn build() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = build_directory();
        let profile = match directory.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(profile) => profile,
        };
        let target = directory.parent().expect("it is in the target directory");
        let status = cargo()
            .args(["build", "--lib", "--manifest-path", &format!("{CRATE}/Cargo.toml"), "--profile", profile])
            .arg("--target-dir")
            .arg(target)
            .status();
        assert!(status.expect("cargo starts").success(), "the library is built");
        directory
    })
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command that has to succeed, and returns what it printed.
pub(crate) fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}

/// Compiles `source` and links it with the static library.
pub(crate) fn compile(source: &Path, place: &TempDir) -> PathBuf {
    compile_with(source, place, &[])
}

/// The same, with options of the linker's.
pub(crate) fn compile_with(source: &Path, place: &TempDir, options: &[&str]) -> PathBuf {
    let program = place.path().join("program");
    let mut gcc = Command::new("gcc");
    gcc.args(WARNINGS).args(["-O1", "-g", "-pthread", "-I"]).arg(format!("{CRATE}/include"));
    gcc.arg("-I").arg(format!("{CRATE}/tests/c")).arg(source).arg("-o").arg(&program);
    gcc.arg(build().join("libprocess_vm_exec_capi.a")).args(SYSTEM_LIBRARIES).args(options);
    output_of(&mut gcc);
    program
}
