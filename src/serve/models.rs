//! The checkpoints that requests can name.

use super::args::ServeArguments;
use super::errors::ApiError;
use crate::cli::flags::OpeningArguments;
use crate::cli::hub;
use crate::cli::known::Known;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use unclip::backend::cpu::Cpu;
use unclip::pipeline::{Pipeline, Request, Task};
use unclip::weights::Checkpoint;
use unclip::{Error, Result};

/// What OpenAI calls the model whose place the first one takes.
const ALIAS: &str = "dall-e-2";

/// A checkpoint.
pub struct Model {
    /// What requests call it.
    pub name: String,
    folder: Option<PathBuf>,
    /// Its configurations, to check requests by. Nothing is computed with it.
    pub checked: Pipeline,
    pub known: Known,
}

/// All of them.
pub struct Models {
    pub all: Vec<Model>,
    opening: OpeningArguments,
    opened: u64,
}

impl Models {
    /// Reads the configurations of all checkpoints.
    ///
    /// # Errors
    /// One does not open, or two have one name.
    pub fn open(arguments: &ServeArguments) -> Result<Models> {
        let opened = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut models = Models { all: Vec::new(), opening: arguments.opening.clone(), opened };
        let named: Vec<(String, Option<PathBuf>)> = match arguments.model.is_empty() {
            true => vec![("built-in".to_owned(), None)],
            false => arguments.model.iter().map(|text| named(text)).collect::<Result<_>>()?,
        };
        for (name, folder) in named {
            if models.all.iter().any(|model| model.name == name) {
                return Err(Error::value("--model", name, "two models of one name; put NAME= before one of them"));
            }
            let checkpoint = models.checkpoint(folder.as_deref())?;
            let known = Known::read(&checkpoint)?;
            let checked = Pipeline::open(checkpoint, Box::new(Cpu::new(1)?))?;
            models.all.push(Model { name, folder, checked, known });
        }
        Ok(models)
    }

    fn checkpoint(&self, folder: Option<&Path>) -> Result<Checkpoint> {
        self.opening.open(folder)
    }

    /// A model for a device.
    ///
    /// # Errors
    /// Its checkpoint is no longer there.
    pub fn pipeline(&self, model: usize) -> Result<Pipeline> {
        Pipeline::open(self.checkpoint(self.all[model].folder.as_deref())?, Box::new(Cpu::new(1)?))
    }

    /// The number of the model that a request names.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn find(&self, name: Option<&str>) -> Result<usize, ApiError> {
        let Some(name) = name else { return Ok(0) };
        let found = self.all.iter().position(|model| model.name == name);
        found.or((name == ALIAS).then_some(0)).ok_or_else(|| {
            let names: Vec<&str> = self.all.iter().map(|model| model.name.as_str()).collect();
            ApiError::model(name, &names.join(", "))
        })
    }

    /// A model as clients list it, with what the page needs to know.
    pub fn describe(&self, model: usize, devices: &[String]) -> Value {
        let Model { name, checked, known, .. } = &self.all[model];
        let defaults = checked.defaults();
        let size = checked.picture_size(&Request::of(Task::Prompts(Vec::new())));
        json!({
            "id": name, "object": "model", "created": self.opened, "owned_by": "engine",
            "engine": {
                "checkpoint": if checked.checkpoint().name().starts_with("built-in") { "built-in" } else { name },
                "makes_pictures": checked.makes_pictures(), "size": size, "size_unit": checked.size_unit(),
                "steps": defaults.decoder_steps, "prior_steps": defaults.prior_steps,
                "super_res_steps": defaults.super_res_steps, "guidance": defaults.decoder_guidance,
                "prior_guidance": defaults.prior_guidance, "examples": known.examples(),
                "device": devices.join(", "), "labels": known.names().collect::<Vec<_>>(),
            },
        })
    }
}

/// What a request calls a model, and its folder; `None` is the built-in one.
fn named(text: &str) -> Result<(String, Option<PathBuf>)> {
    let folder = |path: &str| (path != "built-in").then(|| PathBuf::from(path));
    let parts = text.split_once('=').filter(|(name, _)| !name.contains(['/', '\\']) && !Path::new(text).exists());
    if let Some((name, path)) = parts {
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
        return match is_name && !path.is_empty() {
            true => Ok((name.to_owned(), folder(path))),
            false => Err(Error::value("--model", text, "expected NAME=DIR, where NAME is letters, digits and -_.:")),
        };
    }
    let path = Path::new(text);
    // Folders are called by their last part, since where they lie is nobody else's business.
    let name = match path.exists() || !hub::is_name(path) {
        true => path.file_name().map_or_else(|| text.to_owned(), |name| name.to_string_lossy().into_owned()),
        false => text.to_owned(),
    };
    Ok((name, folder(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_called_by_their_given_name_or_their_folders() {
        let name = |text: &str| named(text).unwrap();
        assert_eq!(name("a=/x/y"), ("a".into(), Some("/x/y".into())));
        assert_eq!(name("/x/karlo"), ("karlo".into(), Some("/x/karlo".into())));
        assert_eq!(name("org/karlo"), ("org/karlo".into(), Some("org/karlo".into())));
        assert_eq!(name("small=built-in"), ("small".into(), None));
        assert_eq!(name("built-in"), ("built-in".into(), None));
        assert!(named("=x").is_err() && named("a b=x").is_err() && named("a=").is_err());
    }
}
