//! Moments that one step leaves to a later one, so that a norm need not read its input to learn its means and variances.
//!
//! A product has every number of its output in registers before it writes it. In passing it can add up, for every
//! `unit` channels of the positions that a block owns, the mean, the squares around it and how many numbers these are:
//! three numbers that [`super::GroupNorm`] merges into those of its groups (Chan, Golub & LeVeque 1983, eq. 2.1). A back
//! end that walks through a whole plan decides who leaves what to whom; an operation alone neither leaves nor finds any.

use super::{MatmulUnit, Operand};

/// Numbers of an entry: mean, squares around it, count.
const ENTRY: usize = 3;

/// How a step becomes PTX.
#[derive(Clone, Debug)]
pub struct Lowering {
    /// What products multiply.
    pub matmul: MatmulUnit,
    /// Moments that the step, a product, leaves of its output.
    pub leaves: Option<Moments>,
    /// Moments that the step, a norm, finds of its input: of all channels, or of the first ones and then of the others.
    pub finds: Vec<Moments>,
}

impl From<MatmulUnit> for Lowering {
    fn from(matmul: MatmulUnit) -> Lowering {
        Lowering { matmul, leaves: None, finds: Vec::new() }
    }
}

/// Moments of one tensor: `[images, parts, channels / unit, 3]` in single precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    /// Images, which norms keep apart.
    pub images: usize,
    /// Parts of an image's positions.
    pub parts: usize,
    /// Channels of the tensor.
    pub channels: usize,
    /// Channels of an entry; divides all of them.
    pub unit: usize,
    /// Its first number among all that steps leave to each other.
    pub first: usize,
}

impl Moments {
    /// Entries of a part.
    pub fn units(&self) -> usize {
        self.channels / self.unit
    }

    /// How many numbers they are.
    pub fn numbers(&self) -> usize {
        ENTRY * self.images * self.parts * self.units()
    }

    /// As a tensor of a launch.
    pub fn operand(&self) -> Operand {
        Operand::Left { first: self.first, count: self.numbers() }
    }
}

/// What of its output a product's block owns: its moments are those of so many positions and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputTile {
    /// Positions, all of one image.
    pub positions: usize,
    /// Columns.
    pub columns: usize,
}
