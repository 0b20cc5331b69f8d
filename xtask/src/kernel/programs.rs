//! The programs that run in the guest: the self-tests in C, the library's own tests, and `pvx bench`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    cache::{self, Cache},
    config::Config,
    image::short,
    initramfs::Archive,
};
use crate::step;

/// How the self-tests are compiled.
const FLAGS: [&str; 9] =
    ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-fno-stack-protector"];
/// Compiled self-tests that the cache keeps.
const KEPT_PROGRAMS: usize = 200;
/// The library's unit tests and its conformance suite, and the tests of each that are about this kernel: the claims
/// about the other engines hold or not on any, and take long under emulation.
const LIBRARY_TESTS: [(&str, &str); 3] =
    [("process_vm_exec", ""), ("conformance", "native::"), ("process_vm_exec_capi", "")];

/// The self-test that is for one kernel beside another, and needs a machine of its own.
const OVERHEAD: &str = "selftests/overhead";

/// What the caller asks for.
#[derive(Debug)]
pub(super) struct Selection {
    /// Names of programs or groups; none means all but [`OVERHEAD`], which has to be named.
    pub(super) only: Vec<String>,
    /// How long stress and fuzzer take each.
    pub(super) storm_seconds: u32,
}

/// A program of this machine that is to run in the guest.
#[derive(Debug)]
pub(super) struct Program {
    /// Its group and its own name: `selftests/run`.
    name: String,
    path: PathBuf,
    arguments: String,
    limit: Duration,
}

/// A line of the guest's plan.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) name: String,
    command: String,
    pub(super) limit: Duration,
}

impl Selection {
    pub(super) fn everything() -> Self {
        Self { only: Vec::new(), storm_seconds: 5 }
    }

    /// What counts instructions.
    pub(super) fn overhead() -> Self {
        Self { only: vec![OVERHEAD.to_owned()], ..Self::everything() }
    }

    fn has(&self, name: &str) -> bool {
        let has_group = |only: &String| name.starts_with(&format!("{only}/"));
        self.only.iter().any(|only| name == only)
            || (name != OVERHEAD && (self.only.is_empty() || self.only.iter().any(has_group)))
    }

    fn has_some_of(&self, group: &str) -> bool {
        self.has(group) || self.only.iter().any(|only| only.starts_with(&format!("{group}/")))
    }
}

/// Builds the programs that are asked for, in the order in which they are to run.
pub(super) fn build(root: &Path, cache: &Cache, selection: &Selection) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    if selection.has_some_of("selftests") {
        programs.extend(selftests(root, cache, selection)?);
    }
    if selection.has_some_of("library") {
        programs.extend(library(root, cache)?.into_iter().filter(|program| selection.has(&program.name)));
    }
    for only in &selection.only {
        let known = programs
            .iter()
            .any(|program| &program.name == only || program.name.starts_with(&format!("{only}/")));
        ensure!(
            known,
            "--only {only}: no such program; use selftests, library, or one of theirs: selftests/run"
        );
    }
    Ok(programs)
}

/// What the guest is to run, with limits for `config`.
pub(super) fn plan(programs: &[Program], config: Config) -> Vec<Planned> {
    let planned = |program: &Program| Planned {
        name: program.name.clone(),
        command: format!("/tests/{} {}", program.name, program.arguments),
        limit: program.limit * config.slowness(),
    };
    programs.iter().map(planned).collect()
}

/// The guest's file system.
pub(super) fn archive(programs: &[Program], plan: &[Planned]) -> Result<Archive> {
    let mut archive = Archive::default();
    archive.file("init", include_bytes!("init.sh"));
    archive.program("bin/busybox", Path::new("/bin/busybox"))?;
    archive.link("bin/sh", "busybox");
    for program in programs {
        archive.program(&format!("tests/{}", program.name), &program.path)?;
    }
    let lines = plan
        .iter()
        .map(|planned| format!("{} {} {}\n", planned.name, planned.limit.as_secs(), planned.command));
    archive.file("plan", lines.collect::<String>().as_bytes());
    let tests: String = plan.iter().map(|planned| format!("    {}\n", planned.command)).collect();
    archive
        .file("shell", format!("The tests are:\n{tests}`poweroff -f` ends this, Ctrl-A x too.\n").as_bytes());
    Ok(archive)
}

/// Compiles `kernel/selftests/*.c`.
fn selftests(root: &Path, cache: &Cache, selection: &Selection) -> Result<Vec<Program>> {
    let directory = root.join("kernel/selftests");
    let header = root.join("kernel/overlay/include/uapi/linux/process_vm_exec.h");
    let mut sources = Vec::new();
    // Everything that all programs include goes into each one's hash.
    let mut common = Sha256::new();
    common.update(FLAGS.join(" "));
    common.update(fs::read(&header).with_context(|| format!("cannot read {}", header.display()))?);
    let mut paths = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("c") => sources.push(path),
            Some("h") => common.update(fs::read(&path)?),
            _ => {}
        }
    }
    let mut programs = Vec::new();
    let mut missing = Vec::new();
    for source in sources {
        let own_name =
            source.file_stem().and_then(|name| name.to_str()).context("a name that is not UTF-8")?;
        let name = format!("selftests/{own_name}");
        if !selection.has(&name) {
            continue;
        }
        let hash = common.clone().chain_update(fs::read(&source)?).finalize();
        let path = cache.path(&format!("programs/{own_name}-{}", short(&hash)));
        if path.exists() {
            cache::touch(&path)?;
        } else {
            missing.push((source.clone(), path.clone()));
        }
        let (arguments, seconds) = match own_name {
            "stress" | "fuzz" => {
                (selection.storm_seconds.to_string(), selection.storm_seconds.saturating_add(60))
            }
            _ => (String::new(), 120),
        };
        programs.push(Program { name, path, arguments, limit: Duration::from_secs(seconds.into()) });
    }
    compile(cache, root, &missing)?;
    cache.prune("programs", KEPT_PROGRAMS)?;
    Ok(programs)
}

/// Compiles each source to its program, two at a time.
fn compile(cache: &Cache, root: &Path, pairs: &[(PathBuf, PathBuf)]) -> Result<()> {
    let compile_half = |half: usize| -> Result<()> {
        for (source, program) in pairs.iter().skip(half).step_by(2) {
            let name = source.file_name().unwrap_or_default().to_string_lossy();
            let unfinished = program.with_extension("unfinished");
            let mut gcc = Command::new("gcc");
            gcc.args(FLAGS).arg("-I").arg(root.join("kernel/overlay/include/uapi"));
            gcc.arg(source).arg("-o").arg(&unfinished);
            step::run(&format!("compiling {name}"), &mut gcc, &cache.log(&format!("gcc-{name}")))?;
            fs::rename(&unfinished, program)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let halves = [0, 1].map(|half| scope.spawn(move || compile_half(half)));
        halves.into_iter().try_for_each(|half| half.join().expect("no panic"))
    })
}

/// The library's tests as CI builds them, so that they are not built twice; their shared libraries come along.
fn library(root: &Path, cache: &Cache) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for artifact in cargo(root, cache, &["test", "--no-run"])? {
        let name = artifact["target"]["name"].as_str().unwrap_or_default();
        let Some(executable) = artifact["executable"].as_str() else { continue };
        let wanted = LIBRARY_TESTS.iter().find(|(known, _)| *known == name);
        if let Some((_, filter)) = wanted.filter(|_| artifact["profile"]["test"] == true) {
            programs.push(Program {
                name: format!("library/{}", name.replace('_', "-")),
                path: executable.into(),
                // With --show-output, tests that pass tell what they skip.
                arguments: format!("{filter} --test-threads=2 --show-output"),
                limit: Duration::from_secs(600),
            });
        }
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(
        programs.len() == LIBRARY_TESTS.len(),
        "cargo has not built the tests {}",
        LIBRARY_TESTS.map(|(name, _)| name).join(", ")
    );

    let built = cargo(root, cache, &["build"])?;
    let files: Vec<&str> = built
        .iter()
        .flat_map(|artifact| artifact["filenames"].as_array())
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let file = |name: &str| -> Result<&str> {
        let found = files.iter().find(|file| file.ends_with(name));
        found.copied().with_context(|| format!("cargo has not built {name}"))
    };
    programs.push(Program {
        name: "library/pvx".to_owned(),
        path: file("/pvx")?.into(),
        arguments: "bench --seconds 5".to_owned(),
        limit: Duration::from_secs(60),
    });
    Ok(programs)
}

/// What cargo says that it has built of the workspace.
fn cargo(root: &Path, cache: &Cache, arguments: &[&str]) -> Result<Vec<Value>> {
    let name = format!("cargo {}", arguments.join(" "));
    let messages = cache.log("cargo-messages");
    let mut command = Command::new("sh");
    command.args(["-c", "messages=$1; shift; exec \"$@\" >\"$messages\"", "sh"]).arg(&messages);
    command.arg(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).args(["--workspace", "--release", "--message-format=json-render-diagnostics"]);
    step::run(&name, command.current_dir(root), &cache.log("cargo"))?;
    let text = fs::read_to_string(messages)?;
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_instructions_runs_only_if_it_is_named() {
        let selection = |only: &[&str]| Selection {
            only: only.iter().map(|&name| name.to_owned()).collect(),
            ..Selection::everything()
        };
        for only in [&[][..], &["selftests"], &["selftests/run"]] {
            assert!(selection(only).has("selftests/run"), "{only:?}");
            assert!(!selection(only).has(OVERHEAD), "{only:?}");
        }
        assert!(Selection::overhead().has(OVERHEAD));
        assert!(Selection::overhead().has_some_of("selftests"));
        assert!(!Selection::overhead().has("selftests/run"));
        assert!(!Selection::overhead().has_some_of("library"));
    }
}
