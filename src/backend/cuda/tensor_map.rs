//! Tensor maps of bulk copies (TMA) as plain data.
//!
//! The real driver encodes a map into 128 opaque bytes, the emulator uses it directly. [`TensorMap::check`] has the
//! rules of `cuTensorMapEncodeTiled`, so the driver accepts every map that the emulator accepts.

use super::device_slice::DeviceSlice;
use crate::dtype::Dtype;
use crate::ops::Walk;

/// Swizzle of a tile in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// No swizzle.
    None,
    /// 16-byte chunks are permuted within 32 bytes.
    Bytes32,
    /// 16-byte chunks are permuted within 64 bytes.
    Bytes64,
    /// 16-byte chunks are permuted within 128 bytes.
    Bytes128,
}

impl Swizzle {
    /// Bytes within which 16-byte chunks are permuted.
    pub fn span(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::Bytes32 => 32,
            Swizzle::Bytes64 => 64,
            Swizzle::Bytes128 => 128,
        }
    }
}

/// A tensor and its tiles; all dimensions innermost first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorMap {
    /// Memory of the tensor.
    pub tensor: DeviceSlice,
    /// Element type.
    pub dtype: Dtype,
    /// Extent of the tensor in each dimension (CUDA's `globalDim`).
    pub dims: Vec<u64>,
    /// Byte strides of all dimensions but the first, which is contiguous (`globalStrides`).
    pub strides: Vec<u64>,
    /// Extent of a tile in each dimension, before steps (`boxDim`).
    pub tile: Vec<u32>,
    /// Step between the elements of a tile in each dimension (`elementStrides`).
    pub steps: Vec<u32>,
    /// Swizzle of a tile in shared memory.
    pub swizzle: Swizzle,
}

impl TensorMap {
    /// The map of a launch's tensor. Tiles have rows of 128 bytes, swizzled for `wgmma`.
    pub fn new(walk: &Walk, tensor: DeviceSlice, dtype: Dtype) -> TensorMap {
        let size = dtype.size_bytes() as u64;
        TensorMap {
            tensor,
            dtype,
            dims: walk.dims.iter().map(|&n| n as u64).collect(),
            strides: walk.strides.iter().map(|&n| n as u64 * size).collect(),
            // Rounded up to a multiple of the step, which selects the same elements: see the rule in `check`.
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

    /// Checks that the hardware supports this map.
    ///
    /// # Errors
    /// The first rule that the map breaks.
    pub fn check(&self) -> Result<(), String> {
        let TensorMap { tensor, dims, strides, tile, steps, .. } = self;
        let size = self.dtype.size_bytes() as u64;
        let rank = dims.len();
        let require = |is: bool, rule: &str| if is { Ok(()) } else { Err(format!("tensor map: {rule}, {self:?}")) };
        require((1..=5).contains(&rank), "it must have one to five dimensions")?;
        require(
            strides.len() + 1 == rank && tile.len() == rank && steps.len() == rank,
            "strides, tile and steps must match the dimensions",
        )?;
        require(tensor.address.is_multiple_of(16), "the address must be a multiple of 16")?;
        require(
            strides.iter().all(|s| s.is_multiple_of(16) && *s < 1 << 40),
            "strides must be multiples of 16 bytes below 2^40",
        )?;
        require(dims.iter().all(|d| (1..=1 << 32).contains(d)), "dimensions must be 1 to 2^32")?;
        require(tile.iter().all(|t| (1..=256).contains(t)), "tile extents must be 1 to 256")?;
        require(steps.iter().all(|s| (1..=8).contains(s)), "steps must be 1 to 8")?;
        require(steps[0] == 1, "the first step must be 1")?;
        // The documentation rounds the element count of a tile up if the extent is not a multiple of the step. The size
        // in the driver's encoding, by which `mbarrier`s count, was observed to be rounded down.
        require(
            tile.iter().zip(steps).all(|(tile, step)| tile.is_multiple_of(*step)),
            "tile extents must be multiples of their steps",
        )?;
        let row = u64::from(self.counts()[0]) * size;
        require(row.is_multiple_of(16), "rows of a tile must be multiples of 16 bytes")?;
        // The hardware also allows rows shorter than the span, which no kernel here uses.
        require(
            self.swizzle == Swizzle::None || row == u64::from(self.swizzle.span()),
            "rows of a tile must equal the swizzle's span",
        )?;
        let last = dims[1..].iter().zip(strides).map(|(d, s)| (d - 1) * s).sum::<u64>() + dims[0] * size;
        require(last <= tensor.bytes, "the dimensions must lie in the tensor's memory")
    }
}
