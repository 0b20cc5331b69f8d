//! What programs under `pvx run` cannot do to the supervisor, and that they are refused as Linux refuses.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    process::Stdio,
};

use support::{PVX, Place, Seen, engines};

/// A user without rights.
const NOBODY: &str = "65534";

/// Runs a program from `guests` with each engine: every claim that it prints holds.
fn claims_hold(name: &str) {
    let place = Place::new();
    if !place.compile(name, &["gcc"]) {
        return;
    }
    for engine in engines() {
        let seen = place.guest(&["--engine", engine.name()], &[&format!("./{name}")]);
        let broken: Vec<_> = seen.stdout.lines().filter(|line| line.ends_with(": 0")).collect();
        assert!(broken.is_empty(), "{engine}: {broken:#?}\n{seen:?}");
        assert!(seen.status == 0 && seen.stdout.contains(": 1"), "{engine}: {seen:?}");
    }
}

#[test]
fn the_own_directory_in_proc_is_the_programs_by_whatever_path() {
    let place = Place::new();
    if place.compile("proc", &["gcc"]) {
        let clean = || {
            for name in ["made", "moved", "linked", "file"] {
                let _ = fs::remove_file(place.path(name));
            }
        };
        place.same_after(clean, &["./proc"]);
        clean();
        let seen = place.native(&["./proc"]);
        assert!(seen.status == 7 && !seen.stdout.contains(": 0"), "{seen:?}");
    }
}

#[test]
fn nothing_of_the_supervisor_is_reached_by_paths_and_numbers() {
    claims_hold("hostile");
}

#[test]
fn another_proc_shows_no_process() {
    let place = Place::new();
    if !place.compile("mounts", &["gcc"]) {
        return;
    }
    let mount = "mkdir new bound self && mount -t proc proc new && mount --bind /proc bound && \
                 mount --bind /proc/$$ self || exit 77; exec \"$0\" run ./mounts";
    let seen = place.native(&[
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        mount,
        PVX,
    ]);
    if seen.status == 77 || seen.stderr.contains("unshare") {
        return println!("SKIP: nothing can be mounted in a namespace here: {seen:?}");
    }
    assert!(seen.status == 0 && !seen.stdout.contains(": 0"), "{seen:?}");
}

/// Words that run a program as [`NOBODY`], if this is root.
fn as_nobody<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let prefix: &[&str] = if rustix::process::geteuid().is_root() {
        &["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    } else {
        &[]
    };
    [prefix, words].concat()
}

/// A directory that everybody may enter, with `pvx` and a program from `guests`.
fn for_everybody(name: &str) -> Option<Place> {
    let place = Place::new();
    fs::set_permissions(place.path("."), fs::Permissions::from_mode(0o755)).expect("its owner may");
    place.executable("pvx", fs::read(PVX).expect("it was built"));
    place.compile(name, &["gcc"]).then_some(place)
}

#[test]
fn a_user_without_rights_may_become_whom_linux_lets_it() {
    let Some(place) = for_everybody("ids") else { return };
    let native = place.native(&as_nobody(&["./ids"]));
    assert_eq!(native.status, 0, "{native:?}");
    for engine in engines() {
        let words = as_nobody(&["./pvx", "run", "--engine", engine.name(), "--", "./ids"]);
        assert_eq!(place.native(&words), native, "{engine}");
    }
}

#[test]
fn root_stays_root_and_is_told_so() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: this is not root");
        return;
    }
    let place = Place::new();
    if !place.compile("ids", &["gcc"]) {
        return;
    }
    for engine in engines() {
        let seen = place.guest(&["--engine", engine.name()], &["./ids"]);
        let ids = "0 0 0, 0 0 0";
        for line in seen.stdout.lines().filter(|line| line.contains("; ")) {
            assert!(line.ends_with(ids), "{engine}: {line}");
            // Of the ids that the program tries, 1 is another's.
            let (call, answer) = line.split_once(": ").expect("a call and its answer");
            let is_set =
                call.starts_with("setuid") || call.starts_with("setre") || call.starts_with("setgid");
            let changes = call.split(' ').skip(1).any(|id| id == "1");
            if is_set && changes {
                assert!(answer.starts_with("-1 EPERM"), "{engine}: {line}");
            } else if is_set && !call.starts_with("setuid -1") && !call.starts_with("setgid -1") {
                assert!(answer.starts_with("0 "), "{engine}: {line}");
            }
        }
        for (call, answer) in [
            ("setuid -1 0 0", "-1 EINVAL"),
            ("setgroups 131072 0 0", "-1 EINVAL"),
            ("setgroups -1 0 0", "-1 EINVAL"),
            ("capset 0 0 0", "0 "),
            ("capset 1 0 0", "-1 EPERM"),
            ("capset 2 0 0", "-1 EINVAL"),
        ] {
            let line = format!("{call}: {answer}");
            assert!(seen.stdout.lines().any(|seen| seen.starts_with(&line)), "{engine}: {line}; {seen:?}");
        }
    }
}

#[test]
fn registers_that_no_processor_takes_are_the_programs_own_fault() {
    let place = Place::new();
    if place.compile("jumps", &["gcc"]) {
        for way in 0..28 {
            place.same(&["./jumps", &way.to_string()]);
        }
    }
}

#[test]
fn no_numbers_that_a_program_passes_end_the_supervisor() {
    let place = Place::new();
    if place.compile("extremes", &["gcc"]) {
        let seen = place.guest(&[], &["./extremes"]);
        // What it lacks is listed at the end.
        assert_eq!((seen.status, seen.stdout.as_str()), (42, ""), "{seen:?}");
        assert!(!seen.stderr.contains("panicked"), "{seen:?}");
    }
}

#[test]
fn a_timer_for_which_there_is_no_thread_is_an_error() {
    let Some(place) = for_everybody("timer") else { return };
    let words = as_nobody(&["./pvx", "run", "./timer"]);
    let mut child = place
        .command(&words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it is installed");
    let mut ready = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    out.read_line(&mut ready).expect("a line");
    assert_eq!(ready, "ready\n");
    let pid = child.id().to_string();
    let limited = place.native(&as_nobody(&["prlimit", "--pid", &pid, "--nproc=0:0"]));
    assert_eq!(limited.status, 0, "{limited:?}");
    child.stdin.take().expect("a pipe").write_all(b"go").expect("it reads");
    let mut answer = String::new();
    out.read_line(&mut answer).expect("a line");
    let seen = Seen::of(child.wait_with_output().expect("it ends"));
    assert_eq!((answer.as_str(), seen.status), ("EAGAIN, then the first goes on\n", 0), "{seen:?}");
}

#[test]
fn a_program_without_random_numbers_does_not_start() {
    let place = Place::new();
    if place.compile("filtered", &["gcc"]) {
        let seen = place.native(&["./filtered", PVX, "run", "/bin/true"]);
        if seen.status == 77 {
            println!("SKIP: no filters here");
            return;
        }
        assert!(seen.status != 0 && seen.stderr.contains("getrandom"), "{seen:?}");
    }
}
