//! `POST /v1/engine/embeddings`: texts and pictures in CLIP's space, in the form of OpenAI's embeddings.

use crate::serve::Server;
use crate::serve::body::Share;
use crate::serve::errors::ApiError;
use crate::serve::fields::Fields;
use crate::serve::order;
use crate::serve::queue::{Answer, Other};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use unclip::pipeline::{Observer, Pipeline, Prompt};

/// Most texts and pictures of a request.
const MOST: usize = 256;

/// The number of the model, and what is to be done with it.
pub async fn work(server: &Server, mut fields: Fields, share: &mut Share) -> Result<(usize, Box<Other>), ApiError> {
    let model = order::model(server, &mut fields)?;
    let texts: Vec<Prompt> = fields.texts("input")?.into_iter().map(Prompt::Text).collect();
    let uploads = fields.files("image");
    let as_floats = fields.choice("encoding_format", &["float", "base64"])? == "float";
    fields.text("user")?;
    fields.end()?;
    let count = texts.len() + uploads.len();
    if !(1..=MOST).contains(&count) {
        let message = format!("{count} texts and pictures; expected 1 to {MOST}");
        return Err(ApiError::field("input", "missing_required_parameter", message));
    }
    server.models.all[model].checked.check_towers(!texts.is_empty(), !uploads.is_empty())?;
    let mut images = Vec::with_capacity(uploads.len());
    for upload in &uploads {
        images.push(order::decode(server, share, "image", upload).await?);
    }
    let name = server.models.all[model].name.clone();
    let work = move |pipeline: &Pipeline, observer: &mut Observer<'_>| {
        let mut all = if texts.is_empty() { Vec::new() } else { pipeline.embed_texts(&texts, observer)? };
        if !images.is_empty() {
            all.extend(pipeline.embed_pictures(&images, observer)?);
        }
        let data = all.iter().enumerate().map(|(index, embedding)| {
            let embedding = match as_floats {
                true => json!(embedding),
                false => {
                    BASE64_STANDARD.encode(embedding.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).into()
                }
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        });
        let usage = json!({ "prompt_tokens": 0, "total_tokens": 0 });
        Ok(Answer::Value(
            json!({ "object": "list", "model": name, "data": data.collect::<Vec<Value>>(), "usage": usage }),
        ))
    };
    Ok((model, Box::new(work)))
}
