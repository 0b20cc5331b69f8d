//! What must not compile, and with which error.

use std::process::Command;

/// Compilers put their errors into other words from time to time: `TRYBUILD=overwrite` writes them down anew.
const COMPILER: &str = "rustc 1.95.";

#[test]
fn misuse_does_not_compile() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().expect("a compiler").stdout;
    if version.starts_with(COMPILER.as_bytes()) {
        trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
    } else {
        println!("SKIP: errors are compared with those of {COMPILER}x");
    }
}
