//! Partial statistics: what a matmul computes of its output, so that a group norm need not read it once more.
//!
//! A kernel has every element of its output in registers before it writes it. For `unit` channels of the positions of
//! one tile it can add up their count, their mean, and M2, the sum of squares around the mean. [`super::GroupNorm`]
//! merges such triples into the statistics of its groups (Chan, Golub & LeVeque 1983, eq. 2.1). In a plan they are a
//! value like any other: a second output of the matmul and a further input of the norm, put there by
//! [`crate::plan::with_statistics`] for back ends whose kernels do this.

/// Elements of an entry: mean, M2, count.
const ENTRY: usize = 3;

/// The layout of one tensor's partial statistics: `[images, parts, channels / unit, 3]` in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Images, which norms keep apart.
    pub images: usize,
    /// Parts of an image's positions.
    pub parts: usize,
    /// Channels of the tensor.
    pub channels: usize,
    /// Channels of an entry; divides all of them.
    pub unit: usize,
}

impl Statistics {
    /// The shape of the value.
    pub fn shape(&self) -> [usize; 4] {
        [self.images, self.parts, self.channels / self.unit, ENTRY]
    }

    /// The layout of a value of this shape that describes a tensor with so many channels.
    pub fn of(shape: &[usize], channels: usize) -> Statistics {
        Statistics { images: shape[0], parts: shape[1], channels, unit: channels / shape[2] }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }
}

/// The part of a matmul's output that one block owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputTile {
    /// Positions, all of one image.
    pub positions: usize,
    /// Columns.
    pub columns: usize,
}
