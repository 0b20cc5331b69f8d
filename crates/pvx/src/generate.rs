//! What is made from the description of the command line itself: completions for shells, and manual pages.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{Cli, output};

/// Print completions for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  pvx completions bash > ~/.local/share/bash-completion/completions/pvx
  pvx completions zsh > ~/.zfunc/_pvx
  pvx completions fish > ~/.config/fish/completions/pvx.fish")]
pub(crate) struct CompletionsArgs {
    shell: Shell,
}

/// Write manual pages: pvx.1, and one for each subcommand.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  pvx manual --dir ~/.local/share/man/man1")]
pub(crate) struct ManualArgs {
    /// Where to; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Prints completions.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pvx", &mut script);
    output::print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes manual pages.
pub(crate) fn manual(args: &ManualArgs) -> Result<ExitCode> {
    let command = Cli::command().disable_help_subcommand(true);
    fs::create_dir_all(&args.dir)
        .and_then(|()| clap_mangen::generate_to(command, &args.dir))
        .with_context(|| format!("--dir {}: manual pages cannot be written there", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}
