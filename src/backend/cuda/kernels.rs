//! The PTX kernels, one text per variant, rendered from `kernels/` by the build script.

use crate::dtype::Dtype;

/// A variant of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Stem of its file.
    pub stem: &'static str,
    /// Type of a launch's first tensor, if it may differ from the output's.
    pub source: Option<Dtype>,
    /// Type of the output; `None` is f32.
    pub elem: Option<Dtype>,
    /// The PTX module.
    pub text: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

impl Kernel {
    /// Whether it is the variant for tensors of these types.
    fn is_for(&self, source: Dtype, elem: Dtype) -> bool {
        let own = self.elem.unwrap_or(Dtype::F32);
        own == elem && self.source.unwrap_or(own) == source
    }

    /// The types' suffix in the names of its entries.
    pub fn suffix(&self) -> String {
        [self.source, self.elem].into_iter().flatten().map(|element| format!("_{}", element.name())).collect()
    }

    /// Names of its entries.
    pub fn entries(&self) -> impl Iterator<Item = &'static str> {
        self.text.split(".entry ").skip(1).filter_map(|rest| rest.split('(').next())
    }
}

/// PTX text and full name of an entry for tensors of these types.
pub(super) fn find(stem: &str, entry: &str, source: Dtype, elem: Dtype) -> Option<(&'static str, &'static str)> {
    KERNELS.iter().filter(|k| k.stem == stem && k.is_for(source, elem)).find_map(|k| {
        let suffix = k.suffix();
        let named = |name: &&str| name.strip_prefix(entry) == Some(suffix.as_str());
        k.entries().find(named).map(|name| (k.text, name))
    })
}

/// Threads per block of an entry, from its `.reqntid`.
#[cfg(feature = "cuda")]
pub(super) fn threads(text: &str, entry: &str) -> Option<u32> {
    let (_, rest) = text.split_once(&format!(".entry {entry}("))?;
    let (_, rest) = rest.split_once(".reqntid ")?;
    let sides = rest.lines().next()?.split(',').map(|side| side.trim().parse::<u32>().ok());
    sides.product()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "cuda")]
    #[test]
    fn block_sizes_are_read_from_the_text() {
        assert_eq!(threads(".entry f(\n)\n.reqntid 8, 4\n{}\n.entry g()\n.reqntid 64\n", "f"), Some(32));
        for kernel in KERNELS {
            for entry in kernel.entries() {
                assert!(threads(kernel.text, entry).is_some_and(|n| n.is_multiple_of(32)), "{entry}");
            }
        }
    }

    #[test]
    fn kernels_are_found_by_the_types_of_their_tensors() {
        use Dtype::{Bf16, F16, F32};
        let name = |stem, source, elem| find(stem, stem, source, elem).map(|(_, name)| name);
        assert_eq!(name("pointwise", F16, F16), Some("pointwise_f16"));
        assert_eq!(name("concat", F32, Bf16), Some("concat_f32_bf16"));
        assert_eq!(name("sampler_step", F32, F32), Some("sampler_step"));
        assert_eq!(name("pointwise", F32, F16), None);
        assert_eq!(name("sampler_step", F16, F16), None);
    }
}
