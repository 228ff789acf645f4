// layer_norm - normalise each row over its features, then scale and shift.
//
// Math      y = (x - mean) / sqrt(var + eps) * gamma + beta          mean, var over D
// Source    Ba, Kiros & Hinton 2016, eq. 4
// Tensors   x [R, D] elem, gamma [D] f32, beta [D] f32 -> y [R, D] elem
// Scalars   rows, width u32; eps f32
// Launch    grid spread over rows, 256 threads: a workgroup owns a row
// Memory    1 KiB shared, 256 B with subgroups
// Numerics  f32; the mean first, then the variance around it
// Variants  elem: f32 f16; reduce: plain subgroups
// Limits    none

struct Scalars {
    rows: u32,
    width: u32,
    eps: f32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read> gamma: array<f32>;
@group(0) @binding(2) var<storage, read> beta: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<elem>;
@group(0) @binding(4) var<uniform> scalars: Scalars;

@compute @workgroup_size(256)
fn layer_norm(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    lane: Lane,
) {
    let row = group.y * groups.x + group.x;
    // Uniform: the whole workgroup leaves.
    if row >= scalars.rows {
        return;
    }
    let width = scalars.width;
    let first = row * width;

    var own = 0.0;
    for (var i = lane.index; i < width; i += REDUCE_THREADS) {
        own += f32(x[first + i]);
    }
    let mean = workgroup_sum(own, lane) / f32(width);

    own = 0.0;
    for (var i = lane.index; i < width; i += REDUCE_THREADS) {
        let d = f32(x[first + i]) - mean;
        own += d * d;
    }
    let scale = 1.0 / sqrt(workgroup_sum(own, lane) / f32(width) + scalars.eps);

    for (var i = lane.index; i < width; i += REDUCE_THREADS) {
        y[first + i] = elem((f32(x[first + i]) - mean) * scale * gamma[i] + beta[i]);
    }
}
