//! Element types of tensors, and the precision in which a device computes.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The element type of a tensor, in a file or in a plan.
///
/// Weight files may hold any of them. A plan's values are [`F32`](Dtype::F32), [`F16`](Dtype::F16),
/// [`Bf16`](Dtype::Bf16) or, for token ids, positions, step numbers and seeds, [`U32`](Dtype::U32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // the names are the meaning
#[non_exhaustive]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4M3,
    F8E5M2,
    U16,
    I16,
    F16,
    Bf16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Dtype::Bool | Dtype::U8 | Dtype::I8 | Dtype::F8E4M3 | Dtype::F8E5M2 => 1,
            Dtype::U16 | Dtype::I16 | Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::U32 | Dtype::I32 | Dtype::F32 => 4,
            Dtype::U64 | Dtype::I64 | Dtype::F64 => 8,
        }
    }

    /// Whether it is a floating-point type of 16, 32 or 64 bits, which weights may be stored in.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64)
    }

    /// Lower-case name, as kernels and messages have it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bool => "bool",
            Dtype::U8 => "u8",
            Dtype::I8 => "i8",
            Dtype::F8E4M3 => "f8_e4m3",
            Dtype::F8E5M2 => "f8_e5m2",
            Dtype::U16 => "u16",
            Dtype::I16 => "i16",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::U32 => "u32",
            Dtype::I32 => "i32",
            Dtype::F32 => "f32",
            Dtype::U64 => "u64",
            Dtype::I64 => "i64",
            Dtype::F64 => "f64",
        }
    }
}

impl fmt::Display for Dtype {
    /// The spelling of the safetensors header.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().to_uppercase())
    }
}

/// The element type of a tensor in a weight file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoredDtype {
    /// A type that this crate names.
    Known(Dtype),
    /// Another type of the format, by the name in the file's header. No model can ask for it.
    Other(String),
}

impl StoredDtype {
    /// Whether weights may be stored in it; see [`Dtype::is_float`].
    pub fn is_float(&self) -> bool {
        matches!(self, StoredDtype::Known(dtype) if dtype.is_float())
    }
}

impl From<Dtype> for StoredDtype {
    fn from(dtype: Dtype) -> StoredDtype {
        StoredDtype::Known(dtype)
    }
}

impl fmt::Display for StoredDtype {
    /// The spelling of the safetensors header.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoredDtype::Known(dtype) => dtype.fmt(f),
            StoredDtype::Other(name) => f.write_str(name),
        }
    }
}

/// How a device stores tensors and multiplies matrices. Accumulation and the sampler's state are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Tensors in f32; matrix products on tensor cores in tf32, with 10 bits of mantissa.
    Tf32,
    /// Half precision.
    F16,
    /// bfloat16: the exponent range of f32, 7 bits of mantissa.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 4] = [Precision::F32, Precision::Tf32, Precision::F16, Precision::Bf16];

    /// Lower-case name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
        }
    }

    /// The type in which tensors are stored.
    pub fn storage(self) -> Dtype {
        match self {
            Precision::F32 | Precision::Tf32 => Dtype::F32,
            Precision::F16 => Dtype::F16,
            Precision::Bf16 => Dtype::Bf16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
