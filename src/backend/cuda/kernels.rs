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
