//! Where to compute: `--device`, and `engine devices`.

use super::args::DevicesArguments;
use super::flags::{DeviceArguments, DtypeChoice};
use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use serde::Serialize;
use std::ffi::OsStr;
use std::path::Path;
#[cfg(feature = "wgpu")]
use std::{ffi::OsString, path::PathBuf};
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
#[cfg(any(feature = "cuda", feature = "cuda-emulator"))]
use unclip::backend::cuda::Cuda;
#[cfg(feature = "wgpu")]
use unclip::backend::wgpu::{self, Choice, Wgpu};
use unclip::{Error, Precision, Result};

/// A device by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// An NVIDIA GPU, else another real GPU, else the processor.
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
            ("auto", "An NVIDIA GPU through its driver, else a real GPU through wgpu, else the CPU"),
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
    /// Why it is not a better one, or why it computes in its precision.
    pub remark: Option<String>,
}

/// What `--dtype auto` goes by.
pub struct Stored {
    /// The precision in which most of the weights are stored.
    pub precision: Precision,
    /// Bytes of all weights.
    pub bytes: u64,
    /// Why CUDA takes that precision.
    pub why: String,
}

/// Weights from which on `--dtype auto` takes bf16 on a CPU that is fast in it. Smaller models take seconds in f32, too, and
/// their pictures are the same on every machine.
const LARGE: u64 = 256 << 20;

impl Stored {
    /// The precision on a CPU. `fast`: it multiplies bf16 at a higher rate than f32.
    fn on_cpu(&self, fast: bool) -> Precision {
        let narrow = matches!(self.precision, Precision::F16 | Precision::Bf16);
        if fast && narrow && self.bytes >= LARGE { Precision::Bf16 } else { Precision::F32 }
    }
}

/// Reads what `--dtype auto` goes by, where it is needed.
pub type ReadStored<'a> = &'a dyn Fn() -> Stored;

/// A card, which becomes a back end once the precision is known.
type Card = Box<dyn FnOnce(Precision) -> Box<dyn Backend>>;

/// Opens the device that the arguments name.
///
/// # Errors
/// There is no such device, or it cannot compute in the precision asked for.
pub fn open(arguments: &DeviceArguments, stored: ReadStored<'_>) -> Result<Chosen> {
    if arguments.matrices && !matches!(arguments.device, Device::Auto | Device::Wgpu(_)) {
        return Err(Error::request("--matrices", "cooperative matrices are for --device wgpu"));
    }
    if arguments.matrices && arguments.precision() != Some(Precision::F16) {
        return Err(Error::request("--matrices", "cooperative matrices multiply halves; it needs --dtype f16"));
    }
    let plain = |backend| Chosen { backend, remark: None };
    match arguments.device {
        Device::Auto => auto(arguments, stored),
        Device::Cpu => cpu(arguments, stored, Vec::new()),
        Device::Wgpu(number) => gpu(number, arguments, true).map(plain),
        Device::Cuda(number) => Ok(on_card(cuda(number)?, arguments.dtype, stored)),
        Device::CudaEmulator => Ok(on_card(emulator()?, arguments.dtype, stored)),
    }
}

/// The best device that there is.
fn auto(arguments: &DeviceArguments, stored: ReadStored<'_>) -> Result<Chosen> {
    // Matrices ask for wgpu.
    let refused = if arguments.matrices { None } else { Some(any_cuda()) };
    let refused = match refused {
        Some(Ok(card)) => return Ok(on_card(card, arguments.dtype, stored)),
        Some(Err(error)) => Some(error),
        None => None,
    };
    let without_cuda = |name: &str| refused.as_ref().and_then(|error| why_not_cuda(error, name));
    match gpu(None, arguments, false) {
        Ok(backend) => {
            let remark = without_cuda(&backend.name());
            Ok(Chosen { backend, remark })
        }
        Err(error) => {
            let remarks = [Some(error.to_string()), without_cuda("")];
            cpu(arguments, stored, remarks.into_iter().flatten().collect())
        }
    }
}

/// A card in the precision that was asked for, or that of the weights.
fn on_card(card: Card, dtype: Option<DtypeChoice>, stored: ReadStored<'_>) -> Chosen {
    match dtype {
        Some(DtypeChoice::Of(precision)) => Chosen { backend: card(precision), remark: None },
        None | Some(DtypeChoice::Auto) => {
            let Stored { precision, why, .. } = stored();
            Chosen { backend: card(precision), remark: Some(why) }
        }
    }
}

/// What to say to someone who has an NVIDIA GPU, for which `auto` takes wgpu or the CPU: that CUDA refused it. `name` is
/// what it took. Where there is no such GPU, nothing is to be said.
fn why_not_cuda(error: &Error, name: &str) -> Option<String> {
    let there = ["/dev/nvidia0", "/usr/lib/wsl/lib/libcuda.so.1"].iter().any(|path| Path::new(path).exists());
    match cfg!(feature = "cuda") {
        _ if !there && !name.contains("NVIDIA") => None,
        true => Some(format!("there is an NVIDIA GPU, but {error}")),
        false => Some("there is an NVIDIA GPU: an engine built with the feature cuda is faster on it".to_owned()),
    }
}

/// What to say where fewer threads are started than `--threads` asks for.
fn too_many(threads: usize) -> Option<String> {
    let most = Cpu::most_threads();
    (threads > most).then(|| format!("--threads {threads}: {most} are enough for the processors of this process"))
}

/// The processor, after what there is to say of better devices.
fn cpu(arguments: &DeviceArguments, stored: ReadStored<'_>, mut remarks: Vec<String>) -> Result<Chosen> {
    let precision = match arguments.precision() {
        Some(precision @ (Precision::F32 | Precision::Bf16)) => precision,
        Some(other) => {
            let reason = "the CPU computes in f32 or bf16; f16 is for GPUs, tf32 for --device cuda";
            return Err(Error::value("--dtype", other, reason));
        }
        None => {
            let stored = stored();
            let precision = stored.on_cpu(Cpu::multiplies_bf16_fast());
            if precision == Precision::Bf16 {
                let from = stored.precision;
                remarks.push(format!("bf16, for weights stored in {from} and a processor that is fast in it"));
            }
            precision
        }
    };
    remarks.extend(too_many(arguments.threads));
    let backend = Box::new(Cpu::new(arguments.threads)?.with_precision(precision)?);
    Ok(Chosen { backend, remark: (!remarks.is_empty()).then(|| remarks.join("; ")) })
}

/// `software`: accept a CPU rasteriser such as lavapipe.
#[cfg(feature = "wgpu")]
fn gpu(number: Option<usize>, arguments: &DeviceArguments, software: bool) -> Result<Box<dyn Backend>> {
    let dtype = arguments.precision().unwrap_or_default();
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
fn cuda(number: usize) -> Result<Card> {
    let card = Cuda::new(number)?;
    Ok(Box::new(|precision| Box::new(card.with_precision(precision))))
}

/// The first card that can be used.
#[cfg(feature = "cuda")]
fn any_cuda() -> Result<Card> {
    let mut first = cuda(0);
    let mut others = 1..Cuda::count()?;
    while let (Err(_), Some(number)) = (&first, others.next()) {
        first = cuda(number).or(first);
    }
    first
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Result<Card> {
    Err(left_out("cuda"))
}

#[cfg(not(feature = "cuda"))]
fn any_cuda() -> Result<Card> {
    Err(left_out("cuda"))
}

#[cfg(feature = "cuda-emulator")]
fn emulator() -> Result<Card> {
    Ok(Box::new(|precision| Box::new(Cuda::emulator().with_precision(precision))))
}

#[cfg(not(feature = "cuda-emulator"))]
fn emulator() -> Result<Card> {
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
    let (adapters, chosen) = adapters();
    let cards = cuda_cards();
    // As `auto` chooses: a card that can be used, else an adapter that is a GPU, else the processor.
    let chosen = chosen.map(|i| 1 + i);
    let card = cards.iter().position(|card| card.problem.is_none()).map(|i| 1 + adapters.len() + i);
    entries.extend(adapters);
    entries.extend(cards);
    entries[card.or(chosen).unwrap_or(0)].auto = true;
    if let Ok(emulator) = emulator() {
        let about = "PTX kernels on the CPU, every access checked".to_owned();
        entries.push(Entry { name: about, ..Entry::new("cuda-emulator", emulator(Precision::F32).as_ref()) });
    }
    if arguments.json {
        return super::print(&format!("{}\n", serde_json::to_string_pretty(&entries).expect("text and integers")));
    }
    let width = entries.iter().map(|entry| entry.device.len()).max().unwrap_or(0);
    super::print(&entries.iter().map(|entry| entry.line(width)).collect::<String>())
}

/// The adapters of wgpu, and which of them `auto` would take.
#[cfg(feature = "wgpu")]
fn adapters() -> (Vec<Entry>, Option<usize>) {
    let all = wgpu::adapters();
    if all.is_empty() {
        let reason = "no adapter: no Vulkan, Metal or DirectX 12 driver is installed".to_owned();
        return (vec![Entry::missing("wgpu", Error::Device { backend: "wgpu".to_owned(), reason })], None);
    }
    let entry = |adapter: &wgpu::Adapter| Entry {
        device: format!("wgpu:{}", adapter.number),
        name: adapter.name.clone(),
        memory_bytes: None, // WebGPU does not say
        details: adapter.details(),
        problem: None,
        auto: false,
    };
    let auto = Choice::Gpu.of(&all).and_then(|chosen| all.iter().position(|adapter| adapter.number == chosen.number));
    (all.iter().map(entry).collect(), auto)
}

#[cfg(not(feature = "wgpu"))]
fn adapters() -> (Vec<Entry>, Option<usize>) {
    (vec![Entry::missing("wgpu", left_out("wgpu"))], None)
}

#[cfg(feature = "cuda")]
fn cuda_cards() -> Vec<Entry> {
    let open = |number: usize| {
        let device = format!("cuda:{number}");
        match cuda(number) {
            Ok(card) => Entry::new(device, card(Precision::F32).as_ref()),
            Err(error) => Entry::missing(&device, error),
        }
    };
    match Cuda::count() {
        Ok(0) => {
            vec![Entry::missing("cuda", Error::Device { backend: "cuda".to_owned(), reason: "no GPU".to_owned() })]
        }
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
    fn auto_is_bf16_on_a_fast_cpu_for_large_weights_of_sixteen_bits_and_f32_otherwise() {
        for (precision, bytes, fast, want) in [
            (Precision::F16, LARGE, true, Precision::Bf16),
            (Precision::Bf16, 2 * LARGE, true, Precision::Bf16),
            (Precision::F16, LARGE - 1, true, Precision::F32),
            (Precision::F16, LARGE, false, Precision::F32),
            (Precision::F32, 2 * LARGE, true, Precision::F32),
        ] {
            let stored = Stored { precision, bytes, why: String::new() };
            assert_eq!(stored.on_cpu(fast), want, "{precision}, {bytes} bytes, {fast}");
        }
    }

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
