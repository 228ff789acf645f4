//! `engine inspect picture.png`: what a picture was made from.

use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use unclip::image::{self, Texts};
use unclip::pipeline::Recipe;
use unclip::{Error, Result};

/// Prints the settings that a picture carries: all of this program's, or those that another left as text.
///
/// # Errors
/// It carries none, or cannot be read.
pub fn inspect(path: &Path, as_json: bool) -> Result<()> {
    let texts = image::read_texts(path)?;
    let recipes = match (&texts.recipe, &texts.parameters) {
        (None, Some(_)) => Vec::new(),
        _ => Recipe::of(path, &texts)?,
    };
    let recipes = serde_json::to_value(recipes).map_err(|e| Error::io(path, "read", e.into()))?;
    super::print(&if as_json {
        let path = path.display().to_string();
        format!("{}\n", json!({ "path": path, "recipes": recipes, "parameters": texts.parameters }))
    } else {
        table(&texts, &recipes)
    })
}

/// A line for each setting, pictures of a sheet apart.
fn table(texts: &Texts, recipes: &Value) -> String {
    let Some(recipes) = recipes.as_array().filter(|recipes| !recipes.is_empty()) else {
        let parameters = texts.parameters.as_deref().unwrap_or_default();
        return format!("settings of another program, as its text:\n{parameters}\n");
    };
    let mut text = String::new();
    for (k, recipe) in recipes.iter().enumerate() {
        text += if k > 0 { "\n" } else { "" };
        for (key, value) in recipe.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            _ = writeln!(text, "{:<17} {}", key.replace('_', " "), value.replace('\n', "\n                  "));
        }
    }
    text
}
