//! Texts and pictures compared on the command line: classify, embed and search.

use super::support::files::copy_folder;
use super::support::golden::Recording;
use super::{MODEL, assert_refused, engine, names, text};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;
use tempfile::TempDir;
use unclip::image::{Format, Texts};

const CLIP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/clip");

/// A folder with the recorded pictures and what a search should pass over: 0.png, 1.png, sub/2.png.
fn pictures() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("photos/sub")).unwrap();
    for (k, name) in ["photos/0.png", "photos/1.png", "photos/sub/2.png"].iter().enumerate() {
        let picture = Recording::clip().image(&format!("picture/{k}"));
        picture.write(dir.path().join(name), Format::Png, &Texts::default()).unwrap();
    }
    fs::write(dir.path().join("photos/notes.txt"), "no picture").unwrap();
    fs::write(dir.path().join("photos/broken.jpg"), b"\xff\xd8\xff").unwrap();
    dir
}

fn on_cpu(dir: &Path, command: &[&str], arguments: &[&str]) -> Output {
    engine(dir, &[command, &["-m", CLIP, "--device", "cpu"], arguments].concat())
}

#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn lines(output: &Output) -> Vec<Value> {
    said(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The recorded logits of each picture for each label.
fn logits() -> Vec<Vec<f32>> {
    let (shape, logits) = Recording::clip().get("clip/logits");
    logits.chunks_exact(shape[1]).map(<[f32]>::to_vec).collect()
}

#[test]
fn a_folder_is_classified_as_the_original_does_it_in_three_formats() {
    let dir = pictures();
    let labels: Vec<String> = serde_json::from_slice(&Recording::clip().text("labels")).unwrap();
    let templates: Vec<String> = serde_json::from_slice(&Recording::clip().text("templates")).unwrap();
    fs::write(dir.path().join("labels.txt"), labels[1..].join("\n")).unwrap();
    let mut arguments = vec!["-i", "photos", "--labels", labels[0].as_str(), "--labels-file", "labels.txt"];
    templates.iter().for_each(|template| arguments.extend(["--template", template.as_str()]));
    let classify = |more: &[&str]| on_cpu(dir.path(), &["classify"], &[&arguments[..], more].concat());
    let output = classify(&["--json"]);
    let events = lines(&output);
    let failed = events.iter().find(|event| event.get("error").is_some()).unwrap();
    assert_eq!(failed["picture"], "photos/broken.jpg");
    assert!(text(&output.stderr).contains("passed over: cannot read photos/broken.jpg"), "{output:?}");
    let scores: Vec<&Value> = events.iter().filter(|event| event.get("scores").is_some()).collect();
    assert_eq!(scores.len(), 3);
    for (event, logits) in scores.iter().zip(logits()) {
        let scores = event["scores"].as_array().unwrap();
        let sum: f64 = scores.iter().map(|score| score["probability"].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-6 && scores.len() == labels.len(), "{event}");
        for pair in scores.windows(2) {
            assert!(pair[0]["logit"].as_f64() >= pair[1]["logit"].as_f64(), "{event}");
        }
        for score in scores {
            let label = labels.iter().position(|label| score["label"] == label.as_str()).unwrap();
            assert!((score["logit"].as_f64().unwrap() as f32 - logits[label]).abs() < 1e-4, "{event}");
        }
    }
    let csv = said(&classify(&["--csv", "--top", "2"]));
    let rows: Vec<&str> = csv.lines().collect();
    assert_eq!((rows[0], rows.len()), ("picture,rank,label,probability,logit", 7));
    assert!(rows[1].starts_with("photos/0.png,1,dog,0.") && rows[6].starts_with("photos/sub/2.png,2,"), "{csv}");
    let table = said(&classify(&["--top", "1", "-q"]));
    assert_eq!(table.lines().count(), 6);
    assert!(table.starts_with("photos/0.png\n   ") && table.contains(" %  dog\n"), "{table}");
}

#[test]
fn a_label_or_picture_that_cannot_be_used_is_named_in_one_line() {
    let dir = pictures();
    fs::create_dir(dir.path().join("empty")).unwrap();
    let few = dir.path().join("none");
    fs::create_dir(&few).unwrap();
    for (arguments, code, reason) in [
        (&["-i", "photos/0.png", "-l", "cat"][..], 2, "--labels: one is given; at least two"),
        (&["-i", "photos/0.png", "-l", "cat,,dog"], 2, "--labels \"\": an empty label"),
        (&["-i", "photos/0.png", "-l", "cat,cat"], 2, "--labels \"cat\": given twice"),
        (&["-i", "photos/0.png"], 2, "--labels: missing"),
        (&["-i", "photos/0.png", "-l", "a,b", "--template", "a photo"], 2, "--template \"a photo\": expected {}"),
        (&["-i", "photos/0.png", "-l", "a,b", "--scale", "0"], 2, "--scale 0: must be finite and larger than 0"),
        (&["-i", "photos/0.png", "--labels-file", "none.txt"], 5, "cannot read none.txt"),
        (&["-i", "photos/broken.jpg", "-l", "a,b"], 5, "photos/broken.jpg"),
        (&["-i", "nothing", "-l", "a,b"], 5, "cannot open nothing"),
        (&["-i", "empty", "-l", "a,b"], 2, "--image empty: no picture in this folder"),
    ] {
        let output = on_cpu(dir.path(), &["classify"], arguments);
        assert_refused(&few, &output, code, &[reason]);
        assert!(output.stdout.is_empty(), "{output:?}");
    }
    let (without, karlo) = super::copy();
    fs::remove_dir_all(karlo.join("image_encoder")).unwrap();
    let karlo = karlo.to_str().unwrap();
    let output = engine(dir.path(), &["classify", "-m", karlo, "-i", "photos", "-l", "a,b"]);
    assert_refused(without.path(), &output, 3, &["image_encoder; needed for embeddings of pictures"]);
    let draw = engine(dir.path(), &["run", "-m", CLIP, "a fox"]);
    assert_refused(&few, &draw, 3, &["a CLIP alone; it classifies, embeds and searches"]);
}

#[test]
fn a_clip_alone_is_inspected_and_its_device_is_chosen_as_any() {
    let dir = tempfile::tempdir().unwrap();
    let shown = said(&engine(dir.path(), &["inspect", CLIP]));
    assert!(shown.contains("(CLIPModel)") && shown.contains("image_encoder") && !shown.contains("not"), "{shown}");
    assert!(!shown.contains("default steps"), "{shown}");
}

/// The arrays of each format, read as their own definitions say.
#[test]
fn embeddings_are_written_with_their_names_in_three_formats() {
    let dir = pictures();
    let what = ["-p", "a photo of cat", "-i", "photos/0.png", "photos/sub/2.png", "-q"];
    let embed = |more: &[&str]| on_cpu(dir.path(), &["embed"], &[&what[..], more].concat());
    let (_, texts) = Recording::clip().get("clip/texts");
    let (shape, images) = Recording::clip().get("clip/pictures");
    let width = shape[1];
    let want: Vec<f32> = [&texts[..width], &images[..width], &images[2 * width..]].concat();
    let near = |got: &[f32]| got.len() == want.len() && got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-4);
    let rows = ["a photo of cat", "photos/0.png", "photos/sub/2.png"];

    let events = lines(&embed(&[]));
    let values = |event: &Value| -> Vec<f32> { serde_json::from_value(event["embedding"].clone()).unwrap() };
    assert!(near(&events.iter().flat_map(values).collect::<Vec<_>>()));
    assert_eq!(events.iter().map(|event| event["name"].as_str().unwrap()).collect::<Vec<_>>(), rows);
    assert_eq!((&events[0]["kind"], &events[1]["kind"]), (&"text".into(), &"picture".into()));

    said(&embed(&["-o", "all.npy"]));
    let npy = fs::read(dir.path().join("all.npy")).unwrap();
    let head = 10 + usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    assert!(text(&npy[10..head]).contains(&format!("'shape': (3, {width})")));
    let floats = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>();
    assert!(near(&floats(&npy[head..])));
    let beside: Vec<String> = serde_json::from_slice(&fs::read(dir.path().join("all.names.json")).unwrap()).unwrap();
    assert_eq!(beside, rows);

    said(&embed(&["-o", "sub/all.safetensors", "--normalize"]));
    let bytes = fs::read(dir.path().join("sub/all.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor("embeddings").unwrap();
    assert_eq!(view.shape(), [3, width]);
    for row in floats(view.data()).chunks_exact(width) {
        assert!((row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!(serde_json::from_str::<Vec<String>>(&metadata["names"]).unwrap(), rows);
    assert_eq!((metadata["normalized"].as_str(), metadata["model"].as_str()), ("true", "clip"));
}

#[test]
fn an_embedding_that_cannot_be_written_is_refused_before_the_work() {
    let dir = pictures();
    fs::create_dir(dir.path().join("empty")).unwrap();
    let before = names(dir.path());
    for (arguments, code, reason) in [
        (&["-o", "a.npy"][..], 2, "--prompt: missing"),
        (&["-p", "a", "-o", "a.csv"], 2, "--output a.csv: expected a name that ends in safetensors, npy or jsonl"),
        (&["-p", "a", "-o", "a.npy", "--format", "jsonl"], 2, "--output a.npy: the name says another format"),
        (&["-i", "photos/0.png", "-o", "photos/0.png", "--format", "npy"], 2, "--output photos/0.png: "),
        (&["-p", "a", "-o", "photos"], 5, "photos"),
    ] {
        let output = on_cpu(dir.path(), &["embed"], arguments);
        assert_refused(&dir.path().join("empty"), &output, code, &[reason]);
        assert_eq!(names(dir.path()), before);
    }
}

#[test]
fn a_search_ranks_by_cosine_and_computes_only_what_is_new() {
    let dir = pictures();
    let search = |what: &[&str]| on_cpu(dir.path(), &["search", "photos"], what);
    let ranked = |output: &Output| -> Vec<(String, f64)> {
        let events = lines(output);
        events.iter().map(|e| (e["picture"].as_str().unwrap().to_owned(), e["score"].as_f64().unwrap())).collect()
    };
    let embedded = |output: &Output| {
        let said = text(&output.stderr);
        said.lines()
            .find_map(|line| line.split_once(" pictures to embed").map(|(n, _)| n.to_owned()))
            .unwrap_or_default()
    };
    let (_, texts) = Recording::clip().get("clip/texts");
    let (shape, images) = Recording::clip().get("clip/pictures");
    let cosine = |k: usize| unclip::pipeline::cosine(&texts[..shape[1]], &images[k * shape[1]..][..shape[1]]);
    let mut want: Vec<(&str, f32)> =
        ["photos/0.png", "photos/1.png", "photos/sub/2.png"].into_iter().zip([0, 1, 2].map(cosine)).collect();
    want.sort_by(|a, b| b.1.total_cmp(&a.1));

    let first = search(&["-p", "a photo of cat", "--json"]);
    assert_eq!(embedded(&first), "4", "{first:?}"); // the broken one is tried
    assert!(text(&first.stderr).contains("passed over: cannot read photos/broken.jpg"), "{first:?}");
    for ((name, score), (want, wanted)) in ranked(&first).iter().zip(&want) {
        assert!(name == want && (score - f64::from(*wanted)).abs() < 1e-5, "{name} {score}, {want} {wanted}");
    }
    let cache = dir.path().join("photos/.engine-embeddings");
    fs::remove_file(dir.path().join("photos/broken.jpg")).unwrap();
    let second = search(&["-p", "a photo of cat", "--json"]);
    assert_eq!((embedded(&second).as_str(), ranked(&second)), ("", ranked(&first)));

    // A picture that changed, one that is gone, a new one; then another way to embed.
    let other = Recording::clip().image("picture/1");
    other.write(dir.path().join("photos/0.png"), Format::Png, &Texts::default()).unwrap();
    other.write(dir.path().join("photos/new.png"), Format::Png, &Texts::default()).unwrap();
    fs::remove_file(dir.path().join("photos/sub/2.png")).unwrap();
    let third = search(&["-i", "photos/1.png", "--json"]);
    assert_eq!(embedded(&third), "2");
    assert!(
        ranked(&third).len() == 3 && ranked(&third).iter().all(|(_, score)| (score - 1.0).abs() < 1e-6),
        "{third:?}"
    );
    let kept = fs::read(&cache).unwrap();
    assert_eq!(embedded(&search(&["-p", "x", "--alpha", "drop"])), "3");
    let model = dir.path().join("clip");
    copy_folder(Path::new(CLIP), &model);
    let of_other = ["search", "photos", "-p", "x", "--device", "cpu", "-m", model.to_str().unwrap()];
    assert_eq!(embedded(&engine(dir.path(), &of_other)), "3");
    assert_eq!(embedded(&engine(dir.path(), &of_other)), "");
    assert_ne!(fs::read(&cache).unwrap(), kept);
    fs::write(&cache, "damaged").unwrap();
    assert_eq!(embedded(&engine(dir.path(), &of_other)), "3");
    let best = said(&search(&["-p", "x", "--top", "1", "--no-cache", "-q"]));
    assert!(best.lines().count() == 1 && best.contains("  photos/"), "{best}");
}

#[test]
fn a_search_for_nothing_or_nowhere_is_refused_and_leaves_nothing() {
    let dir = pictures();
    fs::create_dir(dir.path().join("empty")).unwrap();
    fs::write(dir.path().join("mine"), "a letter").unwrap();
    for (arguments, code, reason) in [
        (&["photos"][..], 2, "--prompt: missing; say what to look for"),
        (&["nowhere", "-p", "a"], 2, "DIR nowhere: no such folder"),
        (&["mine", "-p", "a"], 2, "DIR mine: expected a folder"),
        (&["empty", "-p", "a"], 2, "DIR empty: no picture in this folder"),
        (&["photos", "-i", "photos/broken.jpg"], 5, "photos/broken.jpg"),
        (&["photos", "-p", "a", "--cache", "mine"], 2, "--cache mine: not a cache of embeddings"),
    ] {
        let output = on_cpu(dir.path(), &["search"], arguments);
        assert_refused(&dir.path().join("empty"), &output, code, &[reason]);
    }
    assert_eq!(fs::read(dir.path().join("mine")).unwrap(), b"a letter");
    assert!(!dir.path().join("photos/.engine-embeddings").exists());
}

/// The built-in model says what it knows, and knows again what it draws.
#[cfg(feature = "default-model")]
#[test]
fn the_built_in_model_knows_what_it_drew_among_all_its_things() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = ["-p", "an apple", "-p", "a lion", "-p", "a rocket"];
    said(&engine(dir.path(), &[&["run", "--device", "cpu", "-o", "d/%d.png"], &prompts[..]].concat()));
    let output = engine(dir.path(), &["classify", "-i", "d", "--device", "cpu", "--json", "--top", "1"]);
    let best: Vec<String> =
        lines(&output).iter().map(|event| event["scores"][0]["label"].as_str().unwrap().to_owned()).collect();
    assert_eq!(best, ["apple", "lion", "rocket"]);
    assert!(text(&output.stderr).contains("logit scale 100, that of CLIP"), "{output:?}");
}

#[test]
fn every_back_end_gives_the_same_scores() {
    let dir = pictures();
    for model in [CLIP, MODEL] {
        let scores = |device: &str| -> Option<Vec<f64>> {
            let labels = ["-l", "cat,dog,a red car", "--json", "--top", "3"];
            let output = engine(
                dir.path(),
                &[&["classify", "-m", model, "--device", device, "--dtype", "f32", "-i", "photos"], &labels[..]]
                    .concat(),
            );
            if output.status.code() == Some(4) {
                eprintln!("left out: {device}: {}", text(&output.stderr));
                return None;
            }
            let mut scores: Vec<(String, f64)> = Vec::new();
            for event in lines(&output).iter().filter(|event| event.get("scores").is_some()) {
                let of = |score: &Value| {
                    (format!("{} {}", event["picture"], score["label"]), score["logit"].as_f64().unwrap())
                };
                scores.extend(event["scores"].as_array().unwrap().iter().map(of));
            }
            scores.sort_by(|a, b| a.0.cmp(&b.0));
            Some(scores.into_iter().map(|(_, logit)| logit).collect())
        };
        let cpu = scores("cpu").unwrap();
        assert_eq!(cpu.len(), 9);
        for device in ["wgpu", "cuda-emulator"] {
            let Some(other) = scores(device) else { continue };
            let worst = cpu.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 2e-4 && other.len() == cpu.len(), "{model} on {device}: off by {worst}");
        }
    }
}
