// conv2d - convolution of channels-last images as an implicit matmul.
//
// Math      y[n, i, j, o] = sum_rsc x[n, i stride + r - padding, j stride + s - padding, c] weight[(r S + s) C + c, o]
//                           + bias[o] + shift[n, o] + residual[n, i, j, o]
// Source    none
// Tensors   x [N, H, W, C] source, weight [O/32, R S C, 8] vec4 source, bias [O] f32, shift [N, O] elem,
//           residual [N, H', W', O] elem -> y [N, H', W', O] elem
// Scalars   positions, height, width, channels, out_height, out_width, outputs, window_height, window_width, stride,
//           padding, has_bias, has_shift, has_residual u32
// Launch    conv2d: grid (O/32, N H' W'/32, 1), 64 threads: an invocation owns 4 positions by 4 outputs
//           conv2d_tiled: grid (O/64, N H' W'/64, 1), 256 threads: the same, operands in shared memory
// Memory    conv2d: none shared; conv2d_tiled: 8 KiB shared
// Numerics  f32, in the order of r, s, c
// Variants  source: f32 f16; elem: f32 f16
// Limits    weight is packed in panels of 32 outputs, O rounded up, and may be a part of the outputs, from first_column
//           on; x stands in for absent tensors

struct Scalars {
    // N H' W', the rows of the matmul.
    positions: u32,
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
    outputs: u32,
    window_height: u32,
    window_width: u32,
    stride: u32,
    padding: u32,
    has_bias: u32,
    has_shift: u32,
    has_residual: u32,
}

@group(0) @binding(0) var<storage, read> x: array<source>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<source>>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> shift: array<elem>;
@group(0) @binding(4) var<storage, read> residual: array<elem>;
@group(0) @binding(5) var<storage, read_write> y: array<elem>;
@group(0) @binding(6) var<uniform> scalars: Scalars;

// Quads of outputs in a panel of the weight.
const PANEL = 8u;

// The first output of this part of a weight that is larger than one binding. All parts but the last are whole tiles.
override first_column = 0u;

// ---- windows ----

struct Window {
    image: u32,
    // Corner of the window; negative outside the image.
    top: i32,
    left: i32,
}

fn window(position: u32) -> Window {
    let j = position % scalars.out_width;
    let row = position / scalars.out_width;
    let top = i32(row % scalars.out_height * scalars.stride) - i32(scalars.padding);
    return Window(row / scalars.out_height, top, i32(j * scalars.stride) - i32(scalars.padding));
}

const OUTSIDE = 0xffffffffu;

// Index of channel 0 of the pixel under a tap.
fn pixel(at: Window, r: u32, s: u32) -> u32 {
    let i = at.top + i32(r);
    let j = at.left + i32(s);
    if i < 0 || j < 0 || i >= i32(scalars.height) || j >= i32(scalars.width) {
        return OUTSIDE;
    }
    return ((at.image * scalars.height + u32(i)) * scalars.width + u32(j)) * scalars.channels;
}

// A channel of a pixel, or zero outside, where channel c of the first pixel is loaded and dropped.
fn channel(at: u32, c: u32) -> f32 {
    let v = f32(x[select(at + c, c, at == OUTSIDE)]);
    return select(v, 0.0, at == OUTSIDE);
}

// An element of a window, k = (r S + s) C + c.
struct Tap {
    r: u32,
    s: u32,
    c: u32,
}

fn tap(k: u32) -> Tap {
    let index = k / scalars.channels;
    return Tap(index / scalars.window_width, index % scalars.window_width, k % scalars.channels);
}

// `count` further in k, without a division.
fn advance(from_tap: Tap, count: u32) -> Tap {
    var t = from_tap;
    t.c += count;
    while t.c >= scalars.channels {
        t.c -= scalars.channels;
        t.s++;
        if t.s == scalars.window_width {
            t.s = 0u;
            t.r++;
        }
    }
    return t;
}

// ---- store: bias, shift and residual of four neighbouring outputs ----

fn store(position: u32, output: u32, sum: vec4f) {
    if position >= scalars.positions || output >= scalars.outputs {
        return;
    }
    let columns = min(scalars.outputs - output, 4u);
    let at = position * scalars.outputs + output;
    let image = position / (scalars.out_height * scalars.out_width);
    for (var c = 0u; c < columns; c++) {
        var v = sum[c];
        if scalars.has_bias != 0u {
            v += bias[output + c];
        }
        if scalars.has_shift != 0u {
            v += f32(shift[image * scalars.outputs + output + c]);
        }
        if scalars.has_residual != 0u {
            v += f32(residual[at + c]);
        }
        y[at + c] = elem(v);
    }
}

// ---- the plain kernel: operands from global memory ----

@compute @workgroup_size(8, 8)
fn conv2d(@builtin(global_invocation_id) id: vec3u) {
    let position = 4u * id.y;
    let output = first_column + 4u * id.x;
    if output >= scalars.outputs || position >= scalars.positions {
        return;
    }
    // Positions beyond the last repeat it; they are not stored.
    let last = scalars.positions - 1u;
    let window0 = window(position);
    let window1 = window(min(position + 1u, last));
    let window2 = window(min(position + 2u, last));
    let window3 = window(min(position + 3u, last));
    var sum0 = vec4f();
    var sum1 = vec4f();
    var sum2 = vec4f();
    var sum3 = vec4f();
    let depth = scalars.window_height * scalars.window_width * scalars.channels;
    var at = id.x / PANEL * depth * PANEL + id.x % PANEL;
    for (var r = 0u; r < scalars.window_height; r++) {
        for (var s = 0u; s < scalars.window_width; s++) {
            let x0 = pixel(window0, r, s);
            let x1 = pixel(window1, r, s);
            let x2 = pixel(window2, r, s);
            let x3 = pixel(window3, r, s);
            for (var c = 0u; c < scalars.channels; c++) {
                let w = vec4f(weight[at]);
                at += PANEL;
                sum0 += channel(x0, c) * w;
                sum1 += channel(x1, c) * w;
                sum2 += channel(x2, c) * w;
                sum3 += channel(x3, c) * w;
            }
        }
    }
    store(position, output, sum0);
    store(position + 1u, output, sum1);
    store(position + 2u, output, sum2);
    store(position + 3u, output, sum3);
}

// ---- the tiled kernel: 64 positions by 64 outputs, operands in shared memory in k-steps of 16 ----

const TILE = 64u;
const STEP = 16u;
const QUADS = TILE / 4u;

// [STEP][TILE] of x, transposed, and [STEP][QUADS] of the weight.
var<workgroup> rows: array<f32, STEP * TILE>;
var<workgroup> columns: array<vec4f, STEP * QUADS>;

@compute @workgroup_size(256)
fn conv2d_tiled(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let depth = scalars.window_height * scalars.window_width * scalars.channels;
    let own_row = 4u * (lane / QUADS);
    let own_quad = lane % QUADS;
    // Loads of this invocation: four neighbours in k of one position, and one quad of one k.
    let load_row = group.y * TILE + lane / 4u;
    let load_window = window(load_row);
    let load_k = 4u * (lane % 4u);
    let load_quad = group.x * QUADS + own_quad;
    let output = first_column + 4u * load_quad;
    var sum0 = vec4f();
    var sum1 = vec4f();
    var sum2 = vec4f();
    var sum3 = vec4f();
    var load = tap(load_k);
    for (var start = 0u; start < depth; start += STEP) {
        var next = load;
        for (var i = 0u; i < 4u; i++) {
            var v = 0.0;
            if load_row < scalars.positions && start + load_k + i < depth {
                v = channel(pixel(load_window, next.r, next.s), next.c);
            }
            rows[(load_k + i) * TILE + lane / 4u] = v;
            next = advance(next, 1u);
        }
        load = advance(load, STEP);
        let k = start + lane / QUADS;
        var w = vec4f();
        if output < scalars.outputs && k < depth {
            w = vec4f(weight[(load_quad / PANEL * depth + k) * PANEL + load_quad % PANEL]);
        }
        columns[lane] = w;
        // Uniform: the loop's bound is computed from scalars of the launch.
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
    store(row, output, sum0);
    store(row + 1u, output, sum1);
    store(row + 2u, output, sum2);
    store(row + 3u, output, sum3);
}
