//! The cases of the operations' tests on every back end that is present: the CPU with each of its instruction sets, and
//! the GPUs of the features that the crate is built with.
//!
//! `cargo bench --bench ops -- FILTER` runs the cases whose names contain `FILTER`: `conv2d/decoder`, `attention`,
//! `avx512`. `--save-baseline NAME` keeps the numbers, `--baseline NAME` compares with them, and
//! `target/criterion/report/index.html` has them as curves.
//!
//! At the end a table sets each case beside the roofline measured in the same run: the time that its operations need
//! at the peak rate of multiply-adds, or its bytes at the rate of memory, whichever is longer. Operations are those of
//! the definition, so that a convolution that needs fewer multiplications may exceed the peak; tensors that stay in a
//! cache may exceed the memory's rate.

mod support;

use unclip::backend::cpu::Isa;
use unclip::cases;

fn main() {
    let mut criterion = support::criterion();
    let mut subjects: Vec<_> = Isa::ALL.into_iter().filter(|isa| isa.available()).map(support::cpu).collect();
    subjects.extend(support::gpus());
    for subject in &subjects {
        let mut table = support::Table::default();
        for case in cases::all().into_iter().filter(|case| subject.fast || !case.heavy) {
            // The shapes are enough to know what a case costs; its numbers are drawn if the filter lets it run.
            let plan = case.plan();
            let mut group = criterion.benchmark_group(&case.name);
            table.bench(&mut group, (&case.name, subject), plan.cost(&plan.steps), |b| case.problem().prepare(b));
            group.finish();
        }
        table.print(subject);
    }
    criterion.final_summary();
}
