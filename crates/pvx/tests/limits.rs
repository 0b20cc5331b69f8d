//! Where the limits of setrlimit(2) are in the way, the error names the one to raise.

mod support;

use support::{PVX, Place, Seen, engines};

/// `pvx run /bin/true`, as it ends after this command of a shell.
fn after(shell: &str, engine: &str) -> Seen {
    let script = format!("{shell} && exec \"$0\" run --engine {engine} /bin/true");
    Place::new().native(&["sh", "-c", &script, PVX])
}

#[test]
fn who_may_have_few_descriptors_is_told_which_limit_to_raise() {
    for engine in engines() {
        for count in 5..=24 {
            let seen = after(&format!("ulimit -n {count}"), engine.name());
            let told = seen.status == 1
                && seen.stderr.ends_with("(os error 24); raise RLIMIT_NOFILE (`ulimit -n`)\n")
                && !seen.stderr.contains("memfd_noexec");
            let runs = count >= 18 && seen.status == 0;
            assert!(told || runs, "{engine}, {count}: {seen:?}");
        }
    }
}

#[test]
fn who_may_write_small_files_only_is_told_which_limit_to_raise() {
    for engine in engines() {
        for blocks in [0, 1, 1 << 20] {
            let seen = after(&format!("ulimit -f {blocks}"), engine.name());
            let told = seen.stderr.ends_with("(os error 27); raise RLIMIT_FSIZE (`ulimit -f`)\n");
            assert!(seen.status == 1 && told, "{engine}, {blocks}: {seen:?}");
        }
    }
}

#[test]
fn who_may_not_open_an_interpreter_for_its_number_is_told_which_limit_to_raise() {
    let seen = after("ulimit -n 4", "trap");
    assert!(seen.stderr.ends_with("(os error 24); raise RLIMIT_NOFILE (`ulimit -n`)\n"), "{seen:?}");
}
