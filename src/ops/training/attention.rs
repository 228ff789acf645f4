use super::super::{Attention, Operation, require};
use super::Rule;

/// The gradient of an attention's queries.
///
/// *Shapes* `g [B, Tq, D]`, the attention's output `o [B, Tq, D]`, then its inputs, gives `[B, Tq, D]`.
///
/// *Formula* for each head, with `P` the softmax's probabilities, `S = P (g v^T - sum_d g o)`: `dq = S k / sqrt(d_head)`.
///
/// *Source* Dao et al. 2022 (FlashAttention), algorithm 4: probabilities are computed again, none are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionQueries(
    /// The attention.
    pub Attention,
);

impl Rule for AttentionQueries {
    fn name(&self) -> &'static str {
        "attention_queries"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        checked(&self.0, self.name(), inputs)
    }

    fn flops(&self, inputs: &[&[usize]], output: &[usize]) -> u64 {
        // Scores, probabilities' gradients and the product: three of a forward pass's two.
        self.0.flops(&inputs[2..], output) / 2 * 3
    }
}

/// The gradients of an attention's keys and values, side by side.
///
/// *Shapes* as for [`AttentionQueries`], gives `[B, Te + Tk, 2D]`: those of the extra keys first; of each key its
/// gradient, then that of its value.
///
/// *Formula* with `P` and `S` as for [`AttentionQueries`]: `dk = S^T q / sqrt(d_head)`, `dv = P^T g`.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionKeys(
    /// The attention.
    pub Attention,
);

impl Rule for AttentionKeys {
    fn name(&self) -> &'static str {
        "attention_keys"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        let q = checked(&self.0, self.name(), inputs)?;
        let (extra, own) = self.0.keys(&inputs[2..]);
        Ok(vec![q[0], extra + own, 2 * q[2]])
    }

    fn flops(&self, inputs: &[&[usize]], _: &[usize]) -> u64 {
        self.0.flops(&inputs[2..], inputs[0]) * 2
    }
}

/// The shape of the attention's output.
fn checked(attention: &Attention, name: &str, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
    require(inputs.len() > 2, || format!("{name}: takes a gradient, an output and the attention's inputs"))?;
    let output = attention.shape(&inputs[2..])?;
    require(inputs[0] == output && inputs[1] == output, || {
        format!("{name}: gradient {:?} and output {:?} of an attention {output:?}", inputs[0], inputs[1])
    })?;
    Ok(output)
}
