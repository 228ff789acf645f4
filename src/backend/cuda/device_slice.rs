//! A range of device memory: the common type of launches, tensor maps and drivers.

/// The memory of a tensor in a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceSlice {
    /// Address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Whether the launch may write it.
    pub written: bool,
}
