//! How bulk copies walk through a tensor: what NVIDIA's driver calls a tensor map, as plain data.
//!
//! Each driver makes of it what its kernels take: the real one 128 opaque bytes, the emulator nothing. The rules that
//! [`TensorMap::check`] holds it to are those of `cuTensorMapEncodeTiled`, so a map that the emulator takes the driver takes.

use super::device_slice::DeviceSlice;
use crate::dtype::Dtype;
use crate::ops::Walk;

/// How the rows of a tile change places in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Pieces of 16 bytes within 32.
    Bytes32,
    /// Within 64.
    Bytes64,
    /// Within 128.
    Bytes128,
}

impl Swizzle {
    /// Bytes within which pieces change places.
    pub fn span(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::Bytes32 => 32,
            Swizzle::Bytes64 => 64,
            Swizzle::Bytes128 => 128,
        }
    }
}

/// A tensor and the tiles in which it is copied, innermost dimension first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Its memory.
    pub tensor: DeviceSlice,
    /// Its elements.
    pub dtype: Dtype,
    /// Elements in each dimension.
    pub dims: Vec<u64>,
    /// Bytes from one element to the next in each dimension but the first, where they follow each other.
    pub strides: Vec<u64>,
    /// Extent of a tile in each dimension.
    pub tile: Vec<u32>,
    /// Of how many elements in each dimension one is taken.
    pub steps: Vec<u32>,
    /// How a tile is laid out.
    pub swizzle: Swizzle,
}

impl TensorMap {
    /// The map of a launch's tensor, whose tiles have rows of 128 bytes that are swizzled as `wgmma` wants them.
    pub fn new(walk: &Walk, tensor: DeviceSlice, dtype: Dtype) -> TensorMap {
        let size = dtype.size_bytes() as u64;
        TensorMap {
            tensor,
            dtype,
            dims: walk.dims.iter().map(|&n| n as u64).collect(),
            strides: walk.strides.iter().map(|&n| n as u64 * size).collect(),
            // Up to the next step, which takes the same elements: see the rule below.
            tile: walk.tile.iter().zip(&walk.steps).map(|(tile, step)| tile.next_multiple_of(*step)).collect(),
            steps: walk.steps.clone(),
            swizzle: Swizzle::Bytes128,
        }
    }

    /// Elements of a tile in each dimension.
    pub fn counts(&self) -> Vec<u32> {
        self.tile.iter().zip(&self.steps).map(|(tile, step)| tile.div_ceil(*step)).collect()
    }

    /// Bytes of a tile in shared memory.
    pub fn tile_bytes(&self) -> u32 {
        self.counts().iter().product::<u32>() * self.dtype.size_bytes() as u32
    }

    /// Whether the hardware can walk like this.
    ///
    /// # Errors
    /// The first rule that is not kept.
    pub fn check(&self) -> Result<(), String> {
        let TensorMap { tensor, dims, strides, tile, steps, .. } = self;
        let size = self.dtype.size_bytes() as u64;
        let rank = dims.len();
        let require = |is: bool, rule: &str| if is { Ok(()) } else { Err(format!("tensor map: {rule}, {self:?}")) };
        require((1..=5).contains(&rank), "one to five dimensions")?;
        require(
            strides.len() + 1 == rank && tile.len() == rank && steps.len() == rank,
            "as many extents as dimensions",
        )?;
        require(tensor.address.is_multiple_of(16), "the tensor begins at a multiple of 16 bytes")?;
        require(strides.iter().all(|s| s.is_multiple_of(16) && *s < 1 << 40), "strides are multiples of 16 bytes")?;
        require(dims.iter().all(|d| (1..=1 << 32).contains(d)), "dimensions from 1 to 2^32")?;
        require(tile.iter().all(|t| (1..=256).contains(t)), "tiles from 1 to 256")?;
        require(steps[0] == 1 && steps.iter().all(|s| (1..=8).contains(s)), "steps from 1 to 8, and 1 in a row")?;
        // The documentation rounds up what a tile has of a dimension that is no multiple of its step; the size that the
        // driver writes down, by which `mbarrier`s count, was seen to be rounded down.
        require(tile.iter().zip(steps).all(|(tile, step)| tile.is_multiple_of(*step)), "tiles are multiples of steps")?;
        let row = u64::from(self.counts()[0]) * size;
        require(row.is_multiple_of(16), "rows of a tile are multiples of 16 bytes")?;
        // The hardware allows shorter rows; then they no longer fill their span, and no kernel here asks for that.
        require(self.swizzle == Swizzle::None || row == u64::from(self.swizzle.span()), "a row is a swizzle's span")?;
        let last = dims[1..].iter().zip(strides).map(|(d, s)| (d - 1) * s).sum::<u64>() + dims[0] * size;
        require(last <= tensor.bytes, "the dimensions lie in the tensor's memory")
    }
}
