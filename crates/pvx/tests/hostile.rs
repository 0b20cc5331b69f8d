//! What programs under `pvx run` cannot do to the supervisor, and that they are refused as Linux refuses.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    process::Stdio,
};

use support::{PVX, Place, Seen};

/// A user without rights.
const NOBODY: &str = "65534";

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
fn registers_that_no_processor_takes_are_the_programs_own_fault() {
    let place = Place::new();
    if place.compile("jumps", &["gcc"]) {
        for way in 0..28 {
            place.same(&["./jumps", &way.to_string()]);
        }
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
