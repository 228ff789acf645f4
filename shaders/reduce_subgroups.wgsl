// reduce_subgroups - sum over a workgroup of 256 invocations: within subgroups, then over their sums.

const REDUCE_THREADS = 256u;
// Subgroups have at least four invocations.
const MOST_SUBGROUPS = REDUCE_THREADS / 4u;

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) member: u32,
}

var<workgroup> partial_sums: array<f32, MOST_SUBGROUPS>;

// Call it in uniform control flow: it has barriers.
fn workgroup_sum(value: f32, lane: Lane) -> f32 {
    let own = subgroupAdd(value);
    if lane.member == 0u {
        partial_sums[lane.subgroup] = own;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < lane.subgroups; i++) {
        sum += partial_sums[i];
    }
    // All invocations read before the next call writes.
    workgroupBarrier();
    return sum;
}
