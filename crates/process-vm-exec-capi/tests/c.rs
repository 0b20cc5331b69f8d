//! C programs that use the library as it is built: `tests/c` has them, and the manual page has one.

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use support::{
    CRATE, SYSTEM_LIBRARIES, WARNINGS, build, build_directory, compile, compile_with, has, output_of,
};

/// The status of a program that has said why it skips.
const SKIPPED: i32 = 77;

/// Compiles and runs one of `tests/c`.
fn holds(name: &str) {
    holds_with(name, &[]);
}

/// The same, with options of the linker's.
fn holds_with(name: &str, options: &[&str]) {
    if !has("gcc") {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let program = compile_with(&PathBuf::from(format!("{CRATE}/tests/c/{name}.c")), &place, options);
    let output = Command::new("timeout").arg("60").arg(program).output().expect("it starts");
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    if output.status.code() == Some(SKIPPED) {
        print!("{stdout}");
        return;
    }
    assert!(output.status.success(), "{name}: {}\n{stdout}{stderr}", output.status);
}

#[test]
fn arguments_are_refused_as_a_system_call_would() {
    holds("arguments");
}

#[test]
fn system_calls_are_executed_in_the_target_with_the_callers_descriptors() {
    holds("system_calls");
}

#[test]
fn code_runs_in_the_target_until_a_call_or_a_fault() {
    holds("runs");
}

/// There is no dynamic linker there that functions could be looked for with.
#[test]
fn code_runs_in_the_target_of_a_static_program() {
    holds_with("runs", &["-static"]);
}

#[test]
fn signals_for_the_caller_end_a_run_if_the_mask_has_them() {
    holds("signals");
}

#[test]
fn two_threads_run_in_one_target() {
    holds("threads");
}

#[test]
fn a_target_that_ends_is_no_process_any_more_and_forked_callers_have_their_own() {
    holds("ends");
}

#[test]
fn a_target_in_another_pid_namespace_keeps_its_executor() {
    holds("namespaces");
}

#[test]
fn spaces_do_all_that_their_header_says() {
    holds("spaces");
}

#[test]
fn spaces_do_the_same_for_a_static_program() {
    holds_with("spaces", &["-static"]);
}

#[test]
fn call_sites_are_rewritten_by_plans_that_the_caller_applies() {
    holds("plans");
}

#[test]
fn spaces_make_the_host_calls_of_their_contract_and_no_others() {
    holds("contract");
}

#[test]
fn threads_with_small_stacks_run_guests_in_a_storm_of_signals() {
    holds("storms");
}

#[test]
fn a_small_kernel_runs_a_shell_with_two_processes_and_a_pipe() {
    if !has("gcc") || !has("busybox") {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let kernel = compile(&PathBuf::from(format!("{CRATE}/tests/c/kernel.c")), &place);
    let script = "echo hello | while read word; do echo got $word; done; (exit 3); echo status $?; exit 5";
    let busybox = output_of(Command::new("sh").args(["-c", "command -v busybox"]));
    let output = Command::new("timeout")
        .arg("60")
        .arg(kernel)
        .args([busybox.trim(), "sh", "-c", script])
        .output()
        .expect("it starts");
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    assert_eq!(stdout, "got hello\nstatus 3\n", "{stderr}");
    assert_eq!(output.status.code(), Some(5), "{stderr}");
}

/// Contexts go from thread to thread there, and the collector sends signals.
#[test]
fn goroutines_run_guests_by_cgo() {
    if !has("gcc") || !has("go") {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let program = place.path().join("program");
    let library = build().join("libprocess_vm_exec_capi.a");
    let mut go = Command::new("go");
    go.args(["build", "-buildvcs=false", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(format!("{CRATE}/tests/go"));
    go.env("CGO_ENABLED", "1").env("CGO_CFLAGS", format!("-I{CRATE}/include"));
    go.env("CGO_LDFLAGS", format!("{} {}", library.display(), SYSTEM_LIBRARIES.join(" ")));
    output_of(go.env("GOCACHE", place.path().join("cache")));
    assert_eq!(output_of(Command::new("timeout").arg("60").arg(&program)), "2400\n");
}

/// The list is in the manual page for those who write such filters.
#[test]
fn the_manual_page_has_the_calls_of_the_contract() {
    let program = std::fs::read_to_string(format!("{CRATE}/tests/c/contract.c")).expect("the program");
    let (_, list) = program.split_once("contract[] = {").expect("a list");
    let (list, _) = list.split_once("};").expect("its end");
    let calls: BTreeSet<&str> = list.split(',').filter_map(|call| call.trim().strip_prefix("SYS_")).collect();
    let page = std::fs::read_to_string(format!("{CRATE}/man/pvx.3")).expect("the page");
    let (_, section) = page.split_once(".SS Host calls").expect("a section");
    let (section, _) = section.split_once("\n.SH").expect("its end");
    let (_, section) = section.split_once("\n.TP\n").expect("the list");
    let described: BTreeSet<&str> =
        section.lines().filter_map(|line| line.strip_prefix(".BR ")?.strip_suffix(" (2)")).collect();
    assert_eq!(described, calls);
}

#[test]
fn the_headers_are_c_and_cxx_without_warnings() {
    for (compiler, standard, language) in [
        ("gcc", "gnu99", "c"),
        ("gcc", "c11", "c"),
        ("gcc", "gnu17", "c"),
        ("g++", "c++11", "c++"),
        ("g++", "gnu++17", "c++"),
    ] {
        if has(compiler) {
            let mut compile = Command::new(compiler);
            compile.args(WARNINGS).args([&format!("-std={standard}"), "-x", language, "-D_DEFAULT_SOURCE"]);
            compile.args([
                "-fsyntax-only",
                "-I",
                &format!("{CRATE}/include"),
                &format!("{CRATE}/tests/c/header.c"),
            ]);
            output_of(&mut compile);
        }
    }
}

#[test]
fn the_manual_pages_have_no_faults() {
    for page in ["process_vm_exec.2", "pvx.3"].map(|page| format!("{CRATE}/man/{page}")) {
        if has("mandoc") {
            assert_eq!(output_of(Command::new("mandoc").args(["-T", "lint", &page])), "");
        }
        if has("man") {
            let mut man = Command::new("man");
            man.args(["--warnings", "-l", &page]).envs([("LC_ALL", "C.UTF-8"), ("MANPAGER", "cat")]);
            let output = man.output().expect("man starts");
            assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        }
    }
}

/// The program in the section EXAMPLES of a page, without what only man(7) needs.
fn example(page: &str) -> String {
    let page = std::fs::read_to_string(format!("{CRATE}/man/{page}")).expect("the page");
    let (_, examples) = page.split_once(".SH EXAMPLES").expect("there are examples");
    let (_, program) = examples.split_once("\n.EX\n").expect("there is one");
    let (program, _) = program.split_once("\n.EE").expect("it ends");
    program.replace("\\&", "").replace("\\-", "-").replace("\\e", "\\") + "\n"
}

#[test]
fn the_examples_of_the_manual_pages_work() {
    if !has("gcc") {
        return;
    }
    for (page, expected) in [
        (
            "process_vm_exec.2",
            "the executor is another process: yes\nand not our child: yes\nthe code was told: 42\n",
        ),
        ("pvx.3", "the guest asked for 39\nand exits with 42\n"),
    ] {
        let place = tempfile::tempdir().expect("a directory");
        let source = place.path().join("example.c");
        std::fs::write(&source, example(page)).expect("written");
        let output =
            Command::new("timeout").arg("60").arg(compile(&source, &place)).output().expect("it starts");
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        assert!(output.status.success(), "{stdout}{stderr}");
        assert_eq!(stdout, expected);
    }
}

#[test]
fn the_shared_library_exports_what_the_headers_declare_and_has_a_soname() {
    if !has("nm") || !has("readelf") {
        return;
    }
    let library = build().join("libprocess_vm_exec_capi.so");
    let symbols = output_of(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let exported: BTreeSet<&str> = symbols.lines().filter_map(|line| line.split(' ').next_back()).collect();
    let headers = ["process_vm_exec.h", "pvx.h"]
        .map(|name| std::fs::read_to_string(format!("{CRATE}/include/{name}")).expect("a header"));
    // A declaration begins a line with a type; the name is before the first parenthesis.
    let declared: BTreeSet<&str> = headers
        .iter()
        .flat_map(|header| header.lines())
        .filter_map(|line| {
            let (before, _) =
                line.split_once('(').filter(|_| line.starts_with(|c: char| c.is_ascii_lowercase()))?;
            before.split([' ', '*']).next_back()
        })
        .collect();
    assert_eq!(exported, declared);
    let dynamic = output_of(Command::new("readelf").arg("-d").arg(&library));
    assert!(dynamic.contains("[libprocess_vm_exec.so.0.1]") && dynamic.contains("NODELETE"), "{dynamic}");
}

#[test]
fn an_installed_library_is_found_by_pkg_config() {
    if !has("gcc") || !has("pkg-config") {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let prefix = place.path().join("usr");
    let target = build_directory();
    let mut install = Command::new(format!("{CRATE}/install"));
    // From another directory than the script's, as packagers call it.
    install.current_dir(&place).arg("--prefix=usr");
    install.arg(format!("--target-dir={}", target.parent().expect("the target directory").display()));
    output_of(&mut install);
    assert!(prefix.join("share/man/man2/process_vm_exec.2").exists());
    assert!(prefix.join("share/man/man3/pvx.3").exists() && prefix.join("include/pvx.h").exists());

    let program = place.path().join("program");
    for (how, linked) in [(&["--libs"][..], &[][..]), (&["--libs", "--static"], &["-static"])] {
        let mut pkg_config = Command::new("pkg-config");
        pkg_config.arg("--cflags").args(how).arg("process_vm_exec");
        let flags = output_of(pkg_config.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")));
        let mut gcc = Command::new("gcc");
        gcc.args(linked).arg(format!("{CRATE}/tests/c/arguments.c")).args(flags.split_whitespace());
        output_of(gcc.arg("-o").arg(&program));
        output_of(Command::new(&program).env("LD_LIBRARY_PATH", prefix.join("lib")));
    }
}
