// geglu - the first half of every row, scaled by the GELU of the second.
//
// Math      y[r, c] = x[r, c] gelu(x[r, C + c])
// Source    Shazeer 2020, eq. 6
// Tensors   x [rows, 2C] elem -> y [rows, C] elem
// Scalars   count, channels u32
// Launch    grid spread over count, 256 threads: an invocation owns an element
// Memory    none shared
// Numerics  f32
// Variants  elem: f32 f16
// Limits    none

struct Scalars {
    // Elements of y.
    count: u32,
    channels: u32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read_write> y: array<elem>;
@group(0) @binding(2) var<uniform> scalars: Scalars;

@compute @workgroup_size(256)
fn geglu(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element_index(group, groups, lane, 256u);
    if i >= scalars.count {
        return;
    }
    // Each row before this one adds its gates to the distance.
    let value = i + i / scalars.channels * scalars.channels;
    y[i] = elem(f32(x[value]) * activate(GELU, f32(x[value + scalars.channels])));
}
