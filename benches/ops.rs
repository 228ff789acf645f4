//! Benchmarks of the test cases of all operations on every available back end: the CPU with each instruction set, and
//! the GPUs of the enabled features.
//!
//! `cargo bench --bench ops -- FILTER` runs the cases whose names contain `FILTER`: `conv2d/decoder`, `attention`,
//! `avx512`. `--save-baseline NAME` saves the results, `--baseline NAME` compares with them, and
//! `target/criterion/report/index.html` has plots.
//!
//! The final table compares each case with the roofline measured in the same run: the longer of its FLOPs at the peak
//! rate of multiply-adds and its bytes at memory bandwidth. FLOPs are counted by definition, so a Winograd convolution
//! may exceed the peak; tensors that stay in a cache may exceed the bandwidth.

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
            // The cost follows from the shapes; the tensors are drawn only if the filter selects the case.
            let plan = case.plan();
            let mut group = criterion.benchmark_group(&case.name);
            table.bench(&mut group, (&case.name, subject), plan.cost(&plan.steps), |b| case.problem().prepare(b));
            group.finish();
        }
        table.print(subject);
    }
    criterion.final_summary();
}
