//! The memory of a tensor, which launches, tensor maps and devices speak of alike.

/// A tensor of a launch: its memory, and whether the kernel writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSlice {
    /// Where it begins.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
    /// Whether the launch may write it.
    pub written: bool,
}
