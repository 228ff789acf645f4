//! A PTX emulator on the CPU, with checks that no GPU makes.
//!
//! A module's text is parsed (`syntax`) and decoded once (`decode`, `opcodes`) into instructions with register indices
//! (`program`). The blocks of a grid run in parallel on all cores. Within a block (`block`) the warps run one after the
//! other, each until its next barrier; a warp (`warp`) executes one instruction for all lanes with the same program
//! counter.
//!
//! Hopper's asynchronous instructions are included: `mbarrier`s (`mbarrier`), bulk copies of byte ranges and of
//! tensor-map tiles (`bulk`), and `wgmma` (`wgmma`). Copies land as late as possible, and vector clocks (`clock`) track
//! the happens-before order, so a missing wait or fence is found in any schedule.
//!
//! Every memory access and every register read is checked; races once for launches that are equal but for what their
//! tensors hold (`driver`). A kernel that breaks a rule stops with a [`Fault`], which
//! has the rule, line, block and thread. Results equal the hardware's with two exceptions: approximations such as
//! `ex2.approx` are more accurate here, and the sum of an `mma.sync` is rounded once.

mod access;
mod alu;
mod block;
mod bulk;
mod clock;
mod cluster;
mod collective;
mod decode;
mod driver;
mod fault;
mod global;
mod matrix;
mod mbarrier;
mod opcodes;
mod opcodes_async;
mod opcodes_memory;
mod opcodes_warp;
mod program;
mod shared;
mod shared_async;
mod syntax;
mod uploads;
mod warp;
mod wgmma;

pub use crate::backend::cuda::{DeviceSlice, Swizzle, TensorMap};
pub use driver::Emulator;
pub use fault::{Check, Counters, Fault};
pub use program::Kernel;
pub use syntax::SyntaxError;

use cluster::Cluster;
use global::Memory;
use program::MAP_BYTES;
use rayon::prelude::*;

/// Parses and decodes the entries of a module.
///
/// # Errors
/// A syntax error or an unsupported instruction; the message has the line.
pub fn parse(text: &str) -> Result<Vec<Kernel>, SyntaxError> {
    syntax::parse(text)?.entries.iter().map(decode::decode).collect()
}

/// A launch's arguments in the order of the kernel's parameters: tensor maps, tensors, 32-bit scalars.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    /// Tensor maps of bulk copies.
    pub maps: &'a [TensorMap],
    /// Pointers to tensors.
    pub tensors: &'a [DeviceSlice],
    /// Bits of u32 and f32 scalars.
    pub scalars: &'a [u32],
    /// Dynamic shared memory, in addition to what the kernel declares.
    pub shared_bytes: u32,
    /// Blocks of a cluster, neighbours in the grid's third dimension.
    pub cluster: u32,
}

/// Blocks that every device with clusters can run together.
const MOST_IN_CLUSTER: u32 = 8;

/// An emulated device: global memory and the launches on it.
#[derive(Default)]
pub struct Machine {
    memory: Memory,
}

impl Machine {
    /// Allocates memory, marked as unwritten. Returns its address.
    pub fn allocate(&mut self, bytes: u64) -> u64 {
        self.memory.allocate(bytes)
    }

    /// Bytes of all allocations that are not freed.
    fn allocated_bytes(&self) -> u64 {
        self.memory.allocated_bytes()
    }

    /// Frees an allocation.
    pub fn free(&mut self, address: u64) {
        self.memory.free(address);
    }

    /// Number of allocations that are not freed.
    fn allocations(&self) -> usize {
        self.memory.allocations()
    }

    /// Copies from the host to the device.
    ///
    /// # Errors
    /// The range is not allocated.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), String> {
        let done = self.memory.write(address, bytes);
        if done { Ok(()) } else { Err(format!("{} bytes at {address:#x} are not allocated", bytes.len())) }
    }

    /// Copies from the device to the host.
    ///
    /// # Errors
    /// The range is not allocated, or part of it was never written.
    pub fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>, String> {
        self.memory.read(address, bytes)
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// A range is not allocated.
    pub fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<(), String> {
        let done = self.memory.copy(from, to, bytes);
        if done { Ok(()) } else { Err(format!("{bytes} bytes at {from:#x} or {to:#x} are not allocated")) }
    }

    /// Marks memory as unwritten, so that a read of stale contents is a fault.
    pub fn discard(&self, address: u64, bytes: u64) {
        self.memory.discard(address, bytes);
    }

    /// Runs a grid to completion.
    ///
    /// # Errors
    /// A fault in one of the blocks. The other blocks may or may not have run.
    pub fn launch(&self, kernel: &Kernel, grid: [u32; 3], arguments: Arguments<'_>) -> Result<Counters, Fault> {
        self.run(kernel, grid, arguments, true)
    }

    /// The same without the checks of what shared memory holds and for races, which are half of the work.
    fn repeat(&self, kernel: &Kernel, grid: [u32; 3], arguments: Arguments<'_>) -> Result<Counters, Fault> {
        self.run(kernel, grid, arguments, false)
    }

    fn run(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        arguments: Arguments<'_>,
        is_tracked: bool,
    ) -> Result<Counters, Fault> {
        let refused = |detail: String| Fault {
            kernel: kernel.name.clone(),
            line: 0,
            block: [0; 3],
            thread: [0; 3],
            check: Check::OutOfBounds,
            detail,
        };
        let slices: Vec<DeviceSlice> =
            arguments.maps.iter().map(|map| map.tensor).chain(arguments.tensors.iter().copied()).collect();
        let tensors = self.memory.tensors(&slices, is_tracked).map_err(refused)?;
        let parameters = Parameters::new(kernel, arguments).map_err(refused)?;
        let size = arguments.cluster.max(1);
        if !grid[2].is_multiple_of(size) || size > MOST_IN_CLUSTER {
            return Err(refused(format!(
                "a grid of {grid:?} blocks in clusters of {size}, of at most {MOST_IN_CLUSTER}"
            )));
        }
        let clusters = grid.iter().map(|&n| u64::from(n)).product::<u64>() / u64::from(size);
        let first_block = |i: u64| {
            let [x, y, _] = grid.map(u64::from);
            [i % x, i / x % y, i / x / y * u64::from(size)].map(|n| n as u32)
        };
        let counted = (0..clusters)
            .into_par_iter()
            .map_init(
                || Cluster::new(kernel, &tensors, &parameters, size),
                |cluster, i| cluster.run(first_block(i), grid),
            )
            .try_reduce(Counters::default, |mut sum, one| {
                sum += one;
                Ok(sum)
            })?;
        Ok(Counters { cached_read_bytes: tensors.cached_read_bytes(), ..counted })
    }
}

/// A launch's arguments as its blocks read them.
struct Parameters {
    /// The parameter space.
    bytes: Vec<u8>,
    /// Tensor maps with their offsets in `bytes`.
    maps: Vec<(u32, TensorMap)>,
    /// Shared memory of a block, static and dynamic.
    shared_bytes: u32,
}

impl Parameters {
    fn new(kernel: &Kernel, arguments: Arguments<'_>) -> Result<Parameters, String> {
        let Arguments { maps, tensors, scalars, shared_bytes, .. } = arguments;
        let given = maps.len() + tensors.len() + scalars.len();
        if kernel.parameters.len() != given {
            return Err(format!("the kernel takes {} parameters, the launch passes {given}", kernel.parameters.len()));
        }
        let shared_bytes = match kernel.dynamic_shared {
            Some(from) => from + shared_bytes,
            None if shared_bytes == 0 => kernel.shared_bytes,
            None => return Err("the launch has dynamic shared memory, the kernel declares none".to_owned()),
        };
        if shared_bytes > kernel.max_shared {
            return Err(format!("{shared_bytes} bytes of shared memory, a block has at most {}", kernel.max_shared));
        }
        let mut packed = Parameters { bytes: Vec::new(), maps: Vec::new(), shared_bytes };
        for (i, parameter) in kernel.parameters.iter().enumerate() {
            let tensor = i.checked_sub(maps.len());
            let scalar = i.checked_sub(maps.len() + tensors.len());
            let wanted = match (tensor, scalar) {
                (None, _) => MAP_BYTES,
                (_, None) => 8,
                _ => 4,
            };
            if parameter.bytes != wanted || parameter.is_map != tensor.is_none() {
                let found = if parameter.is_map {
                    "is a tensor map".to_owned()
                } else {
                    format!("has {} bytes", parameter.bytes)
                };
                return Err(format!("parameter {} {found}, the launch passes {wanted} bytes", parameter.name));
            }
            packed.bytes.resize(parameter.offset as usize, 0);
            match (tensor, scalar) {
                (None, _) => {
                    maps[i].check()?;
                    packed.maps.push((parameter.offset, maps[i].clone()));
                    packed.bytes.extend([0; MAP_BYTES as usize]);
                }
                (Some(i), None) => packed.bytes.extend(tensors[i].address.to_le_bytes()),
                (_, Some(i)) => packed.bytes.extend(scalars[i].to_le_bytes()),
            }
        }
        Ok(packed)
    }
}
