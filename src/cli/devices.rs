//! Where to compute: `--device`, and `engine devices`.

use super::args::DeviceArguments;
#[cfg(feature = "wgpu")]
use std::{ffi::OsString, path::PathBuf};
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
#[cfg(feature = "wgpu")]
use unclip::backend::wgpu::{self, Choice, Wgpu};
use unclip::{Error, Precision, Result};

/// A device by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A GPU if there is a real one, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// An adapter of wgpu: the best, or one by its number.
    Wgpu(Option<usize>),
    /// An NVIDIA GPU by its number.
    Cuda(usize),
    /// The PTX kernels on the CPU, every access checked: slow, and for finding faults.
    CudaEmulator,
}

const EXPECTED: &str = "expected auto, cpu, wgpu[:N], cuda[:N] or cuda-emulator; `engine devices` lists what there is";

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Device, String> {
        let (kind, number) = match name.split_once(':') {
            Some((kind, number)) => (kind, Some(number.parse().map_err(|_| EXPECTED)?)),
            None => (name, None),
        };
        match (kind, number) {
            ("auto", None) => Ok(Device::Auto),
            ("cpu", None) => Ok(Device::Cpu),
            ("wgpu", number) => Ok(Device::Wgpu(number)),
            ("cuda", number) => Ok(Device::Cuda(number.unwrap_or(0))),
            ("cuda-emulator", None) => Ok(Device::CudaEmulator),
            _ => Err(EXPECTED.to_owned()),
        }
    }
}

/// A device that was chosen.
pub struct Chosen {
    pub backend: Box<dyn Backend>,
    /// Why it is not a better one.
    pub remark: Option<String>,
}

/// Opens the device that the arguments name.
///
/// # Errors
/// There is no such device, or it cannot compute in the precision asked for.
pub fn open(arguments: &DeviceArguments) -> Result<Chosen> {
    if arguments.matrices && !matches!(arguments.device, Device::Auto | Device::Wgpu(_)) {
        return Err(Error::request("--matrices", "cooperative matrices are for --device wgpu"));
    }
    if arguments.matrices && arguments.dtype != Precision::F16 {
        return Err(Error::request("--matrices", "cooperative matrices multiply halves; it needs --dtype f16"));
    }
    match arguments.device {
        // CUDA is left to those who ask for it until its kernels have been measured on cards.
        Device::Auto => match gpu(None, arguments, false) {
            Ok(backend) => Ok(Chosen { backend, remark: None }),
            Err(error) => Ok(Chosen { backend: cpu(arguments)?, remark: Some(format!("on the CPU: {error}")) }),
        },
        Device::Cpu => Ok(Chosen { backend: cpu(arguments)?, remark: None }),
        Device::Wgpu(number) => Ok(Chosen { backend: gpu(number, arguments, true)?, remark: None }),
        Device::Cuda(number) => Ok(Chosen { backend: cuda(number, arguments.dtype)?, remark: None }),
        Device::CudaEmulator => Ok(Chosen { backend: emulator(arguments.dtype)?, remark: None }),
    }
}

fn cpu(arguments: &DeviceArguments) -> Result<Box<dyn Backend>> {
    match arguments.dtype {
        precision @ (Precision::F32 | Precision::Bf16) => {
            Ok(Box::new(Cpu::new(arguments.threads)?.with_precision(precision)?))
        }
        _ => Err(Error::request("--dtype", "the CPU computes in f32 or bf16; f16 is for GPUs, tf32 for --device cuda")),
    }
}

/// `software` allows an adapter that is a program.
#[cfg(feature = "wgpu")]
fn gpu(number: Option<usize>, arguments: &DeviceArguments, software: bool) -> Result<Box<dyn Backend>> {
    let dtype = arguments.dtype;
    let adapter = number.map_or(if software { Choice::Best } else { Choice::Gpu }, Choice::Number);
    if matches!(dtype, Precision::Bf16 | Precision::Tf32) {
        return Err(Error::request("--dtype", "bf16 and tf32 are for --device cuda; wgpu stores f32 or f16"));
    }
    let tiles = arguments.matrices.then_some(unclip::ops::Tiles::Matrices);
    let device = Wgpu::new(wgpu::Options { adapter, storage: dtype.storage(), tiles, ..wgpu::Options::default() })?;
    Ok(Box::new(match cache_folder(|name| std::env::var_os(name)) {
        Some(folder) => device.cache_kernels(&folder.join("unclip").join("kernels")),
        None => device,
    }))
}

/// Where a user's programs keep what they can make again. Relative paths are no folders of the user's.
#[cfg(feature = "wgpu")]
fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let in_home = |below| Some(folder("HOME")?.join(below));
    match std::env::consts::OS {
        "windows" => folder("LOCALAPPDATA"),
        "macos" => in_home("Library/Caches"),
        _ => folder("XDG_CACHE_HOME").or_else(|| in_home(".cache")),
    }
}

#[cfg(not(feature = "wgpu"))]
fn gpu(_: Option<usize>, _: &DeviceArguments, _: bool) -> Result<Box<dyn Backend>> {
    Err(left_out("wgpu"))
}

#[cfg(feature = "cuda")]
fn cuda(number: usize, precision: Precision) -> Result<Box<dyn Backend>> {
    Ok(Box::new(unclip::backend::cuda::Cuda::new(number)?.with_precision(precision)))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize, _: Precision) -> Result<Box<dyn Backend>> {
    Err(left_out("cuda"))
}

#[cfg(feature = "cuda-emulator")]
fn emulator(precision: Precision) -> Result<Box<dyn Backend>> {
    Ok(Box::new(unclip::backend::cuda::Cuda::emulator().with_precision(precision)))
}

#[cfg(not(feature = "cuda-emulator"))]
fn emulator(_: Precision) -> Result<Box<dyn Backend>> {
    Err(left_out("cuda-emulator"))
}

/// The error of a device whose feature the program was built without.
#[cfg(not(all(feature = "wgpu", feature = "cuda", feature = "cuda-emulator")))]
fn left_out(feature: &str) -> Error {
    Error::Device {
        backend: feature.to_owned(),
        reason: format!("this engine was built without the feature {feature}"),
    }
}

/// Lists what `--device` can name.
///
/// # Errors
/// Threads cannot be started, or standard output cannot be written to.
pub fn list() -> Result<()> {
    let cpu = Cpu::new(0)?;
    let mut text = format!("cpu     {}\n", cpu.name());
    #[cfg(feature = "wgpu")]
    {
        let adapters = wgpu::adapters();
        text.extend(adapters.iter().map(|adapter| format!("{adapter}\n")));
        if adapters.is_empty() {
            text += "wgpu    no adapter: no Vulkan, Metal or DirectX 12 driver is installed\n";
        }
    }
    #[cfg(not(feature = "wgpu"))]
    {
        text += "wgpu    this engine was built without it\n";
    }
    text += &match cuda(0, Precision::F32) {
        Ok(gpu) => format!("cuda:0  {}\n", gpu.name()),
        Err(error) => format!("cuda    {error}\n"),
    };
    if cfg!(feature = "cuda-emulator") {
        text += "cuda-emulator  PTX kernels on the CPU, every access checked\n";
    }
    super::print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for (name, device) in [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("wgpu", Device::Wgpu(None)),
            ("wgpu:3", Device::Wgpu(Some(3))),
            ("cuda", Device::Cuda(0)),
            ("cuda:2", Device::Cuda(2)),
            ("cuda-emulator", Device::CudaEmulator),
        ] {
            assert_eq!(name.parse(), Ok(device));
        }
        for wrong in ["", "gpu", "wgpu:", "wgpu:-1", "CPU", "cpu:1", "cuda-emulator:0"] {
            assert!(wrong.parse::<Device>().unwrap_err().contains("engine devices"), "{wrong}");
        }
    }

    #[cfg(all(feature = "wgpu", target_os = "linux"))]
    #[test]
    fn the_cache_is_in_the_folder_that_the_user_named_or_else_at_home() {
        let with = |set: &[(&str, &str)]| cache_folder(|name| set.iter().find(|s| s.0 == name).map(|s| s.1.into()));
        let (own, home) = (("XDG_CACHE_HOME", "/fast"), ("HOME", "/home/a"));
        assert_eq!(with(&[home, own]), Some("/fast".into()));
        assert_eq!(with(&[home]), Some("/home/a/.cache".into()));
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "here")]), Some("/home/a/.cache".into()));
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "")]), Some("/home/a/.cache".into()));
        assert_eq!(with(&[]), None);
    }
}
