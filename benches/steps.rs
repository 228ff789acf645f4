//! Benchmarks of one sampling step of prior, decoder and super-resolution in three sizes, and of a whole picture of the
//! built-in model, on the CPU and every available GPU.
//!
//! `cargo bench --bench steps -- FILTER` runs those whose names contain `FILTER`: `decoder/tiny`, `default`, `karlo`.
//! Karlo's networks have a billion random weights each and run only on fast back ends; a step takes seconds on a CPU.
//! Baselines work as in `benches/ops.rs`.

mod support;

use unclip::Dtype;
use unclip::backend::cpu::Isa;
use unclip::cases::models::{self, Drawn};

fn main() {
    let mut criterion = support::criterion();
    // The best vectors in f32, and AMX in bf16 where it is.
    let vectors = Isa::ALL.into_iter().rfind(|isa| *isa != Isa::Amx && isa.available()).expect("portable ones");
    let mut subjects = vec![support::cpu(vectors)];
    subjects.extend(Isa::Amx.available().then(|| support::cpu(Isa::Amx)));
    subjects.extend(support::gpus());
    for subject in &subjects {
        let mut table = support::Table::default();
        for case in models::all().into_iter().filter(|case| subject.fast || !case.heavy()) {
            let name = case.name();
            let plan = case.plan(1, &Drawn::new(Dtype::F32)).expect("the networks are known");
            let mut group = criterion.benchmark_group(&name);
            let cost = plan.cost(plan.parts().1);
            table.bench(&mut group, (&name, subject), cost, |b| case.prepare(1, Dtype::F32, b));
            group.finish();
        }
        table.print(subject);
    }
    #[cfg(all(feature = "default-model", feature = "tokenizer"))]
    for subject in subjects.into_iter().filter(|subject| subject.fast) {
        whole_picture(&mut criterion, subject);
    }
    criterion.final_summary();
}

/// From the prompt to 128 x 128 pixels, including the loading of every network.
#[cfg(all(feature = "default-model", feature = "tokenizer"))]
fn whole_picture(criterion: &mut criterion::Criterion, subject: support::Subject) {
    use std::ops::ControlFlow;
    use unclip::pipeline::{Pipeline, Request};
    let checkpoint = unclip::weights::default_model().expect("the built-in model is whole");
    let pipeline = Pipeline::open(checkpoint, subject.backend).expect("the built-in model is whole");
    let request = Request::new("a red apple");
    criterion.benchmark_group("picture/default").bench_function(&subject.name, |bencher| {
        bencher.iter(|| pipeline.run(&request, &mut |_| ControlFlow::Continue(())).expect("the device works"));
    });
}
