//! The traces of `pvx run`: what strace(1) would print.

mod support;

use std::fs;

use support::{Place, engines};

#[test]
fn a_trace_names_calls_flags_and_errors() {
    let place = Place::new();
    for engine in engines() {
        let seen = place.guest(&["--engine", engine.name(), "--trace"], &["cat", "/nope"]);
        assert_eq!(seen.status, 1);
        let error = "= -1 ENOENT (No such file or directory)";
        let open = |line: &&str| {
            line.starts_with("open") && line.contains("\"/nope\", O_RDONLY") && line.ends_with(error)
        };
        assert!(seen.stderr.lines().any(|line| open(&line)), "{engine}: {}", seen.stderr);
        assert!(
            seen.stderr.contains("exit_group(1) = ?\n+++ exited with 1 +++"),
            "{engine}: {}",
            seen.stderr
        );
    }
}

#[test]
fn a_trace_can_go_to_a_file_and_counts_to_standard_error() {
    let place = Place::new();
    let seen = place.guest(&["--trace-file", "trace", "--stats"], &["/bin/echo", "hello"]);
    assert_eq!((seen.status, seen.stdout.as_str()), (0, "hello\n"));
    assert!(fs::read_to_string(place.path("trace")).unwrap().contains("write(1, \"hello\\n\", 6) = 6"));
    assert!(seen.stderr.lines().any(|line| line.trim() == "1  write"), "{}", seen.stderr);
}

/// The lines of the trace of a shell's script.
fn trace(place: &Place, script: &str) -> Vec<String> {
    let seen = place.guest(&["--trace-file", "trace"], &["/bin/sh", "-c", script]);
    assert_eq!(seen.status, 0, "{}", seen.stderr);
    fs::read_to_string(place.path("trace")).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_trace_begins_with_the_execve_that_started_the_program() {
    let place = Place::new();
    let script = place.executable("script", "#!/bin/sh -e\nexit\n");
    let script = script.to_str().unwrap();
    for words in [&["/bin/sh", "-c", "exit"][..], &[script, "one"]] {
        let all = [&["env", "-i", "A=1", "B=2", support::PVX, "run", "--trace"], words].concat();
        let seen = place.native(&all);
        let first = seen.stderr.lines().next().unwrap_or_default();
        let begins = format!("execve(\"{}\", {words:?}, 0x", words[0]);
        assert!(first.starts_with(&begins) && first.ends_with(" /* 2 vars */) = 0"), "{words:?}: {first}");
    }
}

#[test]
fn a_trace_counts_the_variables_that_a_program_passes_on() {
    let lines = trace(&Place::new(), "exec env -i A=1 /bin/true");
    let passes_one = |line: &String| {
        line.starts_with("execve(\"/bin/true\", [\"/bin/true\"], 0x") && line.ends_with(" /* 1 var */) = 0")
    };
    assert!(lines.iter().any(passes_one), "{lines:#?}");
}

#[test]
fn a_trace_has_permissions_where_files_are_made_and_nowhere_else() {
    let lines = trace(&Place::new(), "umask 27; umask 0; : >new; : <new");
    let opens: Vec<_> = lines.iter().filter(|line| line.contains("\"new\"")).collect();
    assert!(opens[0].contains("O_CREAT") && opens[0].contains(", 0666) = "), "{opens:#?}");
    assert!(opens[1].contains("\"new\", O_RDONLY) = "), "{opens:#?}");
    assert!(lines.iter().any(|line| line == "umask(000) = 027"), "{lines:#?}");
}
