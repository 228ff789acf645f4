//! `--preview`: the picture as the steps so far would have it, in a file and in the terminal.
//!
//! A step's guess of the finished picture is enlarged to its size and takes the place of the last one. In a terminal it is
//! drawn where the last one stood, by the protocols that can: blocks, and kitty's.

use super::files;
use super::flags::OutputArguments;
use super::progress::Progress;
use super::show::{Live, Protocol};
use std::path::PathBuf;
use unclip::image::{Format, Image, Texts};
use unclip::pipeline::{Event, Latents};
use unclip::{Error, Result};

/// Where previews go.
pub struct Preview {
    file: Option<(PathBuf, Format)>,
    live: Option<Live>,
    every: usize,
    /// Width and height of a finished picture.
    size: [usize; 2],
}

impl Preview {
    /// What the arguments ask for.
    ///
    /// # Errors
    /// A file without a format, or steps to preview and nowhere to show them.
    pub fn of(arguments: &OutputArguments) -> Result<Preview> {
        let asks = arguments.preview.is_some() || arguments.every.is_some();
        if arguments.every.is_some() && arguments.preview.is_none() && arguments.saved.show.is_none() {
            return Err(Error::request("--every", "no preview is asked for; it goes with --preview or --show"));
        }
        let format = |path: &PathBuf| {
            let asked = if path.extension().is_some() { None } else { arguments.saved.format };
            Ok((path.clone(), files::format("--preview", path, asked, arguments.saved.quality)?))
        };
        let file = arguments.preview.as_ref().map(format).transpose()?;
        let live = arguments.saved.show.filter(|_| asks).and_then(Protocol::live);
        Ok(Preview { file, live, every: arguments.every.unwrap_or(1) as usize, size: [0; 2] })
    }

    /// After how many steps each preview is made; `None` for none.
    pub fn every(&self) -> Option<usize> {
        (self.file.is_some() || self.live.is_some()).then_some(self.every)
    }

    /// For pictures of this width and height.
    pub fn sized(self, size: [usize; 2]) -> Preview {
        Preview { size, ..self }
    }

    /// Takes one event of the run. A preview that cannot be written is the last one; the pictures are worth more.
    pub fn event(&mut self, event: &Event<'_>, progress: &Progress) {
        match event {
            Event::Step { latents, .. } => {
                if let Err(error) = self.step(*latents) {
                    progress.note(&format!("engine: warning: no more previews: {error}"));
                    (self.file, self.live) = (None, None);
                }
            }
            _ => self.live.iter_mut().for_each(Live::clear),
        }
    }

    fn step(&mut self, latents: Latents<'_>) -> Result<()> {
        let Some(small) = self.every().and_then(|_| latents.previews().transpose()).transpose()? else {
            return Ok(());
        };
        let [width, height] = self.size;
        let images: Vec<Image> = small.iter().map(|image| image.resized(width, height)).collect();
        let sheet = Image::grid(&images)?;
        if let Some((path, format)) = &self.file {
            sheet.write(path, *format, &Texts::default())?;
        }
        self.live.iter_mut().try_for_each(|live| live.draw(&sheet))
    }
}
