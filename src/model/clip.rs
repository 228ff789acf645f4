//! What CLIP's two towers share (Radford et al. 2021, section 2.4): the layers of a transformer with
//! pre-normalisation, and what their configurations leave out.

use super::legal;
use crate::error::Result;
use crate::ops::Activation;
use crate::plan::{Tensor, Weights};
use std::path::Path;

/// A tower's layers.
pub struct Transformer {
    pub layers: usize,
    pub heads: usize,
    /// Width between the two layers of the perceptron.
    pub inner: usize,
    pub eps: f32,
    pub activation: Activation,
    /// Whether a token sees those before it only.
    pub causal: bool,
}

impl Transformer {
    /// All layers, below `w` as `encoder.layers.0` and so on.
    pub fn encode<'g>(&self, w: &Weights<'g>, x: Tensor<'g>) -> Tensor<'g> {
        let layers = w.at("encoder.layers");
        (0..self.layers).fold(x, |x, layer| self.block(&layers.at(layer), x))
    }

    /// Attention and perceptron, each on the normalised input and added back.
    fn block<'g>(&self, w: &Weights<'g>, x: Tensor<'g>) -> Tensor<'g> {
        let width = x.channels();
        let h = x.layer_norm(w.at("layer_norm1"), self.eps);
        let attn = w.at("self_attn");
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| h.linear(attn.at(name), width));
        let x = x + q.attend((k, v), None, None, self.heads, self.causal).linear(attn.at("out_proj"), width);
        let h = x.layer_norm(w.at("layer_norm2"), self.eps);
        let h = h.linear(w.at("mlp.fc1"), self.inner).activate(self.activation);
        x + h.linear(w.at("mlp.fc2"), width)
    }
}

/// The perceptron's activation by its name in `hidden_act`.
pub fn activation(path: &Path, name: &str) -> Result<Activation> {
    legal(path, "hidden_act", &name, &["quick_gelu", "gelu"])?;
    Ok(if name == "gelu" { Activation::Gelu } else { Activation::QuickGelu })
}

/// `hidden_act` where it is left out.
pub fn quick_gelu() -> String {
    "quick_gelu".to_owned()
}

/// `layer_norm_eps` where it is left out.
pub fn layer_norm_eps() -> f32 {
    1e-5
}
