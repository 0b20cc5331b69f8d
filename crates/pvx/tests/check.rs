//! What `pvx check` promises to those who read its output.

use std::process::{Command, Output};

use serde_json::Value;

fn check(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pvx")).arg("check").args(args).output().expect("pvx starts")
}

#[test]
fn the_engine_that_will_be_used_is_one_that_works() {
    let report: Value = serde_json::from_slice(&check(&["--json"]).stdout).expect("JSON");
    let engines = report["engines"].as_array().expect("engines");
    assert_eq!(engines.len(), 4);
    let best = engines.iter().find(|line| line["engine"] == report["best"]).expect("the best is listed");
    assert_eq!(best["works"], true);
}

#[test]
fn whatever_is_missing_says_what_it_lacks() {
    let report: Value = serde_json::from_slice(&check(&["--json"]).stdout).expect("JSON");
    for line in report["engines"].as_array().expect("engines") {
        assert_eq!(line["works"] == true, line["lacks"].is_null(), "{line}");
    }
    for feature in report["features"].as_array().expect("features") {
        assert!(feature["detail"].as_str().is_some_and(|text| !text.is_empty()), "{feature}");
        assert!(feature["present"] != true || feature["advice"].is_null(), "{feature}");
    }
}

#[test]
fn text_and_json_agree_on_the_engine() {
    let report: Value = serde_json::from_slice(&check(&["--json"]).stdout).expect("JSON");
    let text = String::from_utf8(check(&[]).stdout).expect("UTF-8");
    let used = text.lines().find(|line| line.contains("will be used")).expect("a line says it");
    assert!(used.contains(report["best"].as_str().expect("a name")), "{used}");
}

#[test]
fn a_working_machine_is_a_success() {
    assert!(check(&[]).status.success());
}

#[test]
fn an_empty_choice_of_engine_is_none() {
    let output = Command::new(env!("CARGO_BIN_EXE_pvx"))
        .args(["check", "--json"])
        .env("PROCESS_VM_EXEC_ENGINE", "")
        .output()
        .expect("pvx starts");
    assert_eq!(output.stdout, check(&["--json"]).stdout, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
}
