//! Help, completions and manual pages, and that what pvx prints for programs is documented.

mod live;

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Output, Stdio},
};

use live::Target;
use serde_json::Value;

const COMMANDS: &[&str] = &["run", "call", "inspect", "bench", "check", "completions", "manual"];

fn pvx(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pvx"))
        .args(words)
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .output()
        .expect("pvx starts")
}

#[track_caller]
fn text(words: &[&str]) -> String {
    let output = pvx(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn no_line_of_the_help_is_longer_than_100_columns() {
    for command in COMMANDS {
        for help in ["--help", "-h"] {
            let long: Vec<_> = text(&[command, help])
                .lines()
                .filter(|line| line.chars().count() > 100)
                .map(str::to_owned)
                .collect();
            assert!(long.is_empty(), "{command} {help}: {long:?}");
        }
    }
}

#[test]
fn completions_are_made_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(&["completions", shell]);
        assert!(COMMANDS.iter().all(|command| script.contains(command)), "{shell}");
    }
}

#[test]
fn bash_takes_its_completions() {
    let Ok(bash) = Command::new("bash")
        .args(["-c", "source <(\"$0\" completions bash) && complete -p pvx", env!("CARGO_BIN_EXE_pvx")])
        .output()
    else {
        println!("SKIP: bash is not installed");
        return;
    };
    assert!(bash.status.success(), "{}", String::from_utf8_lossy(&bash.stderr));
}

#[test]
fn manual_pages_are_written_for_pvx_and_each_command() {
    let directory = tempfile::tempdir().expect("a directory");
    let man = directory.path().join("share/man/man1");
    text(&["manual", "--dir", man.to_str().expect("UTF-8")]);
    let mut names: Vec<_> = fs::read_dir(&man)
        .expect("it was made")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    let mut expected: Vec<_> = COMMANDS.iter().map(|command| format!("pvx-{command}.1")).collect();
    expected.push("pvx.1".to_owned());
    expected.sort();
    assert_eq!(names, expected);
    let page = fs::read_to_string(man.join("pvx-bench.1")).expect("the page");
    assert!(page.contains(".TH") && page.contains("native\\-getppid"), "{page}");
}

#[test]
fn a_place_for_manual_pages_that_cannot_be_written_is_told() {
    let output = pvx(&["manual", "--dir", "/dev/null/man"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.starts_with("pvx: --dir /dev/null/man: ") && stderr.lines().count() == 1, "{stderr}");
}

/// The names of all fields in `json`, but not those of the kernel's records.
fn fields(json: &Value, names: &mut BTreeSet<String>) {
    match json {
        Value::Object(object) => {
            for (name, value) in object {
                names.insert(name.clone());
                if name != "fields" {
                    fields(value, names);
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| fields(value, names)),
        _ => {}
    }
}

#[test]
fn every_field_of_the_json_is_documented() {
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/pvx.md"))
        .expect("the documentation");
    let mut names = BTreeSet::new();
    let mut reports = vec![
        text(&["check", "--json"]),
        text(&["bench", "--json", "--case", "native-getppid", "--seconds", "0.1"]),
        text(&["bench", "--json", "--engine", "ptrace", "--guests", "1", "--seconds", "0.1"]),
        text(&["bench", "--json", "--engine", "ptrace", "--spaces", "1"]),
    ];
    if let Some(target) = Target::attachable() {
        reports.push(text(&["bench", "--json", "--attachments", "1"]));
        reports.push(text(&["call", "--json", &target.pid(), "getrlimit", "RLIMIT_NOFILE"]));
        let failed = pvx(&["call", "--json", &target.pid(), "open", "/no/such/file", "O_RDONLY"]);
        reports.push(String::from_utf8(failed.stdout).expect("UTF-8"));
    }
    for report in &reports {
        fields(&serde_json::from_str(report).expect("JSON"), &mut names);
    }
    let missing: Vec<_> = names.iter().filter(|name| !guide.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "not in docs/pvx.md: {missing:?}");
}
