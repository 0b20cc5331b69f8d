//! What `pvx bench` promises to those who read its output.

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pvx")).arg("bench").args(args).output().expect("pvx starts")
}

fn json(args: &[&str]) -> Value {
    let output = bench(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON on standard output, and nothing else")
}

/// Every line of a report has what the documentation of the format lists.
fn check_lines(report: &Value) -> Vec<(String, String, String)> {
    for key in ["cpu", "kernel", "date", "command"] {
        assert!(report["machine"][key].as_str().is_some_and(|text| !text.is_empty()), "machine.{key}");
    }
    assert!(report["machine"]["cpus"].as_u64().is_some_and(|cpus| cpus > 0));
    let lines = report["cases"].as_array().expect("cases");
    assert!(!lines.is_empty());
    let text = |line: &Value, key| line[key].as_str().expect("a string").to_owned();
    lines
        .iter()
        .map(|line| {
            let [min, median, max] =
                ["min", "median", "max"].map(|key| line["ns"][key].as_f64().expect("ns"));
            assert!(0.0 < min && min <= median && median <= max, "{line}");
            assert_eq!(
                line["line_ns"].as_f64().is_some_and(|ns| ns > 0.0),
                line["placement"] == "two-cpus",
                "{line}"
            );
            let classes = line["by_line"].as_array().expect("by_line");
            assert_eq!(!classes.is_empty(), line["placement"] == "two-cpus", "{line}");
            for class in classes {
                let [line_ns, ns, lines] =
                    ["line_ns", "ns", "lines"].map(|key| class[key].as_f64().expect(key));
                assert!(
                    line_ns > 0.0 && ns > 0.0 && lines > 0.0 && class["batches"].as_u64() > Some(0),
                    "{line}"
                );
            }
            (text(line, "case"), text(line, "engine"), text(line, "placement"))
        })
        .collect()
}

#[test]
fn baselines_are_measured_without_any_engine() {
    let report = json(&["--json", "--engine", "baseline", "--seconds", "0.3"]);
    let lines = check_lines(&report);
    assert!(lines.iter().all(|(_, engine, _)| engine == "baseline"));
    assert!(lines.iter().any(|(case, _, placement)| case == "native-getppid" && placement == "one-cpu"));
    assert!(lines.iter().any(|(case, ..)| case == "spawn"));
    assert!(report["cases"][0]["ratio_to_ptrace"].is_null(), "without ptrace there is no ratio to it");
}

#[test]
fn every_case_is_measured_for_every_engine_that_works_here() {
    let check =
        Command::new(env!("CARGO_BIN_EXE_pvx")).args(["check", "--json"]).output().expect("pvx starts");
    let check: Value = serde_json::from_slice(&check.stdout).expect("JSON");
    let working = check["engines"].as_array().expect("engines").iter().filter(|line| line["works"] == true);
    let report = json(&["--json", "--seconds", "1"]);
    let lines = check_lines(&report);
    for engine in working.map(|line| line["engine"].as_str().expect("a name")) {
        for case in ["syscall", "fault", "interrupt", "create", "map", "copy"] {
            let measured = lines.iter().any(|line| line.0 == case && line.1 == engine && line.2 == "one-cpu");
            assert!(measured, "{case} with {engine} is missing");
        }
    }
}

#[test]
fn hogs_are_there_on_each_processor_while_it_measures() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pvx"));
    command.args(["bench", "--hogs", "--json", "--case", "native-getppid", "--seconds", "2"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("pvx starts");
    let tasks = format!("/proc/{}/task", child.id());
    let count = || {
        let names = fs::read_dir(&tasks).into_iter().flatten().flatten();
        let names = names.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name == "hog\n").count()
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut most = 0;
    while most < cpus && child.try_wait().expect("its status").is_none() {
        most = most.max(count());
        std::thread::yield_now();
    }
    assert_eq!(most, cpus);
    let output = child.wait_with_output().expect("its output");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["hogs"], true);
    assert_eq!(json(&["--json", "--case", "native-getppid", "--seconds", "0.1"])["hogs"], false);
}

#[test]
fn the_best_placement_of_ptrace_is_what_ratios_refer_to() {
    let report = json(&["--json", "--case", "syscall", "--engine", "ptrace", "--seconds", "0.3"]);
    let ratios =
        report["cases"].as_array().expect("cases").iter().map(|line| line["ratio_to_ptrace"].as_f64());
    let best = ratios.map(|ratio| ratio.expect("a ratio")).fold(0.0, f64::max);
    assert!((best - 1.0).abs() < 1e-9, "{report}");
}

/// What `pvx bench` says of a command line that it refuses.
#[track_caller]
fn refusal(args: &[&str]) -> String {
    let output = bench(args);
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?}");
    message
}

#[test]
fn an_unknown_engine_is_refused_with_a_list_of_all() {
    let message = refusal(&["--engine", "warp"]);
    for word in ["warp", "native", "rewrite", "trap", "ptrace", "baseline"] {
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn an_unknown_engine_in_the_environment_is_refused_with_a_list_of_all() {
    for command in [&["bench", "--seconds", "0.1"][..], &["run", "true"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_pvx"))
            .args(command)
            .env("PROCESS_VM_EXEC_ENGINE", "kvm")
            .output()
            .expect("pvx starts");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        for word in ["PROCESS_VM_EXEC_ENGINE", "kvm", "native", "rewrite", "trap", "ptrace"] {
            assert_eq!(message.matches(word).count(), 1, "{word}: {message}");
        }
    }
}

#[test]
fn an_unknown_case_is_refused_with_a_list_of_all() {
    assert!(refusal(&["--case", "nap"]).contains("cache-line"));
}

#[test]
fn what_is_out_of_bounds_is_refused_with_the_bounds() {
    for (option, words, bounds) in [
        ("--guests", &["0", "1025", "1000000000"][..], "1..=1024"),
        ("--spaces", &["0", "10001"], "1..=10000"),
        ("--attachments", &["0", "1000001"], "1..=1000000"),
        ("--calls", &["0", "20000", "1000000001"], "1000000..=1000000000"),
        ("--seconds", &["0", "1e7", "inf", "NaN", "-1"], "0.1 to 86400"),
    ] {
        for word in words {
            let message = refusal(&[&format!("{option}={word}")]);
            assert!(message.contains(bounds) && message.contains(option), "{message}");
        }
    }
}

#[test]
fn the_help_says_the_bounds() {
    let help = String::from_utf8(bench(&["--help"]).stdout).expect("UTF-8");
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for bounds in ["0.1 to 86400", "1 to 1024", "1 to 10000", "1 to 1000000 times", "1000000 to 1000000000"] {
        assert!(help.contains(bounds), "{bounds}: {help}");
    }
}

#[test]
fn a_chart_of_an_unknown_kind_is_refused() {
    assert!(refusal(&["--plot", "chart.gif"]).contains(".svg"));
}

/// One that measured before would be at it for an hour.
#[test]
fn a_chart_that_cannot_be_written_is_told_before_anything_is_measured() {
    let args = ["bench", "--case", "native-getppid", "--seconds", "3600", "--plot", "/no/such/chart.svg"];
    let limit = ["timeout", "60", env!("CARGO_BIN_EXE_pvx")];
    let output = Command::new(limit[0]).args(&limit[1..]).args(args).output().expect("it starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.starts_with("pvx: --plot /no/such/chart.svg: the chart cannot be written"), "{message}");
}

#[test]
fn an_old_chart_stays_until_the_new_one_is_drawn() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("chart.svg");
    fs::write(&path, "old").expect("a file");
    // Nothing to measure: the baseline has no such case.
    let output =
        bench(&["--engine", "baseline", "--case", "syscall", "--plot", path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "old");
}

#[test]
fn a_chart_shows_every_line_of_the_table() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("chart.svg");
    let path_text = path.to_str().expect("UTF-8");
    let report = json(&["--json", "--engine", "baseline", "--seconds", "0.3", "--plot", path_text]);
    let chart = fs::read_to_string(&path).expect("the chart");
    assert!(chart.starts_with("<svg"));
    for line in report["cases"].as_array().expect("cases") {
        assert!(chart.contains(line["case"].as_str().expect("a name")), "{line}");
    }
}

#[test]
fn many_guests_at_once_all_get_their_turn() {
    let report = json(&["--json", "--guests", "8", "--seconds", "1"]);
    let engines = report["engines"].as_array().expect("engines");
    assert!(!engines.is_empty());
    for line in engines {
        assert!(line["calls_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{line}");
        assert!(line["fewest"].as_u64().is_some_and(|calls| calls > 0), "a guest starved: {line}");
    }
}

#[test]
fn idle_spaces_have_a_size() {
    let report = json(&["--json", "--spaces", "10"]);
    let memory = report["memory"].as_array().expect("memory");
    assert!(!memory.is_empty(), "{report}");
    for line in memory {
        assert_eq!(line["alive"], 10);
        assert!(line["rss_kib"].as_f64().is_some_and(|kib| kib > 0.0), "{line}");
    }
    let create = report["create"].as_array().expect("create");
    assert!(create.iter().any(|line| line["engine"] == "spawn" && line["supervisor_mib"] == 20));
}
