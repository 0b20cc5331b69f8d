//! A machine, or a container, that has no /proc: every command says so.

use std::process::{Command, Output};

/// Runs pvx where an empty file system lies over /proc; `None` if that cannot be had here.
fn without_proc(words: &[&str]) -> Option<Output> {
    const HIDE: &str = "mount -t tmpfs none /proc || exit 77; exec \"$0\" \"$@\"";
    let namespaces = ["--user", "--map-root-user", "--mount"];
    let mut command = Command::new("unshare");
    command.args(namespaces).args(["sh", "-c", HIDE, env!("CARGO_BIN_EXE_pvx")]).args(words);
    match command.output() {
        Ok(output)
            if output.status.code() != Some(77)
                && !String::from_utf8_lossy(&output.stderr).contains("unshare") =>
        {
            Some(output)
        }
        other => {
            println!("SKIP: /proc cannot be hidden in a namespace here: {other:?}");
            None
        }
    }
}

#[test]
fn commands_that_need_proc_say_that_it_is_missing_and_what_to_do() {
    for (words, status) in [
        (&["run", "true"][..], 1),
        (&["run", "/bin/true"], 1),
        (&["inspect", "1"], 1),
        (&["call", "1", "getpid"], 126),
        (&["bench", "--seconds", "0.1"], 1),
    ] {
        let Some(output) = without_proc(words) else { return };
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {stderr}");
        assert_eq!(stderr, "pvx: /proc is needed and is not there; mount it: mount -t proc proc /proc\n");
    }
}

#[test]
fn check_tests_for_proc_and_calls_nothing_missing_that_it_could_not_look_for() {
    let Some(output) = without_proc(&["check", "--json"]) else { return };
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert!(report["best"].is_null(), "{report}");
    let features = report["features"].as_array().expect("features");
    let named = |name: &str| features.iter().find(|feature| feature["name"] == name);
    assert_eq!(named("/proc").expect("it is a requirement")["present"], false);
    assert!(named("seccomp").is_none(), "{report}");
    for engine in report["engines"].as_array().expect("engines") {
        assert!(engine["lacks"].as_str().is_some_and(|lacks| lacks.contains("/proc")), "{engine}");
    }
}
