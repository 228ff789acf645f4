//! Where to compute: `--device`, and `engine devices`.

use super::args::{DeviceArguments, Dtype};
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
#[cfg(feature = "wgpu")]
use unclip::backend::wgpu::{self, Choice, Wgpu};
use unclip::{Error, Result};

/// A device by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A GPU if there is a real one, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// An adapter of wgpu: the best, or one by its number.
    Wgpu(Option<usize>),
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Device, String> {
        match (name, name.strip_prefix("wgpu:").map(str::parse)) {
            ("auto", _) => Ok(Device::Auto),
            ("cpu", _) => Ok(Device::Cpu),
            ("wgpu", _) => Ok(Device::Wgpu(None)),
            (_, Some(Ok(number))) => Ok(Device::Wgpu(Some(number))),
            _ => Err("expected auto, cpu, wgpu or wgpu:N; `engine devices` lists what there is".to_owned()),
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
    match arguments.device {
        Device::Auto => match gpu(None, arguments.dtype, false) {
            Ok(backend) => Ok(Chosen { backend, remark: None }),
            Err(error) => Ok(Chosen { backend: cpu(arguments)?, remark: Some(format!("on the CPU: {error}")) }),
        },
        Device::Cpu => Ok(Chosen { backend: cpu(arguments)?, remark: None }),
        Device::Wgpu(number) => Ok(Chosen { backend: gpu(number, arguments.dtype, true)?, remark: None }),
    }
}

fn cpu(arguments: &DeviceArguments) -> Result<Box<dyn Backend>> {
    match arguments.dtype {
        Dtype::F32 => Ok(Box::new(Cpu::new(arguments.threads)?)),
        Dtype::F16 => Err(Error::request("--dtype", "f16 is for GPUs (--device wgpu); the CPU computes in f32")),
    }
}

/// `software` allows an adapter that is a program.
#[cfg(feature = "wgpu")]
fn gpu(number: Option<usize>, dtype: Dtype, software: bool) -> Result<Box<dyn Backend>> {
    let adapter = number.map_or(if software { Choice::Best } else { Choice::Gpu }, Choice::Number);
    let storage = match dtype {
        Dtype::F32 => unclip::plan::Element::F32,
        Dtype::F16 => unclip::plan::Element::F16,
    };
    Ok(Box::new(Wgpu::new(wgpu::Options { adapter, storage, ..wgpu::Options::default() })?))
}

#[cfg(not(feature = "wgpu"))]
fn gpu(_: Option<usize>, _: Dtype, _: bool) -> Result<Box<dyn Backend>> {
    let reason = "this engine was built without the feature wgpu".to_owned();
    Err(Error::Device { backend: "wgpu".to_owned(), reason })
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
        ] {
            assert_eq!(name.parse(), Ok(device));
        }
        for wrong in ["", "gpu", "wgpu:", "wgpu:-1", "CPU"] {
            assert!(wrong.parse::<Device>().unwrap_err().contains("engine devices"), "{wrong}");
        }
    }
}
