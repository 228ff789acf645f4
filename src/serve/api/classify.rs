//! `POST /v1/engine/classify`: which of some labels fits a picture best.

use crate::serve::Server;
use crate::serve::body::Share;
use crate::serve::errors::ApiError;
use crate::serve::fields::Fields;
use crate::serve::order;
use crate::serve::queue::{Answer, Other};
use serde_json::{Value, json};
use unclip::pipeline::Classify;

/// Most pictures of a request, and most labels.
const PICTURES: usize = 16;
const LABELS: usize = 1000;

/// The number of the model, and what is to be done with it.
pub async fn work(server: &Server, mut fields: Fields, share: &mut Share) -> Result<(usize, Box<Other>), ApiError> {
    let model = order::model(server, &mut fields)?;
    let uploads = fields.files("image");
    let mut labels = fields.texts("labels")?;
    if let [one] = &labels[..] {
        labels = one.split(',').map(|label| label.trim().to_owned()).collect();
    }
    let known = &server.models.all[model].known;
    if labels.is_empty() {
        labels.extend(known.names().map(str::to_owned));
    }
    let templates = fields.texts("template")?;
    let top = fields.integer("top", 1..=LABELS)?.unwrap_or(5);
    fields.end()?;
    if !(1..=PICTURES).contains(&uploads.len()) {
        let message = format!("{} pictures; expected 1 to {PICTURES} as files of a form", uploads.len());
        return Err(ApiError::value("image", message));
    }
    if labels.len() > LABELS {
        return Err(ApiError::value("labels", format!("{}; at most {LABELS}", labels.len())));
    }
    let mut classify = Classify::new(labels);
    if !templates.is_empty() {
        classify = classify.templates(&templates);
    }
    classify.check()?;
    let name = server.models.all[model].name.clone();
    server.models.all[model].checked.check_towers(true, true)?;
    let mut images = Vec::with_capacity(uploads.len());
    for upload in &uploads {
        images.push(order::decode(server, share, "image", upload).await?);
    }
    let work = move |pipeline: &unclip::pipeline::Pipeline, observer: &mut unclip::pipeline::Observer<'_>| {
        let classifier = pipeline.classifier(&classify, observer)?;
        let scores = pipeline.classify(&classifier, &images, observer)?;
        let data = scores.iter().enumerate().map(|(index, scores)| {
            let scores = scores.iter().take(top).map(|score| {
                let label = &classifier.labels()[score.label];
                json!({ "label": label, "probability": score.probability, "logit": score.logit })
            });
            json!({ "object": "classification", "index": index, "scores": scores.collect::<Vec<Value>>() })
        });
        Ok(Answer::Value(json!({ "object": "list", "model": name, "data": data.collect::<Vec<Value>>() })))
    };
    Ok((model, Box::new(work)))
}
