//! The input of CLIP's image tower: a picture's middle square, resized and normalised.
//!
//! Results are bit-equal to those of transformers' `CLIPImageProcessor` with Pillow. The shorter side is resized to a
//! fixed length, or both sides to fixed lengths, by Pillow's bicubic filter, which works on bytes with weights in fixed
//! point and rounds after each direction; the middle is cropped, with black around a picture that is smaller; bytes
//! become floats and are normalised. Only pixels inside the crop are computed, so a long thin picture needs no more
//! memory than a square one.

use crate::error::{Error, Result};
use crate::image::{Axis, Image, Span, resize_both};
use crate::ops::CUBIC;
use crate::weights::Checkpoint;
use crate::weights::config::Literal::{Bool, Null, Number, Numbers};
use crate::weights::config::{Class, Configured, Key, Schema};
use serde::Deserialize;
use serde_json::Value;

/// The size that transformers takes where the file has none.
const DEFAULT: usize = 224;
/// Longest side of the prepared picture. Pictures and windows then have sizes that fit their types.
const MAX_SIDE: usize = 1 << 14;

/// How a picture is prepared: `preprocessor_config.json`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "File")]
pub struct Preprocessor {
    size: Size,
    /// Side of the centre crop.
    crop: usize,
    /// Factor of each byte.
    rescale: f64,
    /// Subtracted from each colour.
    mean: [f32; 3],
    /// Divisor of each colour.
    std: [f32; 3],
}

/// What a picture is resized to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Size {
    /// This length of the shorter side; proportions are kept.
    Shortest(usize),
    /// As `Shortest`, but the longer side is at most as long as this, and then decides.
    Bounded { shortest: usize, longest: usize },
    /// These sides; proportions are not kept.
    Exact { height: usize, width: usize },
}

/// The file's own types.
#[derive(Deserialize)]
struct File {
    size: Value,
    crop_size: Value,
    default_to_square: Option<bool>,
    use_square_size: Option<bool>,
    rescale_factor: f64,
    image_mean: Vec<f32>,
    image_std: Vec<f32>,
}

const KEYS: &[Key] = &[
    // A number or a list in old files, else an object; null is 224.
    Key::value("size crop_size"),
    Key::flag("default_to_square use_square_size").nullable(),
    Key::float("rescale_factor").or(Number(1.0 / 255.0)),
    Key::floats("image_mean").or(Numbers(&[0.48145466, 0.4578275, 0.40821073])),
    Key::floats("image_std").or(Numbers(&[0.26862954, 0.26130258, 0.27577711])),
    Key::only("do_resize do_center_crop do_rescale do_normalize", &[Bool(true)]),
    // Pillow's number for the bicubic filter.
    Key::only("resample", &[Number(3.0)]),
    Key::only("do_pad", &[Null, Bool(false)]),
    // Pictures have three colours here; the other keys choose a container for the result.
    Key::no_effect("do_convert_rgb image_processor_type feature_extractor_type processor_class return_tensors"),
    Key::no_effect("data_format input_data_format device disable_grouping pad_size image_seq_length"),
];

impl Schema for Preprocessor {
    const CLASSES: &'static [Class] = &[Class { name: "CLIPImageProcessor", keys: &[KEYS] }];
    const NESTED: Option<&'static str> = Some("image_processor");
}

impl TryFrom<File> for Preprocessor {
    type Error = String;

    fn try_from(file: File) -> Result<Preprocessor, String> {
        let size = match (file.use_square_size, &file.size) {
            // transformers takes its own size then, not the file's.
            (Some(true), _) => Size::Exact { height: DEFAULT, width: DEFAULT },
            (_, Value::Null) => Size::Shortest(DEFAULT),
            (_, found) => Size::read(found, file.default_to_square == Some(true)).ok_or_else(|| {
                format!(
                    r#"size is {found}; this engine knows a number, [height, width], {{"height", "width"}}, and {{"shortest_edge"}} also with "longest_edge", from 1 to {MAX_SIDE}"#
                )
            })?,
        };
        let crop = match Size::read(&file.crop_size, true) {
            Some(Size::Exact { height, width }) if height == width => height,
            _ => {
                let found = &file.crop_size;
                return Err(format!(
                    "crop_size is {found}; this engine knows a number from 1 to {MAX_SIDE}, also as height and width"
                ));
            }
        };
        let colours = |key: &str, list: Vec<f32>| {
            <[f32; 3]>::try_from(list).map_err(|list| format!("{key} has {} numbers; expected 3", list.len()))
        };
        let (mean, std) = (colours("image_mean", file.image_mean)?, colours("image_std", file.image_std)?);
        if std.contains(&0.0) {
            return Err("image_std has a 0; expected other numbers".to_owned());
        }
        Ok(Preprocessor { size, crop, rescale: file.rescale_factor, mean, std })
    }
}

impl Size {
    /// A size in any of the spellings of transformers; a number alone is a side of a `square`, or the shortest edge.
    fn read(value: &Value, square: bool) -> Option<Size> {
        let side = |value: &Value| {
            let side = value.as_u64().and_then(|side| usize::try_from(side).ok());
            side.filter(|side| (1..=MAX_SIDE).contains(side))
        };
        let alone = |side| if square { Size::Exact { height: side, width: side } } else { Size::Shortest(side) };
        match value {
            Value::Null => Some(alone(DEFAULT)),
            Value::Array(list) => match &list[..] {
                [height, width] => Some(Size::Exact { height: side(height)?, width: side(width)? }),
                _ => None,
            },
            Value::Object(map) => {
                let given: Vec<(&str, &Value)> = map
                    .iter()
                    .filter(|(_, value)| !value.is_null())
                    .map(|(key, value)| (key.as_str(), value))
                    .collect();
                match given[..] {
                    [("shortest_edge", shortest)] => Some(Size::Shortest(side(shortest)?)),
                    [("longest_edge", longest), ("shortest_edge", shortest)] => {
                        Some(Size::Bounded { shortest: side(shortest)?, longest: side(longest)? })
                    }
                    [("height", height), ("width", width)] => {
                        Some(Size::Exact { height: side(height)?, width: side(width)? })
                    }
                    _ => None,
                }
            }
            number => side(number).map(alone),
        }
    }

    /// Height and width of a picture after resizing.
    ///
    /// *Source* transformers' `get_resize_output_image_size` and `get_size_with_aspect_ratio`, with Python's numbers.
    fn resized(self, height: usize, width: usize) -> [usize; 2] {
        let (short, long) = (height.min(width), height.max(width));
        let [new_short, new_long] = match self {
            Size::Exact { height, width } => return [height, width],
            Size::Shortest(shortest) => [shortest, (shortest as u128 * long as u128 / short as u128) as usize],
            Size::Bounded { shortest, longest } => {
                let (of_short, of_long) = (short as f64, long as f64);
                let bound = longest as f64 * of_short / of_long;
                let bounded = of_long / of_short * shortest as f64 > longest as f64;
                let new_short = if bounded { bound.round_ties_even() as usize } else { shortest };
                let new_long = match bounded {
                    _ if new_short == short => long,
                    true => (bound * of_long / of_short) as usize,
                    false => ((shortest * long) as f64 / of_short) as usize,
                };
                [new_short, new_long]
            }
        };
        if height < width { [new_short, new_long] } else { [new_long, new_short] }
    }
}

impl Preprocessor {
    /// Reads the checkpoint's settings.
    ///
    /// # Errors
    /// As [`Checkpoint::config`].
    pub fn read(checkpoint: &Checkpoint, folder: &str) -> Result<Configured<Preprocessor>> {
        checkpoint.config(&format!("{folder}/preprocessor_config.json"))
    }

    /// Side of the prepared picture.
    pub fn size(&self) -> usize {
        self.crop
    }

    /// The image tower's input, `[size, size, 3]`.
    ///
    /// *Formula* `(byte * rescale_factor - mean) / std` of the resized and cropped picture.
    ///
    /// # Errors
    /// [`Error::Request`] when the picture is empty, the number of its pixels does not fit its sides, or it is so long and
    /// thin that its short side would be resized to nothing.
    pub fn prepare(&self, image: &Image) -> Result<Vec<f32>> {
        let bytes = self.square(image)?;
        let normalise =
            |(i, &byte): (usize, &u8)| ((f64::from(byte) * self.rescale) as f32 - self.mean[i % 3]) / self.std[i % 3];
        Ok(bytes.iter().enumerate().map(normalise).collect())
    }

    /// The middle square of the resized picture, `[size, size, 3]`.
    fn square(&self, image: &Image) -> Result<Vec<u8>> {
        image.check()?;
        let (width, height) = (image.width, image.height);
        let [high, wide] = self.size.resized(height, width);
        if high == 0 || wide == 0 {
            let reason = format!("{width}x{height} pixels; its short side would be resized to nothing");
            return Err(Error::request("image", reason));
        }
        let across = Axis::new(Span::whole(width), wide, self.crop, &CUBIC);
        let down = Axis::new(Span::whole(height), high, self.crop, &CUBIC);
        let rows = image.pixels.chunks_exact(3 * width).skip(down.reach.start).take(down.reach.len());
        let part: Vec<u8> = rows.flat_map(|row| &row[3 * across.reach.start..3 * across.reach.end]).copied().collect();
        Ok(resize_both::<3>(&part, [&across, &down], [width, height], [wide, high]))
    }
}
