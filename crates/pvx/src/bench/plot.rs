//! A chart of the report: horizontal bars over a logarithmic scale.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use resvg::{tiny_skia, usvg};

use super::report::{Line, Report, human_ns};

const WIDTH: u32 = 960;
const BAR: u32 = 22;
const ABOVE: u32 = 56;
const BELOW: u32 = 56;
const LABELS: u32 = 250;
const FONT: &str = "sans-serif";
/// A PNG has this many pixels for one of the SVG's.
const PNG_SCALE: u16 = 2;

const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const LIMIT: RGBColor = RGBColor(0xc0, 0x30, 0x30);

/// What a chart is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Svg,
    Png,
}

impl Format {
    /// By the file's name.
    pub(super) fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => bail!("--plot {}: name it .svg or .png", path.display()),
        }
    }
}

/// Draws `report` into `path`.
pub(super) fn draw(report: &Report, path: &Path) -> Result<()> {
    let svg = svg_of(report).map_err(|error| anyhow!("drawing the chart: {error}"))?;
    match Format::of(path)? {
        Format::Svg => fs::write(path, svg).with_context(|| format!("writing {}", path.display())),
        Format::Png => write_png(&svg, path),
    }
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
    Ok(())
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

fn write_png(svg: &str, path: &Path) -> Result<()> {
    let mut options = usvg::Options::default();
    let fonts = options.fontdb_mut();
    fonts.load_system_fonts();
    ensure!(!fonts.is_empty(), "a PNG needs a font and this machine has none; write an .svg");
    // `sans-serif` is looked up by name: take the plainest of the families that are there.
    let families = fonts.faces().flat_map(|face| &face.families).map(|(name, _)| name.clone());
    if let Some(family) = families.min_by_key(|name| (!name.contains("Sans"), name.len())) {
        fonts.set_sans_serif_family(family);
    }
    let tree = usvg::Tree::from_str(svg, &options)?;
    let scale = u32::from(PNG_SCALE);
    let size = tree.size().to_int_size();
    let mut pixels =
        tiny_skia::Pixmap::new(size.width() * scale, size.height() * scale).context("an empty chart")?;
    let enlarge = tiny_skia::Transform::from_scale(f32::from(PNG_SCALE), f32::from(PNG_SCALE));
    resvg::render(&tree, enlarge, &mut pixels.as_mut());
    pixels.save_png(path).with_context(|| format!("writing {}", path.display()))
}
