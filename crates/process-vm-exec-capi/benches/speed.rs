//! What the C function takes, beside ptrace(2) for the same. Two processors have to be idle.

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::{Command, exit};

use support::{CRATE, compile, has};

fn main() {
    if !has("gcc") {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let program = compile(&PathBuf::from(format!("{CRATE}/benches/speed.c")), &place);
    let status = Command::new(program).status().expect("it starts");
    exit(status.code().unwrap_or(1));
}
