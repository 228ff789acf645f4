// slice - entries start, start + step, .. of one dimension.
//
// Math      y[o, j, k] = x[o, start + j step, k]
// Source    none
// Tensors   x [O, A, inner] source -> y [O, length, inner] elem
// Scalars   count, inner, length, outer, first, step u32
// Launch    grid spread over count, 256 threads: an invocation owns an element
// Memory    none shared
// Numerics  exact, or rounded once to a narrower type
// Variants  source: f32 f16; elem: f32 f16
// Limits    none

struct Scalars {
    // Elements of y.
    count: u32,
    inner: u32,
    length: u32,
    // Elements of x from one outer index to the next, before the first entry, and from entry to entry.
    outer: u32,
    first: u32,
    step: u32,
}

@group(0) @binding(0) var<storage, read> x: array<source>;
@group(0) @binding(1) var<storage, read_write> y: array<elem>;
@group(0) @binding(2) var<uniform> scalars: Scalars;

@compute @workgroup_size(256)
fn slice(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element_index(group, groups, lane, 256u);
    if i >= scalars.count {
        return;
    }
    let row = i / scalars.inner;
    let at = row / scalars.length * scalars.outer + scalars.first + row % scalars.length * scalars.step;
    y[i] = elem(x[at + i % scalars.inner]);
}
