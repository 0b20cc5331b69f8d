//! `pvx inspect` as its users see it.

mod live;

use std::process::{Command, Output};

use live::Target;
use serde_json::Value;

const NOBODY: &str = "2147483647";

fn inspect(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pvx")).arg("inspect").args(words).output().expect("pvx starts")
}

#[track_caller]
fn text(words: &[&str]) -> String {
    let output = inspect(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[track_caller]
fn json(words: &[&str]) -> Value {
    serde_json::from_str(&text(&[&["--json"], words].concat())).expect("JSON")
}

fn missing(report: &Value) -> Vec<&str> {
    let missing = report["missing"].as_array().expect("a list");
    missing.iter().map(|entry| entry["what"].as_str().expect("a name")).collect()
}

#[test]
fn a_process_that_is_not_there_gets_one_line_and_status_1() {
    for words in [&[NOBODY][..], &["--no-attach", NOBODY], &["--json", "0"], &["--", "-1"]] {
        let output = inspect(words);
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(output.stdout.is_empty(), "{words:?}");
        assert!(stderr.starts_with("pvx: there is no process") && stderr.lines().count() == 1, "{stderr}");
    }
}

/// In a /proc that hides processes, as a root without capabilities, whose group is not the one that is exempt.
#[test]
fn a_root_that_may_not_look_is_told_which_capability_it_lacks() {
    const HIDDEN: &str = "mount -t proc -o hidepid=1 proc /proc && \
        setpriv --bounding-set -all --inh-caps -all --regid 1 --clear-groups true || exit 77; \
        exec setpriv --bounding-set -all --inh-caps -all --regid 1 --clear-groups \"$0\" inspect --no-attach 1";
    let words = ["--mount", "sh", "-c", HIDDEN, env!("CARGO_BIN_EXE_pvx")];
    let output = Command::new("unshare").args(words).output().expect("util-linux is installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) || stderr.starts_with("unshare:") {
        return println!("SKIP: processes cannot be hidden here: {stderr}");
    }
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.starts_with("pvx: process 1 may not be looked at") && stderr.contains("CAP_SYS_PTRACE"),
        "{stderr}"
    );
}

#[test]
fn what_is_no_number_is_a_wrong_command_line() {
    assert_eq!(inspect(&["sleep"]).status.code(), Some(2));
    assert_eq!(inspect(&[]).status.code(), Some(2));
}

#[test]
fn what_a_library_says_of_a_wrong_number_is_not_shown() {
    for words in [&["sleep"][..], &["0"], &["--no-attach", NOBODY]] {
        let stderr = String::from_utf8(inspect(words).stderr).expect("UTF-8");
        assert!(!stderr.contains("Internal error") && !stderr.contains("digit"), "{stderr}");
    }
}

#[test]
fn without_attaching_the_report_has_all_that_proc_tells() {
    let target = Target::start();
    let report = json(&["--no-attach", &target.pid()]);
    assert_eq!(report["pid"].to_string(), target.pid());
    assert_eq!(report["attached"], false);
    assert_eq!(report["handlers"], Value::Null);
    assert_eq!(report["identity"]["command_line"], serde_json::json!(["sleep", "1000"]));
    assert_eq!(report["identity"]["working_directory"], target.directory().display().to_string());
    assert_eq!(report["threads"][0]["call"]["name"], "clock_nanosleep");
    assert!(report["threads"][0]["registers"]["rip"].as_str().is_some_and(|rip| rip.starts_with("0x")));
    let mappings = report["memory"]["mappings"].as_array().expect("mappings");
    assert_eq!(mappings.len(), target.maps().lines().count());
    assert!(mappings.iter().all(|mapping| mapping["flags"].is_array()));
    let descriptors = report["descriptors"].as_array().expect("descriptors");
    assert_eq!(descriptors.len(), target.descriptors().len());
    assert_eq!(descriptors[0]["target"], "/dev/null");
    assert_eq!(report["limits"].as_array().map(Vec::len), Some(16));
    for section in ["signals", "credentials", "namespaces", "settings"] {
        assert_ne!(report[section], Value::Null, "{section}");
    }
    assert!(missing(&report).contains(&"handlers"));
    assert_eq!(report["interval_timers"], Value::Null);
    assert_eq!(report["threads"][0]["alternate_stack"], Value::Null);
    for what in ["rseq", "alternate signal stacks", "interval timers", "other registers"] {
        assert!(missing(&report).contains(&what), "{what}");
    }
    assert!(target.is_unharmed());
}

#[test]
fn text_is_a_page_and_all_is_more() {
    let target = Target::start();
    let page = text(&["--no-attach", &target.pid()]);
    assert!(page.starts_with(&format!("process {}: sleep 1000\n", target.pid())));
    for section in
        ["rights", "memory", "threads", "signals", "descriptors", "limits", "namespaces", "not known"]
    {
        assert!(page.contains(&format!("\n{section}\n")), "{section}:\n{page}");
    }
    let all = text(&["--no-attach", "--all", &target.pid()]);
    assert!(all.lines().count() >= page.lines().count());
    assert!(all.contains("[vsyscall]") || !target.maps().contains("[vsyscall]"));
    assert!(!all.contains("--all"));
}

#[test]
fn text_and_json_agree_on_the_memory() {
    let target = Target::start();
    let report = json(&["--no-attach", &target.pid()]);
    let first = &report["memory"]["mappings"][0];
    let range = [&first["start"], &first["end"]]
        .map(|end| end.as_str().expect("hexadecimal")[2..].to_owned())
        .join("-");
    assert!(text(&["--no-attach", "--all", &target.pid()]).contains(&range));
}

#[test]
fn a_process_that_cannot_be_attached_to_is_reported_as_far_as_proc_goes() {
    if !live::is_kernel_thread(2) {
        println!("SKIP: process 2 is no kernel thread here");
        return;
    }
    let output = inspect(&["--json", "2"]);
    assert!(output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("pvx: ") && stderr.lines().count() == 1, "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["attached"], false);
    assert_eq!(report["threads"][0]["registers"], Value::Null);
    assert!(missing(&report).contains(&"handlers"));
}

#[test]
fn an_attached_report_has_handlers_and_robust_lists() {
    let Some(target) = Target::attachable() else { return };
    let output = inspect(&["--json", &target.pid()]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["attached"], true);
    assert!(report["handlers"].is_array());
    assert!(report["threads"][0]["robust_list"].is_string(), "{}", report["threads"][0]);
    assert!(!missing(&report).contains(&"handlers"));
    assert!(target.is_unharmed());
}

#[test]
fn handlers_are_those_of_the_process_and_agree_with_proc() {
    let Some(shell) = Target::attachable_shell("trap '' USR1; trap : USR2; while :; do sleep 1000; done")
    else {
        return;
    };
    let report = json(&[&shell.pid()]);
    let find = |name: &str| {
        let handlers = report["handlers"].as_array().expect("handlers");
        handlers.iter().find(|handler| handler["signal"] == name).cloned()
    };
    assert_eq!(find("SIGUSR1").expect("it is ignored")["action"], "ignore");
    let caught = find("SIGUSR2").expect("it is caught");
    assert!(caught["action"].as_str().is_some_and(|action| action.starts_with("0x")), "{caught}");
    let names = |list: &Value| list.as_array().expect("names").clone();
    assert!(names(&report["signals"]["caught"]).contains(&"SIGUSR2".into()));
}

#[test]
fn inspecting_leaves_the_process_as_it_was() {
    let Some(target) = Target::attachable() else { return };
    let before = (target.maps(), target.descriptors());
    text(&[&target.pid()]);
    assert_eq!((target.maps(), target.descriptors()), before);
    assert!(target.is_unharmed());
}

/// Alternate stacks, rseq, interval timers and settings of a program that has set them, as it says itself.
#[test]
fn threads_tell_of_what_is_their_own_and_notice_nothing() {
    let Some(target) = Target::attachable_with_things_of_its_own() else { return };
    let own = std::fs::read_to_string(target.directory().join("own")).expect("it says what it has");
    let own: Value = serde_json::from_str(&own).expect("JSON");
    let before = (target.maps(), target.descriptors());
    let report = json(&[&target.pid()]);
    let page = text(&["--all", &target.pid()]);
    assert_eq!((target.maps(), target.descriptors()), before);
    let threads = report["threads"].as_array().expect("threads");
    assert_eq!(threads.len(), 2);
    for (number, thread) in threads.iter().enumerate() {
        let own = &own[thread["tid"].to_string()];
        let stack = &thread["alternate_stack"];
        assert_eq!((&stack["address"], &stack["size"]), (&own["address"], &own["size"]));
        assert_eq!(stack["flags"], serde_json::json!([]));
        if missing(&report).is_empty() && own["rseq"] != "0" {
            assert_eq!(
                (&thread["rseq"]["address"], &thread["rseq"]["registered"]),
                (&own["rseq"], &true.into())
            );
            assert_eq!(thread["rseq"]["signature"], "0x53053053");
            assert!(page.contains(own["rseq"].as_str().expect("an address")), "{page}");
        }
        assert_eq!(thread["own_settings"]["death_signal"], ["SIGTERM", "none"][number]);
        assert_eq!(thread["own_settings"]["timer_slack_ns"], 1000 + number);
        assert_eq!(thread["own_settings"]["secure_bits"], "0x0");
        let registers = &thread["registers"];
        assert_eq!(registers.as_object().map(serde_json::Map::len), Some(20));
        assert!(registers["fs_base"].as_str().is_some_and(|base| base.len() > 4), "{registers}");
        for fact in [&own["address"], &registers["rip"]] {
            let digits = fact.as_str().expect("an address").trim_start_matches("0x");
            assert!(page.contains(digits), "{fact}:\n{page}");
        }
    }
    let timers = &report["interval_timers"];
    let us = |timer: usize, field: &str| timers[timer][field].as_u64().expect("microseconds");
    assert_eq!(timers[0]["timer"], "ITIMER_REAL");
    assert!((4_900_000_000..=5_000_000_000).contains(&us(0, "value_us")), "{timers}");
    assert_eq!((us(0, "interval_us"), us(1, "interval_us")), (0, 2_000_500));
    assert!((990_000_000..=1_000_100_000).contains(&us(1, "value_us")), "{timers}");
    assert_eq!((us(2, "value_us"), us(2, "interval_us")), (0, 0));
    assert!(page.contains("ITIMER_VIRTUAL") && !page.contains("ITIMER_PROF"), "{page}");
    assert_eq!(report["settings"]["child_subreaper"], true);
    assert_eq!(report["settings"]["dumpable"], true);
    assert!(target.is_unharmed());
}
