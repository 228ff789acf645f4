//! Adapters on the command line: what `--lora` takes, and those that a picture was made with.

use super::flags::AdapterArguments;
use std::path::{Path, PathBuf};
use unclip::backend::cpu::Cpu;
use unclip::pipeline::{Pipeline, Recipe};
use unclip::weights::{Adapter, Checkpoint};
use unclip::{Error, Result};

/// A file or folder and how strongly it acts.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    pub path: PathBuf,
    pub scale: f32,
}

/// `style.safetensors:0.8`; without a number behind the last colon it is 1, and a file that has such a name is meant.
pub fn lora(text: &str) -> Result<Lora, String> {
    let whole = Lora { path: PathBuf::from(text), scale: 1.0 };
    let Some((path, scale)) = text.rsplit_once(':').filter(|(path, _)| !path.is_empty()) else {
        return if text.is_empty() { Err("expected a file".to_owned()) } else { Ok(whole) };
    };
    match scale.parse::<f32>() {
        _ if whole.path.exists() => Ok(whole),
        Ok(scale) if scale.is_finite() => Ok(Lora { path: PathBuf::from(path), scale }),
        _ if Path::new(path).exists() => Err(format!("{scale:?}: expected a scale, such as {path}:0.8")),
        _ => Ok(whole),
    }
}

impl AdapterArguments {
    /// Opens what the flags name.
    ///
    /// # Errors
    /// A file cannot be read, or is no adapter.
    pub fn open(&self) -> Result<Vec<(Adapter, f32)>> {
        self.lora.iter().map(|lora| Ok((Adapter::open(&lora.path)?, lora.scale))).collect()
    }

    /// What the flags name; where they name nothing, what the recipe of the picture `from` does, which has to be the same
    /// files.
    ///
    /// # Errors
    /// As for [`AdapterArguments::open`], and a file of the recipe is not there, or another one.
    pub fn open_or(&self, recipe: Option<(&Path, &Recipe)>) -> Result<Vec<(Adapter, f32)>> {
        let (Some((from, recipe)), true) = (recipe, self.lora.is_empty()) else { return self.open() };
        let again = |name: &str, scale: f32, digest: &str| {
            let refused = |what: String| {
                let reason = format!("made with the adapter {name} at {scale}, {what}; name it with --lora");
                Error::value("--from", from.display(), reason)
            };
            let places = [from.with_file_name(name), PathBuf::from(name)];
            let there: Vec<Adapter> = places.iter().filter_map(|place| Adapter::open(place).ok()).collect();
            if there.is_empty() {
                return Err(refused("which is neither beside it nor here".to_owned()));
            }
            let same = there.into_iter().find(|adapter| adapter.digest() == digest);
            let short = digest.get(..12).unwrap_or(digest);
            let same = same.ok_or_else(|| refused(format!("and what has that name is another file than {short}")))?;
            Ok((same, scale))
        };
        recipe.adapters.iter().map(|used| again(&used.name, used.scale, &used.sha256)).collect()
    }
}

/// The checkpoint with adapters, on one thread: configurations alone are read.
///
/// # Errors
/// The checkpoint does not open, or an adapter does not fit it.
pub fn pipeline(checkpoint: Checkpoint, adapters: Vec<(Adapter, f32)>) -> Result<Pipeline> {
    let pipeline = Pipeline::open(checkpoint, Box::new(Cpu::new(1)?))?;
    if adapters.is_empty() { Ok(pipeline) } else { pipeline.with_adapters(adapters) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_stands_behind_the_last_colon() {
        let of = |path: &str, scale| Ok(Lora { path: path.into(), scale });
        assert_eq!(lora("a.safetensors"), of("a.safetensors", 1.0));
        assert_eq!(lora("a:b.safetensors:-0.5"), of("a:b.safetensors", -0.5));
        assert_eq!(lora("C:\\a.safetensors"), of("C:\\a.safetensors", 1.0));
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(file("a:1"), "").unwrap();
        assert_eq!(lora(&file("a:1")), of(&file("a:1"), 1.0));
        assert_eq!(lora(&file("a:1:2")), of(&file("a:1"), 2.0));
        for scale in ["x", "nan", "inf", ""] {
            let error = lora(&format!("{}:{scale}", file("a:1"))).unwrap_err();
            assert!(error.contains("expected a scale"), "{error}");
        }
        assert!(lora("").is_err());
    }
}
