use super::launch::{grid, optional};
use super::reverse::{Reverse, Source};
use super::training::{AttentionKeys, AttentionQueries};
use super::{
    Choice, Launch, MatmulUnit, Operand, Operation, Scalar, Slice, StorageRule, Tiles, Tiling, Walk, count, require,
    width,
};

/// Multi-head attention with one joint softmax over extra keys and the sequence's own keys.
///
/// unCLIP's U-Net lets every position attend to the text tokens and to the picture in one softmax; its prior
/// attends to keys kept from the text tokens. Both are the *extra* keys, which come first.
///
/// *Shapes* `q [B, Tq, D]`, `k [B, Tk, D]`, `v [B, Tk, D]`; then `k_extra`, `v_extra [B, Te, D]` if `extra`; then
/// `mask [B, M]` with `M <= Te + Tk` if `mask`; gives `[B, Tq, D]`. `D = heads * d_head`.
///
/// *Formula* `softmax(q k^T / sqrt(d_head)) v` for each head, over the keys that are allowed: `mask` is 1 for keys
/// that may be seen and 0 for others, and covers the first `M` keys, extra ones first; with `causal`, query `i`
/// sees all extra keys and own keys `0..=i + Tk - Tq`.
///
/// *Source* Vaswani et al. 2017, eq. 1; the added keys as in GLIDE (Nichol et al. 2021, section 3.1). The
/// reference adds -10000 where this excludes a key; after its softmax in f32 both are exactly zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attention {
    /// How many heads share the width.
    pub heads: usize,
    /// Own keys after the query's own position are hidden.
    pub causal: bool,
    /// Extra keys and values follow `v`.
    pub extra: bool,
    /// A mask over the first keys comes last.
    pub mask: bool,
}

impl Attention {
    /// Keys each query can be compared with: `(extra, own)`.
    pub fn keys(&self, inputs: &[&[usize]]) -> (usize, usize) {
        (if self.extra { inputs[3][1] } else { 0 }, inputs[1][1])
    }
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 3 + 2 * usize::from(self.extra) + usize::from(self.mask))?;
        let (q, k, v) = (inputs[0], inputs[1], inputs[2]);
        let rows = |s: &[usize]| s.len() == 3 && q.len() == 3 && s[0] == q[0] && s[2] == q[2];
        require(rows(k) && k == v, || format!("attention: q {q:?}, k {k:?}, v {v:?} do not belong together"))?;
        require(self.heads > 0 && q[2].is_multiple_of(self.heads), || {
            format!("attention: a width of {} cannot be shared by {} heads", q[2], self.heads)
        })?;
        require(!self.causal || q[1] <= k[1], || {
            format!("attention: {} queries with only {} keys cannot be causal", q[1], k[1])
        })?;
        if self.extra {
            let (ke, ve) = (inputs[3], inputs[4]);
            require(rows(ke) && ke == ve, || format!("attention: extra keys {ke:?} and values {ve:?} for q {q:?}"))?;
        }
        if self.mask {
            let (m, keys) = (inputs[inputs.len() - 1], self.keys(inputs));
            require(m.len() == 2 && m[0] == q[0] && m[1] <= keys.0 + keys.1, || {
                format!("attention: mask {m:?} for {} sequences with {} + {} keys", q[0], keys.0, keys.1)
            })?;
        }
        Ok(q.to_vec())
    }

    fn flops(&self, inputs: &[&[usize]], output: &[usize]) -> u64 {
        let (extra, own) = self.keys(inputs);
        4 * (output[0] * output[1] * output[2]) as u64 * (extra + own) as u64
    }

    fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
        let inputs = 3 + 2 * usize::from(self.extra) + usize::from(self.mask);
        let mut read = vec![Source::Gradient, Source::Output];
        read.extend((0..inputs).map(Source::Input));
        reverse.give_by(0, AttentionQueries(self.clone()), &read)?;
        let first = if self.extra { reverse.shape(3)[1] } else { 0 };
        // Input, and where its rows begin and how many there are; values follow their keys.
        let mut parts = vec![(1, first, reverse.shape(1)[1])];
        if self.extra {
            parts.push((3, 0, first));
        }
        if !parts.iter().any(|&(keys, _, _)| reverse.needs(keys) || reverse.needs(keys + 1)) {
            return Ok(());
        }
        let both = reverse.push(AttentionKeys(self.clone()), &read)?;
        for (keys, start, length) in parts {
            for (input, column) in [(keys, 0), (keys + 1, 1)] {
                if !reverse.needs(input) {
                    continue;
                }
                let width = width(reverse.shape(input));
                let rows =
                    if self.extra { reverse.push(Slice { axis: 1, start, step: 1, length }, &[both])? } else { both };
                let columns = Slice { axis: 2, start: column * width, step: 1, length: width };
                reverse.give_by(input, columns, &[rows])?;
            }
        }
        Ok(())
    }

    fn storage_rule(&self, tensor: Operand) -> StorageRule {
        let mask = 3 + 2 * usize::from(self.extra);
        if self.mask && tensor == Operand::Input(mask) { StorageRule::F32 } else { StorageRule::Storage }
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        /// Queries and columns of a head that a workgroup owns.
        const TILE: [usize; 2] = [32, 64];
        let (extra, own) = self.keys(inputs);
        let (batch, queries, width) = (output[0], output[1], output[2]);
        let d_head = width / self.heads;
        let masked = if self.mask { inputs[inputs.len() - 1][1] } else { 0 };
        let mut next = 3;
        let mut tensors: Vec<Operand> = (0..3).map(Operand::Input).collect();
        tensors.extend([self.extra, self.extra, self.mask].map(|present| optional(present, &mut next)));
        tensors.push(Operand::Output(0));
        let mut scalars: Vec<Scalar> = [queries, own, extra, width, d_head, masked].map(Scalar::from).to_vec();
        scalars.extend([Scalar::from(self.causal), Scalar::from(1.0 / (d_head as f32).sqrt())]);
        let grid = [grid(queries.div_ceil(TILE[0])), grid(self.heads * d_head.div_ceil(TILE[1])), grid(batch)];
        let (stem, choice) = ("attention", Choice::new(Some(TILE), "the plain kernel, in f32"));
        vec![Launch { stem, entry: stem, threads: 64, grid, tensors, scalars, tiling: None, choice }]
    }

    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], unit: MatmulUnit) -> Vec<Launch> {
        /// Queries that a block of `attention_mma` owns.
        const QUERIES: usize = 64;
        let output = outputs[0];
        let mut launches = self.wgsl(inputs, output, Tiles::Shared);
        let [batch, queries, width] = [output[0], output[1], output[2]];
        let d_head = width / self.heads;
        // Wider heads and f32 run on CUDA cores.
        let entry = match d_head {
            0..=32 => "attention_mma_32",
            33..=64 => "attention_mma_64",
            _ => {
                launches[0].choice.reason = "CUDA cores: a head is wider than 64, the most for tensor cores".into();
                return launches;
            }
        };
        let warps = ["attention_mma", entry];
        let (kernel, threads, rows, tiling, reason) = match unit {
            MatmulUnit::CudaCores | MatmulUnit::Tf32 => return launches,
            MatmulUnit::Half => (warps, 128, QUERIES, None, "mma"),
            // Columns of a head are whole 16-byte chunks; few queries leave most of a block empty.
            MatmulUnit::Warpgroup if !d_head.is_multiple_of(8) => {
                (warps, 128, QUERIES, None, "mma; no wgmma: the columns of a head are no whole 16-byte chunks")
            }
            MatmulUnit::Warpgroup if queries <= QUERIES / 2 => {
                (warps, 128, QUERIES, None, "mma; no wgmma: few queries leave most of a block empty")
            }
            MatmulUnit::Warpgroup => {
                (["attention_sm90"; 2], 384, WARPGROUP_ROWS, Some(self.tiling(inputs, d_head)), "wgmma")
            }
        };
        let grid = [grid(queries.div_ceil(rows)), grid(self.heads), grid(batch)];
        launches.iter_mut().for_each(|launch| {
            ([launch.stem, launch.entry], launch.threads, launch.grid) = (kernel, threads, grid);
            launch.tiling = tiling.clone();
            launch.choice = Choice::new(Some([rows, d_head]), reason);
        });
        launches
    }
}

/// Queries that a block of `attention_sm90` owns, and keys of a tile there.
const WARPGROUP_ROWS: usize = 128;
/// Columns of a row in its tiles.
const WARPGROUP_COLUMNS: u32 = 64;
/// The queries and two stages of keys and values, and five counters of 8 bytes.
const WARPGROUP_SHARED_BYTES: u32 = 5 * 128 * 128 + 5 * 8;

impl Attention {
    /// How `attention_sm90` walks through queries, keys and values: by head, so that a tile ends where its head does.
    fn tiling(&self, inputs: &[&[usize]], d_head: usize) -> Tiling {
        let walk = |shape: &[usize]| Walk {
            dims: vec![d_head, self.heads, shape[1], shape[0]],
            strides: vec![d_head, shape[2], shape[1] * shape[2]],
            tile: vec![WARPGROUP_COLUMNS, 1, WARPGROUP_ROWS as u32, 1],
            steps: vec![1; 4],
        };
        // The queries stand in for absent extra keys.
        let extra = if self.extra { [inputs[3], inputs[4]] } else { [inputs[0]; 2] };
        let walks = inputs[..3].iter().chain(&extra).map(|shape| walk(shape)).collect();
        Tiling { walks, shared_bytes: WARPGROUP_SHARED_BYTES, cluster: 1 }
    }
}
