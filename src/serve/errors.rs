//! Failures as OpenAI's clients know them: a status, and an object with `message`, `type`, `param` and `code`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use unclip::Error;

/// Why a request has no better answer.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which it may be tried again.
    retry_after: Option<u64>,
}

/// What the library calls a setting, and the field that sets it.
const FIELDS: [(&str, &str); 20] = [
    ("decoder steps", "steps"),
    ("prior steps", "prior_steps"),
    ("super-resolution steps", "super_res_steps"),
    ("decoder guidance", "guidance"),
    ("prior guidance", "prior_guidance"),
    ("prior strength", "prior_strength"),
    ("negative", "negative_prompt"),
    ("noise", "noise"),
    ("noise type", "noise"),
    ("noise level", "noise_level"),
    ("pictures per prompt", "n"),
    ("prompt", "prompt"),
    ("size", "size"),
    ("image", "image"),
    ("mask", "mask"),
    ("strength", "strength"),
    ("resample", "resample"),
    ("weights", "weights"),
    ("labels", "labels"),
    ("times", "times"),
];

impl ApiError {
    fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code, retry_after: None }
    }

    /// A field that is missing, of another kind, or out of range.
    pub fn field(param: &str, code: &'static str, message: impl Into<String>) -> ApiError {
        let message = format!("{param}: {}", message.into());
        ApiError { param: Some(param.to_owned()), ..ApiError::new(StatusCode::BAD_REQUEST, Some(code), message) }
    }

    /// A field whose value cannot be used.
    pub fn value(param: &str, message: impl Into<String>) -> ApiError {
        ApiError::field(param, "invalid_value", message)
    }

    /// A body that cannot be read.
    pub fn body(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, Some(code), message)
    }

    /// Any other status, with what is wrong.
    pub fn status(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(status, Some(code), message)
    }

    /// No model has this name.
    pub fn model(name: &str, known: &str) -> ApiError {
        let message = format!("model: there is none of the name {name:?}; this server has {known}");
        let error = ApiError::new(StatusCode::NOT_FOUND, Some("model_not_found"), message);
        ApiError { param: Some("model".to_owned()), ..error }
    }

    /// Too many requests, for the reason given.
    pub fn busy(message: &str, seconds: u64) -> ApiError {
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded"), message);
        ApiError { retry_after: Some(seconds), ..error }
    }

    /// The server takes no work at present.
    pub fn unavailable(message: &str, seconds: u64) -> ApiError {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, Some("unavailable"), message);
        ApiError { retry_after: Some(seconds), ..error }
    }

    /// A fault of the server.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, None, message)
    }

    /// What kind of failure clients take it for.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body.
    pub fn object(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind(), "param": self.param, "code": self.code,
        } })
    }

    /// What kind of failure it is, in a word.
    pub fn code(&self) -> &'static str {
        self.code.unwrap_or_else(|| self.kind())
    }

    /// What is wrong, in words; it may repeat what the request says.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        let message = error.to_string();
        match error {
            Error::Request { what, found, reason } => {
                let field = FIELDS.iter().find(|(setting, _)| *setting == what).map(|(_, field)| *field);
                match (field, found) {
                    (Some(field), Some(found)) => ApiError::value(field, format!("{found}: {reason}")),
                    (Some(field), None) => ApiError {
                        param: Some(field.to_owned()),
                        ..ApiError::status(
                            StatusCode::UNPROCESSABLE_ENTITY,
                            "unsupported",
                            format!("{field}: {reason}"),
                        )
                    },
                    (None, _) => ApiError::status(StatusCode::UNPROCESSABLE_ENTITY, "unsupported", message),
                }
            }
            // Which folder lacks something is nobody else's business.
            Error::Config { reason, .. } => ApiError::status(
                StatusCode::UNPROCESSABLE_ENTITY,
                "unsupported",
                format!("this model cannot: {reason}"),
            ),
            Error::Unsupported { what } => ApiError::status(StatusCode::UNPROCESSABLE_ENTITY, "unsupported", what),
            Error::Cancelled => ApiError::unavailable("the server ended before the pictures were finished", 1),
            Error::OutOfMemory { .. } => {
                ApiError::internal("the device lacks the memory for this request; smaller pictures or fewer may fit")
            }
            Error::NotFinite { .. } => ApiError::internal("the networks' values left their range"),
            _ => ApiError::internal("the pictures could not be made; the server's log says why"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/json");
        let mut response = (self.status, [(header::CONTENT_TYPE, json)], self.object().to_string()).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_all_four_keys_and_the_field_that_was_wrong() {
        let error = ApiError::from(Error::value("decoder steps", 1, "must be 2 to 1000"));
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        let wanted = json!({ "error": {
            "message": "steps: 1: must be 2 to 1000", "type": "invalid_request_error", "param": "steps",
            "code": "invalid_value",
        } });
        assert_eq!(error.object(), wanted);
        let internal = ApiError::internal("x").object();
        assert_eq!(internal["error"]["param"], Value::Null);
        assert_eq!(internal["error"]["type"], "server_error");
    }

    #[test]
    fn no_error_names_a_path() {
        for error in [
            Error::config("/secret/folder", "no image encoder"),
            Error::WeightFile { path: "/secret/folder".into(), reason: "cut".into() },
            Error::Changed { path: "/secret/folder".into() },
            Error::io("/secret/folder", "read", std::io::Error::other("no")),
        ] {
            assert!(!ApiError::from(error).object().to_string().contains("secret"));
        }
    }
}
