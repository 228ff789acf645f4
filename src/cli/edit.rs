//! `engine edit`: a part of a picture made anew, more around it, or all of it redrawn.

use super::devices;
use super::flags::{DeviceArguments, HOW, HowArguments, ModelArguments, OutputArguments, WHAT};
use super::given::{self, ReadArguments};
use super::known::Known;
use super::lora;
use super::make::{self, Job, Outputs};
use super::progress::Progress;
use super::run::strange;
use super::subject::given_prompts;
use clap::Args;
use std::path::{Path, PathBuf};
use unclip::image::{Canvas, Image, Mask, ReadOptions, Window};
use unclip::pipeline::{Edit, Pipeline, Prompt, Request, Subject, Task};
use unclip::{Error, Result};

pub const EDIT_EXAMPLES: &str = "\
Examples:
  engine edit -i photo.png --mask mask.png \"a red hat\"
  engine edit -i photo.png --box 40,10,64,64 -p \"a frog\" -b 4 -o frog-%03d.png
  engine edit -i cut-out.png --mask alpha -p \"a lion\" --resample 5
  engine edit -i photo.png --extend left=64,right=64 -p \"a beach\"
  engine edit -i photo.png --strength 0.6 -p \"an oil painting\"

With a mask the picture keeps its size: networks see a square window around what is new, and what they make of it is put back with a seam; beyond the seam every pixel stays as it was. Without one the picture is redrawn at the checkpoint's size, for one size of square pictures from its middle square. Without a prompt the picture itself says what is to be seen.";

#[derive(Debug, Args)]
#[command(next_display_order = 1)] // PROMPT comes first
pub struct EditArguments {
    /// What the picture shows when it is changed, in quotes
    #[arg(value_name = "PROMPT", help_heading = WHAT, display_order = 0)]
    pub words: Vec<String>,
    /// The picture: PNG, JPEG, WebP, GIF, BMP, TIFF or QOI
    #[arg(short, long, value_name = "FILE", help_heading = WHAT)]
    pub image: PathBuf,
    /// What is made anew: a picture of the same size, white there and black elsewhere; or alpha, for what is transparent in
    /// the picture
    #[arg(long, value_name = "FILE", help_heading = WHAT)]
    pub mask: Option<PathBuf>,
    /// A rectangle that is made anew, by its left and upper side, width and height; may be given several times
    #[arg(long = "box", value_name = "X,Y,W,H", value_parser = rectangle, help_heading = WHAT)]
    pub boxes: Vec<[usize; 4]>,
    /// Room that is made around the picture, in pixels, such as left=64,top=32 (right, bottom, or all)
    #[arg(long, value_name = "SIDE=N,..", value_parser = room, help_heading = WHAT)]
    pub extend: Option<Room>,
    /// What a picture shows when it is changed; may be given several times
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = WHAT)]
    pub prompt: Vec<String>,
    /// What the picture should not be
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = WHAT)]
    pub negative: Option<String>,
    /// Picture of what is where, such as a map of depths, for checkpoints that see one (Kandinsky's controlnet)
    #[arg(long, value_name = "FILE", help_heading = WHAT)]
    pub hint: Option<PathBuf>,
    #[command(flatten)]
    pub read: ReadArguments,
    /// How much of the picture is redrawn: the share of the decoder's steps that begin from it, up to 1 [default: all steps
    /// with a mask, without one 0.5; Kandinsky 0.3]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = HOW)]
    pub strength: Option<f32>,
    /// Take each step so often, with new noise each time, so that what is new fits what stays (RePaint)
    #[arg(long, value_name = "TIMES", default_value_t = 1, help_heading = HOW)]
    pub resample: usize,
    /// Pixels beside what is new in which it is mixed with the picture [default: a 32nd of the window's width]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub seam: Option<usize>,
    #[command(flatten)]
    pub how: HowArguments,
    #[command(flatten)]
    pub model: ModelArguments,
    #[command(flatten)]
    pub device: DeviceArguments,
    #[command(flatten)]
    pub output: OutputArguments,
}

/// Pixels to the left, above, to the right and below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room(pub [usize; 4]);

/// `left=64,top=32`; `all=8` is all four.
fn room(text: &str) -> Result<Room, String> {
    const SIDES: [&str; 4] = ["left", "top", "right", "bottom"];
    let mut room = Room::default();
    for part in text.split(',') {
        let refused = || format!("{part:?}: expected left, top, right, bottom or all with pixels, such as left=64");
        let (side, pixels) = part.split_once('=').ok_or_else(refused)?;
        let pixels = pixels.parse().map_err(|_| refused())?;
        match SIDES.iter().position(|name| *name == side) {
            Some(at) => room.0[at] = pixels,
            None if side == "all" => room.0 = [pixels; 4],
            None => return Err(refused()),
        }
    }
    Ok(room)
}

/// `40,10,64,64`.
fn rectangle(text: &str) -> Result<[usize; 4], String> {
    let numbers: Option<Vec<usize>> = text.split(',').map(|number| number.parse().ok()).collect();
    let numbers = numbers.and_then(|numbers| <[usize; 4]>::try_from(numbers).ok());
    match numbers {
        Some([_, _, width, height]) if width == 0 || height == 0 => Err("width and height must be above 0".to_owned()),
        Some(numbers) => Ok(numbers),
        None => Err("expected left and upper side, width and height in pixels, such as 40,10,64,64".to_owned()),
    }
}

/// Edits the picture and writes what was made of it.
///
/// # Errors
/// What the library reports, and files that cannot be read or written; no file is then half-written.
pub fn edit(arguments: &EditArguments) -> Result<()> {
    let progress =
        Progress::new(arguments.output.saved.json, arguments.output.saved.quiet, arguments.output.saved.verbose);
    let prompts = given_prompts(&arguments.words, &arguments.prompt, arguments.negative.as_deref())?;
    let options = arguments.read.options();
    let image = given::read(&arguments.image, &options)?;
    let canvas = canvas(arguments, &image, &options)?;
    let hint = arguments.hint.as_deref().map(|path| given::read(path, &options)).transpose()?;

    let checkpoint = super::checkpoint(&arguments.model)?;
    let known = Known::read(&checkpoint)?;
    let pipeline = lora::pipeline(checkpoint, arguments.model.adapters.open()?)?;
    let task = match prompts.is_empty() {
        true => Task::Variations(vec![image.clone()]),
        false => Task::Prompts(prompts.into_iter().map(Prompt::Text).collect()),
    };
    let base = Request {
        inversion: arguments.how.inversion()?,
        negative: arguments.negative.clone().map(Prompt::Text),
        hint,
        ..Request::of(task)
    };
    let Part { given, size, window } = part(&pipeline, &image, canvas.as_ref());
    let given = given.with_strength(arguments.strength).resampled(arguments.resample);
    let request = Request { edit: Some(given), size: arguments.how.size.or(size), ..arguments.how.apply(base) };
    request.check()?;
    let files =
        [("--image", Some(&arguments.image)), ("--mask", mask_file(arguments)), ("--hint", arguments.hint.as_ref())];
    let inputs: Vec<(&str, &Path)> =
        files.into_iter().filter_map(|(flag, path)| Some((flag, path?.as_path()))).collect();
    let outputs = Outputs::prepare(&arguments.output, request.pictures(), &inputs, None)?;
    pipeline.route(&request)?;

    make::watch_interrupts()?;
    let chosen = devices::open(&arguments.device, &|| make::stored(&pipeline))?;
    let pasted = canvas.as_ref().zip(window);
    let finish = |made: &Image| match &pasted {
        Some((canvas, window)) => canvas.paste(window, made, arguments.seam.unwrap_or(window.width / 32)),
        None => made.clone(),
    };
    let recipe = |pipeline: &Pipeline, k: usize| {
        let mut recipe = pipeline.recipe(&request, k);
        let name = given::name(&arguments.image);
        if let Subject::Image(subject) = &mut recipe.subject {
            subject.clone_from(&name);
        }
        recipe.alpha = options.alpha;
        recipe.edited.iter_mut().for_each(|edited| edited.image.clone_from(&name));
        if let Some((canvas, _)) = &pasted {
            [recipe.width, recipe.height] = canvas.size();
        }
        recipe
    };
    let remarks = strange(&known, &request).into_iter().chain(make::drawn_seed(&arguments.how)).collect();
    let job = Job { pipeline, chosen, request: &request, recipe: &recipe, finish: &finish, remarks, outputs };
    make::make(job, &arguments.output, progress)
}

/// The file that `--mask` names.
fn mask_file(arguments: &EditArguments) -> Option<&PathBuf> {
    arguments.mask.as_ref().filter(|mask| *mask != Path::new("alpha"))
}

/// The picture with what is made anew; `None` if all of it is redrawn.
fn canvas(arguments: &EditArguments, image: &Image, options: &ReadOptions) -> Result<Option<Canvas>> {
    let path = &arguments.image;
    let drawn = match (&arguments.mask, mask_file(arguments)) {
        (None, _) => None,
        (Some(_), Some(file)) => Some(Mask::from_image(&given::read(file, options)?)),
        (Some(_), None) => {
            let clear = Mask::read_transparency(path, options)?;
            Some(clear.ok_or_else(|| {
                Error::value("--mask", "alpha", format!("nothing of {} is transparent", path.display()))
            })?)
        }
    };
    if let Some([x, y, width, height]) =
        arguments.boxes.iter().find(|[x, y, ..]| *x >= image.width || *y >= image.height)
    {
        let reason = format!("beyond the picture, which has {}x{} pixels", image.width, image.height);
        return Err(Error::value("--box", format!("{x},{y},{width},{height}"), reason));
    }
    if drawn.is_none() && arguments.boxes.is_empty() && arguments.extend.is_none() {
        return match arguments.seam {
            Some(seam) => Err(Error::value("--seam", seam, "nothing is put back without --mask, --box or --extend")),
            None => Ok(None),
        };
    }
    let [width, height] = drawn.as_ref().map_or([image.width, image.height], |mask| [mask.width, mask.height]);
    let in_box = |at_x: usize, at_y: usize| {
        let inside = |&[x, y, w, h]: &[usize; 4]| {
            (x..x.saturating_add(w)).contains(&at_x) && (y..y.saturating_add(h)).contains(&at_y)
        };
        arguments.boxes.iter().any(inside)
    };
    let mask =
        Mask::from_fn(width, height, |x, y| in_box(x, y) || drawn.as_ref().is_some_and(|mask| mask.is_new(x, y)));
    Canvas::new(image, &mask, arguments.extend.unwrap_or_default().0).map(Some)
}

/// What the networks are given of the picture.
pub struct Part {
    pub given: Edit,
    /// Width and height that they make, where the checkpoint leaves the choice.
    pub size: Option<[usize; 2]>,
    /// Where what they make is put back.
    pub window: Option<Window>,
}

/// Area of a picture that networks make of a larger one, where the checkpoint leaves the choice.
const AREA: usize = 768 * 768;

/// What a pipeline's networks are given of a picture, or of a canvas of it.
pub fn part(pipeline: &Pipeline, image: &Image, canvas: Option<&Canvas>) -> Part {
    let unit = pipeline.size_unit();
    let fitting = |[width, height]: [usize; 2]| {
        let unit = unit?;
        let scale = (AREA as f64 / (width * height) as f64).sqrt().min(1.0);
        Some([width, height].map(|side| ((side as f64 * scale / unit as f64).round() as usize).max(1) * unit))
    };
    let Some(canvas) = canvas else {
        let side = image.width.min(image.height);
        let middle = [image.width, image.height].map(|length| (length - side) / 2);
        let given = if unit.is_some() { image.clone() } else { image.cropped(middle, [side; 2]) };
        let size = fitting([given.width, given.height]);
        return Part { given: Edit::redraw(given, None), size, window: None };
    };
    let window = match unit {
        Some(_) => canvas.whole(),
        None => canvas.square(pipeline.picture_size(&Request::of(Task::Prompts(Vec::new())))[0]),
    };
    let (image, mask) = canvas.cut(&window);
    Part { given: Edit::inpaint(image, mask), size: fitting([window.width, window.height]), window: Some(window) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_and_rectangles_are_read_or_refused_with_what_was_expected() {
        assert_eq!(room("left=64,bottom=8"), Ok(Room([64, 0, 0, 8])));
        assert_eq!(room("all=3,top=0"), Ok(Room([3, 0, 3, 3])));
        for text in ["", "64", "left", "left=-1", "middle=3"] {
            assert!(room(text).unwrap_err().contains("such as left=64"), "{text}");
        }
        assert_eq!(rectangle("1,2,3,4"), Ok([1, 2, 3, 4]));
        for text in ["1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,0,4"] {
            assert!(rectangle(text).is_err(), "{text}");
        }
    }
}
