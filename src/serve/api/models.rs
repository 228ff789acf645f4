//! `GET /v1/models`: what requests can name.

use crate::serve::Server;
use crate::serve::answer::json_answer;
use crate::serve::errors::ApiError;
use axum::response::Response;
use serde_json::{Value, json};

pub fn list(server: &Server) -> Response {
    let devices = server.devices();
    let data = (0..server.models.all.len()).map(|model| server.models.describe(model, &devices));
    let data: Vec<Value> = data.collect();
    json_answer(&json!({ "object": "list", "data": data }))
}

pub fn one(server: &Server, name: &str) -> Result<Response, ApiError> {
    server.models.find(Some(name)).map(|model| json_answer(&server.models.describe(model, &server.devices())))
}
