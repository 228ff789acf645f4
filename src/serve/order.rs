//! What requests for pictures have in common: from fields to a [`Request`] of the library, and what becomes of its pictures.

use super::Server;
use super::body::Share;
use super::errors::ApiError;
use super::fields::{Fields, Upload};
use super::queue::Work;
use axum::http::StatusCode;
use std::sync::Arc;
use unclip::image::{Canvas, Format, Image, Mask, ReadOptions, Window};
use unclip::noise::NoiseKind;
use unclip::pipeline::{Pipeline, Prompt, Recipe, Request, Subject, Task};

/// Most pictures of a request, as with OpenAI.
const MOST: usize = 10;
/// Longest side of a picture that a request asks for.
const LONGEST: usize = 4096;

/// Pictures that a client asks for.
pub struct Order {
    pub model: usize,
    pub work: Work,
    pub finish: Finish,
    pub output: Output,
    /// Begins the names of a stream's events.
    pub kind: &'static str,
    /// What of the prompt may be logged.
    pub prompt: Option<String>,
}

/// How pictures are answered.
pub struct Output {
    pub format: Format,
    /// The name of the format, which is also the ending of its files.
    pub name: &'static str,
    pub by_url: bool,
    /// Previews of each picture, if the answer is a stream.
    pub stream: Option<usize>,
    /// Whether a stream reports steps, too.
    pub progress: bool,
    /// Width and height that were asked for.
    size: Option<[usize; 2]>,
}

/// What becomes of what the networks made.
#[derive(Clone, Default)]
pub struct Finish {
    /// Where it is put back, and the seam.
    pub pasted: Option<Arc<(Canvas, Window)>>,
    /// The size in which the networks make it.
    pub own: [usize; 2],
    /// The size it is given.
    pub size: Option<[usize; 2]>,
    /// What its settings call the picture that it was made from.
    pub name: String,
}

impl Finish {
    /// The finished picture of what the networks made.
    pub fn image(&self, made: Image) -> Image {
        let whole = match self.pasted.as_deref() {
            Some((canvas, window)) => canvas.paste(window, &made, window.width / 32),
            None => made,
        };
        match self.size.filter(|size| *size != [whole.width, whole.height]) {
            Some([width, height]) => whole.resized(width, height),
            None => whole,
        }
    }

    /// The same of what steps so far would have it be, which may be smaller.
    pub fn preview(&self, guess: Image) -> Image {
        let [width, height] = self.own;
        self.image(if self.pasted.is_some() { guess } else { guess.resized(width, height) })
    }

    /// The settings that its file carries.
    pub fn recipe(&self, mut recipe: Recipe, image: &Image) -> Recipe {
        if let Subject::Image(name) = &mut recipe.subject {
            name.clone_from(&self.name);
        }
        recipe.edited.iter_mut().for_each(|edited| edited.image.clone_from(&self.name));
        [recipe.width, recipe.height] = [image.width, image.height];
        recipe
    }
}

/// The fields that say how pictures are answered. Those of OpenAI's that change nothing here are taken and checked, too.
///
/// # Errors
/// One of them is out of range.
pub fn output(fields: &mut Fields) -> Result<Output, ApiError> {
    let quality = fields.integer("output_compression", 0..=100u8)?;
    let name = fields.choice("output_format", &["png", "jpeg", "webp"])?;
    let format = match name {
        "jpeg" => Format::Jpeg { quality: quality.unwrap_or(Format::QUALITY).max(1) },
        "webp" => Format::WebP,
        _ => Format::Png,
    };
    let by_url = fields.choice("response_format", &["url", "b64_json"])? == "url";
    let previews = fields.integer("partial_images", 0..=3usize)?.unwrap_or(0);
    let stream = fields.flag("stream")?.then_some(previews);
    if stream.is_none() && previews > 0 {
        return Err(ApiError::value("partial_images", "partial pictures need stream to be true"));
    }
    let progress = fields.flag("progress")?;
    fields.choice("quality", &["standard", "auto", "low", "medium", "high", "hd"])?;
    fields.choice("style", &["vivid", "natural"])?;
    fields.choice("background", &["auto", "opaque"])?;
    fields.choice("moderation", &["auto", "low"])?;
    fields.choice("input_fidelity", &["high", "low"])?;
    fields.text("user")?;
    Ok(Output { format, name, by_url, stream, progress, size: size(fields)? })
}

/// `512x512`; `auto` leaves it to the checkpoint.
fn size(fields: &mut Fields) -> Result<Option<[usize; 2]>, ApiError> {
    let Some(text) = fields.text("size")?.filter(|text| text != "auto") else { return Ok(None) };
    let side = |text: &str| text.parse().ok().filter(|side| (1..=LONGEST).contains(side));
    let sides = text.split_once('x').and_then(|(width, height)| Some([side(width)?, side(height)?]));
    let expected = format!("expected width and height of at most {LONGEST} pixels, such as 512x512, or auto");
    sides.map(Some).ok_or_else(|| ApiError::value("size", format!("{text:?}; {expected}")))
}

/// The number of the model that the fields name.
///
/// # Errors
/// There is none of that name.
pub fn model(server: &Server, fields: &mut Fields) -> Result<usize, ApiError> {
    server.models.find(fields.text("model")?.as_deref())
}

/// A request of a task with the settings that the fields have.
///
/// # Errors
/// One of them is out of range.
pub fn request(server: &Server, fields: &mut Fields, task: Task) -> Result<Request, ApiError> {
    let mut either = |own: &str, other: &str| -> Result<Option<usize>, ApiError> {
        let range = 1..=10_000usize;
        Ok(fields.integer(own, range.clone())?.or(fields.integer(other, range)?))
    };
    let decoder_steps = either("steps", "num_inference_steps")?;
    let guidance = fields.number("guidance")?.or(fields.number("guidance_scale")?);
    let seed = fields.integer("seed", 0..=u64::MAX)?.unwrap_or_else(|| server.random.seed());
    Ok(Request {
        negative: fields.text("negative_prompt")?.map(Prompt::Text),
        pictures_per_prompt: fields.integer("n", 1..=MOST)?.unwrap_or(1),
        seed,
        noise: fields.parsed::<NoiseKind>("noise")?.unwrap_or(NoiseKind::Torch),
        prior_steps: fields.integer("prior_steps", 1..=10_000)?,
        decoder_steps,
        super_res_steps: fields.integer("super_res_steps", 1..=10_000)?,
        prior_guidance: fields.number("prior_guidance")?,
        prior_strength: fields.number("prior_strength")?,
        decoder_guidance: guidance,
        noise_level: fields.integer("noise_level", 0..=1_000_000)?,
        sampler: fields.parsed("sampler")?,
        ..Request::of(task)
    })
}

/// The order of a request; the checkpoint says whether it can be met, before it takes a place in the queue.
///
/// # Errors
/// It cannot.
pub fn order(
    server: &Server,
    kind: &'static str,
    model: usize,
    request: Request,
    output: Output,
    finish: Finish,
) -> Result<Order, ApiError> {
    let pipeline = &server.models.all[model].checked;
    if !pipeline.makes_pictures() {
        let message = "this model makes no pictures; it classifies and embeds";
        return Err(ApiError::status(StatusCode::UNPROCESSABLE_ENTITY, "unsupported", message));
    }
    let (request, finish) = sized(pipeline, request, &output, finish)?;
    request.check()?;
    pipeline.route(&request)?;
    let finish = Finish { own: pipeline.picture_size(&request), ..finish };
    let prompt = match &request.task {
        Task::Prompts(prompts) => prompts.iter().find_map(|prompt| match prompt {
            Prompt::Text(text) => Some(text.clone()),
            Prompt::Tokens(_) => None,
        }),
        _ => None,
    };
    let (previews, progress) = (output.stream.unwrap_or(0), output.stream.is_some() && output.progress);
    let work = Work::Pictures { request: Box::new(request), previews, progress };
    Ok(Order { model, work, finish, output, kind, prompt })
}

/// Lets the checkpoint make the size that was asked for, where it leaves the choice; else what it makes is resized.
fn sized(
    pipeline: &Pipeline,
    request: Request,
    output: &Output,
    finish: Finish,
) -> Result<(Request, Finish), ApiError> {
    let Some([width, height]) = output.size else { return Ok((request, finish)) };
    // What is put back has the size of the picture that it is put into.
    let fits = pipeline.size_unit().is_some_and(|unit| [width, height].iter().all(|side| side.is_multiple_of(unit)));
    if fits && finish.pasted.is_none() && request.edit.is_none() {
        return Ok((Request { size: Some([width, height]), ..request }, finish));
    }
    let own = match finish.pasted.as_deref() {
        Some((canvas, _)) => canvas.size(),
        None => pipeline.picture_size(&request),
    };
    if own[0] * height != own[1] * width {
        let message =
            format!("{width}x{height}; expected a multiple of {}x{}, the picture's own shape", own[0], own[1]);
        return Err(ApiError::value("size", message));
    }
    Ok((request, Finish { size: Some([width, height]), ..finish }))
}

/// The one picture of a field.
///
/// # Errors
/// It is missing, or there are several.
pub fn upload(fields: &mut Fields, name: &str) -> Result<Upload, ApiError> {
    let mut found = fields.files(name);
    match found.len() {
        0 => {
            Err(ApiError::field(name, "missing_required_parameter", "missing; expected a picture as a file of a form"))
        }
        1 => Ok(found.swap_remove(0)),
        n => Err(ApiError::value(name, format!("{n} pictures; expected one"))),
    }
}

/// Decodes a picture. Its declared size is compared with the limit before anything is allocated for it.
///
/// # Errors
/// It is none, damaged, or too large.
pub async fn decode(
    server: &Server,
    share: &mut Share,
    field: &'static str,
    upload: &Upload,
) -> Result<Image, ApiError> {
    let image = decode_by(server, field, upload, Image::decode).await?;
    share.grow(server, image.pixels.len())?;
    Ok(image)
}

/// What of a picture is transparent.
///
/// # Errors
/// As for [`decode`].
pub async fn transparency(server: &Server, field: &'static str, upload: &Upload) -> Result<Option<Mask>, ApiError> {
    decode_by(server, field, upload, Mask::decode_transparency).await
}

async fn decode_by<T: Send + 'static>(
    server: &Server,
    field: &'static str,
    upload: &Upload,
    decode: fn(&[u8], &ReadOptions) -> unclip::Result<T>,
) -> Result<T, ApiError> {
    let mut options = ReadOptions::default();
    options.most_pixels = server.limits.pixels;
    let bytes = upload.bytes.clone();
    let _turn = server.decoding.acquire().await;
    let decoded = tokio::task::spawn_blocking(move || decode(&bytes, &options)).await;
    let failed = || ApiError::field(field, "invalid_image", "the picture could not be read");
    decoded.map_err(|_| failed())?.map_err(|error| match error {
        unclip::Error::Request { reason, .. } => ApiError::field(field, "invalid_image", reason),
        _ => failed(),
    })
}
