//! What calls cost that have nothing to do with process_vm_exec(2): their instructions, with and without the patches.

use anyhow::{Result, ensure};
use serde::Serialize;

use super::results::Test;

/// The call for which there is a promise, and what it may grow by.
const PROMISED: &str = "getppid";
const PROMISED_PERCENT: f64 = 1.0;
/// What any other may grow by. Some of them do pass a hook.
const OTHERS_PERCENT: f64 = 2.0;

/// What a call takes on both kernels.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    calls: Vec<Call>,
}

#[derive(Debug, Serialize)]
struct Call {
    name: String,
    /// Instructions per call.
    unpatched: f64,
    patched: f64,
    difference_percent: f64,
    allowed_percent: f64,
}

impl Comparison {
    /// From what `selftests/overhead` has said on a kernel without the patches, and on one with them.
    pub(super) fn new<'a>(
        unpatched: impl Iterator<Item = &'a Test>,
        patched: impl Iterator<Item = &'a Test>,
    ) -> Result<Self> {
        let (unpatched, patched) = (counts(unpatched), counts(patched));
        let names =
            |counts: &[(String, f64)]| counts.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        ensure!(
            names(&unpatched) == names(&patched),
            "the kernels have not counted the same: {} without the patches, and {} with them",
            names(&unpatched).join("; "),
            names(&patched).join("; ")
        );
        let pairs = unpatched.into_iter().zip(patched);
        let calls: Vec<Call> =
            pairs.map(|((name, unpatched), (_, patched))| Call::new(name, unpatched, patched)).collect();
        let has_promised = calls.iter().any(|call| call.name == PROMISED);
        ensure!(
            has_promised,
            "selftests/overhead has not counted {PROMISED}: is a line of its output missing?"
        );
        Ok(Self { calls })
    }

    pub(super) fn is_good(&self) -> bool {
        self.calls.iter().all(Call::is_good)
    }

    pub(super) fn print(&self, as_json: bool) -> Result<()> {
        if as_json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        println!("{:<24} {:>10} {:>10} {:>10}", "instructions", "unpatched", "patched", "difference");
        for Call { name, unpatched, patched, difference_percent, .. } in &self.calls {
            println!("{name:<24} {unpatched:>10.2} {patched:>10.2} {difference_percent:>+8.2} %");
        }
        println!();
        for Call { name, allowed_percent, .. } in self.calls.iter().filter(|call| !call.is_good()) {
            println!("FAILED: {name} may grow by {allowed_percent} %");
        }
        println!("{}", if self.is_good() { "all is well" } else { "FAILED" });
        Ok(())
    }
}

impl Call {
    fn new(name: String, unpatched: f64, patched: f64) -> Self {
        let difference_percent = (patched - unpatched) * 100.0 / unpatched;
        let allowed_percent = if name == PROMISED { PROMISED_PERCENT } else { OTHERS_PERCENT };
        Self { name, unpatched, patched, difference_percent, allowed_percent }
    }

    fn is_good(&self) -> bool {
        self.difference_percent <= self.allowed_percent
    }
}

/// What was said of calls, such as `getppid: 123.00 instructions`.
fn counts<'a>(tests: impl Iterator<Item = &'a Test>) -> Vec<(String, f64)> {
    let lines = tests.flat_map(|test| &test.diagnostics);
    let count = |line: &String| {
        let (name, count) = line.strip_suffix(" instructions")?.rsplit_once(": ")?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    lines.filter_map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::results::Outcome;

    fn tests(lines: &[&str]) -> Vec<Test> {
        let test = |line: &&str| Test {
            name: "a_claim".to_owned(),
            outcome: Outcome::Passed,
            diagnostics: vec!["it says something else first".to_owned(), (*line).to_owned()],
        };
        lines.iter().map(test).collect()
    }

    fn compare(unpatched: &[&str], patched: &[&str]) -> Result<Comparison> {
        Comparison::new(tests(unpatched).iter(), tests(patched).iter())
    }

    #[test]
    fn calls_of_both_kernels_are_put_side_by_side() {
        let comparison = compare(
            &["getppid: 200.00 instructions", "pipe: write, read: 100.00 instructions"],
            &["getppid: 210.00 instructions", "pipe: write, read: 50.00 instructions"],
        );
        let calls = comparison.expect("a comparison").calls;
        let found: Vec<_> = calls
            .iter()
            .map(|call| (call.name.as_str(), call.unpatched, call.patched, call.difference_percent.round()))
            .collect();
        assert_eq!(found, [("getppid", 200.0, 210.0, 5.0), ("pipe: write, read", 100.0, 50.0, -50.0)]);
    }

    #[test]
    fn getppid_may_grow_by_one_per_cent_and_others_by_two() {
        let is_good = |getppid: &str, fork: &str| {
            let unpatched = ["getppid: 200.00 instructions", "fork: 1000.00 instructions"];
            let patched = [format!("getppid: {getppid} instructions"), format!("fork: {fork} instructions")];
            compare(&unpatched, &patched.each_ref().map(String::as_str)).expect("a comparison").is_good()
        };
        assert!(is_good("200.00", "1000.00"));
        assert!(is_good("202.00", "1019.00"));
        assert!(is_good("150.00", "900.00"));
        assert!(!is_good("203.00", "1000.00"));
        assert!(!is_good("200.00", "1021.00"));
    }

    #[test]
    fn counts_that_are_missing_are_named() {
        let one = ["getppid: 200.00 instructions"];
        let two = ["getppid: 200.00 instructions", "fork: 9.00 instructions"];
        let error = compare(&one, &two).expect_err("fork is missing").to_string();
        assert!(error.contains("getppid without the patches, and getppid; fork with them"), "{error}");
        let error = compare(&two[1..], &two[1..]).expect_err("getppid is missing").to_string();
        assert!(error.contains("getppid"), "{error}");
        assert!(compare(&[], &[]).is_err());
    }
}
