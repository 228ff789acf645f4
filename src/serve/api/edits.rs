//! `POST /v1/images/edits`: a part of a picture made anew, or all of it redrawn.
//!
//! What is fully transparent is made anew: in `mask`, or in the picture itself. Where nothing is transparent and there is no
//! mask, the picture is redrawn.

use crate::cli::edit::{Part, part};
use crate::serve::Server;
use crate::serve::body::Share;
use crate::serve::errors::ApiError;
use crate::serve::fields::Fields;
use crate::serve::order::{self, Finish, Order};
use std::sync::Arc;
use unclip::image::{Canvas, Image, Mask};
use unclip::pipeline::{Prompt, Request, Task};

/// Where alpha is below half.
const CLEAR: u8 = 128;

pub async fn order(server: &Server, mut fields: Fields, share: &mut Share) -> Result<Order, ApiError> {
    let upload = order::upload(&mut fields, "image")?;
    let mask = fields.files("mask");
    let model = order::model(server, &mut fields)?;
    let output = order::output(&mut fields)?;
    let prompt = fields.text("prompt")?.filter(|text| !text.trim().is_empty());
    let strength = fields.number("strength")?;
    let resample = fields.integer("resample", 1..=64usize)?.unwrap_or(1);
    let image = order::decode(server, share, "image", &upload).await?;
    let mask = match mask.first() {
        Some(mask) => {
            let clear = order::transparency(server, "mask", mask).await?.filter(has_clear);
            let none = || ApiError::value("mask", "nothing of it is transparent; what is, is made anew");
            Some(fitting(clear.ok_or_else(none)?, &image)?)
        }
        None => order::transparency(server, "image", &upload).await?.filter(has_clear),
    };
    if mask.as_ref().is_some_and(|mask| mask.pixels.iter().all(|value| *value >= CLEAR)) {
        return Err(ApiError::value("mask", "all of it is transparent, so that nothing would stay"));
    }
    let pipeline = &server.models.all[model].checked;
    // Large pictures take a while.
    let (canvas, Part { given, size, window }) = tokio::task::block_in_place(|| {
        let canvas = mask.map(|mask| Canvas::new(&image, &mask, [0; 4])).transpose()?;
        let part = part(pipeline, &image, canvas.as_ref());
        Ok::<_, ApiError>((canvas, part))
    })?;
    let task = match prompt {
        Some(text) => Task::Prompts(vec![Prompt::Text(text)]),
        None => Task::Variations(vec![image]),
    };
    let edit = given.with_strength(strength).resampled(resample);
    let request = Request { edit: Some(edit), size, ..order::request(server, &mut fields, task)? };
    fields.end()?;
    let pasted = canvas.zip(window).map(Arc::new);
    let finish = Finish { pasted, name: upload.name, ..Finish::default() };
    order::order(server, "image_edit", model, request, output, finish)
}

fn has_clear(mask: &Mask) -> bool {
    mask.pixels.iter().any(|value| *value >= CLEAR)
}

/// A mask of the picture's size.
fn fitting(mask: Mask, image: &Image) -> Result<Mask, ApiError> {
    if [mask.width, mask.height] == [image.width, image.height] {
        return Ok(mask);
    }
    let message =
        format!("{}x{} pixels; expected the picture's {}x{}", mask.width, mask.height, image.width, image.height);
    Err(ApiError::value("mask", message))
}
