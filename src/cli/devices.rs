//! Where to compute: `--device`, and `engine devices`.

use super::args::{DeviceArguments, DevicesArguments};
use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use serde::Serialize;
use std::ffi::OsStr;
use std::path::Path;
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

/// Reads a [`Device`], and names them all for help and completion.
#[derive(Clone)]
pub struct DeviceParser;

impl TypedValueParser for DeviceParser {
    type Value = Device;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Device, clap::Error> {
        StringValueParser::new().try_map(|name| name.parse::<Device>()).parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let names = [
            ("auto", "A GPU through wgpu if there is a real one, else the CPU"),
            ("cpu", "The processor"),
            ("wgpu", "A GPU through Vulkan, Metal or DirectX 12; wgpu:N is the one of that number"),
            ("cuda", "An NVIDIA GPU through its driver; cuda:N is the one of that number"),
            ("cuda-emulator", "The CUDA kernels on the CPU, every access checked: slow, to find faults"),
        ];
        Some(Box::new(names.into_iter().map(|(name, help)| PossibleValue::new(name).help(help))))
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
    let dtype = arguments.dtype.unwrap_or_default();
    if arguments.matrices && !matches!(arguments.device, Device::Auto | Device::Wgpu(_)) {
        return Err(Error::request("--matrices", "cooperative matrices are for --device wgpu"));
    }
    if arguments.matrices && dtype != Precision::F16 {
        return Err(Error::request("--matrices", "cooperative matrices multiply halves; it needs --dtype f16"));
    }
    let (backend, remark) = match arguments.device {
        Device::Auto => match gpu(None, arguments, false) {
            Ok(backend) => {
                let remark = cuda_is_better(&backend.name()).map(str::to_owned);
                (backend, remark)
            }
            Err(error) => {
                let cuda = cuda_is_better("").map_or(String::new(), |remark| format!("; {remark}"));
                let threads = too_many(arguments.threads).map_or(String::new(), |remark| format!("; {remark}"));
                (cpu(arguments)?, Some(format!("{error}{cuda}{threads}")))
            }
        },
        Device::Cpu => (cpu(arguments)?, too_many(arguments.threads)),
        Device::Wgpu(number) => (gpu(number, arguments, true)?, None),
        Device::Cuda(number) => (cuda(number, dtype)?, None),
        Device::CudaEmulator => (emulator(dtype)?, None),
    };
    Ok(Chosen { backend, remark })
}

/// What to say to someone who has an NVIDIA card, for which `auto` takes wgpu or the CPU. `name` is what it took.
fn cuda_is_better(name: &str) -> Option<&'static str> {
    let there = ["/dev/nvidia0", "/usr/lib/wsl/lib/libcuda.so.1"].iter().any(|path| Path::new(path).exists());
    match cfg!(feature = "cuda") {
        _ if !there && !name.contains("NVIDIA") => None,
        true => Some("there is an NVIDIA GPU: --device cuda is faster"),
        false => Some("there is an NVIDIA GPU: an engine built with --features cuda is faster on it"),
    }
}

/// What to say where fewer threads are started than `--threads` asks for.
fn too_many(threads: usize) -> Option<String> {
    let most = Cpu::most_threads();
    (threads > most).then(|| format!("--threads {threads}: {most} are enough for the processors of this process"))
}

fn cpu(arguments: &DeviceArguments) -> Result<Box<dyn Backend>> {
    match arguments.dtype.unwrap_or_default() {
        precision @ (Precision::F32 | Precision::Bf16) => {
            Ok(Box::new(Cpu::new(arguments.threads)?.with_precision(precision)?))
        }
        other => {
            let reason = "the CPU computes in f32 or bf16; f16 is for GPUs, tf32 for --device cuda";
            Err(Error::value("--dtype", other, reason))
        }
    }
}

/// `software`: accept a CPU rasteriser such as lavapipe.
#[cfg(feature = "wgpu")]
fn gpu(number: Option<usize>, arguments: &DeviceArguments, software: bool) -> Result<Box<dyn Backend>> {
    let dtype = arguments.dtype.unwrap_or_default();
    let adapter = number.map_or(if software { Choice::Best } else { Choice::Gpu }, Choice::Number);
    if matches!(dtype, Precision::Bf16 | Precision::Tf32) {
        return Err(Error::value("--dtype", dtype, "bf16 and tf32 are for --device cuda; wgpu stores f32 or f16"));
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
pub fn left_out(feature: &str) -> Error {
    Error::Device {
        backend: feature.to_owned(),
        reason: format!("this engine was built without the feature {feature}"),
    }
}

/// One line of `engine devices`.
#[derive(Serialize)]
struct Entry {
    /// What `--device` takes.
    device: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    /// What else is known of it.
    details: Vec<String>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// Whether `--device auto` takes it.
    auto: bool,
}

impl Entry {
    fn new(device: impl Into<String>, backend: &dyn Backend) -> Entry {
        // A back end's name is `device (what it is)`.
        let name = backend.name();
        let about = name.split_once(" (").and_then(|(_, about)| about.strip_suffix(')'));
        Entry {
            device: device.into(),
            name: about.unwrap_or(&name).to_owned(),
            memory_bytes: backend.memory_bytes(),
            details: Vec::new(),
            problem: None,
            auto: false,
        }
    }

    fn missing(device: &str, error: Error) -> Entry {
        let problem = match error {
            Error::Device { reason, .. } => reason,
            other => other.to_string(),
        };
        let (device, name) = (device.to_owned(), String::new());
        Entry { device, name, memory_bytes: None, details: Vec::new(), problem: Some(problem), auto: false }
    }

    fn line(&self, width: usize) -> String {
        let about = match &self.problem {
            Some(problem) => problem.clone(),
            None => {
                let memory = self.memory_bytes.map(|bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)));
                let parts = std::iter::once(self.name.clone()).chain(memory).chain(self.details.iter().cloned());
                parts.collect::<Vec<_>>().join(", ")
            }
        };
        let auto = if self.auto { "  <- auto" } else { "" };
        format!("{:width$}  {about}{auto}\n", self.device)
    }
}

/// Lists what `--device` can name.
///
/// # Errors
/// Threads cannot be started, or standard output cannot be written to.
pub fn list(arguments: &DevicesArguments) -> Result<()> {
    let mut entries = vec![Entry::new("cpu", &Cpu::new(0)?)];
    entries.extend(adapters());
    entries.extend(cuda_cards());
    if let Ok(emulator) = emulator(Precision::F32) {
        let about = "PTX kernels on the CPU, every access checked".to_owned();
        entries.push(Entry { name: about, ..Entry::new("cuda-emulator", emulator.as_ref()) });
    }
    if !entries.iter().any(|entry| entry.auto) {
        entries[0].auto = true;
    }
    if arguments.json {
        return super::print(&format!("{}\n", serde_json::to_string_pretty(&entries).expect("text and integers")));
    }
    let width = entries.iter().map(|entry| entry.device.len()).max().unwrap_or(0);
    let remark = entries.iter().find(|entry| entry.auto).and_then(|entry| cuda_is_better(&entry.name));
    let lines: String = entries.iter().map(|entry| entry.line(width)).collect();
    super::print(&match remark {
        Some(remark) => format!("{lines}{remark}\n"),
        None => lines,
    })
}

#[cfg(feature = "wgpu")]
fn adapters() -> Vec<Entry> {
    let all = wgpu::adapters();
    if all.is_empty() {
        let reason = "no adapter: no Vulkan, Metal or DirectX 12 driver is installed".to_owned();
        return vec![Entry::missing("wgpu", Error::Device { backend: "wgpu".to_owned(), reason })];
    }
    let auto = Choice::Gpu.of(&all).map(|adapter| adapter.number);
    let entry = |adapter: &wgpu::Adapter| Entry {
        device: format!("wgpu:{}", adapter.number),
        name: adapter.name.clone(),
        memory_bytes: None, // WebGPU does not say
        details: adapter.details(),
        problem: None,
        auto: auto == Some(adapter.number),
    };
    all.iter().map(entry).collect()
}

#[cfg(not(feature = "wgpu"))]
fn adapters() -> Vec<Entry> {
    vec![Entry::missing("wgpu", left_out("wgpu"))]
}

#[cfg(feature = "cuda")]
fn cuda_cards() -> Vec<Entry> {
    let open = |number: usize| {
        let device = format!("cuda:{number}");
        match cuda(number, Precision::F32) {
            Ok(card) => Entry::new(device, card.as_ref()),
            Err(error) => Entry::missing(&device, error),
        }
    };
    match unclip::backend::cuda::Cuda::count() {
        Ok(count) => (0..count).map(open).collect(),
        Err(error) => vec![Entry::missing("cuda", error)],
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda_cards() -> Vec<Entry> {
    vec![Entry::missing("cuda", left_out("cuda"))]
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
