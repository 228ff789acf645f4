//! Which device `--device auto` takes and which type `--dtype auto`, and that a recipe has both by their names.

use super::checkpoints::edit;
use super::*;
use half::f16;
use safetensors::Dtype;
use unclip::Precision;
use unclip::backend::cpu::Cpu;
use unclip::pipeline::Pipeline;
use unclip::weights::{Checkpoint, LoadOptions};

/// The networks of the tiny checkpoint with the files of their weights.
const NETWORKS: [(&str, &str); 7] = [
    ("text_encoder", "model.safetensors"),
    ("image_encoder", "model.safetensors"),
    ("prior", "diffusion_pytorch_model.safetensors"),
    ("text_proj", "diffusion_pytorch_model.safetensors"),
    ("decoder", "diffusion_pytorch_model.safetensors"),
    ("super_res_first", "diffusion_pytorch_model.safetensors"),
    ("super_res_last", "diffusion_pytorch_model.safetensors"),
];

/// A copy of the tiny checkpoint, some of whose networks are stored in f16.
fn in_halves(dir: &Path, networks: &[&str]) -> PathBuf {
    let model = dir.join("halves");
    copy_folder(Path::new(MODEL), &model);
    for (network, file) in NETWORKS.iter().filter(|(network, _)| networks.contains(network)) {
        edit(&model.join(network).join(file), |tensors| {
            for (dtype, _, bytes) in tensors.values_mut().filter(|(dtype, ..)| *dtype == Dtype::F32) {
                let values = bytes.as_chunks::<4>().0.iter().map(|b| f16::from_f32(f32::from_le_bytes(*b)));
                (*dtype, *bytes) = (Dtype::F16, values.flat_map(f16::to_le_bytes).collect());
            }
        });
    }
    model
}

#[test]
fn the_type_of_a_checkpoint_is_that_of_most_bytes_of_its_networks() {
    let all = NETWORKS.map(|(network, _)| network);
    for (networks, want) in [
        (&[][..], Precision::F32),
        (&all, Precision::F16),
        // The small networks alone may be in f32.
        (&all[2..], Precision::F16),
        (&["decoder", "super_res_last"], Precision::F32),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(in_halves(dir.path(), networks), LoadOptions::default()).unwrap();
        let pipeline = Pipeline::open(checkpoint, Box::new(Cpu::new(1).unwrap())).unwrap();
        assert_eq!(pipeline.stored_precision(), want, "f16: {networks:?}");
    }
}

#[test]
fn elsewhere_than_on_cuda_the_type_is_f32_whatever_the_weights_are() {
    let dir = tempfile::tempdir().unwrap();
    let model = in_halves(dir.path(), &NETWORKS.map(|(network, _)| network));
    let model = model.to_str().unwrap();
    let request = ["run", "-m", model, "-p", "a frog", "--device", "cpu", "--json"];
    for dtype in [&[][..], &["--dtype", "auto"], &["--dtype", "f32"]] {
        let output = engine(dir.path(), &[&request, &SHORT[..], dtype].concat());
        assert!(text(&output.stdout).contains("\"dtype\":\"f32\""), "{output:?}");
        let plan = engine(dir.path(), &[&["plan", "-m", model, "--stage", "decoder", "--summary"], dtype].concat());
        assert!(text(&plan.stdout).contains("MiB as f32"), "{plan:?}");
    }
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn on_cuda_the_type_is_that_of_the_weights_and_a_picture_made_in_it_is_made_again_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = in_halves(dir.path(), &NETWORKS.map(|(network, _)| network));
    let model = model.to_str().unwrap();
    let emulated = |arguments: &[&str]| {
        let on = ["run", "-m", model, "--device", "cuda-emulator"];
        engine(dir.path(), &[&on, arguments].concat())
    };
    let first = emulated(&[&["-p", "a frog", "-o", "a.png"], &SHORT[..]].concat());
    let said = text(&first.stderr);
    let line = said.lines().next().unwrap();
    assert!(line.contains("in f16; f16 is what most of the weights are stored in"), "{said}");
    assert!(chunk(&dir.path().join("a.png"), "unclip").contains("\"dtype\":\"f16\""));
    // Its settings name the type, whatever auto would take for another checkpoint.
    let again =
        engine(dir.path(), &["run", "-m", model, "--device", "cuda-emulator", "--from", "a.png", "-o", "b.png"]);
    assert!(again.status.success() && !text(&again.stderr).contains("most of the weights"), "{again:?}");
    assert_eq!(png(&dir.path().join("a.png")).0, png(&dir.path().join("b.png")).0);
    // Elsewhere it cannot be, and the line names the picture, not a flag that was not given.
    let cpu = ["run", "-m", model, "--device", "cpu", "--from", "a.png", "-o", "c.png"];
    let refused = engine(dir.path(), &cpu);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("--from a.png: made in f16: the CPU computes in f32 or bf16"), "{said}");
    let other = engine(dir.path(), &[&cpu[..], &["--dtype", "auto"]].concat());
    assert!(other.status.success(), "{other:?}");
    assert!(chunk(&dir.path().join("c.png"), "unclip").contains("\"dtype\":\"f32\""));
    let plan = ["plan", "-m", model, "--stage", "decoder", "--summary", "--device", "cuda-emulator"];
    assert!(text(&engine(dir.path(), &plan).stdout).contains("MiB as f16"));
}

/// The driver of `driver.c`, and commands that find it in the place of NVIDIA's.
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod driver {
    use super::*;

    /// Compiles it, with the linker that Rust needs.
    fn folder() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/driver.c");
        let library = dir.path().join("libcuda.so");
        let compiled = Command::new("cc").args(["-w", "-shared", "-fPIC", "-o"]).args([&library, &source]).output();
        let compiled = compiled.expect("cc, which Rust links with");
        assert!(compiled.status.success(), "{}", text(&compiled.stderr));
        dir
    }

    /// Runs the command where the driver says that it supports this version and sees so many GPUs.
    fn with(driver: &Path, [version, gpus]: [&str; 2], dir: &Path, arguments: &[&str]) -> Output {
        let mut command = command(dir, arguments);
        command.env("LD_LIBRARY_PATH", driver).env("DRIVER_VERSION", version).env("DRIVER_GPUS", gpus);
        command.output().unwrap()
    }

    const RUN: [&str; 5] = ["run", "-m", MODEL, "-p", "a frog"];

    #[test]
    fn auto_takes_a_card_before_anything_else_and_says_so_in_one_line() {
        let (driver, dir) = (folder(), tempfile::tempdir().unwrap());
        let card = ["12080", "2"];
        let table = text(&with(driver.path(), card, dir.path(), &["devices"]).stdout);
        let auto: Vec<&str> = table.lines().filter(|line| line.ends_with("<- auto")).collect();
        assert!(auto.len() == 1 && auto[0].starts_with("cuda:0 ") && auto[0].contains("Pretended GPU"), "{table}");
        assert!(table.contains("cuda:1"), "{table}");
        // It refuses memory, so nothing is made; the line is said before.
        for (flags, line) in [
            (&[][..], "; f32 is what most of the weights are stored in, --dtype f16 would be faster"),
            (&["--dtype", "bf16"], " in bf16"),
        ] {
            let output = with(driver.path(), card, dir.path(), &[&RUN[..], flags].concat());
            let said = text(&output.stderr);
            let want = format!("tiny on cuda:0 (Pretended GPU, sm_90){line}");
            assert_eq!(said.lines().next(), Some(want.as_str()), "{said}");
            assert_refused(dir.path(), &output, 4, &["cuda:0", "out of memory"]);
        }
    }

    #[test]
    fn without_a_card_or_with_an_old_driver_auto_takes_the_next_device_and_says_nothing_of_it() {
        let (driver, dir) = (folder(), tempfile::tempdir().unwrap());
        let request = [&RUN[..], &SHORT].concat();
        let plain = engine(dir.path(), &[&request[..], &["-o", "plain.png"]].concat());
        let device = |output: &Output| text(&output.stderr).lines().next().unwrap().to_owned();
        for (claims, reason) in [(["12080", "0"], "no CUDA-capable device"), (["11070", "1"], "needed is 11.8")] {
            let output = with(driver.path(), claims, dir.path(), &[&request[..], &["-o", "a.png"]].concat());
            assert!(output.status.success(), "{output:?}");
            if !Path::new("/dev/nvidia0").exists() {
                assert_eq!(device(&output), device(&plain));
            }
            assert_eq!(fs::read(dir.path().join("a.png")).unwrap(), fs::read(dir.path().join("plain.png")).unwrap());
            let named =
                with(driver.path(), claims, &dir.path().join(""), &[&request[..], &["--device", "cuda"]].concat());
            let said = text(&named.stderr);
            assert!(named.status.code() == Some(4) && said.contains(reason) && said.contains("cuda:0"), "{said}");
        }
    }
}
