//! Blends: pictures between texts and pictures, in CLIP's space.
//!
//! The image embeddings of several things are mixed, and the decoder makes a picture of the mixture: on the arc between them
//! (Ramesh et al. 2022, section 3.2) or, as Kandinsky does it, by a weighted sum. A text difference moves an embedding in the
//! direction in which one text lies from another (section 3.3).

use super::family::{Embedding, EncodedText};
use super::parts::Prior;
use super::request::Prompt;
use super::session::Session;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::noise::slerp;
use std::sync::Arc;

/// One of the things that a blend mixes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Ingredient {
    /// A text, of which the prior makes an image embedding.
    Prompt(Prompt),
    /// A picture.
    Image(Image),
}

/// How image embeddings are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// On the arc between them, see [`slerp`]; of several things one after the other, each with its share of what is there.
    Sphere,
    /// The weighted sum. Weights need not add up to 1.
    Sum,
}

/// A move along the difference of two texts.
#[derive(Clone, Debug)]
pub struct Shift {
    /// Where it comes from.
    pub from: Prompt,
    /// Where it leads.
    pub to: Prompt,
    /// For each mixture how far: 0 is not at all, 1 is the difference itself.
    pub amounts: Vec<f32>,
}

/// Pictures of mixtures of one list of things.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Blend {
    /// What is mixed.
    pub ingredients: Vec<Ingredient>,
    /// For each mixture the weight of each thing.
    pub weights: Vec<Vec<f32>>,
    /// How they are mixed; `None` is the family's own way: a sum for Kandinsky, elsewhere on the sphere.
    pub mix: Option<Mix>,
    /// The move along a text difference.
    pub shift: Option<Shift>,
    /// For each mixture where its noise lies between that of the request's seed, 0, and that of the next one, 1. `None` is the
    /// same noise for all.
    pub noise: Option<Vec<f32>>,
}

impl Blend {
    /// Mixtures of these things.
    #[must_use]
    pub fn new(ingredients: Vec<Ingredient>, weights: Vec<Vec<f32>>) -> Blend {
        Blend { ingredients, weights, mix: None, shift: None, noise: None }
    }

    /// `frames` mixtures on the way from the first thing to the last, through those between them.
    #[must_use]
    pub fn path(ingredients: Vec<Ingredient>, frames: usize) -> Blend {
        let last = ingredients.len().saturating_sub(1);
        let row = |frame: usize| {
            let at = Blend::share(frame, frames) * last as f32;
            (0..=last).map(|i| (1.0 - (at - i as f32).abs()).max(0.0)).collect()
        };
        let weights = (0..frames).map(row).collect();
        Blend::new(ingredients, weights)
    }

    /// How far along a frame lies: 0 is the first one, 1 the last.
    #[must_use]
    pub fn share(frame: usize, frames: usize) -> f32 {
        frame as f32 / frames.saturating_sub(1).max(1) as f32
    }

    /// The prompts among the things, in order.
    pub(super) fn prompts(&self) -> impl Iterator<Item = &Prompt> {
        self.ingredients.iter().filter_map(|thing| match thing {
            Ingredient::Prompt(prompt) => Some(prompt),
            Ingredient::Image(_) => None,
        })
    }

    /// The prompts and then the texts of the shift, as families encode them.
    pub(super) fn texts(&self) -> impl Iterator<Item = &Prompt> {
        self.prompts().chain(self.shift.iter().flat_map(|shift| [&shift.from, &shift.to]))
    }

    /// How many pictures there are among the things.
    pub(super) fn pictures(&self) -> usize {
        self.ingredients.len() - self.prompts().count()
    }

    /// The pictures among the things, in order.
    pub(super) fn images(&self) -> Vec<Image> {
        let image = |thing: &Ingredient| match thing {
            Ingredient::Image(image) => Some(image.clone()),
            Ingredient::Prompt(_) => None,
        };
        self.ingredients.iter().filter_map(image).collect()
    }

    /// Refuses what nobody could mix.
    pub(super) fn check(&self) -> Result<()> {
        let (things, frames) = (self.ingredients.len(), self.weights.len());
        if things == 0 || things == 1 && self.shift.is_none() {
            let reason = format!("{things} to blend; at least two are needed, or one and the difference of two texts");
            return Err(Error::request("image", reason));
        }
        self.ingredients.iter().try_for_each(|thing| match thing {
            Ingredient::Image(image) => image.check(),
            Ingredient::Prompt(_) => Ok(()),
        })?;
        for row in &self.weights {
            if row.len() != things {
                return Err(Error::request("weights", format!("{} for {things} things; one for each", row.len())));
            }
            if row.iter().any(|weight| !weight.is_finite()) || row.iter().all(|weight| *weight == 0.0) {
                return Err(Error::request("weights", format!("{row:?}; expected numbers, not all of them 0")));
            }
        }
        let lists = [("amount", self.shift.as_ref().map(|shift| &shift.amounts)), ("noise blend", self.noise.as_ref())];
        for (what, list) in lists.into_iter().filter_map(|(what, list)| Some((what, list?))) {
            if list.len() != frames {
                return Err(Error::request(what, format!("{} for {frames} mixtures; one for each", list.len())));
            }
            if let Some(found) = list.iter().find(|share| !(0.0..=1.0).contains(*share)) {
                return Err(Error::value(what, found, "must be from 0 to 1"));
            }
        }
        Ok(())
    }

    /// How the things of a family with this way of its own are mixed.
    ///
    /// # Errors
    /// Weights below 0 have no place on a sphere.
    pub(super) fn mix(&self, own: Mix) -> Result<Mix> {
        let mix = self.mix.unwrap_or(own);
        match self.weights.iter().flatten().find(|weight| **weight < 0.0) {
            Some(weight) if mix == Mix::Sphere => Err(Error::value("weights", weight, "must be at least 0")),
            _ => Ok(mix),
        }
    }

    /// What to say of weights that are scaled.
    pub(super) fn remark(&self, mix: Mix) -> Option<String> {
        let sum = |row: &Vec<f32>| row.iter().sum::<f32>();
        let row = self.weights.iter().find(|row| mix == Mix::Sphere && (sum(row) - 1.0).abs() > 1e-4)?;
        Some(format!("weights {row:?} add up to {}; they are scaled to 1", sum(row)))
    }

    /// A draft's mixture for each of the blend's: `texts` are those of its prompts, `images` the embeddings of its pictures,
    /// `ends` the two texts of the shift.
    pub(super) fn mixtures(
        &self,
        mix: Mix,
        texts: &[Arc<EncodedText>],
        images: Vec<Vec<f32>>,
        ends: Option<[&EncodedText; 2]>,
    ) -> Vec<Mixture> {
        let (mut texts, mut images) = (texts.iter(), images.into_iter());
        let part = |thing: &Ingredient| match thing {
            Ingredient::Prompt(_) => texts.next().cloned().map(Part::Text),
            Ingredient::Image(_) => images.next().map(Part::Image),
        };
        let parts: Arc<Vec<Part>> = Arc::new(self.ingredients.iter().filter_map(part).collect());
        let direction = ends.map(|[from, to]| {
            let difference: Vec<f32> = to.embeds.iter().zip(&from.embeds).map(|(to, from)| to - from).collect();
            Arc::new(difference)
        });
        let mixture = |(frame, weights): (usize, &Vec<f32>)| {
            let amount = self.shift.as_ref().map_or(0.0, |shift| shift.amounts[frame]);
            let shift = direction.clone().map(|direction| (direction, amount));
            Mixture { parts: parts.clone(), weights: weights.clone(), mix, shift, own_noise: self.noise.is_some() }
        };
        self.weights.iter().enumerate().map(mixture).collect()
    }
}

/// What a picture's image embedding is mixed of.
#[derive(Clone, Debug)]
pub(super) struct Mixture {
    parts: Arc<Vec<Part>>,
    weights: Vec<f32>,
    mix: Mix,
    /// Direction and amount of a move.
    shift: Option<(Arc<Vec<f32>>, f32)>,
    /// Whether the noise is that of this mixture alone.
    own_noise: bool,
}

#[derive(Debug)]
enum Part {
    /// The prior makes an embedding of it.
    Text(Arc<EncodedText>),
    /// An image embedding.
    Image(Vec<f32>),
}

impl Mixture {
    /// The mixture of the parts' embeddings.
    fn mixed(&self, parts: &[Vec<f32>]) -> Vec<f32> {
        let weighted = parts.iter().zip(&self.weights);
        let mixed = match self.mix {
            Mix::Sum => {
                let mut sum = vec![0.0; parts[0].len()];
                weighted.for_each(|(part, weight)| sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += weight * x));
                sum
            }
            Mix::Sphere => {
                let mut present = weighted.filter(|(_, weight)| **weight > 0.0);
                let (first, weight) = present.next().expect("not all weights are 0");
                let start = (first.clone(), *weight);
                present
                    .fold(start, |(mixed, sum), (part, weight)| {
                        (slerp(&mixed, part, weight / (sum + weight)), sum + weight)
                    })
                    .0
            }
        };
        match &self.shift {
            None => mixed,
            Some((direction, amount)) => {
                let length = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                let scale = length(&mixed) / length(direction).max(f64::MIN_POSITIVE);
                let target: Vec<f32> = direction.iter().map(|x| (f64::from(*x) * scale) as f32).collect();
                slerp(&mixed, &target, *amount)
            }
        }
    }
}

/// Fills in the image embeddings of drafts that have mixtures, all of one blend: the prior runs for each text in turn, then,
/// where one is given, for a text `behind` them, whose embeddings are returned.
pub(super) fn resolve(
    prior: Option<&Prior>,
    session: &mut Session<'_, '_>,
    drafts: &mut [Embedding],
    behind: Option<&Arc<EncodedText>>,
) -> Result<Vec<Vec<f32>>> {
    let mixtures: Vec<Mixture> = drafts.iter().filter_map(|draft| draft.mixture.clone()).collect();
    let run = |session: &mut Session<'_, '_>, drafts: &mut [Embedding], text: &Arc<EncodedText>| {
        // Drafts of one seed share their noise, and so what the prior makes of a text.
        let own = |i: usize| (0..i).find(|&j| !mixtures[i].own_noise && drafts[j].seed == drafts[i].seed);
        let first: Vec<usize> = (0..drafts.len()).map(|i| own(i).unwrap_or(i)).collect();
        let which: Vec<usize> = (0..drafts.len()).filter(|&i| first[i] == i).collect();
        let mut distinct: Vec<Embedding> =
            which.iter().map(|&i| Embedding { text: text.clone(), ..drafts[i].clone() }).collect();
        let prior = prior.ok_or_else(|| Error::request("prompt", "this checkpoint has no prior"))?;
        prior.sample(session, &mut distinct)?;
        let of = |i: usize| &distinct[which.iter().position(|&j| j == first[i]).expect("its first draft was run")];
        drafts.iter_mut().enumerate().for_each(|(i, draft)| draft.noise = of(i).noise.clone());
        Ok::<_, Error>((0..drafts.len()).map(|i| of(i).image.clone()).collect::<Vec<Vec<f32>>>())
    };
    let mut parts = vec![Vec::new(); drafts.len()];
    let all = mixtures.first().map(|mixture| mixture.parts.clone()).unwrap_or_default();
    for part in all.iter() {
        let embeddings = match part {
            Part::Text(text) => run(session, drafts, text)?,
            Part::Image(image) => vec![image.clone(); drafts.len()],
        };
        parts.iter_mut().zip(embeddings).for_each(|(parts, embedding)| parts.push(embedding));
    }
    let behind = behind.map(|text| run(session, drafts, text)).transpose()?;
    for ((draft, mixture), parts) in drafts.iter_mut().zip(&mixtures).zip(&parts) {
        draft.image = mixture.mixed(parts);
    }
    Ok(behind.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixture(weights: &[f32], mix: Mix, shift: Option<(Vec<f32>, f32)>) -> Mixture {
        let shift = shift.map(|(direction, amount)| (Arc::new(direction), amount));
        Mixture { parts: Arc::default(), weights: weights.to_vec(), mix, shift, own_noise: false }
    }

    #[test]
    fn halves_lie_in_the_middle_of_the_arc_and_ends_are_the_things_themselves() {
        let parts = [vec![3.0, 0.0], vec![0.0, 4.0]];
        let half = mixture(&[0.5, 0.5], Mix::Sphere, None).mixed(&parts);
        let root = std::f32::consts::FRAC_1_SQRT_2;
        assert!((half[0] - 3.0 * root).abs() < 1e-6 && (half[1] - 4.0 * root).abs() < 1e-6, "{half:?}");
        assert_eq!(mixture(&[1.0, 0.0], Mix::Sphere, None).mixed(&parts), parts[0]);
        assert_eq!(mixture(&[0.0, 2.0], Mix::Sphere, None).mixed(&parts), parts[1]);
        assert_eq!(mixture(&[0.5, 2.0], Mix::Sum, None).mixed(&parts), [1.5, 8.0]);
        // Three things of one weight: the third one's share is a third.
        let three = [vec![1.0, 0.0, 0.0], vec![0.0, 1.0, 0.0], vec![0.0, 0.0, 1.0]];
        let third = mixture(&[1.0; 3], Mix::Sphere, None).mixed(&three);
        assert!((third[2] - (std::f32::consts::FRAC_PI_2 / 3.0).sin()).abs() < 1e-6, "{third:?}");
    }

    #[test]
    fn a_shift_turns_towards_the_difference_and_keeps_the_length() {
        let turned = |amount| mixture(&[1.0], Mix::Sphere, Some((vec![0.0, 0.1], amount))).mixed(&[vec![2.0, 0.0]]);
        assert_eq!(turned(0.0), [2.0, 0.0]);
        let half = turned(0.5);
        assert!((half[0] - half[1]).abs() < 1e-6 && (half[0].hypot(half[1]) - 2.0).abs() < 1e-6, "{half:?}");
        let whole = turned(1.0);
        assert!(whole[0] == 0.0 && (whole[1] - 2.0).abs() < 1e-6, "{whole:?}");
    }

    #[test]
    fn a_path_leads_through_all_things() {
        let thing = || Ingredient::Image(Image { width: 1, height: 1, pixels: vec![0; 3] });
        let weights = |things: usize, frames| Blend::path((0..things).map(|_| thing()).collect(), frames).weights;
        assert_eq!(weights(2, 3), [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]);
        assert_eq!(weights(3, 5)[..3], [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]);
        assert_eq!(weights(2, 1), [[1.0, 0.0]]);
    }
}
