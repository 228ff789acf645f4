//! What of a network is trained: tensors of its checkpoint, or adapters beside its layers.
//!
//! Model code says nothing of this. Where it asks for a tensor that is trained, the recorder gives it a
//! [`Origin::Parameter`](super::Origin) instead of a weight. Where it records a layer that has an adapter, the recorder adds
//! the adapter's two layers.

use super::graph::line;
use super::{Tensor, Weights};
use crate::ops::training::{DiffusionLoss, LossPart, Scale, SquaredError};
use crate::ops::{Conv2d, Linear};
use std::fmt;

/// What of a network is trained.
pub struct Trained {
    /// Whether the checkpoint's tensor of this name is.
    pub tensors: Box<dyn Fn(&str) -> bool + Sync>,
    /// Low-rank adapters beside layers.
    pub adapters: Option<LowRank>,
}

/// Low-rank adapters: a layer's output is increased by `alpha / rank * up(down(x))`.
///
/// An adapter of the layer `M` trains `M.lora_A.weight [rank, K]` and `M.lora_B.weight [N, rank]`, of a convolution
/// `[rank, C, R, S]` and `[O, rank, 1, 1]`.
///
/// *Source* Hu et al. 2021 (LoRA), eq. 3; the names are peft's.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// The layers: last parts of their paths, such as `to_q` or `to_out.0`. Empty means every linear layer and convolution.
    pub targets: Vec<String>,
    /// Width between the two layers.
    pub rank: usize,
    /// Strength, over the rank.
    pub alpha: f32,
}

impl Trained {
    /// All tensors that the network reads.
    pub fn all() -> Trained {
        Trained { tensors: Box::new(|_| true), adapters: None }
    }

    /// Adapters alone.
    pub fn adapters(adapters: LowRank) -> Trained {
        Trained { tensors: Box::new(|_| false), adapters: Some(adapters) }
    }
}

impl fmt::Debug for Trained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trained").field("adapters", &self.adapters).finish_non_exhaustive()
    }
}

impl LowRank {
    /// Whether the layer of this path has an adapter.
    fn is_for(&self, path: &str) -> bool {
        let ends = |target: &String| {
            path.strip_suffix(target.as_str()).is_some_and(|rest| rest.ends_with('.') || rest.is_empty())
        };
        self.targets.is_empty() || self.targets.iter().any(ends)
    }
}

impl<'g> Tensor<'g> {
    /// The mean squared error of `self`, a network's output, for each image; see [`SquaredError`].
    #[track_caller]
    pub fn squared_error(self, target: Tensor<'g>, part: LossPart) -> Tensor<'g> {
        self.graph.record(SquaredError { part }, &[self, target], line())
    }

    /// The loss of a network that predicts noise and variance, given `x0`, the noise and the timesteps' coefficients; see
    /// [`DiffusionLoss`].
    #[track_caller]
    pub fn diffusion_loss(self, [x0, noise, coefficients]: [Tensor<'g>; 3], part: LossPart) -> Tensor<'g> {
        self.graph.record(DiffusionLoss { part }, &[self, x0, noise, coefficients], line())
    }

    /// `y`, what the layer `w` makes of this tensor, with its adapter's part if it has one. `window` is the layer's weight
    /// without its first dimension.
    pub(super) fn adapted(self, y: Tensor<'g>, w: Weights<'g>, window: &[usize], conv: Option<Conv2d>) -> Tensor<'g> {
        let adapters = self.graph.trained.and_then(|trained| trained.adapters.as_ref());
        let Some(adapters) = adapters.filter(|adapters| adapters.is_for(&w.path)) else { return y };
        let rank = adapters.rank;
        if rank == 0 {
            self.graph.complain_shape(&w.path, "an adapter of rank 0".to_owned());
            return y;
        }
        let parameter = |side: &str, shape: &[usize]| self.graph.parameter(&w.at(side).at("weight").path, shape);
        let down = parameter("lora_A", &[&[rank], window].concat());
        let width = y.channels();
        let layer = |x: Tensor<'g>, weight, conv: Option<Conv2d>, side: &str| {
            let inputs = [x, weight];
            match conv {
                None => self.graph.record(Linear::default(), &inputs, w.at(side).path),
                Some(conv) => self.graph.record(conv, &inputs, w.at(side).path),
            }
        };
        let narrow = layer(self, down, conv.clone(), "lora_A");
        let scale = Scale { factor: adapters.alpha / rank as f32 };
        let narrow = self.graph.record(scale, &[narrow], w.at("lora_A").path);
        // The window belongs to the first of the two.
        let up_shape = if conv.is_some() { vec![width, rank, 1, 1] } else { vec![width, rank] };
        let up = parameter("lora_B", &up_shape);
        let pixels = conv.map(|conv| Conv2d { stride: 1, padding: [0, 0], ..conv });
        y + layer(narrow, up, pixels, "lora_B")
    }
}
