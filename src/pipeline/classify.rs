//! Zero-shot classification: which of some labels fits a picture best (Radford et al. 2021, section 3.1).
//!
//! A label's direction is that of its texts together: each text's embedding is normalised, their mean is normalised again.
//! A picture's logit for a label is the cosine between both, times the scale that the checkpoint was trained with.

use super::embeddings::{cosine, mean_direction};
use super::event::Observer;
use super::{Pipeline, Prompt};
use crate::error::{Error, Result};
use crate::image::Image;
use std::collections::HashSet;

/// The scale that CLIP's training ends at, for checkpoints that keep none: they were exported for their embeddings alone.
pub const CLIP_SCALE: f32 = 100.0;

/// What labels are put into where nothing else is said: the prompt of Radford et al. 2021, section 3.1.4.
pub const TEMPLATE: &str = "a photo of a {}";

/// Labels to tell pictures apart by.
///
/// ```
/// # #[cfg(feature = "tokenizer")] {
/// use unclip::pipeline::Classify;
/// let classify = Classify::new(["cat", "dog"]).templates(["a photo of a {}", "a drawing of a {}"]);
/// assert_eq!(classify.labels[1].texts.len(), 2);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Classify {
    /// At least two.
    pub labels: Vec<Label>,
    /// Factor of the cosines; `None` is the checkpoint's own, or [`CLIP_SCALE`].
    pub scale: Option<f32>,
}

/// What a picture may show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// What it is called in results.
    pub name: String,
    /// Texts that stand for it together.
    pub texts: Vec<Prompt>,
}

impl Classify {
    /// Labels in [`TEMPLATE`].
    #[cfg(feature = "tokenizer")]
    pub fn new<T: Into<String>>(labels: impl IntoIterator<Item = T>) -> Classify {
        let label = |name: T| Label { name: name.into(), texts: Vec::new() };
        Classify { labels: labels.into_iter().map(label).collect(), scale: None }.templates([TEMPLATE])
    }

    /// The same labels with a text of each template, in which the label stands for `{}`. The article of a label that has one
    /// replaces the template's.
    #[cfg(feature = "tokenizer")]
    pub fn templates<T: AsRef<str>>(mut self, templates: impl IntoIterator<Item = T>) -> Classify {
        let templates: Vec<T> = templates.into_iter().collect();
        for Label { name, texts } in &mut self.labels {
            *texts = templates.iter().map(|template| Prompt::Text(filled(template.as_ref(), name))).collect();
        }
        self
    }

    /// The same with this factor of the cosines.
    pub fn scale(self, scale: f32) -> Classify {
        Classify { scale: Some(scale), ..self }
    }

    /// Refuses labels that tell nothing apart.
    ///
    /// # Errors
    /// [`Error::Request`] for fewer than two labels, one that is empty, without texts or there twice, or a scale that is no
    /// factor.
    pub fn check(&self) -> Result<()> {
        if self.labels.len() < 2 {
            let labels = if self.labels.is_empty() { "none is given" } else { "one is given" };
            return Err(Error::request("labels", format!("{labels}; at least two are needed to tell pictures apart")));
        }
        let mut seen = HashSet::new();
        let first = &self.labels[0];
        if let Some(same) = self.labels[1..].iter().find(|label| label.texts == first.texts && label.name != first.name)
        {
            let reason = format!("its texts are those of {:?}; a template needs {{}} where the label goes", first.name);
            return Err(Error::value("labels", format!("{:?}", same.name), reason));
        }
        for Label { name, texts } in &self.labels {
            if name.trim().is_empty() || texts.is_empty() {
                return Err(Error::value("labels", format!("{name:?}"), "an empty label, or one without texts"));
            }
            if !seen.insert(name.as_str()) {
                return Err(Error::value("labels", format!("{name:?}"), "given twice"));
            }
        }
        match self.scale {
            Some(scale) if !(scale.is_finite() && scale > 0.0) => {
                Err(Error::value("logit scale", scale, "must be finite and larger than 0"))
            }
            _ => Ok(()),
        }
    }
}

/// A template's text for a label.
#[cfg(feature = "tokenizer")]
fn filled(template: &str, label: &str) -> String {
    const ARTICLES: [&str; 3] = ["a ", "an ", "the "];
    let has_article = ARTICLES.iter().any(|article| label.to_lowercase().starts_with(article));
    let of_template = ARTICLES.map(|article| format!("{article}{{}}"));
    let own = of_template.iter().find_map(|end| {
        let at = template.find(end.as_str())?;
        let is_word = at == 0 || template[..at].ends_with(' ');
        (has_article && is_word).then(|| template.replacen(end.as_str(), "{}", 1))
    });
    own.as_deref().unwrap_or(template).replace("{}", label)
}

/// Labels as directions in a checkpoint's space.
#[derive(Clone, Debug)]
pub struct Classifier {
    labels: Vec<String>,
    /// Of each label, `[D]`, of length 1.
    directions: Vec<Vec<f32>>,
    scale: f32,
    has_own_scale: bool,
}

/// How well a label fits a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Its number among the labels.
    pub label: usize,
    /// Cosine times scale.
    pub logit: f32,
    /// The softmax of the logits of all labels.
    pub probability: f32,
}

impl Classifier {
    /// The labels by the numbers that [`Score::label`] has.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Factor of the cosines.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Whether the scale is the checkpoint's own or the caller's, and not [`CLIP_SCALE`] for want of one.
    pub fn has_own_scale(&self) -> bool {
        self.has_own_scale
    }

    /// The scores of a picture's embedding, the best first; of equals, the earlier label.
    pub fn scores(&self, embedding: &[f32]) -> Vec<Score> {
        let logits: Vec<f32> = self.directions.iter().map(|label| self.scale * cosine(label, embedding)).collect();
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - most).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let score =
            |(label, (&logit, power)): (usize, (&f32, &f64))| Score { label, logit, probability: (power / sum) as f32 };
        let mut scores: Vec<Score> = logits.iter().zip(&powers).enumerate().map(score).collect();
        scores.sort_by(|a, b| b.logit.total_cmp(&a.logit));
        scores
    }
}

impl Pipeline {
    /// Encodes labels once, for any number of pictures.
    ///
    /// # Errors
    /// As for [`Classify::check`] and [`Pipeline::embed_texts`].
    pub fn classifier(&self, classify: &Classify, observer: &mut Observer<'_>) -> Result<Classifier> {
        classify.check()?;
        self.check_towers(true, true)?;
        let own = match classify.scale {
            Some(scale) => Some(scale),
            None => self.logit_scale()?,
        };
        let texts: Vec<Prompt> = classify.labels.iter().flat_map(|label| &label.texts).cloned().collect();
        let embeddings = self.embed_texts(&texts, observer)?;
        let mut rest = &embeddings[..];
        let direction = |label: &Label| {
            let (own, others) = rest.split_at(label.texts.len());
            rest = others;
            mean_direction(own.iter().map(Vec::as_slice))
        };
        Ok(Classifier {
            directions: classify.labels.iter().map(direction).collect(),
            labels: classify.labels.iter().map(|label| label.name.clone()).collect(),
            scale: own.unwrap_or(CLIP_SCALE),
            has_own_scale: own.is_some(),
        })
    }

    /// The scores of each picture, the best first.
    ///
    /// # Errors
    /// As for [`Pipeline::embed_pictures`].
    pub fn classify(
        &self,
        classifier: &Classifier,
        images: &[Image],
        observer: &mut Observer<'_>,
    ) -> Result<Vec<Vec<Score>>> {
        let embeddings = self.embed_pictures(images, observer)?;
        Ok(embeddings.iter().map(|embedding| classifier.scores(embedding)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_a_softmax_in_order() {
        let directions = vec![vec![1.0, 0.0], vec![0.0, 1.0], vec![-1.0, 0.0]];
        let labels = ["a", "b", "c"].map(str::to_owned).to_vec();
        let classifier = Classifier { labels, directions, scale: 2.0, has_own_scale: true };
        let scores = classifier.scores(&[0.0, 7.0]);
        assert_eq!(scores.iter().map(|score| score.label).collect::<Vec<_>>(), [1, 0, 2]);
        let rest = 1.0 / (2.0 + 2f64.exp());
        assert!((f64::from(scores[0].probability) - 2f64.exp() * rest).abs() < 1e-7);
        assert!((f64::from(scores[2].probability) - rest).abs() < 1e-7);
        assert_eq!((scores[0].logit, scores[1].logit), (2.0, 0.0));
    }

    #[cfg(feature = "tokenizer")]
    #[test]
    fn a_labels_article_replaces_the_templates() {
        assert_eq!(filled(TEMPLATE, "a red car"), "a photo of a red car");
        assert_eq!(filled(TEMPLATE, "cat"), "a photo of a cat");
        assert_eq!(filled("a {}", "The sun"), "The sun");
        assert_eq!(filled("{} in the sea {}", "an owl"), "an owl in the sea an owl");
        assert_eq!(filled("extra {}", "a cat"), "extra a cat");
    }

    #[cfg(feature = "tokenizer")]
    #[test]
    fn labels_that_tell_nothing_apart_are_refused() {
        let refused = |labels: &[&str]| Classify::new(labels.to_vec()).check().unwrap_err().to_string();
        assert!(refused(&[]).contains("none is given") && refused(&["cat"]).contains("one is given"));
        assert!(refused(&["cat", " "]).contains("empty label"));
        assert_eq!(refused(&["cat", "dog", "cat"]), "labels \"cat\": given twice");
        let classify = Classify::new(["cat", "dog"]);
        assert!(classify.check().is_ok());
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(classify.clone().scale(scale).check().is_err(), "{scale}");
        }
        assert!(classify.clone().templates([""; 0]).check().is_err());
        let error = classify.templates(["a photo"]).check().unwrap_err().to_string();
        assert!(error.contains("a template needs {} where"), "{error}");
    }
}
