//! Picture files of all kinds against Pillow and transformers, as `tests/golden/pictures/make.py` recorded them.
#![cfg(all(feature = "formats", feature = "tokenizer"))]

mod support;

use std::fs;
use support::golden::Recording;
use unclip::Error;
use unclip::image::{Alpha, Format, Image, ReadOptions, Texts, is_picture, read_texts};

fn options(alpha: Alpha) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.alpha = alpha;
    options
}

/// Names in a group, with the bytes of their files.
fn files(recording: &Recording, group: &str) -> Vec<(String, Vec<u8>)> {
    let tensors = recording.tensors();
    let names = tensors.names().into_iter().filter(|name| name.starts_with(group));
    let file = |name: &str| {
        let name = name.strip_suffix("/file")?;
        Some((name.to_owned(), tensors.tensor(&format!("{name}/file")).unwrap().data().to_vec()))
    };
    names.filter_map(file).collect()
}

/// What is read, and what Pillow and transformers read, with transparency over white and without it.
fn both_ways(recording: &Recording, name: &str, file: &[u8]) -> [(Image, Image); 2] {
    let read = |alpha| Image::decode(file, &options(alpha)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let white = recording.image(&format!("{name}/white"));
    let drop = format!("{name}/drop");
    let drop = if recording.tensors().tensor(&drop).is_ok() { recording.image(&drop) } else { white.clone() };
    [(read(Alpha::White), white), (read(Alpha::Drop), drop)]
}

#[test]
fn pictures_without_loss_are_read_to_the_bit_as_the_original_does() {
    let recording = Recording::pictures();
    let all = files(&recording, "exact/");
    assert!(all.len() > 60, "{}", all.len());
    let mut wrong = Vec::new();
    for (name, file) in all {
        for (k, (got, want)) in both_ways(&recording, &name, &file).into_iter().enumerate() {
            if got != want {
                wrong.push(format!("{name} {k}: {}x{} for {}x{}", got.width, got.height, want.width, want.height));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Decoders round differently in the cosine transform of a JPEG, in its colours, and in what they put between colours of half
/// resolution. WebP says how to round.
#[test]
fn pictures_with_loss_are_read_as_the_original_does_within_rounding() {
    let recording = Recording::pictures();
    for (name, file) in files(&recording, "near/") {
        for (got, want) in both_ways(&recording, &name, &file) {
            assert_eq!((got.width, got.height), (want.width, want.height), "{name}");
            let off: Vec<u8> = got.pixels.iter().zip(&want.pixels).map(|(a, b)| a.abs_diff(*b)).collect();
            let most = off.iter().max().unwrap();
            let mean = off.iter().map(|off| f64::from(*off)).sum::<f64>() / off.len() as f64;
            println!("{name}: {most} of 255, {mean:.3} on average");
            assert!(*most <= 4 && mean < 0.5, "{name}: {most} of 255, {mean:.3} on average");
        }
    }
}

#[test]
fn pictures_that_are_not_read_say_what_they_are() {
    let recording = Recording::pictures();
    let reasons = [
        ("refused/jpeg-cmyk", "image: a JPEG picture: its colours are those of print (CMYK); convert it to RGB first"),
        ("refused/jpeg-12-bits", "image: a JPEG picture: Error parsing SOF segment."),
        ("refused/tiff-palette", "image: a TIFF picture: its colours are a palette; convert it to RGB first"),
        ("refused/tiff-floats", "image: a TIFF picture: its samples are neither of 8 nor of 16 bits; convert it first"),
    ];
    let all = files(&recording, "refused/");
    assert_eq!(all.len(), reasons.len());
    for (name, reason) in reasons {
        let (_, file) = all.iter().find(|(known, _)| known == name).unwrap();
        let error = Image::decode(file, &ReadOptions::default()).unwrap_err().to_string();
        assert!(error.starts_with(reason), "{error}");
    }
}

#[test]
fn damaged_pictures_are_refused_without_a_panic() {
    let recording = Recording::pictures();
    let (mut read, mut refused) = (0, 0);
    for (k, (_, file)) in files(&recording, "").into_iter().enumerate() {
        let mut decode = |bytes: &[u8]| match Image::decode(bytes, &ReadOptions::default()) {
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        };
        (0..file.len()).step_by(41).for_each(|length| decode(&file[..length]));
        for step in 0..30 {
            let mut damaged = file.clone();
            let at = (step * 7919 + 31 * k) % if step % 2 == 0 { file.len().min(64) } else { file.len() };
            damaged[at] = damaged[at].wrapping_add([1, 128, 255, 64][step % 4]);
            decode(&damaged);
        }
    }
    assert!(read > 100 && refused > 1000, "{read} read, {refused} refused");
}

#[test]
fn pictures_that_are_cut_short_are_refused() {
    let recording = Recording::pictures();
    for (name, file) in files(&recording, "exact/").into_iter().chain(files(&recording, "near/")) {
        // What comes behind the pixels of the first frame may be missing.
        let is_longer = ["behind", "moving", "webp-exif", "webp-xmp"].iter().any(|part| name.contains(part));
        let cut = if is_longer { file.len() * 2 / 3 } else { 20 };
        let error = Image::decode(&file[..file.len() - cut], &ReadOptions::default());
        assert!(error.is_err(), "{name}");
    }
}

#[test]
fn a_size_beyond_the_limit_is_refused_before_anything_is_allocated() {
    let mut small = ReadOptions::default();
    small.most_pixels = 20;
    let recording = Recording::pictures();
    for (name, file) in files(&recording, "exact/") {
        let error = Image::decode(&file, &small).unwrap_err().to_string();
        assert!(error.contains("is too large") && error.contains("megapixels, at most 0.00002"), "{name}: {error}");
    }
    // Headers that promise gigapixels.
    let gif = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;";
    let qoi = b"qoif\0\0\x3e\x80\0\0\x3e\x80\x03\0\0\0\0\0\0\0\0\x01";
    for (bomb, size) in [(&gif[..], "65535x65535 is too large: 4294.836225"), (qoi, "16000x16000 is too large: 256")] {
        let error = Image::decode(bomb, &ReadOptions::default()).unwrap_err().to_string();
        assert!(error.contains(&format!("{size} megapixels, at most 100")), "{error}");
    }
}

#[test]
fn what_is_no_picture_is_named_with_what_to_do() {
    let said = |bytes: &[u8]| Image::decode(bytes, &ReadOptions::default()).unwrap_err().to_string();
    let expected = "image: expected a picture (PNG, JPEG, WebP, GIF, BMP, TIFF or QOI), found ";
    for (bytes, found) in [
        (
            &b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..],
            "a HEIC picture; convert it first, with ImageMagick for one: magick",
        ),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", "an AVIF picture; convert it first"),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "an SVG drawing; convert it first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; the file itself was not fetched"),
        (b"", "an empty file"),
    ] {
        let error = said(bytes);
        assert!(error.strip_prefix(expected).is_some_and(|rest| rest.starts_with(found)), "{error}");
    }
    assert_eq!(said(b"\x01\x02\x03"), "image: expected a picture (PNG, JPEG, WebP, GIF, BMP, TIFF or QOI)");
}

#[test]
fn a_file_is_what_is_in_it_whatever_its_name() {
    let recording = Recording::pictures();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photo.png");
    let (name, file) = files(&recording, "near/jpeg-444").remove(0);
    fs::write(&path, &file).unwrap();
    assert!(is_picture(&path) && !is_picture(folder.path()));
    let image = Image::read(&path, &ReadOptions::default()).unwrap();
    assert_eq!(image.width, recording.image(&format!("{name}/white")).width);
    fs::write(&path, "text").unwrap();
    assert!(!is_picture(&path));
    let error = Image::read(&path, &ReadOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::Io { path: p, .. } if *p == path), "{error}");
    assert!(
        error.to_string().ends_with(
            "found a text that begins \"text\"; the download brought an answer of the server in place of \
                                        the file: download it again"
        ),
        "{error}"
    );
}

/// Smooth, with an edge; sides that are no multiples of a block.
fn drawn() -> Image {
    let [width, height] = [45, 37];
    let colour = |x: usize, y: usize| match (x / 9 + y / 9) % 4 {
        0 => [200, 30, 40],
        _ => [(5 * x) as u8, (6 * y) as u8, (2 * x + 2 * y) as u8],
    };
    let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| colour(x, y))).collect();
    Image { width, height, pixels }
}

fn encoded(image: &Image, format: Format, texts: &Texts) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.encode(&mut bytes, format, texts).unwrap();
    bytes
}

#[test]
fn written_pictures_come_back() {
    let image = drawn();
    let read = |format| Image::decode(&encoded(&image, format, &Texts::default()), &ReadOptions::default()).unwrap();
    assert_eq!(read(Format::Png), image);
    assert_eq!(read(Format::WebP), image);
    let mut last = f64::INFINITY;
    for (quality, least) in [(100, 50.0), (95, 38.0), (75, 30.0), (1, 10.0)] {
        let back = read(Format::Jpeg { quality });
        assert_eq!((back.width, back.height), (image.width, image.height));
        let decibels = support::pictures::decibels(&back, &image);
        println!("quality {quality}: {decibels:.1} dB");
        assert!(decibels > least && decibels < last, "quality {quality}: {decibels} dB");
        last = decibels;
    }
    let short = Image { width: 2, height: 2, pixels: vec![0; 11] };
    for format in Format::ALL {
        assert!(short.encode(Vec::new(), format, &Texts::default()).is_err(), "{format:?}");
    }
}

#[test]
fn settings_are_kept_in_every_format_and_those_of_other_programs_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let long = "a < \"b\" & 猫 🦊\r\n".repeat(900);
    for parameters in ["", "a cat\nSteps: 2", &long] {
        let recipe = format!("{{\"prompt\":{}}}", serde_json::Value::from(parameters));
        let texts = Texts { parameters: Some(parameters.to_owned()), recipe: Some(recipe) };
        for format in Format::ALL {
            drawn().write(&path, format, &texts).unwrap();
            assert_eq!(read_texts(&path).unwrap(), texts, "{format:?}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
    let recording = Recording::pictures();
    for (name, file) in files(&recording, "settings/") {
        fs::write(&path, file).unwrap();
        let text = recording.tensors().tensor(&format!("{name}/text")).unwrap().data().to_vec();
        let want = Texts { parameters: Some(String::from_utf8(text).unwrap()), recipe: None };
        assert_eq!(read_texts(&path).unwrap(), want, "{name}");
    }
}

#[test]
fn what_has_no_room_in_a_format_is_known_before_it_is_written() {
    let texts = |length: usize| Texts { parameters: Some("x".repeat(length)), recipe: None };
    let jpeg = Format::Jpeg { quality: 95 };
    assert!(jpeg.check(256, 256, &texts(32_000)).is_ok() && jpeg.check(256, 256, &texts(33_000)).is_err());
    assert!(drawn().encode(Vec::new(), jpeg, &texts(33_000)).is_err());
    assert!(Format::WebP.check(256, 16_384, &texts(100_000)).is_ok());
    let error = Format::WebP.check(256, 16_385, &texts(0)).unwrap_err().to_string();
    assert_eq!(error, "format: webp has at most 16384 pixels a side; write png");
    assert!(jpeg.check(65_536, 1, &texts(0)).is_err() && Format::Png.check(65_536, 1, &texts(100_000)).is_ok());
}

/// One pixel without compression: bytes 10, 20, 30 in the colours of a photometric interpretation.
fn one_pixel_tiff(photometric: u16) -> Vec<u8> {
    const SHORT: u16 = 3;
    const ENTRIES: u16 = 9;
    let behind = 8 + 2 + 12 * u32::from(ENTRIES) + 4;
    let mut file = b"II*\0\x08\0\0\0".to_vec();
    file.extend(ENTRIES.to_le_bytes());
    // Bits of the three samples lie behind the directory, the pixel behind them.
    for (tag, count, value) in [
        (256, 1, 1),
        (257, 1, 1),
        (258, 3, behind),
        (259, 1, 1),
        (262, 1, u32::from(photometric)),
        (273, 1, behind + 6),
        (277, 1, 3),
        (278, 1, 1),
        (279, 1, 3),
    ] {
        file.extend([u16::to_le_bytes(tag), SHORT.to_le_bytes()].concat());
        file.extend([u32::to_le_bytes(count), u32::to_le_bytes(value)].concat());
    }
    file.extend([0, 0, 0, 0, 8, 0, 8, 0, 8, 0, 10, 20, 30]);
    file
}

#[test]
fn colours_that_the_decoder_leaves_as_differences_are_refused() {
    const RGB: u16 = 2;
    const YCBCR: u16 = 6;
    let read = |photometric| Image::decode(&one_pixel_tiff(photometric), &ReadOptions::default());
    assert_eq!(read(RGB).unwrap().pixels, [10, 20, 30]);
    let error = read(YCBCR).unwrap_err().to_string();
    assert!(error.contains("its colours are YCbCr without JPEG; convert it to RGB first"), "{error}");
}

#[test]
fn a_name_that_is_nothing_but_an_ending_says_the_format() {
    for (name, format) in [(".jpg", "jpg"), ("a.b.WEBP", "webp"), (".hidden.png", "png")] {
        let found = Format::of(name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(found.endings()[0], format, "{name}");
    }
    assert!(["jpg", "a.", "a.png.bak", ""].iter().all(|name| Format::of(name).is_none()));
}
