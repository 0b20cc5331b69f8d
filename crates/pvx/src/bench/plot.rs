//! A chart of the report: horizontal bars over a logarithmic scale.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::report::{Line, Report, Spread, human_ns};

const WIDTH: u32 = 960;
const BAR: u32 = 22;
const ABOVE: u32 = 56;
const BELOW: u32 = 92;
const LABELS: u32 = 250;
const FONT: &str = "sans-serif";

const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const LIMIT: RGBColor = RGBColor(0xc0, 0x30, 0x30);

/// A file for a chart.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    path: PathBuf,
    format: Format,
}

/// What a chart is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Svg,
    #[cfg(feature = "png")]
    Png,
}

impl Chart {
    /// The format is told by the file's name.
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let path = PathBuf::from(word);
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => Format::Svg,
            #[cfg(feature = "png")]
            Some("png") => Format::Png,
            #[cfg(not(feature = "png"))]
            Some("png") => return Err("this pvx was built without PNG: name it .svg".to_owned()),
            #[cfg(feature = "png")]
            _ => return Err("name it .svg or .png".to_owned()),
            #[cfg(not(feature = "png"))]
            _ => return Err("name it .svg".to_owned()),
        };
        Ok(Self { path, format })
    }

    /// Whether it can be drawn later. What is in the file stays there until then.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn require_writable(&self) -> Result<()> {
        let opened = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&self.path);
        opened.map(drop).with_context(|| cannot_write(&self.path))
    }

    /// Draws `report`.
    pub(super) fn draw(&self, report: &Report) -> Result<()> {
        let svg = svg_of(report).map_err(|error| anyhow!("drawing the chart: {error}"))?;
        match self.format {
            Format::Svg => fs::write(&self.path, svg).with_context(|| cannot_write(&self.path)),
            #[cfg(feature = "png")]
            Format::Png => super::png::write(&svg, &self.path),
        }
    }
}

fn cannot_write(path: &Path) -> String {
    format!("--plot {}: the chart cannot be written there", path.display())
}

fn svg_of(report: &Report) -> Result<String, Box<dyn std::error::Error + '_>> {
    let mut svg = String::new();
    let rows = u32::try_from(report.cases.len())?;
    let size = (WIDTH, ABOVE + rows * BAR + BELOW);
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        let scale = Scale::of(&report.cases);
        draw_grid(&area, &scale, rows).map_err(|error| error.to_string())?;
        for (row, line) in (0..rows).zip(&report.cases) {
            draw_bar(&area, &scale, row, line).map_err(|error| error.to_string())?;
        }
        draw_limit(&area, &scale, rows, &report.cases).map_err(|error| error.to_string())?;
        draw_legend(&area, rows, &report.cases).map_err(|error| error.to_string())?;
        let under =
            format!("{}, {} CPUs, {}", report.machine.cpu, report.machine.cpus, report.machine.kernel);
        text(&area, "Round trips into another address space", (16, 14), 18, HPos::Left, &INK)
            .map_err(|error| error.to_string())?;
        let bottom = i32::try_from(size.1)? - 18;
        text(&area, &under, (16, bottom), 11, HPos::Left, &INK).map_err(|error| error.to_string())?;
        area.present()?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> = Result<(), Box<dyn std::error::Error + Send + Sync + 'a>>;

/// Whole powers of ten around all medians, mapped to pixels.
struct Scale {
    from: i32,
    to: i32,
}

impl Scale {
    fn of(lines: &[Line]) -> Self {
        let mut scale = Self { from: i32::MAX, to: i32::MIN };
        for line in lines {
            let mut power = 0;
            while 10f64.powi(power + 1) <= line.ns.median {
                power += 1;
            }
            scale.from = scale.from.min(power);
            scale.to = scale.to.max(power + 1);
        }
        scale
    }

    /// The pixel column of `ns`.
    #[allow(clippy::cast_possible_truncation, reason = "a column of the chart is far below 2^31")]
    fn x(&self, ns: f64) -> i32 {
        let span = f64::from(self.to - self.from);
        let part = ((ns.max(1.0).log10() - f64::from(self.from)) / span).clamp(0.0, 1.0);
        let room = f64::from(WIDTH - LABELS - 90);
        (f64::from(LABELS) + part * room).round() as i32
    }

    /// The columns where a whisker is cut, each with the way back to its middle.
    fn cuts(&self, ns: Spread) -> impl Iterator<Item = (i32, i32)> {
        let (least, greatest) = (10f64.powi(self.from), 10f64.powi(self.to));
        let below = (ns.min < least).then(|| (self.x(least), 6));
        let above = (ns.max > greatest).then(|| (self.x(greatest), -6));
        below.into_iter().chain(above)
    }
}

fn y(row: u32) -> i32 {
    i32::try_from(ABOVE + row * BAR).unwrap_or(i32::MAX)
}

fn draw_grid<'a>(area: &Area<'a>, scale: &Scale, rows: u32) -> Drawn<'a> {
    for power in scale.from..=scale.to {
        let ns = 10f64.powi(power);
        let x = scale.x(ns);
        area.draw(&PathElement::new(vec![(x, y(0) - 4), (x, y(rows) + 4)], GRID))?;
        let label = human_ns(ns).replace(".00", "").replace(".0", "");
        text(area, &label, (x, y(rows) + 14), 11, HPos::Center, &INK)?;
    }
    let middle = i32::midpoint(scale.x(10f64.powi(scale.from)), scale.x(10f64.powi(scale.to)));
    text(area, "time of one round trip, logarithmic scale", (middle, y(rows) + 32), 11, HPos::Center, &INK)
}

/// What the colours mean, and the lines through the bars' ends.
fn draw_legend<'a>(area: &Area<'a>, rows: u32, lines: &[Line]) -> Drawn<'a> {
    const WIDTH_OF_ONE: usize = 90;
    let mut engines: Vec<&str> = Vec::new();
    for line in lines {
        if !engines.contains(&line.engine) {
            engines.push(line.engine);
        }
    }
    let middle = y(rows) + 52;
    let left = |column: usize| 16 + i32::try_from(column * WIDTH_OF_ONE).unwrap_or(i32::MAX);
    for (column, engine) in engines.iter().enumerate() {
        let x = left(column);
        area.draw(&Rectangle::new([(x, middle - 5), (x + 10, middle + 5)], colour(engine).filled()))?;
        text(area, engine, (x + 16, middle), 11, HPos::Left, &INK)?;
    }
    let x = left(engines.len());
    area.draw(&PathElement::new(vec![(x, middle), (x + 18, middle)], INK))?;
    let whiskers = "least to greatest batch; an arrow where it goes on beyond the scale";
    text(area, whiskers, (x + 24, middle), 11, HPos::Left, &INK)
}

fn draw_bar<'a>(area: &Area<'a>, scale: &Scale, row: u32, line: &Line) -> Drawn<'a> {
    let (top, bottom) = (y(row) + 3, y(row + 1) - 3);
    let middle = (top + bottom) / 2;
    let (start, end) = (scale.x(0.0), scale.x(line.ns.median).max(scale.x(0.0) + 2));
    let label = format!("{}  {}  {}", line.case, line.engine, line.placement);
    text(area, &label, (start - 8, middle), 12, HPos::Right, &INK)?;
    area.draw(&Rectangle::new([(start, top), (end, bottom)], colour(line.engine).filled()))?;
    // From the least to the greatest batch.
    let whisker = vec![(scale.x(line.ns.min), middle), (scale.x(line.ns.max), middle)];
    area.draw(&PathElement::new(whisker, INK))?;
    for (end, inwards) in scale.cuts(line.ns) {
        let arrow = [(end + inwards, middle - 4), (end, middle), (end + inwards, middle + 4)];
        area.draw(&Polygon::new(arrow, INK))?;
    }
    let beside = end.max(scale.x(line.ns.max)) + 6;
    text(area, &human_ns(line.ns.median), (beside, middle), 12, HPos::Left, &INK)
}

/// The cache line's time as a line through all bars: no hand-off between two CPUs can be left of it.
fn draw_limit<'a>(area: &Area<'a>, scale: &Scale, rows: u32, lines: &[Line]) -> Drawn<'a> {
    let Some(limit) = lines.iter().find(|line| line.case == "cache-line") else { return Ok(()) };
    let x = scale.x(limit.ns.median);
    area.draw(&PathElement::new(vec![(x, y(0) - 6), (x, y(rows) + 4)], LIMIT.stroke_width(2)))?;
    text(area, "one cache line, there and back", (x, y(0) - 13), 11, HPos::Center, &LIMIT)
}

fn colour(engine: &str) -> RGBColor {
    match engine {
        "native" => RGBColor(0x7a, 0x4f, 0xb5),
        "rewrite" => RGBColor(0x1b, 0x7f, 0x5c),
        "trap" => RGBColor(0x3b, 0x76, 0xc4),
        "ptrace" => RGBColor(0xd9, 0x8a, 0x2b),
        _ => RGBColor(0x9a, 0x9a, 0x9a),
    }
}

fn text<'a>(area: &Area<'a>, text: &str, at: (i32, i32), size: u32, to: HPos, ink: &RGBColor) -> Drawn<'a> {
    let style = (FONT, size).into_font().color(ink).pos(Pos::new(to, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::machine::Machine;

    fn line(engine: &'static str, min: f64, median: f64, max: f64) -> Line {
        let ns = Spread { min, median, max };
        Line {
            case: "syscall",
            engine,
            placement: "one-cpu",
            ns,
            line_ns: None,
            by_line: Vec::new(),
            ratio_to_ptrace: None,
        }
    }

    fn chart(cases: Vec<Line>) -> String {
        svg_of(&Report { machine: Machine::here(), hogs: false, cases }).expect("a chart")
    }

    #[test]
    fn a_chart_says_what_its_axis_and_its_colours_mean() {
        let svg = chart(vec![line("trap", 150.0, 200.0, 300.0), line("ptrace", 1500.0, 2000.0, 3000.0)]);
        assert!(svg.contains("time of one round trip"), "{svg}");
        // Once beside the bar, once in the legend.
        for engine in ["trap", "ptrace"] {
            assert!(svg.lines().any(|line| line.trim() == engine), "{engine} is in no legend: {svg}");
        }
    }

    #[test]
    fn a_whisker_that_is_cut_at_the_end_of_the_scale_has_an_arrow() {
        let whole = chart(vec![line("trap", 150.0, 200.0, 300.0)]);
        let cut = chart(vec![line("trap", 50.0, 200.0, 30_000.0)]);
        assert_eq!(whole.matches("<polygon").count(), 0, "{whole}");
        assert_eq!(cut.matches("<polygon").count(), 2, "{cut}");
    }

    #[test]
    fn a_chart_of_an_unknown_kind_is_refused() {
        assert!(Chart::parse("chart.gif").is_err_and(|why| why.contains(".svg")));
        assert_eq!(Chart::parse("chart.png").is_ok(), cfg!(feature = "png"));
    }
}
