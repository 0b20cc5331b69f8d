//! The target of `target.c`: built once per run, started in its variants, and asked how it is.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{ChildStdin, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use crate::common::{Killed, has, scratch, skip};

/// The sources, by their names for `#include`.
const SOURCES: &[(&str, &str)] = &[
    ("target.c", include_str!("target.c")),
    ("target/busy.h", include_str!("target/busy.h")),
    ("target/check.h", include_str!("target/check.h")),
    ("target/children.h", include_str!("target/children.h")),
    ("target/filter.h", include_str!("target/filter.h")),
    ("target/functions.h", include_str!("target/functions.h")),
    ("target/rseq.h", include_str!("target/rseq.h")),
    ("target/signals.h", include_str!("target/signals.h")),
    ("target/waits.h", include_str!("target/waits.h")),
];

/// How long a target may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the target is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Linked {
    Dynamically,
    Statically,
}

/// A running target.
#[derive(Debug)]
pub(crate) struct Target {
    /// The process that was started: the target, or a launcher that waits for it.
    child: Killed,
    pid: i32,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
    /// What it said at its start.
    pub(crate) first: Report,
}

/// A report: one line of JSON.
#[derive(Clone, Debug)]
pub(crate) struct Report(pub(crate) String);

impl Report {
    /// The number of this name; 0 if there is none.
    pub(crate) fn number(&self, name: &str) -> u64 {
        let rest = self.0.split_once(&format!("\"{name}\":")).map_or("", |(_, rest)| rest);
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().unwrap_or(0)
    }
}

/// Compiles C sources into a program; says why if that does not work.
pub(crate) fn compile(name: &str, source: &str, options: &[&str]) -> Result<PathBuf, String> {
    if !has("gcc") {
        return Err("no gcc".to_owned());
    }
    let source_path = scratch().join(source);
    let path = scratch().join(name);
    let output = Command::new("gcc")
        .args(["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"])
        .args(options)
        .arg("-o")
        .args([&path, &source_path])
        .output()
        .map_err(|error| format!("gcc: {error}"))?;
    if output.status.success() {
        Ok(path)
    } else {
        Err(format!("gcc {}: {}", options.join(" "), String::from_utf8_lossy(&output.stderr)))
    }
}

/// The program, if it can be built here.
fn program(linked: Linked) -> Option<PathBuf> {
    static DYNAMIC: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    static STATIC: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    static WRITTEN: OnceLock<()> = OnceLock::new();
    WRITTEN.get_or_init(|| {
        fs::create_dir_all(scratch().join("target")).expect("a directory for the sources");
        for (name, text) in SOURCES {
            fs::write(scratch().join(name), text).expect("the sources are written");
        }
    });
    let built = match linked {
        Linked::Dynamically => DYNAMIC.get_or_init(|| compile("dynamic", "target.c", &[])),
        Linked::Statically => STATIC.get_or_init(|| compile("static", "target.c", &["-static"])),
    };
    match built {
        Ok(path) => Some(path.clone()),
        // A machine may lack the static C library, but a warning is an error of ours.
        Err(why) if why.contains("warning") || why.contains("error:") && why.contains("target") => {
            panic!("{why}")
        }
        Err(why) => {
            skip(why);
            None
        }
    }
}

/// Adds the options that every target has, and `options`, which win.
fn with_options<'a>(command: &'a mut Command, options: &[&str]) -> &'a mut Command {
    // A machine with more to do than processors lets a thread wait for seconds. A wait that begins anew each time that it is
    // disturbed never ends.
    let slack_ms = env::var("PVX_SLACK_MS").ok().and_then(|text| text.parse().ok()).unwrap_or(5000);
    // While somebody attaches, there is a helper thread for some 100 us.
    command.args([&format!("--slack-ms={slack_ms}"), "--slack-task"]).args(options)
}

impl Target {
    /// Starts one, and waits until all of its workers are there. Nothing if it cannot be built here.
    pub(crate) fn start(options: &[&str]) -> Option<Self> {
        Self::start_linked(Linked::Dynamically, options)
    }

    pub(crate) fn start_linked(linked: Linked, options: &[&str]) -> Option<Self> {
        let program = program(linked)?;
        Some(Self::spawn(with_options(&mut Command::new(program), options)))
    }

    /// Starts one whose program has this name.
    pub(crate) fn start_as(name: &OsStr, options: &[&str]) -> Option<Self> {
        let path = scratch().join(name);
        fs::copy(program(Linked::Dynamically)?, &path).expect("a copy of the program");
        Some(Self::spawn(with_options(&mut Command::new(path), options)))
    }

    /// Starts one by a command that executes it, or has a child of its own execute it.
    pub(crate) fn start_by(launcher: &[&str], options: &[&str]) -> Option<Self> {
        let program = program(Linked::Dynamically)?;
        let mut command = Command::new(launcher[0]);
        command.args(&launcher[1..]).arg(&program);
        let mut target = Self::spawn(with_options(&mut command, options));
        let is_target = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        while !is_target(target.pid) {
            let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", target.pid));
            let children = children.expect("what the launcher has started");
            target.pid = children.trim().parse().expect("one child");
        }
        Some(target)
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        command.current_dir("/");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the target");
        let input = child.stdin.take().expect("its input");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let first = Report(String::new());
        let child = Killed(child);
        let mut target = Self { pid: child.pid(), child, input, lines, first };
        target.first = Report(target.line());
        target
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// The next line that it writes; a failed check of its own fails the test.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) if line.starts_with("FAIL") => panic!("the target says: {line}"),
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the target does not answer"),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                panic!("the target has ended: {}", self.child.0.wait().expect("its status"))
            }
        }
    }

    pub(crate) fn say(&mut self, line: &str) {
        // If it has ended, its own last line says more than a broken pipe does.
        let _ = writeln!(self.input, "{line}");
    }

    /// All of its checks have held so far.
    #[track_caller]
    pub(crate) fn report(&mut self) -> Report {
        self.say("report");
        Report(self.line())
    }

    /// It has gone on since `before`.
    #[track_caller]
    pub(crate) fn check_goes_on(&mut self, before: &Report) -> Report {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let report = self.report();
            if report.number("rounds") > before.number("rounds") {
                return report;
            }
            assert!(std::time::Instant::now() < end, "the target makes no progress");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end; its last line, if it wrote another one.
    pub(crate) fn end(mut self) -> (ExitStatus, Option<String>) {
        let status = self.child.0.wait().expect("its status");
        (status, self.lines.iter().last())
    }

    /// The last line of one that has ended, whoever has taken its status.
    pub(crate) fn last_line(self) -> Option<String> {
        self.lines.iter().last()
    }

    /// Has it check everything once more and end.
    #[track_caller]
    pub(crate) fn quit(mut self) -> Report {
        self.say("quit");
        let report = Report(self.line());
        let (status, more) = self.end();
        assert!(status.success() && more.is_none(), "the target ended with {status}, and said {more:?}");
        report
    }
}
