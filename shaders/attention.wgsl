// attention - multi-head attention with one joint, streaming softmax over extra keys and own keys.
//
// Math      y = softmax(q k^T scale) v for each head, over the visible keys
// Source    Vaswani et al. 2017, eq. 1; Milakov & Gimelshein 2018 (the running softmax)
// Tensors   q [B, Tq, D] elem, k [B, Tk, D] elem, v [B, Tk, D] elem, k_extra [B, Te, D] elem, v_extra [B, Te, D] elem,
//           mask [B, masked] f32 -> y [B, Tq, D] elem
// Scalars   queries, own, extra, width, d_head, masked, causal u32; scale f32
// Launch    grid (Tq/32, heads ceil(d_head/64), B), 64 threads: a workgroup owns 32 queries, 64 columns of a head
// Memory    15 KiB shared: 8 for queries, 4 for keys or values, 2 for scores
// Numerics  f32; scores of 32 queries by 16 keys at a time
// Variants  elem: f32 f16
// Limits    q stands in for absent tensors; heads wider than 64 compute their scores once for each 64 columns

struct Scalars {
    queries: u32,
    own: u32,
    extra: u32,
    width: u32,
    d_head: u32,
    // Keys, from the first on, that the mask covers.
    masked: u32,
    causal: u32,
    scale: f32,
}

@group(0) @binding(0) var<storage, read> q: array<elem>;
@group(0) @binding(1) var<storage, read> k: array<elem>;
@group(0) @binding(2) var<storage, read> v: array<elem>;
@group(0) @binding(3) var<storage, read> k_extra: array<elem>;
@group(0) @binding(4) var<storage, read> v_extra: array<elem>;
@group(0) @binding(5) var<storage, read> mask: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<elem>;
@group(0) @binding(7) var<uniform> scalars: Scalars;

const THREADS = 64u;
const QUERIES = 32u;
const KEYS = 16u;
const DEPTH = 64u;
const QUADS = DEPTH / 4u;
// The score of a hidden key; smaller than any score.
const HIDDEN = -3.4e38;

var<workgroup> query_tile: array<vec4f, QUERIES * QUADS>;
// Keys first, then the values of the same rows.
var<workgroup> key_tile: array<vec4f, KEYS * QUADS>;
// Scores, then unnormalised weights.
var<workgroup> scores: array<f32, QUERIES * KEYS>;
// The running softmax of each query: largest score, total of weights, factor for the sums so far.
var<workgroup> largest: array<f32, QUERIES>;
var<workgroup> total: array<f32, QUERIES>;
var<workgroup> rescale: array<f32, QUERIES>;

// Columns d .. d + 4 of a head, zeros beyond its width; `base` is the index of its column 0.
fn query4(base: u32, d: u32) -> vec4f {
    var out = vec4f();
    for (var c = 0u; c < 4u && d + c < scalars.d_head; c++) {
        out[c] = f32(q[base + d + c]);
    }
    return out;
}

fn key4(batch: u32, key: u32, head: u32, d: u32) -> vec4f {
    var out = vec4f();
    if key < scalars.extra {
        let base = (batch * scalars.extra + key) * scalars.width + head;
        for (var c = 0u; c < 4u && d + c < scalars.d_head; c++) {
            out[c] = f32(k_extra[base + d + c]);
        }
    } else if key < scalars.extra + scalars.own {
        let base = (batch * scalars.own + key - scalars.extra) * scalars.width + head;
        for (var c = 0u; c < 4u && d + c < scalars.d_head; c++) {
            out[c] = f32(k[base + d + c]);
        }
    }
    return out;
}

fn value4(batch: u32, key: u32, head: u32, d: u32) -> vec4f {
    var out = vec4f();
    if key < scalars.extra {
        let base = (batch * scalars.extra + key) * scalars.width + head;
        for (var c = 0u; c < 4u && d + c < scalars.d_head; c++) {
            out[c] = f32(v_extra[base + d + c]);
        }
    } else if key < scalars.extra + scalars.own {
        let base = (batch * scalars.own + key - scalars.extra) * scalars.width + head;
        for (var c = 0u; c < 4u && d + c < scalars.d_head; c++) {
            out[c] = f32(v[base + d + c]);
        }
    }
    return out;
}

fn is_seen(batch: u32, query: u32, key: u32) -> bool {
    if key >= scalars.extra + scalars.own {
        return false;
    }
    if key < scalars.masked && mask[batch * scalars.masked + key] == 0.0 {
        return false;
    }
    // Query i sees own keys 0 ..= i + Tk - Tq.
    return scalars.causal == 0u || key < scalars.extra || key - scalars.extra <= query + scalars.own - scalars.queries;
}

@compute @workgroup_size(64)
fn attention(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let batch = group.z;
    let chunks = (scalars.d_head + DEPTH - 1u) / DEPTH;
    let head = group.y / chunks * scalars.d_head;
    let column = group.y % chunks * DEPTH;
    let first_query = group.x * QUERIES;
    // This invocation owns the scores of queries part .. + 4 and keys side, side + 8, and the output of the same
    // queries and quads 2 side, 2 side + 1.
    let part = 4u * (lane / 8u);
    let side = lane % 8u;

    if lane < QUERIES {
        largest[lane] = HIDDEN;
        total[lane] = 0.0;
    }
    var low0 = vec4f();
    var low1 = vec4f();
    var low2 = vec4f();
    var low3 = vec4f();
    var high0 = vec4f();
    var high1 = vec4f();
    var high2 = vec4f();
    var high3 = vec4f();

    // Uniform: the bounds of loops with barriers depend on scalars and the workgroup only.
    var end = scalars.extra + scalars.own;
    if scalars.causal != 0u {
        let last_query = min(first_query + QUERIES, scalars.queries) - 1u;
        end = min(end, scalars.extra + last_query + scalars.own - scalars.queries + 1u);
    }
    for (var first_key = 0u; first_key < end; first_key += KEYS) {
        // ---- scores of 32 queries and 16 keys ----
        var near = vec4f();
        var far = vec4f();
        for (var d = 0u; d < scalars.d_head; d += DEPTH) {
            // No invocation reads the tiles of the round before any more.
            workgroupBarrier();
            if first_key == 0u || chunks > 1u {
                for (var i = lane; i < QUERIES * QUADS; i += THREADS) {
                    let query = min(first_query + i / QUADS, scalars.queries - 1u);
                    let base = (batch * scalars.queries + query) * scalars.width + head;
                    query_tile[i] = query4(base, d + 4u * (i % QUADS));
                }
            }
            for (var i = lane; i < KEYS * QUADS; i += THREADS) {
                key_tile[i] = key4(batch, first_key + i / QUADS, head, d + 4u * (i % QUADS));
            }
            workgroupBarrier();
            let filled = min((scalars.d_head - d + 3u) / 4u, QUADS);
            for (var i = 0u; i < filled; i++) {
                let key0 = key_tile[side * QUADS + i];
                let key1 = key_tile[(side + 8u) * QUADS + i];
                let at = part * QUADS + i;
                let query0 = query_tile[at];
                let query1 = query_tile[at + QUADS];
                let query2 = query_tile[at + 2u * QUADS];
                let query3 = query_tile[at + 3u * QUADS];
                near += vec4f(dot(query0, key0), dot(query1, key0), dot(query2, key0), dot(query3, key0));
                far += vec4f(dot(query0, key1), dot(query1, key1), dot(query2, key1), dot(query3, key1));
            }
        }
        for (var i = 0u; i < 4u; i++) {
            let query = first_query + part + i;
            let at = (part + i) * KEYS + side;
            scores[at] = select(HIDDEN, near[i] * scalars.scale, is_seen(batch, query, first_key + side));
            scores[at + 8u] = select(HIDDEN, far[i] * scalars.scale, is_seen(batch, query, first_key + side + 8u));
        }
        workgroupBarrier();

        // ---- softmax so far, a query an invocation; values overwrite the keys ----
        if lane < QUERIES {
            let before = largest[lane];
            var now = before;
            for (var j = 0u; j < KEYS; j++) {
                let s = scores[lane * KEYS + j];
                if s > now { now = s; }
            }
            let factor = exp(before - now);
            var sum = total[lane] * factor;
            for (var j = 0u; j < KEYS; j++) {
                let s = scores[lane * KEYS + j];
                var p = 0.0;
                if s != HIDDEN { p = exp(s - now); }
                // Only a NaN fails the comparison; exp() of some drivers loses it.
                if !(s <= now) { p = s; }
                scores[lane * KEYS + j] = p;
                sum += p;
            }
            largest[lane] = now;
            total[lane] = sum;
            rescale[lane] = factor;
        }
        for (var i = lane; i < KEYS * QUADS; i += THREADS) {
            key_tile[i] = value4(batch, first_key + i / QUADS, head, column + 4u * (i % QUADS));
        }
        workgroupBarrier();

        // ---- weighted sum of the values ----
        low0 *= rescale[part];
        low1 *= rescale[part + 1u];
        low2 *= rescale[part + 2u];
        low3 *= rescale[part + 3u];
        high0 *= rescale[part];
        high1 *= rescale[part + 1u];
        high2 *= rescale[part + 2u];
        high3 *= rescale[part + 3u];
        for (var j = 0u; j < KEYS; j++) {
            let value0 = key_tile[j * QUADS + 2u * side];
            let value1 = key_tile[j * QUADS + 2u * side + 1u];
            let p0 = scores[part * KEYS + j];
            let p1 = scores[(part + 1u) * KEYS + j];
            let p2 = scores[(part + 2u) * KEYS + j];
            let p3 = scores[(part + 3u) * KEYS + j];
            low0 += p0 * value0;
            low1 += p1 * value0;
            low2 += p2 * value0;
            low3 += p3 * value0;
            high0 += p0 * value1;
            high1 += p1 * value1;
            high2 += p2 * value1;
            high3 += p3 * value1;
        }
    }
    // The last barrier was after the writes of `total`.
    let d = column + 8u * side;
    store(batch, first_query + part, head, d, low0, high0, total[part]);
    store(batch, first_query + part + 1u, head, d, low1, high1, total[part + 1u]);
    store(batch, first_query + part + 2u, head, d, low2, high2, total[part + 2u]);
    store(batch, first_query + part + 3u, head, d, low3, high3, total[part + 3u]);
}

// Eight columns of one query.
fn store(batch: u32, query: u32, head: u32, d: u32, low: vec4f, high: vec4f, sum: f32) {
    if query >= scalars.queries {
        return;
    }
    let base = (batch * scalars.queries + query) * scalars.width + head;
    for (var c = 0u; c < 8u && d + c < scalars.d_head; c++) {
        y[base + d + c] = elem(select(low[c % 4u], high[c % 4u], c >= 4u) / sum);
    }
}
