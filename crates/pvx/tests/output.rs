//! What becomes of output that cannot be written: a line or nothing, and never a panic.

mod live;

use std::{
    fs::{self, File},
    process::{Command, Output, Stdio},
};

use live::Target;

/// Runs pvx with `stdout` as its standard output.
fn pvx(words: &[&str], stdout: impl Into<Stdio>) -> Output {
    let pvx = Command::new(env!("CARGO_BIN_EXE_pvx"))
        .args(words)
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .expect("pvx starts");
    pvx.wait_with_output().expect("its output")
}

fn full() -> File {
    File::options().write(true).open("/dev/full").expect("every Linux has it")
}

fn without_reader() -> impl Into<Stdio> {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer
}

/// Every command that reports something, and needs nothing for it.
const REPORTS: &[&[&str]] = &[
    &["check"],
    &["check", "--json"],
    &["inspect", "--no-attach", "1"],
    &["inspect", "--no-attach", "--json", "1"],
    &["bench", "--case", "native-getppid", "--seconds", "0.1"],
    &["bench", "--case", "native-getppid", "--seconds", "0.1", "--json"],
    &["completions", "bash"],
];

#[test]
fn a_full_disk_is_told_in_one_line_and_is_a_failure() {
    for words in REPORTS {
        let output = pvx(words, full());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {stderr}");
        assert!(stderr.starts_with("pvx: standard output: No space left on device"), "{words:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{words:?}: {stderr}");
    }
}

#[test]
fn a_reader_that_has_gone_away_is_no_failure() {
    for words in REPORTS {
        let output = pvx(words, without_reader());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{words:?}");
    }
}

#[test]
fn a_call_that_was_made_says_that_its_result_cannot_be_written() {
    let Some(target) = Target::attachable() else { return };
    let pid = target.pid();
    let output = pvx(&["call", &pid, "getpid"], full());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("pvx: standard output: No space"), "{stderr}");
    assert_eq!(pvx(&["call", &pid, "getpid"], without_reader()).status.code(), Some(0));
    assert!(target.is_unharmed());
}

#[test]
fn errors_that_cannot_be_written_leave_the_status_as_it_is() {
    for (words, status) in [(&["inspect", "0"][..], 1), (&["call", "0", "getpidd"], 2)] {
        let pvx = Command::new(env!("CARGO_BIN_EXE_pvx")).args(words).stderr(full()).status();
        assert_eq!(pvx.expect("pvx starts").code(), Some(status), "{words:?}");
    }
}

#[test]
fn a_trace_with_a_gap_is_told_at_the_end_and_fails_what_succeeded() {
    for (program, status) in [("true", 1), ("false", 1), ("exit 7", 7)] {
        let output = pvx(&["run", "--trace-file", "/dev/full", "sh", "-c", program], Stdio::null());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{program}: {stderr}");
        let told = "pvx: the trace is not complete: No space left on device";
        assert!(stderr.starts_with(told) && stderr.lines().count() == 1, "{program}: {stderr}");
    }
}

#[test]
fn a_trace_without_a_gap_fails_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("trace");
    let output = pvx(&["run", "--trace-file", file.to_str().expect("UTF-8"), "true"], Stdio::null());
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    assert!(fs::read_to_string(file).expect("the trace").ends_with("+++ exited with 0 +++\n"));
}
