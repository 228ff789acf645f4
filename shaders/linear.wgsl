// linear - matmul with a stored weight, and the fused bias, activation and residual.
//
// Math      y[m, n] = activation(sum_k x[m, k] weight[k, n] + bias[n]) + residual[m, n]
// Source    none
// Tensors   x [M, K] source, weight [N/32, K, 8] vec4 source, bias [N] f32, residual [M, N] elem -> y [M, N] elem
// Scalars   m, k, n, activation, has_bias, has_residual u32
// Launch    linear: grid (N/32, M/32, 1), 64 threads: an invocation owns 4 rows by 4 columns
//           linear_tiled: grid (N/64, M/64, 1), 256 threads: the same, operands in shared memory
// Memory    linear: none shared; linear_tiled: 8 KiB shared
// Numerics  f32, in the order of k
// Variants  source: f32 f16; elem: f32 f16
// Limits    weight is packed in panels of 32 columns, N rounded up, and may be a part of the columns, from first_column
//           on; x stands in for absent tensors

struct Scalars {
    m: u32,
    k: u32,
    n: u32,
    activation: u32,
    has_bias: u32,
    has_residual: u32,
}

@group(0) @binding(0) var<storage, read> x: array<source>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<source>>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> residual: array<elem>;
@group(0) @binding(4) var<storage, read_write> y: array<elem>;
@group(0) @binding(5) var<uniform> scalars: Scalars;

// Quads of columns in a panel of the weight.
const PANEL = 8u;

// The first column of this part of a weight that is larger than one binding. All parts but the last are whole tiles.
override first_column = 0u;

// ---- store: bias, activation and residual of four neighbouring columns ----

fn store(row: u32, column: u32, sum: vec4f) {
    if row >= scalars.m || column >= scalars.n {
        return;
    }
    var v = sum;
    let columns = min(scalars.n - column, 4u);
    if scalars.has_bias != 0u {
        for (var c = 0u; c < columns; c++) {
            v[c] += bias[column + c];
        }
    }
    v = activate4(scalars.activation, v);
    let at = row * scalars.n + column;
    for (var c = 0u; c < columns; c++) {
        var e = v[c];
        if scalars.has_residual != 0u {
            e += f32(residual[at + c]);
        }
        y[at + c] = elem(e);
    }
}

// ---- the plain kernel: operands from global memory ----

@compute @workgroup_size(8, 8)
fn linear(@builtin(global_invocation_id) id: vec3u) {
    let row = 4u * id.y;
    let column = first_column + 4u * id.x;
    if column >= scalars.n || row >= scalars.m {
        return;
    }
    // Rows beyond the last repeat it; they are not stored.
    let last = scalars.m - 1u;
    let depth = scalars.k;
    let x0 = row * depth;
    let x1 = min(row + 1u, last) * depth;
    let x2 = min(row + 2u, last) * depth;
    let x3 = min(row + 3u, last) * depth;
    var sum0 = vec4f();
    var sum1 = vec4f();
    var sum2 = vec4f();
    var sum3 = vec4f();
    var at = id.x / PANEL * depth * PANEL + id.x % PANEL;
    for (var k = 0u; k < depth; k++) {
        let w = vec4f(weight[at]);
        sum0 += f32(x[x0 + k]) * w;
        sum1 += f32(x[x1 + k]) * w;
        sum2 += f32(x[x2 + k]) * w;
        sum3 += f32(x[x3 + k]) * w;
        at += PANEL;
    }
    store(row, column, sum0);
    store(row + 1u, column, sum1);
    store(row + 2u, column, sum2);
    store(row + 3u, column, sum3);
}

// ---- the tiled kernel: 64 rows by 64 columns, operands in shared memory in k-steps of 16 ----

const TILE = 64u;
const STEP = 16u;
const QUADS = TILE / 4u;

// [STEP][TILE] of x, transposed, and [STEP][QUADS] of the weight.
var<workgroup> rows: array<f32, STEP * TILE>;
var<workgroup> columns: array<vec4f, STEP * QUADS>;

@compute @workgroup_size(256)
fn linear_tiled(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let own_row = 4u * (lane / QUADS);
    let own_quad = lane % QUADS;
    // Loads of this invocation: four neighbours in k of one row, and one quad of one k.
    let load_row = group.y * TILE + lane / 4u;
    let load_k = 4u * (lane % 4u);
    let load_quad = group.x * QUADS + own_quad;
    let column = first_column + 4u * load_quad;
    var sum0 = vec4f();
    var sum1 = vec4f();
    var sum2 = vec4f();
    var sum3 = vec4f();
    for (var start = 0u; start < scalars.k; start += STEP) {
        for (var i = 0u; i < 4u; i++) {
            let k = start + load_k + i;
            var v = 0.0;
            if load_row < scalars.m && k < scalars.k {
                v = f32(x[load_row * scalars.k + k]);
            }
            rows[(load_k + i) * TILE + lane / 4u] = v;
        }
        let k = start + lane / QUADS;
        var w = vec4f();
        if column < scalars.n && k < scalars.k {
            w = vec4f(weight[(load_quad / PANEL * scalars.k + k) * PANEL + load_quad % PANEL]);
        }
        columns[lane] = w;
        // Uniform: the loop's bound is a scalar of the launch.
        workgroupBarrier();
        for (var s = 0u; s < STEP; s++) {
            let b = columns[s * QUADS + own_quad];
            let a = s * TILE + own_row;
            sum0 += rows[a] * b;
            sum1 += rows[a + 1u] * b;
            sum2 += rows[a + 2u] * b;
            sum3 += rows[a + 3u] * b;
        }
        workgroupBarrier();
    }
    let row = group.y * TILE + own_row;
    store(row, column, sum0);
    store(row + 1u, column, sum1);
    store(row + 2u, column, sum2);
    store(row + 3u, column, sum3);
}
