//! Which adapters there are, and which one is meant.

use crate::error::{Error, Result};
use crate::ops::Tiles;
use std::fmt;

/// What an adapter is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A graphics card.
    Discrete,
    /// Part of a processor.
    Integrated,
    /// A graphics card seen through a virtual machine.
    Virtual,
    /// A program that runs on the processor's cores.
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

/// One adapter as a person would want it described.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// The number that chooses it: `wgpu:N`.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// The driver's name and release.
    pub driver: String,
    /// The interface it is reached through: `vulkan`, `metal`, `dx12`.
    pub interface: String,
    /// What it is made of.
    pub kind: Kind,
    /// Largest tensor in bytes: the lesser of the limits for a buffer and for a binding.
    pub largest_tensor: u64,
    /// Shared memory of a workgroup in bytes.
    pub workgroup_memory: u32,
    /// Whether tensors can be stored in half precision.
    pub f16: bool,
    /// Whether invocations of a subgroup can work together.
    pub subgroups: bool,
    /// Invocations of a subgroup, where that is always the same number.
    pub lanes: Option<u32>,
    /// Rows and columns of the matrices of halves that a subgroup can multiply, with sums in single precision.
    pub matrices: Option<u32>,
    /// Whether kernels can be timed on the adapter's own clock.
    pub timestamps: bool,
}

impl Adapter {
    /// What a person would want to know of it beside its number and name: kind, interface, driver, limits, features.
    pub fn details(&self) -> Vec<String> {
        let mut details = vec![self.kind.to_string(), format!("{} ({})", self.interface, self.driver)];
        details.push(format!("largest tensor {} MiB", self.largest_tensor >> 20));
        details.push(format!("workgroup memory {} KiB", self.workgroup_memory >> 10));
        let named = [("f16", self.f16), ("subgroups", self.subgroups), ("timestamps", self.timestamps)];
        details.extend(named.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned()));
        details.extend(self.matrices.map(|side| format!("matrices {side}x{side}")));
        details
    }

    /// How products share their operands: what is asked for if the adapter can do it, or else what suits it. Matrices are
    /// experimental in wgpu and never chosen unless they are asked for.
    ///
    /// The kernels whose lanes read for each other count on subgroups of eight that are all there. Eight must therefore
    /// be the least and the most that the driver can make of any kernel; and because workgroups of these kernels hold
    /// 64 invocations, a multiple of eight, no subgroup is left with fewer.
    pub(super) fn tiles(&self, asked: Option<Tiles>, subgroups: bool) -> Tiles {
        let lanes = subgroups && self.subgroups && self.lanes == Some(8);
        match asked {
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

/// Which adapter to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The fastest kind there is; a software adapter only if there is nothing else.
    #[default]
    Best,
    /// The fastest kind of real GPU; never a software adapter.
    Gpu,
    /// The one of this number in the list.
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

/// All adapters, numbered in the order in which drivers list them. Empty where no driver is installed.
pub fn adapters() -> Vec<Adapter> {
    enumerate().iter().enumerate().map(|(number, adapter)| describe(number, adapter)).collect()
}

fn enumerate() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // GL is left out on purpose: its compute limits do not hold these kernels.
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // Validation layers are for developers of wgpu; kernels are validated by naga in any case.
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

/// The largest matrices for which there is a kernel and whose products an adapter can add up in single precision.
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

/// The adapter meant and its description.
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
    fn lanes_read_for_each_other_only_where_every_subgroup_has_eight() {
        let all = [Kind::Discrete, Kind::Integrated, Kind::Virtual, Kind::Software, Kind::Other];
        for kind in all {
            let otherwise = if kind == Kind::Software { Tiles::Registers } else { Tiles::Shared };
            // Others: more, fewer, and a driver that decides for each kernel.
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
