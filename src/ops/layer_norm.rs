use super::{Operation, count, elements, require, width};

/// Normalises each row over its features, then scales and shifts.
///
/// *Shapes* `x [.., D]`, `gamma [D]`, `beta [D]` gives `[.., D]`.
///
/// *Formula* `y = (x - mean) / sqrt(var + eps) * gamma + beta`, mean and biased variance over `D`.
///
/// *Source* Ba, Kiros & Hinton 2016, eq. 4.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 3)?;
        let d = width(inputs[0]);
        require(inputs[1] == [d] && inputs[2] == [d], || {
            format!("layer_norm: gamma {:?} and beta {:?} for rows of {d}", inputs[1], inputs[2])
        })?;
        Ok(inputs[0].to_vec())
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        5 * elements(output) as u64
    }
}
