//! Noise against draws that torch made (`golden/randn.py`), and pictures with such noise against those of diffusers
//! (`golden/noise_pictures.py`).

use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::Path;
use unclip::noise::{Card, NoiseDtype, NoiseKind, NoiseSource, TorchCudaGenerator};

/// Sine and cosine of a card are this far off the correct ones, times a radius of up to 6.8.
const CARD_TOLERANCE: f32 = 3e-6;

/// Draws that torch made.
struct Recording {
    bytes: Vec<u8>,
    metadata: HashMap<String, String>,
}

impl Recording {
    fn read(path: &Path) -> Recording {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap().into_iter().collect();
        Recording { bytes, metadata }
    }

    fn number(&self, key: &str) -> Option<usize> {
        self.metadata.get(key).map(|text| text.parse().unwrap())
    }

    /// The generator for a device with that name.
    fn kind(&self, device: &str) -> NoiseKind {
        let version: Vec<u32> = self.metadata["torch"].split('.').take(2).map(|n| n.parse().unwrap()).collect();
        match device {
            "cuda" => NoiseKind::TorchCuda(self.card()),
            _ if version < vec![2, 12] => NoiseKind::Torch211,
            _ => NoiseKind::Torch,
        }
    }

    fn card(&self) -> Card {
        let [sms, threads] = ["sms", "threads_per_sm"].map(|key| self.number(key).expect("a recording of a card"));
        Card::new(sms as u32, threads as u32).unwrap()
    }

    fn get<T: bytemuck::Pod>(&self, name: &str) -> Vec<T> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        bytemuck::allocation::pod_collect_to_vec(file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data())
    }

    /// `DEVICE/DTYPE/SEED` of all generators, each with its draws in order, where those were sampled.
    fn generators(&self) -> Vec<(String, Vec<String>)> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let mut found: Vec<(String, Vec<String>)> = Vec::new();
        let mut names: Vec<&str> = file.names().into_iter().collect();
        names.sort_unstable();
        for name in names {
            let parts: Vec<&str> = name.split('/').collect();
            let generator = parts[..3].join("/");
            if found.last().is_none_or(|(last, _)| *last != generator) {
                found.push((generator, Vec::new()));
            }
            if let ([.., draw, "head"], Some((_, draws))) = (&parts[..], found.last_mut()) {
                draws.push((*draw).to_owned());
            }
        }
        found
    }
}

/// Elements of a draw named `03-1x3x64x64`.
fn size(draw: &str) -> usize {
    let (_, shape) = draw.split_once('-').unwrap();
    shape.split('x').map(|n| n.parse::<usize>().unwrap()).product()
}

fn source(recording: &Recording, generator: &str) -> (NoiseSource, NoiseDtype) {
    let parts: Vec<&str> = generator.split('/').collect();
    let dtype = match parts[1] {
        "float32" => NoiseDtype::F32,
        "float16" => NoiseDtype::F16,
        _ => NoiseDtype::Bf16,
    };
    (NoiseSource::new(recording.kind(parts[0]), parts[2].parse().unwrap()).in_type(dtype), dtype)
}

/// Sum of `(2 i + 1)` times the bits of element `i`.
fn checksum(x: &[f32]) -> i64 {
    let term = |(i, x): (usize, &f32)| (2 * i as u64 + 1).wrapping_mul(x.to_bits().into());
    x.iter().enumerate().map(term).fold(0u64, u64::wrapping_add) as i64
}

/// Compares every draw of a recording: of a CPU to the bit, of a card within the tolerance, before the rounding to a type.
/// Returns how many values were compared, and the largest difference.
fn compare(recording: &Recording) -> (usize, f32) {
    let (mut compared, mut worst) = (0, 0f32);
    for (generator, draws) in recording.generators() {
        let (mut source, dtype) = source(recording, &generator);
        if draws.is_empty() {
            let (sizes, last): (Vec<i64>, Vec<f32>) =
                (recording.get(&format!("{generator}/sizes")), recording.get(&format!("{generator}/last")));
            let checksums: Vec<i64> = recording.get(&format!("{generator}/checksums"));
            for (k, &size) in sizes.iter().enumerate() {
                let mut ours = vec![0.0; size as usize];
                source.fill_normal(&mut ours);
                let case = format!("{generator}, draw {k} of {size}");
                assert_eq!(ours[ours.len() - 1].to_bits(), last[k].to_bits(), "{case}: the last element");
                assert_eq!(checksum(&ours), checksums[k], "{case}");
                compared += ours.len();
            }
            continue;
        }
        let on_a_card = generator.starts_with("cuda/");
        // A card's draws in a half type are those in f32, rounded: both are compared.
        let mut single = source.clone().in_type(NoiseDtype::F32);
        for draw in draws {
            let n = size(&draw);
            let (mut ours, mut exact) = (vec![0.0; n], vec![0.0; n]);
            source.fill_normal(&mut ours);
            if on_a_card {
                single.fill_normal(&mut exact);
            }
            let stride = (n / recording.number("every").unwrap_or(512)).max(1);
            let head = n.min(recording.number("samples").unwrap_or(1024));
            let places = [
                ("head", (0..head).collect::<Vec<_>>()),
                ("every", (0..n).step_by(stride).collect()),
                ("tail", (n.saturating_sub(64)..n).collect()),
            ];
            for (what, places) in places {
                let theirs: Vec<f32> = recording.get(&format!("{generator}/{draw}/{what}"));
                assert_eq!(theirs.len(), places.len(), "{generator}/{draw}/{what}");
                compared += theirs.len();
                for (&i, theirs) in places.iter().zip(theirs) {
                    let case = format!("{generator}/{draw}, element {i}: {} and torch {theirs}", ours[i]);
                    if !on_a_card {
                        assert_eq!(ours[i].to_bits(), theirs.to_bits(), "{case}");
                        continue;
                    }
                    assert_eq!(ours[i], dtype.round(exact[i]), "{case}");
                    let [low, high] = [-CARD_TOLERANCE, CARD_TOLERANCE].map(|d| dtype.round(exact[i] + d));
                    assert!((low..=high).contains(&theirs), "{case}");
                    if dtype == NoiseDtype::F32 {
                        worst = worst.max((ours[i] - theirs).abs());
                    }
                }
            }
        }
    }
    (compared, worst)
}

fn golden(name: &str) -> Recording {
    Recording::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.safetensors")))
}

/// The stored recordings, and those that `RANDN` names, separated as in `PATH`: of a card, perhaps, that nobody has tried.
#[test]
fn draws_are_those_of_torch_to_the_bit_on_the_cpu_and_within_the_sine_of_a_card() {
    let stored = ["randn-cpu-2.11", "randn-cpu-2.15", "randn-cuda-2.11"].map(|name| (name.to_owned(), golden(name)));
    let further = std::env::var_os("RANDN").unwrap_or_default();
    let further = std::env::split_paths(&further).filter(|path| path.as_os_str() != "");
    let further = further.map(|path| (path.display().to_string(), Recording::read(&path)));
    for (name, recording) in stored.into_iter().chain(further) {
        let (compared, worst) = compare(&recording);
        println!("{name}: {compared} values, the largest difference of a card's in f32 is {worst:e}");
        assert!(compared > 6_000, "{name}: {compared}");
    }
}

#[test]
fn a_card_stands_where_torch_stands_after_every_draw() {
    let recording = golden("randn-cuda-2.11");
    for (generator, draws) in recording.generators() {
        let seed = generator.split('/').nth(2).unwrap().parse().unwrap();
        let mut ours = TorchCudaGenerator::new(recording.card(), seed);
        for draw in draws {
            ours.fill_normal(NoiseDtype::F32, &mut vec![0.0; size(&draw)]);
            let theirs: Vec<i64> = recording.get(&format!("{generator}/{draw}/offset"));
            assert_eq!(ours.offset(), theirs[0] as u64, "{generator}/{draw}");
        }
    }
}

/// Pictures with the noise of every generator, and each of them by itself.
#[cfg(feature = "tokenizer")]
mod pictures {
    use super::*;
    use unclip::backend::cpu::Cpu;
    use unclip::image::Image;
    use unclip::noise::Generators;
    use unclip::pipeline::{Pipeline, Request};
    use unclip::weights::{Checkpoint, LoadOptions};

    const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny");

    fn pipeline() -> Pipeline {
        let checkpoint = Checkpoint::open(MODEL, LoadOptions::default()).unwrap();
        Pipeline::open(checkpoint, Box::new(Cpu::new(2).unwrap())).unwrap()
    }

    fn request() -> Request {
        let steps = Some(3);
        Request {
            prior_steps: steps,
            decoder_steps: steps,
            super_res_steps: steps,
            ..Request::new("a red frog on a green leaf")
        }
    }

    #[test]
    fn pictures_are_those_of_diffusers_with_every_kind_of_noise() {
        let bytes = std::fs::read(format!("{MODEL}/../noise-pictures.safetensors")).unwrap();
        let recorded = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(recorded.len(), 5);
        for (name, view) in recorded.tensors() {
            let [noise, dtype, generator, seed] = name.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let request = Request {
                noise: noise.parse().unwrap(),
                noise_dtype: dtype.parse().unwrap(),
                generator: generator.parse().unwrap(),
                seed: seed.parse().unwrap(),
                pictures_per_prompt: view.shape()[0],
                ..request()
            };
            let images = pipeline().pictures(&request).unwrap();
            let ours = images.iter().flat_map(|image| &image.pixels);
            let differences: Vec<u8> = ours.zip(view.data()).map(|(a, b)| a.abs_diff(*b)).collect();
            assert_eq!(differences.len(), view.data().len(), "{name}");
            let worst = differences.iter().max().unwrap();
            println!("{name}: the largest difference is {worst} of 255");
            assert!(*worst <= 2, "{name}: a pixel differs by {worst}");
        }
    }

    /// With one generator for a run, a picture's noise depends on its place in the run, and on nothing else of it.
    #[test]
    fn groups_change_no_picture_of_one_generator_and_each_can_be_made_again_from_its_recipe() {
        for noise in ["torch", "torch-2.11", "torch-cuda:4x1024"] {
            let request = Request {
                noise: noise.parse().unwrap(),
                noise_dtype: NoiseDtype::F16,
                generator: Generators::One,
                seed: 3,
                pictures_per_prompt: 3,
                ..request()
            };
            let together = pipeline().pictures(&request).unwrap();
            assert!(together[0] != together[1] && together[1] != together[2], "{noise}");
            let apart = pipeline().memory_limit(1).pictures(&request).unwrap();
            assert_eq!(apart, together, "{noise}");
            for (k, picture) in together.iter().enumerate() {
                let recipe = pipeline().recipe(&request, k);
                let shown = (recipe.seed, recipe.generator.to_string());
                assert_eq!(shown, (3, format!("one:{}/3", k + 1)), "{noise}");
                let again: Vec<Image> = pipeline().pictures(&recipe.request().unwrap()).unwrap();
                assert_eq!(&again[0], picture, "{noise}, picture {k}");
            }
            // The second of three and the one after it.
            let part = Request { generator: "one:2/3".parse().unwrap(), pictures_per_prompt: 2, ..request.clone() };
            assert_eq!(pipeline().pictures(&part).unwrap(), together[1..], "{noise}");
            // A run of one picture is the same with a generator of its own.
            let alone = |generator| Request { generator, pictures_per_prompt: 1, ..request.clone() };
            let one = pipeline().pictures(&alone(Generators::One)).unwrap();
            assert_eq!(one, pipeline().pictures(&alone(Generators::Each)).unwrap(), "{noise}");
            assert_ne!(one[0], together[0], "{noise}");
            assert_eq!(pipeline().recipe(&alone(Generators::One), 0).generator, Generators::One);
        }
    }

    /// What kernels draw and what the host draws are one noise, also where sources of several kinds meet.
    #[test]
    fn drafts_of_different_noise_are_painted_as_each_by_itself() {
        let of = |noise: &str, dtype| Request { noise: noise.parse().unwrap(), noise_dtype: dtype, ..request() };
        let requests =
            [of("torch-cuda:1x256", NoiseDtype::F16), of("torch", NoiseDtype::F32), of("philox", NoiseDtype::F32)];
        let pipeline = pipeline();
        let quiet = &mut |_: unclip::pipeline::Event<'_>| std::ops::ControlFlow::Continue(());
        let drafts: Vec<_> = requests.iter().map(|request| pipeline.embed(request, quiet).unwrap().remove(0)).collect();
        let small = pipeline.paint(drafts, &requests[0], quiet).unwrap();
        let mixed = pipeline.enlarge(small, &requests[0], quiet).unwrap();
        for (request, mixed) in requests.iter().zip(mixed) {
            assert_eq!(pipeline.pictures(request).unwrap()[0], mixed, "{}", request.noise);
        }
    }

    #[test]
    fn noise_that_nobody_draws_is_refused_by_the_name_of_the_setting() {
        let of = |noise: &str, dtype, generator: &str, pictures_per_prompt| {
            let (noise, generator) = (noise.parse().unwrap(), generator.parse().unwrap());
            Request { noise, noise_dtype: dtype, generator, pictures_per_prompt, ..request() }
        };
        for (request, part) in [
            (of("philox", NoiseDtype::F16, "each", 1), "noise type f16: philox draws in f32"),
            (of("philox", NoiseDtype::F32, "one", 1), "generator one: philox has a generator for each picture"),
            (
                of("torch", NoiseDtype::F32, "one:3/4", 3),
                "generator one:3/4: 3 pictures are asked for, but that run has 2",
            ),
            (of("torch", NoiseDtype::F32, "one:1/65537", 1), "generator one:1/65537: a run has at most 65536 pictures"),
        ] {
            let error = request.check().unwrap_err().to_string();
            assert!(error.starts_with(part), "{error}");
        }
        of("torch-cuda", NoiseDtype::Bf16, "one:2/4", 3).check().unwrap();
    }
}
