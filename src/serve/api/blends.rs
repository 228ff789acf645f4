//! `POST /v1/engine/blends`: pictures between pictures and texts.

use crate::serve::Server;
use crate::serve::body::Share;
use crate::serve::errors::ApiError;
use crate::serve::fields::Fields;
use crate::serve::order::{self, Finish, Order};
use unclip::pipeline::{Blend, Ingredient, Prompt, Task};

/// Most things of a blend, and most frames.
const MOST: usize = 10;

pub async fn order(server: &Server, mut fields: Fields, share: &mut Share) -> Result<Order, ApiError> {
    let uploads = fields.files("image");
    let prompts = fields.texts("prompt")?;
    let model = order::model(server, &mut fields)?;
    let output = order::output(&mut fields)?;
    let weights = fields.numbers("weights")?;
    let frames = fields.integer("frames", 1..=MOST)?;
    let things = uploads.len() + prompts.len();
    if !(2..=MOST).contains(&things) {
        let message = format!("{things} pictures and prompts; expected 2 to {MOST}");
        return Err(ApiError::value("image", message));
    }
    let mut ingredients = Vec::with_capacity(things);
    for upload in &uploads {
        ingredients.push(Ingredient::Image(order::decode(server, share, "image", upload).await?));
    }
    ingredients.extend(prompts.into_iter().map(|text| Ingredient::Prompt(Prompt::Text(text))));
    let blend = match (weights, frames) {
        (Some(_), Some(_)) => {
            return Err(ApiError::value("frames", "cannot be combined with weights, which are one mixture"));
        }
        (None, Some(frames)) => Blend::path(ingredients, frames),
        (weights, None) => Blend::new(ingredients, vec![weights.unwrap_or_else(|| vec![1.0 / things as f32; things])]),
    };
    let request = order::request(server, &mut fields, Task::Blend(Box::new(blend)))?;
    fields.end()?;
    order::order(server, "image_generation", model, request, output, Finish::default())
}
