// convert - copy a tensor, converting its type.
//
// Math      y[i] = x[i]
// Source    none
// Tensors   x [count] source -> y [count] elem
// Scalars   count u32
// Launch    grid spread over count, 256 threads: an invocation owns an element
// Memory    none shared
// Numerics  exact, or rounded once to a narrower type
// Variants  source: f32 f16; elem: f32 f16
// Limits    none

struct Scalars {
    count: u32,
}

@group(0) @binding(0) var<storage, read> x: array<source>;
@group(0) @binding(1) var<storage, read_write> y: array<elem>;
@group(0) @binding(2) var<uniform> scalars: Scalars;

@compute @workgroup_size(256)
fn convert(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element_index(group, groups, lane, 256u);
    if i >= scalars.count {
        return;
    }
    y[i] = elem(x[i]);
}
