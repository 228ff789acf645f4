//! `POST /v1/engine/enlarge`: a picture made larger by super-resolution alone.

use crate::serve::Server;
use crate::serve::body::Share;
use crate::serve::errors::ApiError;
use crate::serve::fields::Fields;
use crate::serve::order::{self, Finish, Order};
use crate::serve::queue::{Answer, Work};
use unclip::pipeline::Enlarge;

/// Longest side of a result.
const LONGEST: usize = 4096;

pub async fn order(server: &Server, mut fields: Fields, share: &mut Share) -> Result<Order, ApiError> {
    let upload = order::upload(&mut fields, "image")?;
    let model = order::model(server, &mut fields)?;
    let output = order::output(&mut fields)?;
    if output.stream.is_some() {
        return Err(ApiError::value("stream", "enlarging is answered at once"));
    }
    let image = order::decode(server, share, "image", &upload).await?;
    let enlarge = Enlarge {
        times: fields.integer("times", 2..=64usize)?,
        steps: fields.integer("steps", 1..=10_000usize)?,
        ..Enlarge::new(image).seed(fields.integer("seed", 0..=u64::MAX)?.unwrap_or(0))
    };
    fields.end()?;
    let [width, height] = server.models.all[model].checked.enlarged_size(&enlarge)?;
    if width.max(height) > LONGEST {
        let message = format!("the result would have {width}x{height} pixels; a side may have {LONGEST}");
        return Err(ApiError::value("times", message));
    }
    let work =
        Work::Other(Box::new(move |pipeline, observer| pipeline.enlarge_alone(&enlarge, observer).map(Answer::Image)));
    Ok(Order { model, work, finish: Finish::default(), output, kind: "image_generation", prompt: None })
}
