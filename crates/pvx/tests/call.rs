//! `pvx call` as its users see it: what a wrong command line gets, and what a call in a live process does.

mod live;

use std::process::{Command, Output};

use live::Target;
use serde_json::Value;

/// A number that no process has: the kernel's limit is 2^22 (proc(5), pid_max).
const NOBODY: &str = "2147483647";

fn call(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pvx")).arg("call").args(words).output().expect("pvx starts")
}

/// The one line on standard error, after `pvx: `, of a call that ends with `status` and prints nothing else.
#[track_caller]
fn refusal(words: &[&str], status: i32) -> String {
    let output = call(words);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(status), "{words:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{words:?}");
    let line = stderr.strip_prefix("pvx: ").unwrap_or_else(|| panic!("{words:?}: {stderr}"));
    assert_eq!(line.lines().count(), 1, "{line}");
    line.trim_end().to_owned()
}

/// What a call that succeeds prints.
#[track_caller]
fn output(words: &[&str]) -> String {
    let output = call(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn a_wrong_command_line_is_refused_before_the_process_is_looked_at() {
    for (words, reason) in [
        (&["getpidd"][..], "unknown system call `getpidd`; did you mean getpid?"),
        (&["getpid", "1"], "getpid takes no arguments, but 1 are given"),
        (&["dup2", "1", "2", "3"], "dup2 takes 2 arguments at most, but 3 are given"),
        (&["madvise", "0", "1", "MADV_DONTNED"], "did you mean MADV_DONTNEED?"),
        (
            &["--files", "target", "close"],
            "close: argument 1, a number or descriptor, is missing; give it, or _ for 0",
        ),
        (&["close", "1x"], "argument 1 of close: `1x` is no number"),
        (&["close", "99999999999"], "does not fit into 32 bits"),
        (&["write", "1", "@hex:0"], "two digits"),
        (&["read", "1", "_", "-1"], "too large"),
        (&["execve", "/bin/true"], "execve would replace the executor"),
        (&["exit_group", "0"], "exit_group would end the executor"),
        (&["fork"], "fork would copy the executor"),
        (&["rt_sigreturn"], "rt_sigreturn would load registers"),
    ] {
        let line = refusal(&[&[NOBODY], words].concat(), 2);
        assert!(line.contains(reason), "{line}");
    }
}

#[test]
fn options_know_two_owners() {
    let output = call(&["--files", "mine", NOBODY, "getpid"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("use caller or target"));
}

#[test]
fn a_process_that_is_not_there_cannot_be_attached_to() {
    assert!(refusal(&[NOBODY, "getpid"], 126).contains("there is no process"));
    assert!(refusal(&["0", "getpid"], 126).contains("0 is no process"));
    assert!(refusal(&["--", "-1", "getpid"], 126).contains("-1 is no process"));
}

#[test]
fn what_is_no_number_names_no_process() {
    let output = call(&["abc", "getpid"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("a process is named by its number") && !stderr.contains("digit"), "{stderr}");
}

#[test]
fn a_kernel_thread_cannot_be_attached_to() {
    // kthreadd; in a container number 2 is somebody else, or nobody.
    if !live::is_kernel_thread(2) {
        println!("SKIP: process 2 is no kernel thread here");
        return;
    }
    assert!(refusal(&["2", "getpid"], 126).contains("process 2"));
}

#[test]
fn a_process_tells_its_directory() {
    let Some(target) = Target::attachable() else { return };
    let directory = target.directory().display().to_string();
    assert_eq!(output(&[&target.pid(), "getcwd"]), format!("= {}\n{directory}\n", directory.len() + 1));
    assert!(target.is_unharmed());
}

#[test]
fn a_call_that_fails_says_why_and_leaves_status_1() {
    let Some(target) = Target::attachable() else { return };
    let output = call(&[&target.pid(), "open", "/no/such/file", "O_RDONLY"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "= -1 ENOENT (No such file or directory)\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(target.is_unharmed());
}

#[test]
fn a_descriptor_of_the_process_can_be_moved() {
    let Some(target) = Target::attachable() else { return };
    assert_eq!(output(&[&target.pid(), "--files", "target", "dup2", "0", "17"]), "= 17\n");
    assert!(target.link("fd/17").is_some(), "it is there after pvx has ended");
    assert_eq!(output(&[&target.pid(), "--files", "target", "close", "17"]), "= 0\n");
    assert!(target.link("fd/17").is_none());
    assert!(target.is_unharmed());
}

#[test]
fn descriptors_of_the_caller_are_not_those_of_the_process() {
    let Some(target) = Target::attachable() else { return };
    let before = target.descriptors();
    output(&[&target.pid(), "open", "/etc/hostname", "O_RDONLY"]);
    assert_eq!(target.descriptors(), before);
    assert!(target.is_unharmed());
}

#[test]
fn signal_handlers_of_the_process_can_be_asked_for() {
    let Some(shell) = Target::attachable_shell("trap '' USR1; while :; do sleep 1000; done") else { return };
    // A handler of 1 is SIG_IGN.
    let shown = output(&[&shell.pid(), "--handlers", "target", "rt_sigaction", "SIGUSR1"]);
    assert!(shown.contains("sa_handler_kernel  0x1\n"), "{shown}");
    assert!(shell.is_in_its_wait());
}

#[test]
fn memory_is_the_process_own() {
    let Some(target) = Target::attachable() else { return };
    let maps = target.maps();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).expect("it has a stack");
    let start = format!("0x{}", stack.split('-').next().expect("a range"));
    assert_eq!(output(&[&target.pid(), "madvise", &start, "4096", "MADV_WILLNEED"]), "= 0\n");
    assert!(target.is_unharmed());
}

#[test]
fn json_gives_result_and_buffers() {
    let Some(target) = Target::attachable() else { return };
    let json: Value = serde_json::from_str(&output(&["--json", &target.pid(), "getrlimit", "RLIMIT_NOFILE"]))
        .expect("JSON");
    assert_eq!(json["call"], "getrlimit");
    assert_eq!(json["result"], 0);
    assert_eq!(json["buffers"][0]["arg"], 2);
    assert!(json["buffers"][0]["fields"]["rlim_max"] != Value::Null);
    assert!(target.is_unharmed());
}

#[test]
fn an_error_in_json_has_its_number_and_its_name() {
    let Some(target) = Target::attachable() else { return };
    let output = call(&["--json", &target.pid(), "open", "/no/such/file", "O_RDONLY"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        json["error"],
        serde_json::json!({ "errno": 2, "name": "ENOENT", "message": "No such file or directory" })
    );
    assert!(target.is_unharmed());
}

#[test]
fn pvx_itself_is_no_target() {
    let own = ["-c", "exec \"$0\" call $$ getpid", env!("CARGO_BIN_EXE_pvx")];
    let output = Command::new("sh").args(own).output().expect("every machine has it");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(126), "{stderr}");
    assert!(stderr.ends_with(" is pvx itself; name another one\n"), "{stderr}");
}

#[test]
fn nothing_stays_mapped_in_the_process() {
    let Some(target) = Target::attachable() else { return };
    let before = target.maps();
    output(&[&target.pid(), "getcwd"]);
    assert_eq!(call(&[&target.pid(), "readlink", "/no/such/link"]).status.code(), Some(1));
    assert_eq!(target.maps(), before);
    assert!(target.is_unharmed());
}

#[test]
fn a_call_that_is_killed_while_it_waits_leaves_nothing() {
    let Some(target) = Target::attachable() else { return };
    let before = target.maps();
    let mut pvx = Command::new(env!("CARGO_BIN_EXE_pvx"))
        .args(["call", &target.pid(), "clock_nanosleep", "CLOCK_MONOTONIC", "0", "1000"])
        .spawn()
        .expect("pvx starts");
    assert!(live::soon(|| target.maps() != before), "it attaches");
    std::thread::sleep(std::time::Duration::from_millis(50));
    pvx.kill().expect("SIGKILL");
    pvx.wait().expect("its status");
    assert!(live::soon(|| target.maps() == before), "{}", target.maps());
    assert!(target.is_unharmed());
}
