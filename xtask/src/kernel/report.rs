//! What all boots have shown, for people and for machines.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Result;
use serde::Serialize;

use super::{
    image::Image,
    machine::Finished,
    results::{Outcome, Program, Test},
};

#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) boots: Vec<Boot>,
}

#[derive(Debug, Serialize)]
pub(super) struct Boot {
    config: String,
    cpus: u8,
    kernel: String,
    seconds: f64,
    log: PathBuf,
    programs: Vec<Program>,
    /// What the kernel complained about.
    complaints: Vec<String>,
    /// Why not everything ran, if so.
    cut_short: Option<String>,
}

impl Boot {
    pub(super) fn new(cpus: u8, image: &Image, finished: Finished) -> Self {
        Self {
            config: image.name.clone(),
            cpus,
            kernel: image.key.clone(),
            seconds: finished.seconds,
            log: finished.log,
            programs: finished.programs,
            complaints: finished.complaints,
            cut_short: finished.cut_short,
        }
    }

    /// What all programs have claimed.
    pub(super) fn tests(&self) -> impl Iterator<Item = &Test> {
        self.programs.iter().flat_map(|program| &program.tests)
    }

    fn is_good(&self) -> bool {
        self.cut_short.is_none()
            && self.complaints.is_empty()
            && self.programs.iter().all(|program| program.outcome() != Outcome::Failed)
    }

    fn print(&self) {
        println!("\n{} kernel {}, {} CPU(s), {:.1} s", self.config, self.kernel, self.cpus, self.seconds);
        println!(
            "  {:<32} {:>7} {:>5} {:>6} {:>7} {:>7}",
            "program", "", "ok", "failed", "skipped", "seconds"
        );
        for program in &self.programs {
            let result = match program.outcome() {
                Outcome::Passed => "ok",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped",
            };
            let [passed, failed, skipped] =
                [Outcome::Passed, Outcome::Failed, Outcome::Skipped].map(|outcome| program.count(outcome));
            let (name, seconds) = (&program.name, program.seconds);
            println!("  {name:<32} {result:>7} {passed:>5} {failed:>6} {skipped:>7} {seconds:>7.1}");
        }
        for program in &self.programs {
            for test in program.tests.iter().filter(|test| test.outcome == Outcome::Failed) {
                println!("FAILED: {}: {}", program.name, test.name);
                test.diagnostics.iter().for_each(|line| println!("    {line}"));
            }
            if let Some((first, rest)) = program.problems.split_first() {
                println!("FAILED: {}: {first}", program.name);
                rest.iter().for_each(|line| println!("    {line}"));
            }
        }
        self.complaints.iter().for_each(|line| println!("KERNEL: {line}"));
        self.cut_short.iter().for_each(|line| println!("FAILED: {line}"));
        let mut skips = BTreeMap::new();
        for skip in self.programs.iter().flat_map(|program| &program.skips) {
            *skips.entry(skip).or_insert(0) += 1;
        }
        skips.iter().for_each(|(skip, count)| println!("{count:>4} {skip}"));
        println!("console: {}", self.log.display());
    }
}

impl Report {
    pub(super) fn is_good(&self) -> bool {
        self.boots.iter().all(Boot::is_good)
    }

    pub(super) fn print(&self, as_json: bool) -> Result<()> {
        if as_json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        self.boots.iter().for_each(Boot::print);
        let skips: usize =
            self.boots.iter().flat_map(|boot| &boot.programs).map(|program| program.skips.len()).sum();
        println!("\n{}, {skips} skipped", if self.is_good() { "all is well" } else { "FAILED" });
        Ok(())
    }
}
