//! Debian packages that building and testing need.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use super::cache::Cache;
use crate::step;

/// A file or command that has to be there, and the package that has it.
type Need = (&'static str, &'static str);

/// For [`BUILD`]; the tarball that it has is what is built.
pub(super) const SOURCE: &str = "linux-source-6.12";

/// What compiles the kernel. rustc comes from Debian too, since the kernel needs the source of its standard library and a
/// libclang that fits.
pub(super) const BUILD: &[Need] = &[
    ("/usr/src/linux-source-6.12.tar.xz", SOURCE),
    ("/usr/bin/rustc", "rustc-web"),
    ("/usr/lib/rustlib/src/rust/library/core/src/lib.rs", "rust-web-src"),
    ("/usr/lib/x86_64-linux-gnu/libclang-19.so.1", "libclang1-19"),
    ("/usr/lib/llvm-19/lib/clang/19/include/stddef.h", "libclang-common-19-dev"),
    ("gcc", "gcc"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("patch", "patch"),
    ("xz", "xz-utils"),
    ("/usr/include/libelf.h", "libelf-dev"),
];

/// What makes the initramfs, and boots it.
pub(super) const TEST: &[Need] = &[
    ("gcc", "gcc"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("strip", "binutils"),
    ("busybox", "busybox-static"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
];

/// Installs those that are missing, or says how to.
pub(super) fn ensure(needs: &[Need]) -> Result<()> {
    let mut missing: Vec<&str> =
        needs.iter().filter(|(name, _)| find(name).is_none()).map(|&(_, package)| package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        bail!("not installed: {0}. Do: sudo apt-get install --no-install-recommends {0}", missing.join(" "));
    }
    let logs = tempfile::tempdir()?;
    // Without an update, a fresh container knows no packages.
    step::run("apt-get update", Command::new("apt-get").arg("update"), &logs.path().join("update.log"))?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "--no-install-recommends"]).args(&missing);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    step::run(&format!("installing {}", missing.join(" ")), &mut install, &logs.path().join("install.log"))
}

/// The command bindgen, which is no Debian package of 12; cargo installs it.
pub(super) fn bindgen(cache: &Cache) -> Result<PathBuf> {
    let cargo_home =
        env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let installed = cargo_home.map(|home| home.join("bin/bindgen"));
    if let Some(path) = find("bindgen").or_else(|| installed.clone().filter(|path| path.exists())) {
        return Ok(path);
    }
    let mut install = Command::new("cargo");
    install.args(["install", "bindgen-cli", "--locked"]);
    step::run("cargo install bindgen-cli", &mut install, &cache.log("bindgen"))?;
    match find("bindgen").or(installed) {
        Some(path) => Ok(path),
        None => bail!("cargo has installed bindgen, but it is not in PATH: add cargo's bin directory to it"),
    }
}

/// Where a file or command is.
fn find(name: &str) -> Option<PathBuf> {
    let is_there = |path: &PathBuf| path.exists();
    if Path::new(name).is_absolute() {
        return Some(PathBuf::from(name)).filter(is_there);
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(is_there)
}
