//! What a picture was made from, so that it can be made again.
//!
//! A [`Recipe`] holds every setting of one picture by value, with the checkpoint's defaults filled in. As JSON it travels
//! in the picture's file and in the command line's events; [`Recipe::read`] and [`Recipe::request`] lead back to a
//! [`Request`].

use super::{Edit, Pipeline, Prompt, Request, Task};
use crate::diffusion::Sampler;
use crate::dtype::Precision;
use crate::error::{Error, Result};
use crate::image::Alpha;
#[cfg(feature = "png")]
use crate::image::{self, Format, Image, Texts};
use crate::noise::{Generators, NoiseDtype, NoiseKind};
use crate::weights::Adapter;
use serde::{Deserialize, Serialize};
#[cfg(feature = "png")]
use std::path::Path;

/// The settings of one picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Recipe {
    /// Program and version, such as `unclip 0.1.0`.
    pub version: String,
    /// The checkpoint's [name](crate::weights::Checkpoint::name).
    pub model: String,
    /// The adapters that changed the checkpoint's weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<UsedAdapter>,
    /// What the picture was made from.
    #[serde(flatten)]
    pub subject: Subject,
    /// What became of the transparency of the picture that this is a variation of.
    #[serde(default, skip_serializing_if = "is_default")]
    pub alpha: Alpha,
    /// The picture that it was made from, with what of it was to stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited: Option<Edited>,
    /// What was said of a variation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Prompt>,
    /// Whether the decoder began from a picture's noise, which is not held here.
    #[serde(default, skip_serializing_if = "is_default")]
    pub inverted: bool,
    /// What it should not be.
    pub negative: Option<Prompt>,
    /// Seed of this picture's generator.
    pub seed: u64,
    /// Which generator turned the seed into noise.
    pub noise: NoiseKind,
    /// The type of its draws.
    #[serde(default)]
    pub noise_dtype: NoiseDtype,
    /// Whether it was this picture's own; where it was that of a run, which of its pictures this is.
    #[serde(default)]
    pub generator: Generators,
    /// Steps of the prior; a variation has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior_steps: Option<usize>,
    /// Steps of the decoder.
    pub decoder_steps: usize,
    /// Steps of super-resolution; some families have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub super_res_steps: Option<usize>,
    /// Guidance scale of the prior; a variation has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior_guidance: Option<f32>,
    /// Share of the prior's steps that was taken from a picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior_strength: Option<f32>,
    /// Guidance scale of the decoder.
    pub decoder_guidance: f32,
    /// Noise that was added to the image embedding; most families add none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_level: Option<usize>,
    /// What took the decoder's steps; most families leave no choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler: Option<Sampler>,
    /// The device, as its [back end](crate::backend::Backend::name) calls it.
    pub device: String,
    /// How the device stored tensors and multiplied matrices.
    pub dtype: Precision,
    /// Pixels in a row.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
}

/// An adapter that a picture was made with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UsedAdapter {
    /// The name of its file.
    pub name: String,
    /// The scale, which multiplied the file's own.
    pub scale: f32,
    /// The file's SHA-256.
    pub sha256: String,
}

/// What an edit was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Edited {
    /// The name of the picture's file; empty where it had none.
    pub image: String,
    /// Whether a mask said what was made anew.
    pub masked: bool,
    /// Share of the decoder's steps, if it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f32>,
    /// How often each step was taken.
    pub resample: usize,
}

impl Default for Edited {
    fn default() -> Edited {
        Edited { image: String::new(), masked: false, strength: None, resample: 1 }
    }
}

impl From<&Edit> for Edited {
    fn from(edit: &Edit) -> Edited {
        let Edit { mask, strength, resample, .. } = edit;
        Edited { image: String::new(), masked: mask.is_some(), strength: *strength, resample: *resample }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a picture was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Subject {
    /// A prompt.
    Prompt(Prompt),
    /// A picture of which this is a variation, by the name of its file; empty where it had none.
    Image(String),
    /// Texts and pictures of which this is a mixture.
    Blend(Blended),
}

/// A mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Blended {
    /// Texts, and names of pictures' files, empty where they had none; joined by plus signs.
    pub of: String,
    /// The weight of each.
    pub weights: Vec<f32>,
    /// The two texts along whose difference it was moved, and how far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift: Option<(Prompt, Prompt, f32)>,
    /// Where its noise lies between that of the seed and that of the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<f32>,
}

impl Subject {
    /// The prompt's text or the file's name. Empty for tokens.
    pub fn text(&self) -> &str {
        match self {
            #[cfg(feature = "tokenizer")]
            Subject::Prompt(Prompt::Text(text)) => text,
            Subject::Prompt(Prompt::Tokens(_)) => "",
            Subject::Image(name) => name,
            Subject::Blend(blend) => &blend.of,
        }
    }
}

fn used((adapter, scale): (&Adapter, f32)) -> UsedAdapter {
    UsedAdapter { name: adapter.name().to_owned(), scale, sha256: adapter.digest().to_owned() }
}

impl Pipeline {
    /// The recipe of picture `k` of a request. A request does not know where its images come from: the name in
    /// [`Subject::Image`] is empty, and [`Recipe::alpha`] what [`ReadOptions`](crate::image::ReadOptions) has by default.
    ///
    /// # Panics
    /// The request has no picture of that number.
    pub fn recipe(&self, request: &Request, k: usize) -> Recipe {
        let settings = request.settings(self.defaults());
        let at = k / request.pictures_per_prompt.max(1);
        let (noise_level, sampler) = self.family.decoder_settings(&settings);
        let with_prior = self.family.has_prior(request);
        let subject = match &request.task {
            Task::Prompts(prompts) => Subject::Prompt(prompts[at].clone()),
            Task::Variations(_) => Subject::Image(String::new()),
            Task::Blend(blend) => Subject::Blend(Blended {
                of: String::new(),
                weights: blend.weights[at].clone(),
                shift: blend.shift.as_ref().map(|s| (s.from.clone(), s.to.clone(), s.amounts[at])),
                noise: blend.noise.as_ref().map(|shares| shares[at]),
            }),
        };
        Recipe {
            version: format!("unclip {}", env!("CARGO_PKG_VERSION")),
            model: self.checkpoint.name(),
            adapters: self.adapters.iter().map(used).collect(),
            subject,
            alpha: Alpha::default(),
            edited: request.edit.as_ref().map(Edited::from),
            inverted: request.inversion.is_some(),
            text: request.text.clone(),
            negative: request.negative.clone(),
            seed: request.seed_of(k),
            noise: request.noise,
            noise_dtype: request.noise_dtype,
            generator: request.generator_of(k),
            prior_steps: with_prior.then_some(settings.prior_steps),
            decoder_steps: settings.decoder_steps,
            super_res_steps: self.family.has_super_resolution().then_some(settings.super_res_steps),
            prior_guidance: with_prior.then_some(settings.prior_guidance),
            prior_strength: self.family.prior_strength(request),
            decoder_guidance: settings.decoder_guidance,
            noise_level,
            sampler,
            device: self.backend.name(),
            dtype: self.backend.precision(),
            width: self.picture_size(request)[0],
            height: self.picture_size(request)[1],
        }
    }
}

impl Recipe {
    /// The request that makes this picture again.
    ///
    /// # Errors
    /// [`Error::Request`] for an edit, and for a variation: the recipe has its picture's name only. Read that picture and call
    /// [`Recipe::apply`] on [`Request::variation`].
    pub fn request(&self) -> Result<Request> {
        if self.inverted {
            return Err(Error::request("inversion", "the recipe does not hold what the decoder began from"));
        }
        if let Some(edited) = &self.edited {
            let reason = "the recipe has the name of the edited picture only, not its pixels";
            return Err(Error::value("image", &edited.image, reason));
        }
        match &self.subject {
            Subject::Prompt(prompt) => Ok(self.apply(Request::new(prompt.clone()))),
            Subject::Image(name) => Err(Error::value("image", name, "the recipe has its name only, not its pixels")),
            Subject::Blend(blend) => {
                Err(Error::value("image", &blend.of, "a blend; the recipe has names only, not pixels"))
            }
        }
    }

    /// The request with all settings of this recipe except what it is made from, and how many.
    pub fn apply(&self, request: Request) -> Request {
        let is_of_texts = request.has_prior();
        let with_prior = is_of_texts || self.prior_strength.is_some();
        Request {
            text: self.text.clone().filter(|_| !is_of_texts),
            prior_strength: self.prior_strength.filter(|_| !is_of_texts),
            negative: self.negative.clone(),
            seed: self.seed,
            noise: self.noise,
            noise_dtype: self.noise_dtype,
            generator: self.generator,
            prior_steps: self.prior_steps.filter(|_| with_prior),
            decoder_steps: Some(self.decoder_steps).filter(|_| !self.inverted),
            super_res_steps: self.super_res_steps,
            prior_guidance: self.prior_guidance.filter(|_| with_prior),
            decoder_guidance: Some(self.decoder_guidance),
            noise_level: self.noise_level,
            sampler: self.sampler,
            // With super-resolution the checkpoint decides.
            size: Some([self.width, self.height]).filter(|_| self.super_res_steps.is_none()),
            ..request
        }
    }
}

#[cfg(feature = "png")]
impl Recipe {
    /// Reads the recipe that a picture file carries, or of a sheet those of all its pictures; never an empty list.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, is no picture, carries no recipe, or a damaged one.
    pub fn read(path: impl AsRef<Path>) -> Result<Vec<Recipe>> {
        let path = path.as_ref();
        Recipe::of(path, &image::read_texts(path)?)
    }

    /// The recipes among the texts of the picture file `path`; see [`Recipe::read`].
    ///
    /// # Errors
    /// [`Error::Io`] when there is none, or a damaged one.
    pub fn of(path: &Path, texts: &Texts) -> Result<Vec<Recipe>> {
        let refused = |why: String| Error::io(path, "read", std::io::Error::new(std::io::ErrorKind::InvalidData, why));
        let json = texts.recipe.as_deref().ok_or_else(|| match &texts.parameters {
            None => refused("the picture has no settings".to_owned()),
            Some(_) => refused("the picture has settings of another program alone (parameters)".to_owned()),
        })?;
        let recipes = match json.trim_start().starts_with('[') {
            true => serde_json::from_str(json),
            false => serde_json::from_str(json).map(|recipe| vec![recipe]),
        };
        match recipes {
            Ok(recipes) if recipes.is_empty() => Err(refused("settings: an empty list".to_owned())),
            Err(e) if e.to_string().contains("enum Subject") => {
                Err(refused("settings: neither prompt nor image is named".to_owned()))
            }
            recipes => recipes.map_err(|e| refused(format!("settings: {e}"))),
        }
    }

    /// Writes a picture with its recipe to `path`, as [`Image::write`] does; with several recipes it is a sheet.
    ///
    /// # Errors
    /// As for [`Image::write`].
    pub fn write(recipes: &[Recipe], image: &Image, path: impl AsRef<Path>, format: Format) -> Result<()> {
        image.write(path, format, &Recipe::texts(recipes))
    }

    /// What the file of a picture carries, or that of a sheet: `parameters`, which image tools read, and all settings as
    /// JSON, of a sheet as a list.
    pub fn texts(recipes: &[Recipe]) -> Texts {
        let json = match recipes {
            [one] => serde_json::to_string(one),
            all => serde_json::to_string(all),
        };
        let json = json.expect("strings and finite numbers under fixed names");
        let parameters = recipes.first().map(|first| first.parameters(recipes).text());
        Texts { parameters, recipe: Some(json) }
    }

    /// The settings as image tools show them, with the prompts of all pictures on the sheet.
    fn parameters(&self, sheet: &[Recipe]) -> image::Parameters {
        let mut fields = vec![
            ("Steps", self.decoder_steps.to_string()),
            ("Sampler", self.sampler.map_or("unCLIP", Sampler::title).to_owned()),
            ("CFG scale", self.decoder_guidance.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", format!("{}x{}", self.width, self.height)),
            ("Model", self.model.clone()),
        ];
        if !self.adapters.is_empty() {
            let each = self.adapters.iter().map(|used| format!("{}:{}", used.name, used.scale));
            fields.push(("Adapters", each.collect::<Vec<_>>().join(" ")));
        }
        if let Some(steps) = self.prior_steps {
            fields.push(("Prior steps", steps.to_string()));
        }
        if let Some(scale) = self.prior_guidance {
            fields.push(("Prior guidance", scale.to_string()));
        }
        fields.extend(self.prior_strength.map(|strength| ("Prior strength", strength.to_string())));
        if let Some(edited) = &self.edited {
            fields.push(("Edit of", edited.image.clone()));
            fields.extend(edited.strength.map(|strength| ("Denoising strength", strength.to_string())));
            if edited.resample > 1 {
                fields.push(("Resample", edited.resample.to_string()));
            }
        }
        let mut subjects: Vec<&str> = sheet.iter().map(|recipe| recipe.subject.text()).collect();
        subjects.dedup();
        let prompt = match &self.subject {
            Subject::Prompt(_) => subjects.join("\n"),
            Subject::Image(_) => {
                fields.push(("Variation of", subjects.join(" ")));
                self.text.clone().map_or(String::new(), |text| Subject::Prompt(text).text().to_owned())
            }
            Subject::Blend(blend) => {
                let weights: Vec<String> = blend.weights.iter().map(f32::to_string).collect();
                fields.extend([("Blend of", subjects.join(" ")), ("Weights", weights.join(" "))]);
                String::new()
            }
        };
        fields.extend(self.super_res_steps.map(|steps| ("Super-resolution steps", steps.to_string())));
        fields.extend(self.noise_level.map(|level| ("Noise level", level.to_string())));
        fields.push(("Noise", self.noise.to_string()));
        if self.noise_dtype != NoiseDtype::default() {
            fields.push(("Noise type", self.noise_dtype.to_string()));
        }
        if self.generator != Generators::default() {
            fields.push(("Generator", self.generator.to_string()));
        }
        fields.push(("Version", self.version.clone()));
        let negative = self.negative.clone().map(Subject::Prompt);
        image::Parameters {
            prompt,
            negative_prompt: negative.as_ref().map_or("", Subject::text).to_owned(),
            fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }
}

#[cfg(all(test, feature = "tokenizer", feature = "png"))]
mod tests {
    use super::*;
    use crate::image::ReadOptions;

    fn recipe() -> Recipe {
        Recipe {
            version: "unclip 0.1.0".into(),
            model: "karlo, \"best\"".into(),
            adapters: Vec::new(),
            subject: Subject::Prompt("a red apple, ripe".into()),
            alpha: Alpha::Drop,
            edited: None,
            inverted: false,
            text: None,
            negative: Some("worm".into()),
            seed: u64::MAX,
            noise: NoiseKind::Philox,
            noise_dtype: NoiseDtype::F32,
            generator: Generators::Each,
            prior_steps: Some(25),
            decoder_steps: 50,
            super_res_steps: Some(7),
            prior_guidance: Some(1.1),
            prior_strength: None,
            decoder_guidance: 8.0,
            noise_level: None,
            sampler: None,
            device: "cpu (avx512, 2 threads)".into(),
            dtype: Precision::Bf16,
            width: 2,
            height: 1,
        }
    }

    fn variation() -> Recipe {
        let (prior_steps, prior_guidance) = (None, None);
        Recipe { subject: Subject::Image("photo.png".into()), negative: None, prior_steps, prior_guidance, ..recipe() }
    }

    fn of_a_card() -> Recipe {
        let noise = NoiseKind::TorchCuda("rtx-3060".parse().expect("a card of the table"));
        Recipe { noise, noise_dtype: NoiseDtype::Bf16, generator: Generators::Part { first: 2, of: 8 }, ..recipe() }
    }

    fn image() -> Image {
        Image { width: 2, height: 1, pixels: vec![1, 2, 3, 4, 5, 6] }
    }

    #[test]
    fn what_is_written_into_a_picture_is_what_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let tokens = crate::model::text_encoder::Tokens { ids: vec![7, 8], mask: vec![true, false], cut: None };
        let tokens = Recipe { subject: Subject::Prompt(Prompt::Tokens(tokens)), ..recipe() };
        let several = vec![recipe(), tokens.clone()];
        let edited = Some(Edited { image: "photo.png".into(), masked: true, strength: Some(0.5), resample: 3 });
        let edited = Recipe { edited, ..recipe() };
        assert!(Recipe::texts(std::slice::from_ref(&edited)).parameters.unwrap().contains("Edit of: photo.png"));
        let style = UsedAdapter { name: "style.safetensors".into(), scale: -0.5, sha256: "0123".into() };
        let adapted = Recipe { adapters: vec![style.clone(), style], ..recipe() };
        let text = Recipe::texts(std::slice::from_ref(&adapted)).parameters.unwrap();
        assert!(text.contains("Adapters: \"style.safetensors:-0.5 style.safetensors:-0.5\""), "{text}");
        let inverted = Recipe { inverted: true, ..recipe() };
        assert!(inverted.request().unwrap_err().to_string().contains("does not hold what the decoder began from"));
        for recipes in [
            vec![recipe()],
            vec![edited],
            vec![adapted],
            vec![inverted],
            vec![variation()],
            vec![tokens],
            vec![of_a_card()],
            several,
        ] {
            for format in Format::ALL {
                Recipe::write(&recipes, &image(), &path, format).unwrap();
                assert_eq!(Recipe::read(&path).unwrap(), recipes);
                assert_eq!(image::read_texts(&path).unwrap(), Recipe::texts(&recipes));
                assert_eq!(Image::read(&path, &ReadOptions::default()).unwrap().width, image().width);
            }
        }
    }

    #[test]
    fn settings_of_the_first_release_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old.png");
        let json = r#"{"decoder_guidance":1.5,"decoder_steps":12,"device":"cpu (avx512, 2 threads)","dtype":"f32",
            "height":128,"model":"built-in model","negative":null,"noise":"torch","prior_guidance":1.100000023841858,
            "prior_steps":10,"prompt":"a red apple","seed":3,"super_res_steps":3,"version":"unclip 0.1.0","width":128}"#;
        let texts = Texts { parameters: None, recipe: Some(json.to_owned()) };
        image().write(&path, Format::Png, &texts).unwrap();
        let recipes = Recipe::read(&path).unwrap();
        assert_eq!((recipes[0].prior_guidance, &recipes[0].negative), (Some(1.1), &None));
        let request = recipes[0].request().unwrap();
        assert!(matches!(&request.task, Task::Prompts(prompts) if *prompts == ["a red apple".into()]));
        assert_eq!((request.seed, request.decoder_steps), (3, Some(12)));
        // What the first release did not know is what it did.
        let noise = (request.noise, request.noise_dtype, request.generator);
        assert_eq!(noise, (NoiseKind::Torch, NoiseDtype::F32, Generators::Each));
    }

    #[test]
    fn a_picture_without_settings_or_with_damaged_ones_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let refused = |[parameters, recipe]: [Option<&str>; 2], part: &str| {
            let texts = Texts { parameters: parameters.map(str::to_owned), recipe: recipe.map(str::to_owned) };
            image().write(&path, Format::Png, &texts).unwrap();
            let error = Recipe::read(&path).unwrap_err();
            assert!(matches!(&error, Error::Io { path: p, .. } if *p == path), "{error}");
            assert!(error.to_string().contains(part), "{error}");
        };
        refused([None, None], "the picture has no settings");
        refused([Some("a cat\nSteps: 2"), None], "settings of another program alone");
        refused([None, Some("{}")], "missing field `version`");
        refused([None, Some("[]")], "an empty list");
        refused([None, Some("{\"seed\":")], "EOF");
        let without_subject = serde_json::to_string(&recipe()).unwrap().replace("\"prompt\"", "\"song\"");
        refused([None, Some(&without_subject)], "neither prompt nor image");
        std::fs::write(&path, "no PNG").unwrap();
        assert!(Recipe::read(&path).unwrap_err().to_string().contains("expected a picture"));
    }

    #[test]
    fn a_recipe_gives_its_settings_to_other_subjects() {
        let given = recipe().request().unwrap();
        assert_eq!((given.prior_guidance, given.noise, given.seed), (Some(1.1), NoiseKind::Philox, u64::MAX));
        let given = of_a_card().request().unwrap();
        let noise = (given.noise.to_string(), given.noise_dtype, given.generator.to_string());
        assert_eq!(noise, ("torch-cuda:28x1536".into(), NoiseDtype::Bf16, "one:3/8".into()));
        let other = recipe().apply(Request { pictures_per_prompt: 3, ..Request::new("a frog") });
        assert_eq!((other.pictures(), other.decoder_steps), (3, Some(50)));
        // A variation has no prior, and a recipe of one has no settings for it.
        let of_image = recipe().apply(Request::variation(image()));
        assert_eq!((of_image.prior_steps, of_image.check().is_ok()), (None, true));
        assert_eq!(variation().apply(Request::new("a frog")).prior_steps, None);
        assert!(variation().request().unwrap_err().to_string().starts_with("image photo.png: "));
    }

    #[test]
    fn image_tools_read_the_settings_as_text() {
        let text = |recipes: &[Recipe]| Recipe::texts(recipes).parameters.unwrap();
        let want = "a red apple, ripe\nNegative prompt: worm\nSteps: 50, Sampler: unCLIP, CFG scale: 8, \
                    Seed: 18446744073709551615, Size: 2x1, Model: \"karlo, \\\"best\\\"\", Prior steps: 25, \
                    Prior guidance: 1.1, Super-resolution steps: 7, Noise: philox, Version: unclip 0.1.0";
        assert_eq!(text(&[recipe()]), want);
        let of_image = text(&[variation()]);
        assert!(of_image.starts_with("\nSteps: 50, ") && of_image.contains("Variation of: photo.png"), "{of_image}");
        let of_a_card = text(&[of_a_card()]);
        let noise = "Noise: \"torch-cuda:28x1536\", Noise type: bf16, Generator: \"one:3/8\", Version";
        assert!(of_a_card.contains(noise), "{of_a_card}");
        let frog = Recipe { subject: Subject::Prompt("a frog".into()), ..recipe() };
        let sheet = text(&[recipe(), recipe(), frog]);
        assert!(sheet.starts_with("a red apple, ripe\na frog\nNegative"), "{sheet}");
    }
}
