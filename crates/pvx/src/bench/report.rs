//! The report of round trips: its JSON, and its table.

use serde::Serialize;

use super::{
    case::{Case, Subject},
    machine::Machine,
};

/// Machine and lines; this very structure is the JSON.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    /// Has there been a thread on each CPU that computed all the time?
    pub(super) hogs: bool,
    pub(super) cases: Vec<Line>,
}

/// One line.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub(super) case: &'static str,
    pub(super) engine: &'static str,
    pub(super) placement: &'static str,
    pub(super) ns: Spread,
    /// The median of what a cache line took there and back before each batch, on the same two CPUs.
    pub(super) line_ns: Option<f64>,
    /// The same batches, classed by what the line took: none on one CPU.
    pub(super) by_line: Vec<Class>,
    /// The best median of `ptrace` in this case (for a baseline: in `syscall`; for live processes: in
    /// `inject-ptrace`) divided by this median.
    pub(super) ratio_to_ptrace: Option<f64>,
}

/// Batches beside a cache line that took about as long: hosts move virtual CPUs, and two may be one core for a while.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Class {
    /// `one-core` or `two-cores`.
    cores: &'static str,
    batches: usize,
    /// Medians: of the line, of a round, and of a round beside the line of its batch.
    line_ns: f64,
    ns: f64,
    lines: f64,
}

impl Class {
    /// What a cache line takes there and back within a core, at most.
    const ONE_CORE_NS: f64 = 60.0;

    /// Of each batch, what a round and what the line took.
    fn all(batches: &[(f64, f64)]) -> Vec<Self> {
        let (one, two) = batches.iter().partition(|(_, line)| *line <= Self::ONE_CORE_NS);
        [("one-core", one), ("two-cores", two)]
            .into_iter()
            .filter_map(|(cores, class)| Self::of(cores, class))
            .collect()
    }

    fn of(cores: &'static str, batches: Vec<&(f64, f64)>) -> Option<Self> {
        let median = |value: fn(&(f64, f64)) -> f64| {
            Spread::of(batches.iter().map(|&batch| value(batch)).collect()).median
        };
        let (ns, line_ns, lines) =
            (median(|batch| batch.0), median(|batch| batch.1), median(|batch| batch.0 / batch.1));
        (!batches.is_empty()).then_some(Self { cores, batches: batches.len(), line_ns, ns, lines })
    }
}

/// Of the averages of all batches.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Spread {
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) max: f64,
}

/// What came out for one subject.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    subject: Subject,
    ns: Spread,
    line_ns: Option<f64>,
    by_line: Vec<Class>,
}

impl Measured {
    /// `line_ns` is empty where there is no such line.
    pub(super) fn of(subject: Subject, ns: Vec<f64>, line_ns: Vec<f64>) -> Self {
        let batches: Vec<_> = ns.iter().copied().zip(line_ns.iter().copied()).collect();
        let line_ns = (!line_ns.is_empty()).then(|| Spread::of(line_ns).median);
        Self { subject, ns: Spread::of(ns), line_ns, by_line: Class::all(&batches) }
    }
}

impl Spread {
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { min: at(0), median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }
}

impl Report {
    pub(super) fn new(machine: Machine, measured: Vec<Measured>) -> Self {
        let ptrace_ns = |case: Case| {
            let wanted = case.reference();
            let medians = measured
                .iter()
                .filter(|one| one.subject.case == wanted && one.subject.engine_name() == "ptrace")
                .map(|one| one.ns.median);
            medians.min_by(f64::total_cmp)
        };
        let line = |Measured { subject, ns, line_ns, by_line }: &Measured| Line {
            case: subject.case.name(),
            engine: subject.engine_name(),
            placement: subject.placement.name(),
            ns: *ns,
            line_ns: *line_ns,
            by_line: by_line.clone(),
            ratio_to_ptrace: ptrace_ns(subject.case).map(|ptrace| ptrace / ns.median),
        };
        let cases = measured.iter().map(line).collect();
        Self { machine, hogs: false, cases }
    }

    pub(super) fn text(&self) -> String {
        let heading = ["case", "engine", "placement", "median", "min", "max", "line", "ptrace / this"];
        let rows = self.cases.iter().map(|line| {
            vec![
                line.case.to_owned(),
                line.engine.to_owned(),
                line.placement.to_owned(),
                human_ns(line.ns.median),
                human_ns(line.ns.min),
                human_ns(line.ns.max),
                line.line_ns.map_or_else(|| "-".to_owned(), human_ns),
                line.ratio_to_ptrace.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            ]
        });
        let Machine { cpu, cpus, kernel, .. } = &self.machine;
        let beside = if self.hogs { ", a hog on each" } else { "" };
        format!("{cpu}, {cpus} CPUs{beside}, {kernel}\n{}{}", table(&heading, 3, rows), self.text_by_line())
    }

    fn text_by_line(&self) -> String {
        let rows: Vec<_> = self
            .cases
            .iter()
            .flat_map(|line| line.by_line.iter().map(move |class| (line, class)))
            .map(|(line, class)| {
                vec![
                    line.case.to_owned(),
                    line.engine.to_owned(),
                    class.cores.to_owned(),
                    class.batches.to_string(),
                    human_ns(class.line_ns),
                    human_ns(class.ns),
                    format!("{:.2}", class.lines),
                ]
            })
            .collect();
        if rows.is_empty() {
            return String::new();
        }
        let heading = ["two CPUs", "engine", "which are", "batches", "line", "median", "in lines"];
        format!("\n{}", table(&heading, 3, rows.into_iter()))
    }
}

/// Nanoseconds with three digits and a unit.
pub(super) fn human_ns(ns: f64) -> String {
    let (value, unit) = match ns {
        _ if ns < 1e3 => (ns, "ns"),
        _ if ns < 1e6 => (ns / 1e3, "us"),
        _ if ns < 1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let decimals = match value {
        _ if value < 10.0 => 2,
        _ if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// Aligned columns, the first `left` of them to the left and the others to the right.
pub(super) fn table(heading: &[&str], left: usize, rows: impl Iterator<Item = Vec<String>>) -> String {
    let heading = heading.iter().map(|&name| name.to_owned()).collect();
    let rows: Vec<Vec<String>> = [heading].into_iter().chain(rows).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_with_three_digits() {
        assert_eq!(human_ns(7.128), "7.13 ns");
        assert_eq!(human_ns(110.4), "110 ns");
        assert_eq!(human_ns(59_000.0), "59.0 us");
        assert_eq!(human_ns(2_900_000.0), "2.90 ms");
    }

    #[test]
    fn the_spread_of_batches_is_their_least_middle_and_greatest() {
        let spread = Spread::of(vec![3.0, 1.0, 9.0, 2.0, 4.0]);
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 3.0, 9.0));
    }

    #[test]
    fn batches_are_classed_by_the_line_beside_each() {
        let classes =
            Class::all(&[(90.0, 30.0), (260.0, 130.0), (120.0, 60.0), (300.0, 100.0), (270.0, 90.0)]);
        let class = |cores, batches, line_ns, ns, lines| Class { cores, batches, line_ns, ns, lines };
        assert_eq!(
            classes,
            [class("one-core", 2, 60.0, 120.0, 3.0), class("two-cores", 3, 100.0, 270.0, 3.0)]
        );
        assert_eq!(Class::all(&[(90.0, 30.0)]).len(), 1);
        assert_eq!(Class::all(&[]), []);
    }

    #[test]
    fn columns_of_a_table_line_up() {
        let rows = [vec!["a".to_owned(), "1.00 ns".to_owned()]];
        assert_eq!(table(&["case", "ns"], 1, rows.into_iter()), "case       ns\na     1.00 ns\n");
    }
}
