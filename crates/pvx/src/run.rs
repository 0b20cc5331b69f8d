//! `pvx run`: a program under the application kernel.

use std::process::ExitCode;

/// Run a program under the application kernel.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {}

/// Runs it; its exit status becomes this process's.
pub(crate) fn run(_args: RunArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
