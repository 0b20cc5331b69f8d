//! Long commands: one line of progress while they run, a log, and the log's end if they fail.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write, pipe},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Lines of a log that an error shows.
const TAIL_LINES: usize = 30;
/// Steps that take less are not worth a line.
const WORTH_TELLING: Duration = Duration::from_secs(2);

/// A line on the terminal that says what is going on. Not there if standard error is not a terminal.
pub(crate) fn progress(name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}");
    let bar = ProgressBar::new_spinner().with_prefix(name.to_owned()).with_style(style.expect("a template"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Runs `command`, with everything it prints in the file `log`.
pub(crate) fn run(name: &str, command: &mut Command, log: &Path) -> Result<()> {
    let started = Instant::now();
    let bar = progress(name);
    if bar.is_hidden() {
        eprintln!("{name} ...");
    }
    let mut file = File::create(log).with_context(|| format!("cannot write the log {}", log.display()))?;
    let (reader, writer) = pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    // The command holds the pipe's other ends, and would keep the loop below from ending.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    for line in BufReader::new(reader).split(b'\n') {
        let mut line = line?;
        bar.set_message(String::from_utf8_lossy(&line).trim().to_owned());
        line.push(b'\n');
        file.write_all(&line)?;
    }
    let status = child.wait()?;
    bar.finish_and_clear();
    if !status.success() {
        bail!(
            "{name}: {program}: {status}. The log is {}, and ends like this:\n{}",
            log.display(),
            tail(log)?
        );
    }
    if started.elapsed() >= WORTH_TELLING {
        eprintln!("{name}: {} s", started.elapsed().as_secs());
    }
    Ok(())
}

fn tail(log: &Path) -> Result<String> {
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}

/// What `command` prints on standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}\n{said}", output.status);
    }
    let mut text = String::new();
    output.stdout.as_slice().read_to_string(&mut text)?;
    Ok(text)
}
