//! Pictures enlarged by super-resolution alone: tiles against the untiled picture, and against a run's own last stage.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::ops::ControlFlow;
use support::golden::MODEL;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::image::Image;
use unclip::noise::{NoiseKind, NoiseSource};
use unclip::pipeline::{Enlarge, Event, Painting, Pipeline, Request};
use unclip::weights::{Checkpoint, LoadOptions};
use unclip::{Error, Result};

fn tiny() -> Checkpoint {
    Checkpoint::open(MODEL, LoadOptions::default()).unwrap()
}

fn pipeline(checkpoint: Checkpoint) -> Pipeline {
    Pipeline::open(checkpoint, Box::new(Cpu::new(2).unwrap())).unwrap()
}

fn go_on(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Soft shapes over slopes, so that tiles differ in their means.
fn drawn(width: usize, height: usize) -> Image {
    let pixel = |k: usize| {
        let (x, y) = ((k % width) as f32, (k / width) as f32);
        let wave = 60.0 * (x / 5.0).sin() * (y / 4.0).cos();
        let side = |at: f32, of: usize| 160.0 * at / of as f32;
        [40.0 + side(x, width) + wave * 0.5, 200.0 - side(y, height), 128.0 + wave].map(|c| c.clamp(0.0, 255.0) as u8)
    };
    Image { width, height, pixels: (0..width * height).flat_map(pixel).collect() }
}

fn enlarged(pipeline: &Pipeline, enlarge: &Enlarge) -> Result<Image> {
    pipeline.enlarge_alone(enlarge, &mut go_on)
}

/// The largest step between neighbouring columns or rows that tiles add to the untiled picture, each line's mean, of 255.
/// The picture's own border is left out.
#[cfg(feature = "default-model")]
fn largest_step(tiled: &Image, untiled: &Image) -> f64 {
    const BORDER: usize = 16;
    assert_eq!([tiled.width, tiled.height], [untiled.width, untiled.height]);
    let (width, height) = (tiled.width, tiled.height);
    let at = |x: usize, y: usize, c: usize| {
        let k = 3 * (y * width + x) + c;
        f64::from(tiled.pixels[k]) - f64::from(untiled.pixels[k])
    };
    let mut largest = 0.0f64;
    for c in 0..3 {
        for x in BORDER..width - BORDER {
            let sum: f64 = (0..height).map(|y| at(x, y, c) - at(x - 1, y, c)).sum();
            largest = largest.max((sum / height as f64).abs());
        }
        for y in BORDER..height - BORDER {
            let sum: f64 = (0..width).map(|x| at(x, y, c) - at(x, y - 1, c)).sum();
            largest = largest.max((sum / width as f64).abs());
        }
    }
    largest
}

#[test]
fn one_tile_is_what_a_run_makes_of_its_small_picture() {
    let pipeline = pipeline(tiny());
    let small = drawn(16, 16);
    let request = Request { super_res_steps: Some(3), ..Request::variation(small.clone()) };
    let painting = Painting::new(&small, NoiseSource::new(NoiseKind::Torch, 5)).unwrap();
    let of_run = pipeline.enlarge(vec![painting], &request, &mut go_on).unwrap().remove(0);
    assert_eq!(enlarged(&pipeline, &Enlarge::new(small).seed(5).steps(3)).unwrap(), of_run);
}

/// A sky is where a seam would show. What is drawn sharply differs in its details, too: group normalisation sees a tile at
/// a time.
#[cfg(feature = "default-model")]
#[test]
fn tiles_leave_no_seam_in_a_smooth_picture() {
    let pipeline = pipeline(unclip::weights::default_model().unwrap());
    let sky = |x: usize, y: usize| [40 + 2 * x, 60 + 5 * y / 2, 200 - x].map(|c| c as u8);
    let pixels = (0..64).flat_map(|y| (0..96).flat_map(move |x| sky(x, y))).collect();
    let picture = Enlarge::new(Image { width: 96, height: 64, pixels });
    let untiled = enlarged(&pipeline, &picture.clone().tile(96)).unwrap();
    let tiled = enlarged(&pipeline, &picture).unwrap();
    let step = largest_step(&tiled, &untiled);
    println!("steps of {step:.3}");
    assert!(tiled != untiled && step <= 1.0, "{step}");
}

#[test]
fn pictures_of_any_size_are_enlarged_and_the_seed_makes_the_details() {
    let pipeline = pipeline(tiny());
    for (width, height) in [(1, 1), (3, 40), (17, 16), (33, 5)] {
        let picture = Enlarge::new(drawn(width, height)).steps(2);
        assert_eq!(pipeline.enlarged_size(&picture).unwrap(), [4 * width, 4 * height]);
        let [one, again, other] = [0, 0, 1].map(|seed| enlarged(&pipeline, &picture.clone().seed(seed)).unwrap());
        assert_eq!([one.width, one.height, one.pixels.len()], [4 * width, 4 * height, 48 * width * height]);
        assert!(one == again && one != other, "{width}x{height}");
    }
    let twice = enlarged(&pipeline, &Enlarge::new(drawn(4, 3)).steps(2).times(16)).unwrap();
    assert_eq!([twice.width, twice.height], [64, 48]);
}

#[test]
fn every_back_end_makes_the_same_large_picture() {
    let picture = Enlarge::new(drawn(28, 16)).steps(2);
    let want = enlarged(&pipeline(tiny()), &picture).unwrap();
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda-emulator")), expect(unused_mut, reason = "nothing is added"))]
    let mut others: Vec<Box<dyn Backend>> = Vec::new();
    #[cfg(feature = "wgpu")]
    others.extend(support::adapters::storing(unclip::Dtype::F32).map(|wgpu| Box::new(wgpu) as Box<dyn Backend>));
    #[cfg(feature = "cuda-emulator")]
    others.push(Box::new(unclip::backend::cuda::Cuda::emulator()));
    for backend in others {
        let name = backend.name();
        let got = enlarged(&Pipeline::open(tiny(), backend).unwrap(), &picture).unwrap();
        let off = got.pixels.iter().zip(&want.pixels).map(|(g, w)| g.abs_diff(*w)).max();
        assert!(off <= Some(2), "{name}: off by {off:?}");
    }
}

#[test]
fn noise_is_drawn_for_the_whole_picture_by_any_generator() {
    let pipeline = pipeline(tiny());
    for noise in [NoiseKind::Philox, "torch-cuda".parse().unwrap()] {
        let picture = Enlarge { noise, ..Enlarge::new(drawn(24, 16)).steps(2) };
        assert_ne!(
            enlarged(&pipeline, &picture).unwrap(),
            enlarged(&pipeline, &Enlarge { noise: NoiseKind::Torch, ..picture.clone() }).unwrap()
        );
        let small = drawn(16, 16);
        let painting = Painting::new(&small, NoiseSource::new(noise, 5)).unwrap();
        let request = Request { super_res_steps: Some(3), ..Request::variation(small.clone()) };
        let of_run = pipeline.enlarge(vec![painting], &request, &mut go_on).unwrap().remove(0);
        let alone = enlarged(&pipeline, &Enlarge { noise, ..Enlarge::new(small).seed(5).steps(3) }).unwrap();
        let off = alone.pixels.iter().zip(&of_run.pixels).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(off <= Some(1), "{noise:?}: off by {off:?}");
    }
}

#[test]
fn what_cannot_be_enlarged_is_named() {
    let pipeline = pipeline(tiny());
    let refused = |enlarge: Enlarge| enlarged(&pipeline, &enlarge).unwrap_err().to_string();
    let picture = Enlarge::new(drawn(16, 16));
    assert!(refused(picture.clone().times(3)).starts_with("times 3: this checkpoint enlarges 4 times"));
    assert!(refused(picture.clone().times(4usize.pow(9))).contains("the result would have 4194304x4194304 pixels"));
    assert!(refused(picture.clone().tile(2)).starts_with("tile 2: must be a multiple of"));
    assert!(refused(picture.clone().steps(1)).starts_with("super-resolution steps 1: "));
    let clip = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/clip");
    let clip = self::pipeline(Checkpoint::open(clip, LoadOptions::default()).unwrap());
    let error = enlarged(&clip, &picture).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what } if what.contains("no super-resolution")), "{error}");
}

#[test]
fn every_tile_of_every_step_is_reported_and_ends_the_work() {
    let pipeline = pipeline(tiny());
    let picture = Enlarge::new(drawn(28, 16)).steps(3);
    let (mut steps, mut last) = (0, 0);
    let whole = pipeline.enlarge_alone(&picture, &mut |event| {
        if let Event::Step { done, steps: of, latents, .. } = event {
            assert!(done <= of && latents.shape() == [64, 64, 3]);
            (steps, last) = (steps + 1, of);
        }
        ControlFlow::Continue(())
    });
    assert!(whole.is_ok() && steps == 6 && last == 2, "{steps} {last}");
    let stopped = pipeline.enlarge_alone(&picture, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Cancelled)));
}
