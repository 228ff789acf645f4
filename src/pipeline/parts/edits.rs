//! Edited pictures: what of their latents stays, and which decoder can see it.

use super::painter::{ENCODER, Painter};
use crate::error::{Error, Result};
use crate::image::Mask;
use crate::model::kandinsky::Beside;
use crate::pipeline::edit::{Edit, Given, Prepared};
use crate::pipeline::family::Shapes;
use crate::pipeline::request::Request;
use crate::pipeline::session::Session;

/// Share of the steps in which a picture without a mask is redrawn, where a request does not say.
const STRENGTH: f32 = 0.3;

/// The strength of an edit: with a mask all steps, unless it says otherwise.
pub fn strength(edit: &Edit) -> Option<f32> {
    edit.strength.or(edit.mask.is_none().then_some(STRENGTH))
}

/// What stays of the latents of this height and width, 1 or 0: the mask at each of their positions, where what is new
/// spreads to its neighbours but those above to the right and below to the left.
///
/// *Source* diffusers' `prepare_mask`.
fn stays(mask: &Mask, [height, width]: [usize; 2]) -> Vec<f32> {
    let is_new = |y: usize, x: usize| mask.is_new(x * mask.width / width, y * mask.height / height);
    let mut stays = vec![1.0; height * width];
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))).filter(|&(y, x)| is_new(y, x)) {
        for [down, right] in [[0, 0], [-1, 0], [0, -1], [-1, -1], [1, 0], [0, 1], [1, 1]] {
            let at = y.checked_add_signed(down).zip(x.checked_add_signed(right));
            if let Some((y, x)) = at.filter(|&(y, x)| y < height && x < width) {
                stays[y * width + x] = 0.0;
            }
        }
    }
    stays
}

/// What an inpainting network sees beside noisy latents `[h, w, C + 1]`: those that stay, and where they are.
pub fn known(given: &Given) -> Vec<f32> {
    let stays = given.stays.as_deref().unwrap_or_default();
    let channels = given.sample.len() / stays.len().max(1);
    let positions = stays.iter().zip(given.sample.chunks_exact(channels));
    positions.flat_map(|(&m, sample)| sample.iter().map(move |x| x * m).chain([m])).collect()
}

impl Painter {
    /// Refuses given pictures that the decoder cannot see, and requests without those that it must see.
    pub fn check_given(&self, request: &Request) -> Result<()> {
        if request.inversion.is_some() {
            return Err(Error::request("inversion", "the decoder of this checkpoint makes no pixels; Karlo's does"));
        }
        let mask = request.edit.as_ref().and_then(|edit| edit.mask.as_ref());
        match (Beside::of(&self.decoder)?, mask, &request.hint) {
            (Beside::Known, None, _) => {
                let reason = "none is given, but this decoder makes parts of given pictures anew: engine edit";
                Err(Error::request("mask", reason))
            }
            (Beside::Hint, _, None) => {
                Err(Error::request("hint", "none is given, but this decoder sees a picture of what is where"))
            }
            (Beside::Nothing | Beside::Known, _, Some(_)) => {
                Err(Error::request("hint", "the decoder of this checkpoint sees none"))
            }
            _ => match &request.edit {
                Some(Edit { resample, .. }) if *resample > 1 => {
                    Err(Error::value("resample", resample, "decoders of latents take each step once"))
                }
                _ => Ok(()),
            },
        }
    }

    /// The latents of a picture that is edited, and what of them stays.
    pub fn prepare(&self, session: &mut Session<'_, '_>, edit: &Edit, [width, height]: [usize; 2]) -> Result<Prepared> {
        let mut sample = Vec::new();
        let shapes = Shapes::batch(1, false).at([height, width]);
        session.stage(ENCODER, shapes, 1, 0, |session, executable, _| {
            executable.write("picture", &edit.image.resized(width, height).unit_range())?;
            executable.run_once()?;
            sample = session.read(ENCODER, executable, "latents")?;
            Ok(())
        })?;
        let stays = edit.mask.as_ref().map(|mask| stays(&mask.resized(width, height), self.latents([width, height])));
        let small = Given { sample, stays };
        Ok(Prepared { small, large: None, strength: strength(edit), resample: 1 })
    }
}
