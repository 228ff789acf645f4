//! `engine run --show`: pictures in the terminal.

use super::progress::Progress;
use std::io::IsTerminal;
use unclip::image::Image;
use unclip::{Error, Result};

/// Draws one picture, or several as a sheet, with the best protocol that the terminal speaks.
///
/// # Errors
/// The terminal cannot be written to.
pub fn show(images: &[Image], progress: &Progress) -> Result<()> {
    if !std::io::stdout().is_terminal() || progress.is_json() {
        progress.note("--show: standard output is no terminal, nothing is shown");
        return Ok(());
    }
    let sheet = Image::grid(images)?;
    let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let pixels = image::RgbImage::from_raw(side(sheet.width), side(sheet.height), sheet.pixels);
    let pixels = pixels.expect("a picture has as many pixels as its sides say");
    let config = viuer::Config { absolute_offset: false, ..viuer::Config::default() };
    let failed = |e: viuer::ViuError| Error::io("standard output", "write", std::io::Error::other(e));
    viuer::print(&pixels.into(), &config).map_err(failed).map(drop)
}
