// reduce_plain - sum over a workgroup of 256 invocations, for adapters without subgroup operations.

const REDUCE_THREADS = 256u;

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

var<workgroup> partial_sums: array<f32, REDUCE_THREADS>;

// Call it in uniform control flow: it has barriers.
fn workgroup_sum(value: f32, lane: Lane) -> f32 {
    partial_sums[lane.index] = value;
    for (var width = REDUCE_THREADS / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane.index < width {
            partial_sums[lane.index] += partial_sums[lane.index + width];
        }
    }
    workgroupBarrier();
    let sum = partial_sums[0];
    // All invocations read before the next call writes.
    workgroupBarrier();
    return sum;
}
