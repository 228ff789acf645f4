//! The kernels' text.

macro_rules! kernels {
    ($($stem:literal),* $(,)?) => {
        /// Stem and text of every kernel file, in the order of their names.
        pub const KERNELS: &[(&str, &str)] =
            &[$(($stem, include_str!(concat!("../../../kernels/", $stem, ".ptx")))),*];
    };
}

kernels![
    "advance",
    "attention",
    "concat",
    "conv2d",
    "embed",
    "group_norm",
    "layer_norm",
    "linear",
    "pointwise",
    "resize",
    "sampler_step",
    "slice",
];

/// The text of a kernel file.
pub(super) fn text(stem: &str) -> Option<&'static str> {
    KERNELS.iter().find(|(s, _)| *s == stem).map(|(_, text)| *text)
}

/// Threads of a block of an entry, which its `.reqntid` says.
#[cfg(feature = "cuda")]
pub(super) fn threads(text: &str, entry: &str) -> Option<u32> {
    let (_, behind) = text.split_once(&format!(".entry {entry}("))?;
    let (_, behind) = behind.split_once(".reqntid ")?;
    let sides = behind.lines().next()?.split(',').map(|side| side.trim().parse::<u32>().ok());
    sides.product()
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_read_from_the_text() {
        assert_eq!(threads(".entry f(\n)\n.reqntid 8, 4\n{}\n.entry g()\n.reqntid 64\n", "f"), Some(32));
        for (stem, text) in KERNELS {
            let entry = text.split(".entry ").nth(1).and_then(|t| t.split('(').next()).unwrap_or_default();
            assert!(threads(text, entry).is_some_and(|n| n.is_multiple_of(32)), "{stem}");
        }
    }
}
