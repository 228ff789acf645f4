// modulate - scale and shift images by maps of a coarser grid, then the fused activation.
//
// Math      y[n, i, j, c] = activation(x[n, i, j, c] scale[n, i / k, j / k, c] + shift[n, i / k, j / k, c])
// Source    Zheng et al. 2022 (MoVQ), eq. 5
// Tensors   x [N, H, W, C] elem, scale [N, H/k, W/k, C] elem, shift [N, H/k, W/k, C] elem -> y [N, H, W, C] elem
// Scalars   count, width, channels, factor, activation u32
// Launch    grid spread over count, 256 threads: an invocation owns an element
// Memory    none shared
// Numerics  f32
// Variants  elem: f32 f16
// Limits    factor = k divides height and width

struct Scalars {
    count: u32,
    width: u32,
    channels: u32,
    factor: u32,
    activation: u32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read> scale: array<elem>;
@group(0) @binding(2) var<storage, read> shift: array<elem>;
@group(0) @binding(3) var<storage, read_write> y: array<elem>;
@group(0) @binding(4) var<uniform> scalars: Scalars;

@compute @workgroup_size(256)
fn modulate(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element_index(group, groups, lane, 256u);
    if i >= scalars.count {
        return;
    }
    // Rows are numbered through all images: the factor divides the height.
    let pixel = i / scalars.channels;
    let row = pixel / scalars.width / scalars.factor;
    let column = pixel % scalars.width / scalars.factor;
    let at = (row * (scalars.width / scalars.factor) + column) * scalars.channels + i % scalars.channels;
    y[i] = elem(activate(scalars.activation, f32(x[i]) * f32(scale[at]) + f32(shift[at])));
}
