//! Lists and selects wgpu adapters.

use crate::error::{Error, Result};
use crate::ops::Tiles;
use std::fmt;

/// Device type of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A discrete GPU.
    Discrete,
    /// An integrated GPU.
    Integrated,
    /// A GPU of a virtual machine.
    Virtual,
    /// A CPU rasteriser such as lavapipe.
    Software,
    /// Unknown.
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Discrete => "discrete GPU",
            Kind::Integrated => "integrated GPU",
            Kind::Virtual => "virtual GPU",
            Kind::Software => "software",
            Kind::Other => "unknown kind",
        })
    }
}

/// Description of an adapter.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Index in the list, for `--device wgpu:N`.
    pub number: usize,
    /// Name.
    pub name: String,
    /// Name and release of the driver.
    pub driver: String,
    /// Graphics API: `vulkan`, `metal`, `dx12`.
    pub interface: String,
    /// Device type.
    pub kind: Kind,
    /// Largest tensor in bytes: the lower of the limits of a buffer and of a binding.
    pub largest_tensor: u64,
    /// Workgroup memory in bytes.
    pub workgroup_memory: u32,
    /// Whether tensors can be stored in f16.
    pub f16: bool,
    /// Whether subgroup operations are available.
    pub subgroups: bool,
    /// Subgroup size, if it is fixed.
    pub lanes: Option<u32>,
    /// Side of the cooperative matrices, f16 with f32 accumulation, if available.
    pub matrices: Option<u32>,
    /// Whether kernels can be timed with timestamp queries.
    pub timestamps: bool,
}

impl Adapter {
    /// Device type, API, driver, limits and features, for listings.
    pub fn details(&self) -> Vec<String> {
        let mut details = vec![self.kind.to_string(), format!("{} ({})", self.interface, self.driver)];
        details.push(format!("largest tensor {} MiB", self.largest_tensor >> 20));
        details.push(format!("workgroup memory {} KiB", self.workgroup_memory >> 10));
        let named = [("f16", self.f16), ("subgroups", self.subgroups), ("timestamps", self.timestamps)];
        details.extend(named.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned()));
        details.extend(self.matrices.map(|side| format!("matrices {side}x{side}")));
        details
    }

    /// The matmul variant: the requested one if the adapter supports it, otherwise the adapter's default. Cooperative
    /// matrices are experimental in wgpu and used only on request.
    ///
    /// [`Tiles::Lanes`] needs full subgroups of exactly eight invocations: the driver's minimum and maximum subgroup
    /// size must both be eight. Its workgroups have 64 invocations, so every subgroup is full.
    pub(super) fn tiles(&self, requested: Option<Tiles>, subgroups: bool) -> Tiles {
        let lanes = subgroups && self.subgroups && self.lanes == Some(8);
        match requested {
            Some(Tiles::Lanes) if !lanes => Tiles::Registers,
            Some(tiles) => tiles,
            None if self.kind != Kind::Software => Tiles::Shared,
            None if lanes => Tiles::Lanes,
            None => Tiles::Registers,
        }
    }
}

impl fmt::Display for Adapter {
    /// One line: `wgpu:0  NAME, discrete GPU, vulkan (DRIVER), largest tensor 2047 MiB, .., f16, subgroups`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wgpu:{}  {}, {}", self.number, self.name, self.details().join(", "))
    }
}

/// Selection of an adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The fastest device type available, a software adapter only if there is no GPU.
    #[default]
    Best,
    /// The fastest GPU, never a software adapter.
    Gpu,
    /// The adapter with this index.
    Number(usize),
}

impl Choice {
    /// The adapter of a list that is meant.
    pub fn of(self, adapters: &[Adapter]) -> Option<&Adapter> {
        let rank = |adapter: &&Adapter| match adapter.kind {
            Kind::Discrete => 0,
            Kind::Integrated => 1,
            Kind::Virtual => 2,
            Kind::Other => 3,
            Kind::Software => 4,
        };
        match self {
            Choice::Number(number) => adapters.get(number),
            Choice::Best => adapters.iter().min_by_key(rank),
            Choice::Gpu => adapters.iter().filter(|adapter| adapter.kind != Kind::Software).min_by_key(rank),
        }
    }
}

/// All adapters, in the drivers' order; empty if no driver is installed.
pub fn adapters() -> Vec<Adapter> {
    enumerate().iter().enumerate().map(|(number, adapter)| describe(number, adapter)).collect()
}

fn enumerate() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // Without GL, whose compute limits are too low for these kernels.
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // Without Vulkan's validation layers; naga validates the kernels.
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
}

fn describe(number: usize, adapter: &wgpu::Adapter) -> Adapter {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => Kind::Discrete,
        wgpu::DeviceType::IntegratedGpu => Kind::Integrated,
        wgpu::DeviceType::VirtualGpu => Kind::Virtual,
        wgpu::DeviceType::Cpu => Kind::Software,
        wgpu::DeviceType::Other => Kind::Other,
    };
    Adapter {
        number,
        name: info.name,
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        interface: info.backend.to_string(),
        kind,
        largest_tensor: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
        workgroup_memory: limits.max_compute_workgroup_storage_size,
        f16: features.contains(wgpu::Features::SHADER_F16),
        subgroups: features.contains(wgpu::Features::SUBGROUP),
        lanes: (info.subgroup_min_size == info.subgroup_max_size).then_some(info.subgroup_min_size),
        matrices: matrices(adapter),
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
    }
}

/// Side of the largest cooperative matrices that have a kernel: f16 operands, f32 accumulators.
fn matrices(adapter: &wgpu::Adapter) -> Option<u32> {
    let needed =
        wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP;
    if !adapter.features().contains(needed) {
        return None;
    }
    let kinds = adapter.cooperative_matrix_properties();
    let halves = kinds.iter().filter(|kind| {
        kind.ab_type == wgpu::CooperativeScalarType::F16 && kind.cr_type == wgpu::CooperativeScalarType::F32
    });
    let sides = halves.map(|kind| [kind.m_size, kind.n_size, kind.k_size]);
    [16, 8].into_iter().find(|&side| sides.clone().any(|sides| sides == [side; 3]))
}

/// The selected adapter and its description.
pub(super) fn choose(choice: Choice) -> Result<(wgpu::Adapter, Adapter)> {
    let none = |reason: String| Error::Device { backend: "wgpu".to_owned(), reason };
    let handles = enumerate();
    let all: Vec<Adapter> = handles.iter().enumerate().map(|(number, adapter)| describe(number, adapter)).collect();
    let found = choice.of(&all).and_then(|found| Some((handles.into_iter().nth(found.number)?, found.clone())));
    found.ok_or_else(|| match (choice, all.len()) {
        (_, 0) => none("no adapter: no Vulkan, Metal or DirectX 12 driver is installed".to_owned()),
        (Choice::Number(n), count) => none(format!("there is no adapter {n}; the last of {count} is {}", count - 1)),
        _ => none("no GPU, only a software adapter".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(kind: Kind, subgroups: bool, lanes: Option<u32>) -> Adapter {
        Adapter {
            number: 0,
            name: "made up".to_owned(),
            driver: String::new(),
            interface: String::new(),
            kind,
            largest_tensor: 1 << 27,
            workgroup_memory: 16_384,
            f16: false,
            subgroups,
            lanes,
            matrices: None,
            timestamps: false,
        }
    }

    #[test]
    fn tiles_in_lanes_need_subgroups_of_exactly_eight() {
        let all = [Kind::Discrete, Kind::Integrated, Kind::Virtual, Kind::Software, Kind::Other];
        for kind in all {
            let otherwise = if kind == Kind::Software { Tiles::Registers } else { Tiles::Shared };
            // Larger, smaller, variable, or no subgroups.
            for (subgroups, lanes) in [(true, Some(32)), (true, Some(4)), (true, None), (false, Some(8))] {
                let adapter = adapter(kind, subgroups, lanes);
                assert_eq!(adapter.tiles(Some(Tiles::Lanes), true), Tiles::Registers, "{adapter:?}");
                assert_eq!(adapter.tiles(None, true), otherwise, "{adapter:?}");
            }
            let eight = adapter(kind, true, Some(8));
            assert_eq!(eight.tiles(Some(Tiles::Lanes), true), Tiles::Lanes);
            assert_eq!(eight.tiles(Some(Tiles::Lanes), false), Tiles::Registers);
            assert_eq!(eight.tiles(Some(Tiles::Shared), true), Tiles::Shared);
            assert_eq!(eight.tiles(None, false), otherwise);
        }
        assert_eq!(adapter(Kind::Software, true, Some(8)).tiles(None, true), Tiles::Lanes);
        assert_eq!(adapter(Kind::Discrete, true, Some(8)).tiles(None, true), Tiles::Shared);
    }
}
