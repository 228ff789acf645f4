use super::reverse::{Reverse, Source};
use super::training::Scatter;
use super::{
    Launch, MatmulUnit, Operand, Operation, Scalar, StorageRule, Tiles, WeightSplit, count, elements, require, width,
};

/// Gathers rows by their u32 indices.
#[derive(Clone, Debug, PartialEq)]
pub enum Embed {
    /// *Shapes* `table [V, D]`, `ids [B, T]` gives `[B, T, D]`. An id beyond the table is a broken invariant: the
    /// caller checks ids against the vocabulary.
    Lookup,
    /// One token of each sequence. *Shapes* `x [B, T, D]`, `position [B]` gives `[B, D]`.
    Token,
    /// The row of the present step. *Shapes* `table [S, ..]`, `step [1]` gives `[..]`, at least one dimension.
    Row,
}

impl Operation for Embed {
    fn name(&self) -> &'static str {
        match self {
            Embed::Lookup => "embed",
            Embed::Token => "token",
            Embed::Row => "row",
        }
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 2)?;
        let (x, ids) = (inputs[0], inputs[1]);
        let wrong = || format!("{}: rows {ids:?} of {x:?}", self.name());
        match self {
            Embed::Lookup => {
                require(x.len() == 2 && ids.len() == 2, wrong)?;
                Ok(vec![ids[0], ids[1], x[1]])
            }
            Embed::Token => {
                require(x.len() == 3 && ids == [x[0]], wrong)?;
                Ok(vec![x[0], x[2]])
            }
            Embed::Row => {
                require(x.len() >= 2 && ids == [1], wrong)?;
                Ok(x[1..].to_vec())
            }
        }
    }

    fn flops(&self, _: &[&[usize]], _: &[usize]) -> u64 {
        0
    }

    fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
        let table = reverse.shape(0);
        let scatter = match self {
            Embed::Lookup => Scatter::Lookup { rows: table[0] },
            Embed::Token => Scatter::Token { tokens: table[1] },
            Embed::Row => Scatter::Row { rows: table[0] },
        };
        reverse.give_by(0, scatter, &[Source::Gradient, Source::Input(1)])
    }

    fn storage_rule(&self, _: Operand) -> StorageRule {
        StorageRule::Any
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let (width, jump) = match self {
            Embed::Lookup => (inputs[0][1], 0),
            Embed::Token => (inputs[0][2], inputs[0][1]),
            Embed::Row => (elements(output), 0),
        };
        let tensors = vec![Operand::Input(0), Operand::Input(1), Operand::Output(0)];
        vec![Launch::each("embed", elements(output), tensors, [width, jump].map(Scalar::from))]
    }

    fn weight_split(&self) -> Option<WeightSplit> {
        // A token's rows are those of all sequences, not of the first dimension; it is no weight in any case.
        let by_first_dimension = *self != Embed::Token;
        by_first_dimension.then_some(WeightSplit { input: 0, first: "first_row", columns: false })
    }

    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], _: MatmulUnit) -> Vec<Launch> {
        let plain = self.wgsl(inputs, outputs[0], Tiles::Shared).remove(0);
        let row = if *self == Embed::Row { elements(outputs[0]) } else { width(outputs[0]) };
        vec![plain.in_vectors("embed_x16", &[row])]
    }
}
