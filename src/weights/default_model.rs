//! The model that is part of the program; see `models/default/README.md`.

use super::{Checkpoint, LoadOptions};
use crate::error::Result;

/// Aligned like a mapped file, so that tensors are used in place.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

include!(concat!(env!("OUT_DIR"), "/default_model.rs"));

/// The default model as a checkpoint: a small unCLIP trained on emoji.
///
/// # Errors
/// As [`Checkpoint::embedded`]; none with the model that the crate comes with.
pub fn default_model() -> Result<Checkpoint> {
    Checkpoint::embedded(NAME, FILES, LoadOptions::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_aligned_and_their_tensors_are_used_in_place() {
        assert!(FILES.iter().all(|(_, bytes)| bytes.as_ptr().addr() % 64 == 0));
        let checkpoint = default_model().unwrap();
        let decoder = checkpoint.component("decoder").unwrap();
        let (name, _) = decoder.tensors().next().unwrap();
        let stored = crate::plan::WeightSource::load(&decoder, name).unwrap();
        assert!(matches!(
            stored,
            crate::plan::TensorData::F16(std::borrow::Cow::Borrowed(_))
                | crate::plan::TensorData::F32(std::borrow::Cow::Borrowed(_))
        ));
    }
}
