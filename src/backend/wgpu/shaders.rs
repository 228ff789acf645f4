//! The WGSL kernels, and the rendering of their variants.
//!
//! Kernels are plain WGSL in `shaders/`. A variant prepends the storage types, one of two workgroup reductions, and the
//! side of cooperative matrices.

use crate::dtype::Dtype;
use std::fmt::Write;

const PRELUDE: &str = include_str!("../../../shaders/prelude.wgsl");
const REDUCE_PLAIN: &str = include_str!("../../../shaders/reduce_plain.wgsl");
const REDUCE_SUBGROUPS: &str = include_str!("../../../shaders/reduce_subgroups.wgsl");
const MATRICES: &str = include_str!("../../../shaders/matrices.wgsl");

macro_rules! kernels {
    ($($stem:literal),* $(,)?) => {
        /// Stem and text of every kernel file, in the order of their names.
        pub const KERNELS: &[(&str, &str)] =
            &[$(($stem, include_str!(concat!("../../../shaders/", $stem, ".wgsl")))),*];
    };
}

kernels![
    "attention",
    "concat",
    "conv2d",
    "conv2d_lanes",
    "conv2d_matrices",
    "convert",
    "embed",
    "geglu",
    "group_norm",
    "layer_norm",
    "linear",
    "linear_lanes",
    "linear_matrices",
    "modulate",
    "multistep",
    "pointwise",
    "resize",
    "sampler_step",
    "slice",
];

/// A variant of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Type of the launch's first tensor.
    pub source: Dtype,
    /// Type of the output.
    pub elem: Dtype,
    /// Whether reductions use subgroup operations.
    pub subgroups: bool,
    /// Side of cooperative matrices, 8 or 16, in kernels that use them.
    pub side: Option<u32>,
}

/// The kernel that a variant for one kind of adapter extends: `linear` for `linear_lanes`.
pub fn base(stem: &str) -> Option<&str> {
    stem.strip_suffix("_lanes").or_else(|| stem.strip_suffix("_matrices"))
}

/// The complete text of a kernel's variant; `None` if there is no kernel with this stem.
pub fn render(stem: &str, variant: Variant) -> Option<String> {
    let text_of = |stem: &str| KERNELS.iter().find(|(s, _)| *s == stem).map(|(_, text)| *text);
    let kernel = text_of(stem)?;
    let mut text = String::new();
    if variant.source == Dtype::F16 || variant.elem == Dtype::F16 {
        text.push_str("enable f16;\n");
    }
    let matrices = variant.side.filter(|_| stem.ends_with("_matrices"));
    if matrices.is_some() {
        text.push_str("enable wgpu_cooperative_matrix;\n");
    }
    let _ = writeln!(text, "alias source = {};\nalias elem = {};", variant.source.name(), variant.elem.name());
    text.push_str(PRELUDE);
    if kernel.contains("workgroup_sum") {
        text.push_str(if variant.subgroups { REDUCE_SUBGROUPS } else { REDUCE_PLAIN });
    }
    text.push_str(base(stem).and_then(text_of).unwrap_or_default());
    if let Some(side) = matrices {
        let _ = writeln!(text, "const SIDE = {side}u;");
        for (name, element, role) in [("left", "source", "A"), ("right", "source", "B"), ("sum", "f32", "C")] {
            let _ = writeln!(text, "alias {name}_matrix = coop_mat{side}x{side}<{element}, {role}>;");
        }
        text.push_str(MATRICES);
    }
    text.push_str(kernel);
    Some(text)
}
