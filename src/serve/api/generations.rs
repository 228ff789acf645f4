//! `POST /v1/images/generations`: pictures of a prompt.

use crate::serve::Server;
use crate::serve::body::Share;
use crate::serve::errors::ApiError;
use crate::serve::fields::Fields;
use crate::serve::order::{self, Finish, Order};
use unclip::pipeline::{Prompt, Task};

pub async fn order(server: &Server, mut fields: Fields, _: &mut Share) -> Result<Order, ApiError> {
    let prompt = prompt(fields.text("prompt")?)?;
    let model = order::model(server, &mut fields)?;
    let output = order::output(&mut fields)?;
    let request = order::request(server, &mut fields, Task::Prompts(vec![Prompt::Text(prompt)]))?;
    fields.end()?;
    order::order(server, "image_generation", model, request, output, Finish::default())
}

/// A prompt that says something.
fn prompt(text: Option<String>) -> Result<String, ApiError> {
    let missing =
        || ApiError::field("prompt", "missing_required_parameter", "missing; expected what the picture shows");
    text.filter(|text| !text.trim().is_empty()).ok_or_else(missing)
}
