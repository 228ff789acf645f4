//! Merged weights and adapted layers of every layout.

use super::{on_tiny, tiny};
use std::collections::BTreeMap;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::plan::{Graph, WeightSource};
use unclip::weights::WeightFile;
use unclip::weights::adapter::Adapted;

/// Every layout with the scale that its golden tensors were merged at.
const LAYOUTS: [(&str, f32); 26] = [
    ("processors-prior", 1.0),
    ("processors-decoder", 1.0),
    ("processors-partial", 1.0),
    ("text-old", 1.0),
    ("text-linear-layer", 1.0),
    ("unet-lora", 1.0),
    ("peft-bare-scale", 1.0),
    ("peft-metadata", 1.0),
    ("peft-model", 1.0),
    ("peft-folder", 1.0),
    ("peft-rslora", 1.0),
    ("peft-patterns", 1.0),
    ("kohya", 1.0),
    ("kohya-f16", 1.0),
    ("kohya-no-alpha", 1.0),
    ("locon", 1.0),
    ("kohya-prior-at0.5", 0.5),
    ("kohya-prior-at-1.0", -1.0),
    ("dora-peft", 1.0),
    ("dora-out", 1.0),
    ("dora-in", 1.0),
    ("loha", 1.0),
    ("loha-tucker", 1.0),
    ("lokr", 1.0),
    ("locon-tucker", 1.0),
    ("diff", 1.0),
];

struct Golden(WeightFile);

impl Golden {
    fn read() -> Golden {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/adapters/golden.safetensors");
        Golden(WeightFile::open(path.as_ref(), true).unwrap())
    }

    fn tensor(&self, key: &str) -> (Vec<usize>, Vec<f32>) {
        let info = &self.0.tensors()[key];
        let values = self.0.bytes(info).unwrap().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (info.shape.clone(), values)
    }

    /// The keys of a layout behind its name, by component.
    fn of(&self, layout: &str) -> BTreeMap<&str, Vec<&str>> {
        let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for key in self.0.tensors().keys() {
            if let Some((component, name)) = key.strip_prefix(layout).and_then(|k| k.strip_prefix('/')?.split_once('/'))
            {
                all.entry(component).or_default().push(name);
            }
        }
        all
    }
}

/// The distance of two tensors, relative to the second one's norm.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut got.iter().zip(want).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    apart / norm(&mut want.iter().map(|x| f64::from(*x)))
}

#[test]
fn merged_weights_of_all_layouts_are_those_of_the_original_libraries() {
    let golden = Golden::read();
    for (layout, scale) in LAYOUTS {
        let adapters = on_tiny(layout, scale);
        let (mut worst, mut count) = (0f64, 0);
        for (component, names) in golden.of(layout) {
            let component = tiny().component(component).unwrap();
            let adapted = adapters.over(&component);
            for name in names.into_iter().filter(|name| !name.ends_with("/x") && !name.ends_with("/y")) {
                let (shape, want) = golden.tensor(&format!("{layout}/{}/{name}", component.name()));
                assert_eq!(adapted.find(name).unwrap().1, shape, "{layout}: {name}");
                let got = adapted.load(name).unwrap().to_f32();
                worst = worst.max(distance(&got, &want));
                // Not by the norm alone: no number may be far off.
                let largest = want.iter().fold(0f32, |most, x| most.max(x.abs()));
                let apart = got.iter().zip(&want).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(apart <= 1e-6 * largest, "{layout}: {name}: {apart} of {largest}");
                count += 1;
            }
        }
        println!("{layout}: {count} tensors, {worst:.1e}");
        assert!(worst < 1e-6, "{layout}: {worst:e}");
        // Nothing of the file is left, and nothing else is changed.
        let changed: usize = adapters.changed().map(|(_, tensors)| tensors.count()).sum();
        assert!(count > 1 && changed == count, "{layout}: {changed} tensors are changed, {count} are golden");
    }
}

/// The output of an adapted layer without its bias: `x [rows, K]`, or `[1, C, H, W]` for a convolution.
fn forward(adapted: &Adapted<'_>, module: &str, shape: &[usize], x: &[f32]) -> Vec<f32> {
    let weight = adapted.find(&format!("{module}.weight")).unwrap().1;
    let graph = Graph::new("layer", adapted);
    let w = graph.weights().at(module);
    if let &[rows, channels] = shape {
        let input = graph.input("x", &[rows, channels]);
        graph.output("y", input.project(w, weight[0]));
    } else {
        let input = graph.input("x", &[1, shape[2], shape[3], shape[1]]);
        graph.output("y", input.conv(w, weight[0], weight[2], 1, [weight[2] / 2; 2], false));
    }
    let mut executable = Cpu::new(1).unwrap().prepare(graph.finish().unwrap(), adapted).unwrap();
    executable.write("x", &moved(x, shape, true)).unwrap();
    executable.run_once().unwrap();
    moved(&executable.read("y").unwrap(), &[&[1, weight[0]], &shape[2..]].concat(), false)
}

/// `[1, C, H, W]` to `[1, H, W, C]`, or back; a matrix stays.
fn moved(x: &[f32], shape: &[usize], to_last: bool) -> Vec<f32> {
    let &[_, channels, height, width] = shape else { return x.to_vec() };
    let positions = height * width;
    let mut out = vec![0.0; x.len()];
    for (c, p) in (0..channels).flat_map(|c| (0..positions).map(move |p| (c, p))) {
        let [first, last] = [c * positions + p, p * channels + c];
        if to_last { out[last] = x[first] } else { out[first] = x[last] }
    }
    out
}

#[test]
fn adapted_layers_give_what_the_factors_beside_the_base_give() {
    let golden = Golden::read();
    let mut layers = 0;
    for (layout, scale) in LAYOUTS {
        let adapters = on_tiny(layout, scale);
        let mut worst = 0f64;
        for (component, names) in golden.of(layout) {
            let component = tiny().component(component).unwrap();
            for module in names.iter().filter_map(|name| name.strip_suffix("/x")) {
                let at = format!("{layout}/{}/{module}", component.name());
                let ((shape, x), (_, want)) = (golden.tensor(&format!("{at}/x")), golden.tensor(&format!("{at}/y")));
                let got = forward(&adapters.over(&component), module, &shape, &x);
                worst = worst.max(distance(&got, &want));
                layers += 1;
            }
        }
        assert!(worst < 3e-7, "{layout}: {worst:e}");
    }
    assert!(layers > 100, "{layers}");
}
