//! Benchmarks of loading: the decoder from an f16 file in the page cache into the CPU's panels, and through a CUDA driver
//! that takes all calls and does nothing, so that only the host's part is timed; and the prior with and without an adapter,
//! a LoRA of rank 4 on all its attention.
//!
//! `cargo bench --features cuda --bench loading -- FILTER`, with `cpu`, `cuda`, `default` or `karlo` as the filter. Karlo's
//! file has 1.77 GB and lies in the folder for temporary files. `RAYON_NUM_THREADS` sets the threads of both. On Linux a
//! line for each back end gives the processor time, and the memory that loading needed at its peak beyond what the process
//! had before.

use criterion::{Criterion, Throughput};
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use unclip::Dtype;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::cases::models::{Drawn, ModelCase, Network, Size};
use unclip::ops::elements;
use unclip::plan::{Plan, WeightSource};
use unclip::weights::{Adapter, Adapters, Checkpoint, LoadOptions};

/// Rank of the prior's adapter.
const RANK: usize = 4;
/// Endings of the layers that it changes.
const ADAPTED: [&str; 4] = [".attn1.to_q.weight", ".attn1.to_k.weight", ".attn1.to_v.weight", ".attn1.to_out.0.weight"];

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    let sizes = [Size::Default, Size::Karlo];
    for (network, size) in [Network::Decoder, Network::Prior].into_iter().flat_map(|n| sizes.map(|size| (n, size))) {
        let case = ModelCase { network, size };
        let mut stored = None;
        let mut group = criterion.benchmark_group(format!("load/{}", case.name()));
        for (name, backend, is_adapted) in subjects(network) {
            let mut best: Option<Used> = None;
            group.throughput(Throughput::Bytes(2 * parameters(&case)));
            group.bench_function(name, |bencher| {
                let stored = stored.get_or_insert_with(|| Stored::write(&case));
                bencher.iter_custom(|count| {
                    let used = stored.load(backend.as_ref(), is_adapted, count);
                    best = Some(best.map_or(used, |best| best.or_less(used)));
                    Duration::from_secs_f64(used.seconds * count as f64)
                });
            });
            if let Some(best) = best {
                println!("{}/{name}: {}", case.name(), best.of_bytes(2 * parameters(&case)));
            }
        }
        group.finish();
    }
    criterion.final_summary();
}

/// Back ends by name, and whether an adapter stands in front of the file.
fn subjects(network: Network) -> Vec<(&'static str, Box<dyn Backend>, bool)> {
    let threads = rayon::current_num_threads();
    let cpu = || Box::new(Cpu::new(threads).expect("threads can be started")) as Box<dyn Backend>;
    match network {
        Network::Prior => vec![("cpu", cpu(), false), ("cpu-adapted", cpu(), true)],
        _ => vec![
            ("cpu", cpu(), false),
            #[cfg(feature = "cuda")]
            ("cuda", Box::new(unclip::backend::cuda::Cuda::sink().with_precision(unclip::Precision::F16)), false),
        ],
    }
}

fn parameters(case: &ModelCase) -> u64 {
    case.plan(1, &Drawn::new(Dtype::F16)).expect("the networks are known").parameters()
}

/// A checkpoint with one component in a folder that is deleted afterwards.
struct Stored {
    component: &'static str,
    checkpoint: Checkpoint,
    /// None, and the one of the prior.
    adapters: [Adapters; 2],
    plan: Plan,
    _folder: tempfile::TempDir,
}

impl Stored {
    fn write(case: &ModelCase) -> Stored {
        let weights = Drawn::new(Dtype::F16);
        let plan = case.plan(1, &weights).expect("the networks are known");
        let component = if case.network == Network::Prior { "prior" } else { "decoder" };
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        let index = json!({ "_class_name": "UnCLIPPipeline", component: ["diffusers", "a network"] });
        fs::write(folder.path().join("model_index.json"), index.to_string()).expect("there is room");
        fs::create_dir(folder.path().join(component)).expect("the folder is empty");
        let shapes: Vec<(String, Vec<usize>)> =
            plan.weights().map(|(name, id)| (name.to_owned(), plan.shape(id).to_vec())).collect();
        let file = folder.path().join(component).join("diffusion_pytorch_model.safetensors");
        write_file(&file, &shapes, |name, put| put(weights.load(name).expect("the plan asked for it").bytes()));
        let checkpoint = Checkpoint::open(folder.path(), LoadOptions::default()).expect("it was just written");
        let mut adapters = [Adapters::default(), Adapters::default()];
        if case.network == Network::Prior {
            let factors = shapes.iter().filter_map(|(name, shape)| {
                let stem = ADAPTED.iter().any(|end| name.ends_with(end)).then(|| name.strip_suffix(".weight"))??;
                let pair = [("A", vec![RANK, shape[1]]), ("B", vec![shape[0], RANK])];
                Some(pair.map(|(factor, shape)| (format!("{stem}.lora_{factor}.weight"), shape)))
            });
            let factors: Vec<(String, Vec<usize>)> = factors.flatten().collect();
            let file = folder.path().join("lora.safetensors");
            let sizes: std::collections::HashMap<&str, usize> =
                factors.iter().map(|(name, shape)| (name.as_str(), elements(shape))).collect();
            // 0.01 in f16.
            write_file(&file, &factors, |name, put| put(&0x211f_u16.to_le_bytes().repeat(sizes[name])));
            let adapter = Adapter::open(&file).expect("it was just written");
            adapters[1] = Adapters::new(&checkpoint, vec![(adapter, 1.0)]).expect("it fits");
        }
        Stored { component, checkpoint, adapters, plan, _folder: folder }
    }

    /// Opens the file and loads it, so many times.
    fn load(&self, backend: &dyn Backend, is_adapted: bool, count: u64) -> Used {
        let resident = reset_peak();
        let (began, processor) = (Instant::now(), processor_seconds());
        for _ in 0..count {
            let component = self.checkpoint.component(self.component).expect("it was just written");
            let source = self.adapters[usize::from(is_adapted)].over(&component);
            backend.load(&self.plan, &source, None).expect("there is memory");
        }
        let mean = |total: f64| total / count as f64;
        Used {
            seconds: mean(began.elapsed().as_secs_f64()),
            processor_seconds: mean(processor_seconds() - processor),
            peak_kib: memory_kib("VmHWM:").saturating_sub(resident),
        }
    }
}

/// Writes a file of f16 tensors, whose bytes `each` puts.
fn write_file(path: &Path, shapes: &[(String, Vec<usize>)], each: impl Fn(&str, &mut dyn FnMut(&[u8]))) {
    let mut end = 0;
    let mut header = serde_json::Map::new();
    for (name, shape) in shapes {
        let start = end;
        end += 2 * elements(shape);
        header.insert(name.clone(), json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, end] }));
    }
    // Spaces let the tensors begin at a multiple of eight bytes, as the format's own writer does.
    let mut header = serde_json::Value::from(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::new(File::create(path).expect("the folder is there"));
    let mut put = |bytes: &[u8]| file.write_all(bytes).expect("there is room");
    put(&(header.len() as u64).to_le_bytes());
    put(header.as_bytes());
    shapes.iter().for_each(|(name, _)| each(name, &mut put));
    file.flush().expect("there is room");
}

/// What one load took.
#[derive(Clone, Copy)]
struct Used {
    seconds: f64,
    processor_seconds: f64,
    peak_kib: u64,
}

impl Used {
    /// The lesser times, and the larger memory.
    fn or_less(self, other: Used) -> Used {
        Used {
            seconds: self.seconds.min(other.seconds),
            processor_seconds: self.processor_seconds.min(other.processor_seconds),
            peak_kib: self.peak_kib.max(other.peak_kib),
        }
    }

    fn of_bytes(self, bytes: u64) -> String {
        let per_gb = |seconds: f64| seconds / (bytes as f64 / 1e9);
        let Used { seconds, processor_seconds, peak_kib } = self;
        format!(
            "{seconds:.3} s, {:.3} s per GB; {:.3} s of processors per GB; {} MiB at the peak",
            per_gb(seconds),
            per_gb(processor_seconds),
            peak_kib / 1024
        )
    }
}

/// User and system time of all threads; 0 where the system does not say.
fn processor_seconds() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may have spaces: the state, and from the twelfth field on the times in hundredths.
    let behind = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    behind.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Lets the peak begin anew; the memory at present.
fn reset_peak() -> u64 {
    _ = fs::write("/proc/self/clear_refs", "5");
    memory_kib("VmRSS:")
}

/// A line of the process's status; 0 where there is none.
fn memory_kib(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
