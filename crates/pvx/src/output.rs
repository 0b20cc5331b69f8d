//! Standard output and standard error. What cannot be written there is told where that is possible, and never a panic.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Prints `report` on standard output: as JSON, or in the words of `text`.
///
/// # Errors
/// As [`print()`].
pub(crate) fn report<T: Serialize>(report: &T, json: bool, text: impl FnOnce(&T) -> String) -> Result<()> {
    if json { print(&(serde_json::to_string_pretty(report)? + "\n")) } else { print(&text(report)) }
}

/// Writes `text` to standard output.
///
/// # Errors
/// If it cannot be written. A reader that has gone away is no error: it has read what it wanted.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

/// Writes a line to standard error. Where nobody listens (any more), the exit status still tells.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
