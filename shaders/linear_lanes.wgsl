// linear_lanes - the variant of linear for CPUs whose vector units run subgroups of eight.
//
// There a load costs as much as a dozen multiply-adds: the eight lanes of a subgroup load eight elements of a row at
// once and broadcast them by shuffles. linear.wgsl, with bindings and store, comes before this text.
//
// Math      y[m, n] = activation(sum_k x[m, k] weight[k, n] + bias[n]) + residual[m, n]
// Source    none
// Tensors   x [M, K] source, weight [N/32, K, 8] vec4 source, bias [N] f32, residual [M, N] elem -> y [M, N] elem
// Scalars   m, k, n, activation, has_bias, has_residual u32
// Launch    grid (N/32, M/64, 1), 64 threads: an invocation owns 8 rows by 4 columns
// Memory    none shared
// Numerics  f32, in the order of k
// Variants  source: f32 f16; elem: f32 f16; subgroups: always
// Limits    subgroups of exactly eight, in the order of the workgroup

const LANES = 8u;

@compute @workgroup_size(64)
fn linear_lanes(
    @builtin(workgroup_id) group: vec3u,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) member: u32,
) {
    // Subgroup-uniform: a subgroup shares its rows and leaves as a whole.
    let row = 8u * (8u * group.y + subgroup);
    if row >= scalars.m {
        return;
    }
    // Rows beyond the last repeat it and are not stored; columns beyond the last are zeros of their panel.
    let last = scalars.m - 1u;
    let depth = scalars.k;
    let base0 = min(row, last) * depth;
    let base1 = min(row + 1u, last) * depth;
    let base2 = min(row + 2u, last) * depth;
    let base3 = min(row + 3u, last) * depth;
    let base4 = min(row + 4u, last) * depth;
    let base5 = min(row + 5u, last) * depth;
    let base6 = min(row + 6u, last) * depth;
    let base7 = min(row + 7u, last) * depth;
    var sum0 = vec4f();
    var sum1 = vec4f();
    var sum2 = vec4f();
    var sum3 = vec4f();
    var sum4 = vec4f();
    var sum5 = vec4f();
    var sum6 = vec4f();
    var sum7 = vec4f();
    var at = group.x * depth * PANEL + member;
    for (var first = 0u; first < depth; first += LANES) {
        let k = min(first + member, depth - 1u);
        let x0 = f32(x[base0 + k]);
        let x1 = f32(x[base1 + k]);
        let x2 = f32(x[base2 + k]);
        let x3 = f32(x[base3 + k]);
        let x4 = f32(x[base4 + k]);
        let x5 = f32(x[base5 + k]);
        let x6 = f32(x[base6 + k]);
        let x7 = f32(x[base7 + k]);
        let count = min(LANES, depth - first);
        for (var lane = 0u; lane < count; lane++) {
            let w = vec4f(weight[at]);
            at += PANEL;
            sum0 += subgroupShuffle(x0, lane) * w;
            sum1 += subgroupShuffle(x1, lane) * w;
            sum2 += subgroupShuffle(x2, lane) * w;
            sum3 += subgroupShuffle(x3, lane) * w;
            sum4 += subgroupShuffle(x4, lane) * w;
            sum5 += subgroupShuffle(x5, lane) * w;
            sum6 += subgroupShuffle(x6, lane) * w;
            sum7 += subgroupShuffle(x7, lane) * w;
        }
    }
    let column = first_column + 4u * (PANEL * group.x + member);
    store(row, column, sum0);
    store(row + 1u, column, sum1);
    store(row + 2u, column, sum2);
    store(row + 3u, column, sum3);
    store(row + 4u, column, sum4);
    store(row + 5u, column, sum5);
    store(row + 6u, column, sum6);
    store(row + 7u, column, sum7);
}
