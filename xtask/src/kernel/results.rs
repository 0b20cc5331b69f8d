//! What a program in the guest has printed, and what that means: TAP (the kernel's
//! Documentation/dev-tools/ktap.rst), the words of Rust's test harness, or just an exit status.

use std::{mem, time::Instant};

use serde::Serialize;

/// Statuses by which a program skips all of itself: the kernel's self-tests', and the C API tests' own.
const SKIPPED: [i32; 2] = [4, 77];
/// What `timeout -s KILL` ends with.
const KILLED: i32 = 137;
/// Lines of output that are kept for a program that fails as a whole.
const TAIL_LINES: usize = 40;

/// How one claim went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// One claim of a program.
#[derive(Debug, Serialize)]
pub(super) struct Test {
    pub(super) name: String,
    pub(super) outcome: Outcome,
    /// What the program says about it.
    pub(super) diagnostics: Vec<String>,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    NotYet,
    With(i32),
}

/// A program that has begun.
#[derive(Debug, Serialize)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) seconds: f64,
    pub(super) tests: Vec<Test>,
    /// `SKIP: why`
    pub(super) skips: Vec<String>,
    /// What is wrong besides failed tests.
    pub(super) problems: Vec<String>,
    #[serde(skip)]
    reader: Reader,
}

#[derive(Debug)]
struct Reader {
    started: Instant,
    ended: Ended,
    format: Format,
    /// The last lines.
    tail: Vec<String>,
}

#[derive(Debug)]
enum Format {
    /// Not known until a line tells.
    Plain,
    Tap {
        planned: Option<usize>,
        diagnostics: Vec<String>,
    },
    Rust {
        finished: bool,
        shown: Option<usize>,
    },
}

impl Program {
    pub(super) fn begin(name: &str) -> Self {
        let reader =
            Reader { started: Instant::now(), ended: Ended::NotYet, format: Format::Plain, tail: Vec::new() };
        Self {
            name: name.to_owned(),
            seconds: 0.0,
            tests: Vec::new(),
            skips: Vec::new(),
            problems: vec!["it has not ended".to_owned()],
            reader,
        }
    }

    /// Takes a line that the program has printed.
    pub(super) fn say(&mut self, line: &str) {
        if self.reader.tail.len() == TAIL_LINES {
            self.reader.tail.remove(0);
        }
        self.reader.tail.push(line.to_owned());
        if let Some((_, why)) = line.split_once("SKIP: ") {
            self.skips.push(format!("SKIP: {why}"));
        }
        match &mut self.reader.format {
            Format::Plain if line.starts_with("TAP version ") => {
                self.reader.format = Format::Tap { planned: None, diagnostics: Vec::new() };
            }
            Format::Plain if line.starts_with("running ") && line.ends_with(" tests") => {
                self.reader.format = Format::Rust { finished: false, shown: None };
            }
            Format::Plain => {}
            Format::Tap { planned, diagnostics } => {
                if let Some(count) = line.strip_prefix("1..") {
                    *planned = count.split(' ').next().and_then(|count| count.parse().ok());
                } else if let Some((name, outcome)) = tap_result(line) {
                    if outcome == Outcome::Skipped {
                        self.skips.push(format!("SKIP: {name}"));
                    }
                    self.tests.push(Test { name, outcome, diagnostics: mem::take(diagnostics) });
                } else if !line.is_empty() {
                    diagnostics.push(line.trim_start_matches("# ").to_owned());
                }
            }
            Format::Rust { finished, shown } => {
                if let Some((name, outcome)) = rust_result(line) {
                    self.tests.push(Test { name: name.to_owned(), outcome, diagnostics: Vec::new() });
                } else if line.starts_with("test result: ") {
                    *finished = true;
                } else if let Some(name) = shown_test(line) {
                    *shown = self.tests.iter().position(|test| test.name == name);
                } else if let (Some(index), false) = (*shown, line.is_empty()) {
                    self.tests[index].diagnostics.push(line.to_owned());
                }
            }
        }
    }

    /// The program has ended: everything that can be wrong with it is known now.
    pub(super) fn end(&mut self, ended: Ended) {
        self.reader.ended = ended;
        self.seconds = self.reader.started.elapsed().as_secs_f64();
        self.problems.clear();
        match &self.reader.format {
            Format::Tap { planned: Some(planned), .. } if *planned == self.tests.len() => {}
            Format::Tap { planned: Some(planned), .. } => {
                self.problems
                    .push(format!("it planned {planned} tests, and has told of {}", self.tests.len()));
            }
            Format::Tap { planned: None, .. } => self.problems.push("it has printed no plan".to_owned()),
            Format::Rust { finished: false, .. } => {
                self.problems.push("it has not told of its end".to_owned())
            }
            Format::Rust { .. } | Format::Plain => {}
        }
        match ended {
            Ended::With(0) => {}
            Ended::With(status) if SKIPPED.contains(&status) => {
                if self.skips.is_empty() {
                    self.skips.push("SKIP: it does not say why".to_owned());
                }
            }
            Ended::With(KILLED) => self.problems.push("killed at its time limit".to_owned()),
            Ended::With(status) if self.count(Outcome::Failed) == 0 => {
                self.problems.push(format!("exit status {status}"));
            }
            Ended::With(_) | Ended::NotYet => {}
        }
        if !self.problems.is_empty() {
            self.problems.push("the end of its output:".to_owned());
            self.problems.append(&mut self.reader.tail);
        }
    }

    pub(super) fn count(&self, outcome: Outcome) -> usize {
        self.tests.iter().filter(|test| test.outcome == outcome).count()
    }

    pub(super) fn outcome(&self) -> Outcome {
        if !self.problems.is_empty() || self.count(Outcome::Failed) > 0 {
            Outcome::Failed
        } else if matches!(self.reader.ended, Ended::With(status) if SKIPPED.contains(&status)) {
            Outcome::Skipped
        } else {
            Outcome::Passed
        }
    }
}

/// `ok 1 - name`, `not ok 2 name`, `ok 3 - name # SKIP why`
fn tap_result(line: &str) -> Option<(String, Outcome)> {
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (Outcome::Failed, rest),
        None => (Outcome::Passed, line.strip_prefix("ok ")?),
    };
    let name = rest.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches([' ', '-']);
    Some(match name.split_once(" # SKIP") {
        Some((name, why)) => (format!("{name}: {}", why.trim()), Outcome::Skipped),
        None => (name.to_owned(), passed),
    })
}

/// `test name ... ok`
fn rust_result(line: &str) -> Option<(&str, Outcome)> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let outcome = match result.split(',').next() {
        Some("ok") => Outcome::Passed,
        Some("ignored") => Outcome::Skipped,
        Some("FAILED") => Outcome::Failed,
        _ => return None,
    };
    Some((name, outcome))
}

/// `---- name stdout ----`
fn shown_test(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(output: &str, status: i32) -> Program {
        let mut program = Program::begin("test");
        output.lines().for_each(|line| program.say(line));
        program.end(Ended::With(status));
        program
    }

    #[test]
    fn tap_is_understood() {
        let program = program(
            "TAP version 13\n1..3\nok 1 - one\n# why\nnot ok 2 - two\nok 3 - three # SKIP no such thing\n",
            1,
        );
        let outcomes: Vec<_> = program.tests.iter().map(|test| test.outcome).collect();
        assert_eq!(outcomes, [Outcome::Passed, Outcome::Failed, Outcome::Skipped]);
        assert_eq!(program.tests[1].diagnostics, ["why"]);
        assert_eq!(program.skips, ["SKIP: three: no such thing"]);
        assert_eq!((program.outcome(), program.problems.len()), (Outcome::Failed, 0));
    }

    #[test]
    fn a_program_that_breaks_off_has_failed() {
        assert_eq!(program("TAP version 13\n1..2\nok 1 - one\n", 0).outcome(), Outcome::Failed);
        assert_eq!(program("TAP version 13\nok 1 - one\n", 0).outcome(), Outcome::Failed);
        assert_eq!(program("TAP version 13\n1..1\nok 1 - one\n", 139).outcome(), Outcome::Failed);
        assert_eq!(program("running 2 tests\ntest a ... ok\n", 0).outcome(), Outcome::Failed);
        assert_eq!(program("", 137).outcome(), Outcome::Failed);
        assert_eq!(Program::begin("test").outcome(), Outcome::Failed);
    }

    #[test]
    fn rusts_harness_is_understood() {
        let program = program(
            "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\nSKIP: half of it\n\
             panicked\n\ntest result: FAILED. 1 passed; 1 failed\n",
            101,
        );
        assert_eq!((program.count(Outcome::Passed), program.count(Outcome::Failed)), (1, 1));
        assert_eq!(program.tests[1].diagnostics, ["SKIP: half of it", "panicked"]);
        assert_eq!(program.skips, ["SKIP: half of it"]);
        assert!(program.problems.is_empty());
    }

    #[test]
    fn a_plain_program_has_its_status() {
        assert_eq!(program("hello\n", 0).outcome(), Outcome::Passed);
        assert_eq!(program("SKIP: no target\n", 77).outcome(), Outcome::Skipped);
        assert_eq!(program("oh\n", 1).problems, ["exit status 1", "the end of its output:", "oh"]);
    }
}
