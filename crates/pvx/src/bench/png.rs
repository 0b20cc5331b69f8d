//! A chart as PNG: drawn from the SVG, with this machine's fonts.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use resvg::{tiny_skia, usvg};

/// A PNG has this many pixels for one of the SVG's.
const SCALE: u16 = 2;

/// Draws `svg` into `path`.
pub(super) fn write(svg: &str, path: &Path) -> Result<()> {
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
    let scale = u32::from(SCALE);
    let size = tree.size().to_int_size();
    let mut pixels =
        tiny_skia::Pixmap::new(size.width() * scale, size.height() * scale).context("an empty chart")?;
    let enlarge = tiny_skia::Transform::from_scale(f32::from(SCALE), f32::from(SCALE));
    resvg::render(&tree, enlarge, &mut pixels.as_mut());
    pixels.save_png(path).with_context(|| format!("writing {}", path.display()))
}
