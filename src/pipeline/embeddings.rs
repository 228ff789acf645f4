//! Texts and pictures as embeddings in CLIP's space (Radford et al. 2021), for whoever compares them.

use super::event::{Observer, Stage};
use super::family::Shapes;
use super::request::Prompt;
use super::session::Session;
use super::trace::Trace;
use super::{Keep, Pipeline};
use crate::error::{Error, Result};
use crate::image::Image;

impl Pipeline {
    /// Texts to embeddings `[D]`, not normalised, in the space of [`Pipeline::embed_pictures`].
    ///
    /// # Errors
    /// As for [`Pipeline::run`]; [`Error::Unsupported`] and [`Error::Config`] if the checkpoint's texts have no place in
    /// that space.
    pub fn embed_texts(&self, texts: &[Prompt], observer: &mut Observer<'_>) -> Result<Vec<Vec<f32>>> {
        let tower = self.family.text_tower()?;
        self.embedding(tower.stage, texts.len(), observer, |session| {
            let tokens = texts.iter().map(|text| tower.tokens(session, text)).collect::<Result<Vec<_>>>()?;
            tower.embed(session, &tokens)
        })
    }

    /// Pictures to embeddings `[D]`, not normalised: each is its middle square, as the checkpoint says how to prepare it.
    ///
    /// # Errors
    /// As for [`Pipeline::run`]; [`Error::Config`] if the checkpoint has no image encoder.
    pub fn embed_pictures(&self, images: &[Image], observer: &mut Observer<'_>) -> Result<Vec<Vec<f32>>> {
        let tower = self.family.image_tower()?;
        images.iter().try_for_each(Image::check)?;
        self.embedding(tower.stage, images.len(), observer, |session| tower.encode(session, images))
    }

    /// Says what of both towers is missing or does not fit, before anything is loaded.
    ///
    /// # Errors
    /// As for [`Pipeline::embed_texts`] and [`Pipeline::embed_pictures`], as far as `texts` and `pictures` ask for them.
    pub fn check_towers(&self, texts: bool, pictures: bool) -> Result<()> {
        let text = texts.then(|| self.family.text_tower().map(|tower| tower.stage)).transpose()?;
        let image = pictures.then(|| self.family.image_tower().map(|tower| tower.stage)).transpose()?;
        text.into_iter().chain(image).try_for_each(|stage| self.plan(stage, &Shapes::batch(1, false)).map(drop))
    }

    /// What the checkpoint multiplies cosines with to get logits, where it says so: the exponential of its `logit_scale`.
    ///
    /// # Errors
    /// A component cannot be opened, or its `logit_scale` is no number that can be a factor.
    pub fn logit_scale(&self) -> Result<Option<f32>> {
        const TENSOR: &str = "logit_scale";
        for stage in [self.family.text_tower()?.stage, self.family.image_tower()?.stage] {
            let component = self.checkpoint.component(stage.component())?;
            if component.info(TENSOR).is_none() {
                continue;
            }
            return match component.f32s(TENSOR)?[..] {
                [scale] if scale.exp().is_finite() => Ok(Some(scale.exp())),
                ref found => Err(Error::Weights {
                    path: component.path().to_path_buf(),
                    tensor: TENSOR.to_owned(),
                    expected: "one number with a finite exponential".to_owned(),
                    found: format!("{found:?}"),
                }),
            };
        }
        Ok(None)
    }

    /// What tells whether embeddings of pictures were made in the same way: version, checkpoint with the state of its files,
    /// preparation and precision. To be compared, not read.
    ///
    /// # Errors
    /// The checkpoint has no image encoder, or it cannot be opened.
    pub fn picture_signature(&self) -> Result<String> {
        let tower = self.family.image_tower()?;
        let files = self.checkpoint.component(tower.stage.component())?.signature();
        let (version, name, precision) = (env!("CARGO_PKG_VERSION"), self.checkpoint.name(), self.backend.precision());
        // Adapters of other networks make no difference, but they are few.
        let adapters: Vec<_> = self.adapters.iter().map(|(adapter, scale)| (adapter.digest(), scale)).collect();
        let adapters = if adapters.is_empty() { String::new() } else { format!("; {adapters:?}") };
        let (config, preprocessor) = (&*tower.config, &*tower.preprocessor);
        Ok(format!("{version}; {name}; {files:?}; {config:?}; {preprocessor:?}; {precision}{adapters}"))
    }

    /// One stage over `count` texts or pictures.
    fn embedding(
        &self,
        stage: Stage,
        count: usize,
        observer: &mut Observer<'_>,
        run: impl FnOnce(&mut Session<'_, '_>) -> Result<Vec<Vec<f32>>>,
    ) -> Result<Vec<Vec<f32>>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut trace = Trace::off();
        let mut session = self.session_with(*self.defaults(), observer, &mut trace);
        session.check(&[(stage, Shapes::batch(count, false))])?;
        let embeddings = run(&mut session);
        if self.residents.keep == Keep::Nothing {
            self.residents.trim(0);
        }
        embeddings
    }
}

/// The vector of length 1 in the same direction; zeros stay.
pub fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    vector.iter().map(|&x| (f64::from(x) * scale) as f32).collect()
}

/// The cosine of the angle between two vectors of one length; 0 if one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { (dot(a, b) / lengths) as f32 } else { 0.0 }
}

/// The direction in which vectors point together: the mean of their unit vectors, of length 1.
///
/// *Source* Radford et al. 2021, section 3.1.4.
pub fn mean_direction<'a>(vectors: impl Iterator<Item = &'a [f32]>) -> Vec<f32> {
    let mut sum: Vec<f32> = Vec::new();
    for vector in vectors {
        let unit = unit(vector);
        sum.resize(unit.len(), 0.0);
        sum.iter_mut().zip(unit).for_each(|(sum, x)| *sum += x);
    }
    unit(&sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_do_not_weigh_in_a_mean_direction() {
        let mean = mean_direction([&[3.0, 0.0][..], &[0.0, 400.0]].into_iter());
        assert!(mean.iter().all(|x| (x - 0.5f32.sqrt()).abs() < 1e-7), "{mean:?}");
        assert_eq!(unit(&[0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(mean_direction(std::iter::empty()), [0.0; 0]);
    }

    #[test]
    fn cosines_do_not_depend_on_lengths() {
        assert_eq!(cosine(&[2.0, 0.0], &[0.0, 5.0]), 0.0);
        assert_eq!(cosine(&[2e-20, 0.0], &[-5e19, 0.0]), -1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
    }
}
