//! `POST /v1/images/variations`: variations of a picture.

use crate::serve::Server;
use crate::serve::body::Share;
use crate::serve::errors::ApiError;
use crate::serve::fields::Fields;
use crate::serve::order::{self, Finish, Order};
use unclip::pipeline::{Prompt, Request, Task};

pub async fn order(server: &Server, mut fields: Fields, share: &mut Share) -> Result<Order, ApiError> {
    let upload = order::upload(&mut fields, "image")?;
    let model = order::model(server, &mut fields)?;
    let output = order::output(&mut fields)?;
    // Beside the picture, for checkpoints that read a text there.
    let text = fields.text("prompt")?.map(Prompt::Text);
    let image = order::decode(server, share, "image", &upload).await?;
    let request = Request { text, ..order::request(server, &mut fields, Task::Variations(vec![image]))? };
    fields.end()?;
    let finish = Finish { name: upload.name, ..Finish::default() };
    order::order(server, "image_variation", model, request, output, finish)
}
