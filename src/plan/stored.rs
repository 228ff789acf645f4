//! [`StoredTensor`]: a tensor's bytes, read in pieces by several threads.

use super::TensorData;
use crate::dtype::Dtype;
use crate::error::Result;
use std::fmt;

/// Reads bytes of a tensor from an offset on, as many as the buffer has.
type Read<'a> = Box<dyn Fn(usize, &mut [u8]) -> Result<()> + Send + Sync + 'a>;

/// A tensor's elements as bytes: f32, f16 or bf16, row-major. Several threads may read at once.
pub struct StoredTensor<'a> {
    dtype: Dtype,
    size_bytes: usize,
    read: Read<'a>,
}

impl<'a> StoredTensor<'a> {
    /// A tensor of so many bytes. `read` fills its buffer with those from an offset on, which are never more than there
    /// are.
    pub fn new(
        dtype: Dtype,
        size_bytes: usize,
        read: impl Fn(usize, &mut [u8]) -> Result<()> + Send + Sync + 'a,
    ) -> StoredTensor<'a> {
        StoredTensor { dtype, size_bytes, read: Box::new(read) }
    }

    /// Type of the elements: f32, f16 or bf16.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number of bytes.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Copies the bytes from offset `from` on, as many as `to` has.
    ///
    /// # Errors
    /// The file cannot be read or became shorter.
    ///
    /// # Panics
    /// The tensor ends before `to` is full.
    pub fn read(&self, from: usize, to: &mut [u8]) -> Result<()> {
        assert!(from + to.len() <= self.size_bytes, "{from} + {} of {} bytes", to.len(), self.size_bytes);
        (self.read)(from, to)
    }
}

impl<'a> From<TensorData<'a>> for StoredTensor<'a> {
    fn from(data: TensorData<'a>) -> StoredTensor<'a> {
        StoredTensor::new(data.dtype(), data.bytes().len(), move |from, to| {
            to.copy_from_slice(&data.bytes()[from..from + to.len()]);
            Ok(())
        })
    }
}

impl fmt::Debug for StoredTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {}", self.size_bytes, self.dtype)
    }
}
