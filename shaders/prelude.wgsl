// prelude - the text before every kernel.
//
// The host writes `alias source`, the type of a launch's first tensor, and `alias elem`, the type of its output, before
// this text. Kernels compute in f32.

// Codes of activations, as in `Activation::code` of ops/pointwise.rs.
const NO_ACTIVATION = 0u;
const SILU = 1u;
const GELU = 2u;
const QUICK_GELU = 3u;

// Grids have two dimensions, because one has at most 65535 workgroups.
fn element_index(group: vec3u, groups: vec3u, lane: u32, threads: u32) -> u32 {
    return (group.y * groups.x + group.x) * threads + lane;
}

fn activate(kind: u32, x: f32) -> f32 {
    switch kind {
        case SILU: { return x / (1.0 + exp(-x)); }
        case GELU: { return 0.5 * x * (1.0 + erf(x * 0.70710678)); }
        case QUICK_GELU: { return x / (1.0 + exp(-1.702 * x)); }
        default: { return x; }
    }
}

fn activate4(kind: u32, x: vec4f) -> vec4f {
    if kind == NO_ACTIVATION {
        return x;
    }
    return vec4f(activate(kind, x.x), activate(kind, x.y), activate(kind, x.z), activate(kind, x.w));
}

// erf with a relative error of 3e-7: an odd rational function of degree 9 over 12, as on the CPU. Beyond 3.83 it rounds
// to one in f32. Comparisons, not clamp, keep a NaN.
fn erf(argument: f32) -> f32 {
    var x = argument;
    if x < -3.832507 { x = -3.832507; }
    if x > 3.832507 { x = 3.832507; }
    let z = x * x;
    var p = 2.2905066e-4;
    p = p * z + 3.408291e-3;
    p = p * z + 5.0955694e-2;
    p = p * z + 1.8520833e-1;
    p = p * z + 1.1283792;
    var q = -1.1791602e-7;
    q = q * z + 2.3547967e-5;
    q = q * z + 1.0179625e-3;
    q = q * z + 1.407047e-2;
    q = q * z + 1.1098506e-1;
    q = q * z + 4.9746924e-1;
    q = q * z + 1.0;
    return x * p / q;
}
