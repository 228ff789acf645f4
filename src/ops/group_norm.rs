use super::launch::{grid, optional};
use super::reverse::{Reverse, Source};
use super::training::{NormGradient, NormSums, NormVector, VectorOf};
use super::{
    Activation, Choice, Launch, MatmulUnit, Operand, Operation, Scalar, Statistics, StorageRule, Tiles, Tiling, count,
    elements, require, width,
};

/// Normalises each group of channels of each image over all positions, then scales and shifts.
///
/// *Shapes* `x [N, .., C]`, `gamma [C]`, `beta [C]`, then `style [N, 2C]` if `style`, gives `[N, .., C]`. With
/// `statistics`, those of `x` follow: one value, or two for the two parts of a concatenation. With `behind`, `x` holds only
/// the first of the channels and `behind [N, .., C']` follows with the others. With `table`, `style` is `[S, N, 2C]` and
/// the last input, `step [1]`, says which row of it.
///
/// *Formula* `y = (x - mean) / sqrt(var + eps) * gamma + beta`, mean and biased variance over the positions and
/// the `C / groups` channels of a group; with `style`, whose first half is `scale` and second half `shift`,
/// `y = y * (1 + scale) + shift`; then the activation.
///
/// *Source* Wu & He 2018, eq. 1-3; the style as in Dhariwal & Nichol 2021, section 3.1 (AdaGN).
#[derive(Clone, Debug, PartialEq)]
pub struct GroupNorm {
    /// Number of groups; divides the channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// A scale and a shift for each image and channel follow `beta`.
    pub style: bool,
    /// Applied last.
    pub activation: Option<Activation>,
    /// Channels of the parts of `x` whose [`Statistics`] follow as further inputs; empty in a plan as it is recorded.
    pub statistics: Vec<usize>,
    /// The last channels are a further input; not in a plan as it is recorded.
    pub behind: bool,
    /// The style is a row of a table; not in a plan as it is recorded.
    pub table: bool,
}

/// A block of the PTX kernel that keeps a group in shared memory while its mean and variance are computed.
struct BlockSize {
    /// Entry points for threads that own single channels and pairs of them.
    entries: [&'static str; 2],
    threads: usize,
    shared_bytes: u32,
}

/// Four of the first run on a multiprocessor side by side; every architecture from 8.0 on gives a block as much as the
/// second asks for.
const BLOCK_SIZES: [BlockSize; 2] = [
    BlockSize { entries: ["group_norm_512x1", "group_norm_512x2"], threads: 512, shared_bytes: 48 << 10 },
    BlockSize { entries: ["group_norm_1024x1", "group_norm_1024x2"], threads: 1024, shared_bytes: 96 << 10 },
];
/// The block of the kernel that computes partial statistics.
const SUMS: BlockSize = BlockSize {
    entries: ["group_norm_statistics_512x1", "group_norm_statistics_512x2"],
    threads: 512,
    shared_bytes: 48 << 10,
};
/// Threads of the kernel that normalises with statistics, and the most channels and groups that it has shared memory for.
const APPLY_THREADS: usize = 512;
const APPLY_CHANNELS: usize = 2048;
const APPLY_GROUPS: usize = 512;
/// The fewest columns of a block's threads, if there are that many: 512 bytes of a position.
const APPLY_COLUMNS: usize = 32;
/// Blocks that keep a GPU busy there: two for each multiprocessor. More would merge statistics more often.
const APPLY_BLOCKS: usize = 256;
/// Most entries of statistics that each block merges itself: a launch that merges them once takes longer.
const MERGED_IN_PLACE: usize = 4096;
/// Numbers that end where vectors may begin.
const ALIGNMENT: usize = 64;

impl BlockSize {
    /// Bytes behind the sums of the block's warps, twice.
    fn behind_sums(&self) -> usize {
        self.shared_bytes as usize - self.threads / 4
    }

    /// Whether it holds so many bytes of a group with so many channels, beside a factor and a summand for each channel.
    fn holds(&self, members: usize, bytes: usize) -> bool {
        members <= self.threads && bytes <= self.behind_sums() - 8 * self.threads
    }
}

/// A group as the PTX kernels see it.
struct Group {
    members: usize,
    positions: usize,
    /// Bytes of an element in shared memory: pairs in the storage type, single elements in f32.
    size: usize,
    /// Threads own pairs of channels.
    pairs: bool,
}

/// What a block of `group_norm_apply` owns.
struct Share {
    entry: &'static str,
    /// Channels.
    span: usize,
    /// Positions.
    part: usize,
}

impl Group {
    fn bytes(&self) -> usize {
        self.positions * self.members * self.size
    }

    /// The block that holds it.
    fn chip(&self) -> Option<&'static BlockSize> {
        BLOCK_SIZES.iter().find(|chip| chip.holds(self.members, self.bytes()))
    }

    /// The division of `images` with `c` channels among the blocks that normalise them, for elements of `size` bytes.
    /// The first `split` channels are those of one tensor.
    fn share(&self, images: usize, c: usize, split: usize, size: usize) -> Share {
        let vector = 16 / size;
        let whole = c.is_multiple_of(vector) && split.is_multiple_of(vector);
        let (entry, wide) = if whole { ("group_norm_apply", vector) } else { ("group_norm_apply_x1", 1) };
        // Threads in whole rows of columns. The narrower the span, the fewer statistics a block merges; the first that
        // leaves few threads idle.
        let columns = c / wide;
        let most = APPLY_THREADS.min(APPLY_CHANNELS.min((APPLY_GROUPS - 2) * self.members) / wide).max(1);
        let busy = |span: &usize| APPLY_THREADS / span * span;
        let blocks = columns.div_ceil(most)..=(columns / APPLY_COLUMNS).max(columns.div_ceil(most));
        let spans: Vec<usize> = blocks.rev().map(|blocks| columns.div_ceil(blocks)).collect();
        let best = spans.iter().find(|span| 16 * busy(span) >= 15 * APPLY_THREADS);
        let span = best.or_else(|| spans.iter().max_by_key(|span| busy(span))).map_or(1, |&span| span);
        let blocks_across = columns.div_ceil(span);
        let rows = APPLY_THREADS / span;
        let part = (images * self.positions * blocks_across).div_ceil(APPLY_BLOCKS).next_multiple_of(rows);
        Share { entry, span: span * wide, part: part.min(self.positions) }
    }

    /// Divides it for [`SUMS`]: positions and channels of a part, and the parts of all positions. All but the last are
    /// alike, and no larger than they have to be.
    fn parts(&self) -> [usize; 3] {
        let fits = |span: &usize| self.members.is_multiple_of(*span) && (!self.pairs || span.is_multiple_of(2));
        let span = (1..=self.members.min(SUMS.threads)).rev().find(fits).unwrap_or(1);
        let parts = self.positions.div_ceil(SUMS.behind_sums() / (span * self.size));
        let part = self.positions.div_ceil(parts);
        [part, span, self.positions.div_ceil(part)]
    }
}

impl Operation for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, self.behind_at() + usize::from(self.behind) + usize::from(self.table))?;
        let x = inputs[0];
        let c = width(x) + if self.behind { width(inputs[self.behind_at()]) } else { 0 };
        require(x.len() >= 2 && self.groups > 0 && c.is_multiple_of(self.groups), || {
            format!("group_norm: {c} channels of {x:?} cannot be divided into {} groups", self.groups)
        })?;
        require(inputs[1] == [c] && inputs[2] == [c], || {
            format!("group_norm: gamma {:?} and beta {:?} for {c} channels", inputs[1], inputs[2])
        })?;
        if self.style {
            let style = &inputs[3][usize::from(self.table)..];
            require(style == [x[0], 2 * c], || format!("group_norm: style {:?} for x {x:?}", inputs[3]))?;
        }
        let mut y = x.to_vec();
        y[x.len() - 1] = c;
        Ok(y)
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        5 * elements(output) as u64
    }

    fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
        let recorded = !self.behind && !self.table && self.statistics.is_empty();
        require(recorded, || "group_norm: tensors read side by side or by row are not trained".into())?;
        let style = self.style;
        let vectors: Vec<Source> = (1..reverse.inputs()).map(Source::Input).collect();
        if !(0..reverse.inputs()).any(|input| reverse.needs(input)) {
            return Ok(());
        }
        let given = [&[Source::Gradient, Source::Input(0)], &vectors[..]].concat();
        let sums = reverse.push(NormSums(self.clone()), &given)?;
        let read = [&[Source::Gradient, sums, Source::Input(0)], &vectors[..]].concat();
        reverse.give_by(0, NormGradient(self.clone()), &read)?;
        let read = [&[sums], &vectors[..]].concat();
        for (input, of) in [(1, VectorOf::Gain), (2, VectorOf::Offset), (3, VectorOf::Style)] {
            reverse.give_by(input, NormVector { of, style }, &read)?;
        }
        Ok(())
    }

    fn storage_rule(&self, tensor: Operand) -> StorageRule {
        match tensor {
            Operand::Input(1 | 2) => StorageRule::F32,
            Operand::Input(i) if (self.first_statistics()..self.behind_at()).contains(&i) => StorageRule::F32,
            _ => StorageRule::Storage,
        }
    }

    fn wgsl(&self, _: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let (images, c) = (output[0], width(output));
        let positions = elements(output) / (images * c);
        let mut next = 3;
        let mut tensors: Vec<Operand> = (0..3).map(Operand::Input).collect();
        tensors.extend([optional(self.style, &mut next), Operand::Output(0)]);
        let mut scalars: Vec<Scalar> = [positions, c, self.groups].map(Scalar::from).to_vec();
        scalars.extend([self.style.into(), Activation::code(self.activation), self.eps.into()]);
        let grid = [grid(self.groups), grid(images), 1];
        let (stem, choice) = ("group_norm", Choice::new(None, "one block a group of an image"));
        vec![Launch { stem, entry: stem, threads: 256, grid, tensors, scalars, tiling: None, choice }]
    }

    /// One launch if statistics are inputs and few, or a group fits into a block's shared memory. Otherwise up to three:
    /// (1) partial statistics, unless they are inputs; (2) one entry for each group; (3) apply.
    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], unit: MatmulUnit) -> Vec<Launch> {
        let output = outputs[0];
        let (images, c) = (output[0], width(output));
        let group = self.group(output, unit);
        let Group { members, positions, .. } = group;
        let plain = self.wgsl(inputs, output, Tiles::Shared).remove(0);
        let on_chip =
            |chip: &BlockSize| Some(Tiling { walks: Vec::new(), shared_bytes: chip.shared_bytes, cluster: 1 });
        if let Some(chip) = group.chip().filter(|_| self.statistics.is_empty()) {
            let entry = chip.entries[usize::from(group.pairs)];
            let [group, shared] = [group.bytes().div_ceil(1024), chip.shared_bytes as usize >> 10];
            let choice = Choice::new(None, format!("a group of {group} KiB fits into {shared} KiB of shared memory"));
            return vec![Launch { entry, threads: chip.threads as u32, tiling: on_chip(chip), choice, ..plain }];
        }
        let [x, gamma, beta, style, y] = plain.tensors[..] else {
            unreachable!("the kernel takes exactly five tensors")
        };
        let mut launches = Vec::new();
        let mut scratch = 0;
        let mut found: Vec<(Operand, Statistics)> = if self.statistics.is_empty() {
            let [part, span, parts] = group.parts();
            let own = Statistics { images, parts, channels: c, unit: span };
            scratch = own.elements().next_multiple_of(ALIGNMENT);
            let sums = Operand::Scratch { first: 0, count: own.elements() };
            launches.push(Launch {
                stem: "group_norm_statistics",
                entry: SUMS.entries[usize::from(group.pairs)],
                threads: SUMS.threads as u32,
                grid: [grid(self.groups), grid(parts * members / span), grid(images)],
                tensors: vec![x, sums],
                scalars: [positions, c, self.groups, part, span].map(Scalar::from).to_vec(),
                tiling: on_chip(&SUMS),
                choice: Choice::new(
                    Some([part, span]),
                    format!(
                        "a group of {} KiB exceeds shared memory; no matmul left its statistics",
                        group.bytes() >> 10
                    ),
                ),
            });
            vec![(sums, own)]
        } else {
            let first = self.first_statistics();
            let of = |(i, &channels): (usize, &usize)| {
                (Operand::Input(first + i), Statistics::of(inputs[first + i], channels))
            };
            self.statistics.iter().enumerate().map(of).collect()
        };
        let split = if self.behind { width(inputs[0]) } else { c };
        let Share { entry, span, part } = group.share(images, c, split, unit.size_bytes());
        let entries: usize = found.iter().map(|(_, of)| of.parts * of.channels / of.unit).sum();
        // In f32 the order of sums is that of the kernel for many, whatever their number: pictures keep their bytes.
        if entries * span.min(c) / c > MERGED_IN_PLACE || unit.size_bytes() == 4 {
            let merged = Statistics { images, parts: 1, channels: c, unit: members };
            let to = Operand::Scratch { first: scratch, count: merged.elements() };
            let ([first, second], sizes) = operands_and_sizes(&found);
            launches.push(Launch {
                stem: "group_norm_merge",
                entry: "group_norm_merge",
                tensors: vec![first, second, to],
                scalars: [positions * members, c, self.groups].map(Scalar::from).into_iter().chain(sizes).collect(),
                choice: Choice::new(None, format!("merges {entries} entries of an image once")),
                ..plain.clone()
            });
            found = vec![(to, merged)];
        }
        let mut next = self.behind_at();
        let [behind, step] = [self.behind, self.table].map(|present| optional(present, &mut next));
        let style_row = if self.table { images * 2 * c } else { 0 };
        let ([first, second], sizes) = operands_and_sizes(&found);
        launches.push(Launch {
            stem: "group_norm_apply",
            entry,
            threads: APPLY_THREADS as u32,
            grid: [grid(c.div_ceil(span)), grid(positions.div_ceil(part)), grid(images)],
            tensors: vec![x, behind, gamma, beta, style, step, first, second, y],
            scalars: [positions, c, self.groups, split, part, span]
                .map(Scalar::from)
                .into_iter()
                .chain(sizes)
                .chain([self.style.into(), style_row.into(), Activation::code(self.activation), self.eps.into()])
                .collect(),
            tiling: None,
            choice: Choice::new(Some([part, span]), "statistics are there"),
        });
        launches
    }
}

/// Operands of statistics, of which there are one or two, and their parts, channels and units.
fn operands_and_sizes(found: &[(Operand, Statistics)]) -> ([Operand; 2], [Scalar; 6]) {
    let second = found.get(1);
    let sizes = |of: Option<&(Operand, Statistics)>| {
        of.map_or([0, 0, 1], |(_, of)| [of.parts, of.channels, of.unit]).map(Scalar::from)
    };
    let ([a, b, c], [d, e, f]) = (sizes(found.first()), sizes(second));
    ([found[0].0, second.unwrap_or(&found[0]).0], [a, b, c, d, e, f])
}

impl GroupNorm {
    /// The input at which statistics begin.
    fn first_statistics(&self) -> usize {
        3 + usize::from(self.style)
    }

    /// Where `behind` is among the inputs; `step` is the last.
    fn behind_at(&self) -> usize {
        self.first_statistics() + self.statistics.len()
    }

    /// The same for an `x` in two parts, if the kernel reads two: the one that normalises with statistics.
    pub fn in_parts(&self) -> Option<GroupNorm> {
        let can = !self.statistics.is_empty() && !self.behind && !self.table;
        can.then(|| GroupNorm { behind: true, ..self.clone() })
    }

    /// The same with a table of styles, if the kernel reads one.
    pub fn with_table(&self) -> Option<GroupNorm> {
        let can = self.style && !self.statistics.is_empty() && !self.table;
        can.then(|| GroupNorm { table: true, ..self.clone() })
    }

    /// The channels of a group, if statistics of the input spare the kernels something. Without them they read an input
    /// whose groups do not fit into a block's shared memory twice, and have one block for each group of the others, which
    /// keeps few multiprocessors busy. In f32 the latter stay: their sums would have another order.
    pub fn wants_statistics(&self, output: &[usize], unit: MatmulUnit) -> Option<usize> {
        let group = self.group(output, unit);
        (unit.size_bytes() == 2 || group.chip().is_none()).then_some(group.members)
    }

    fn group(&self, output: &[usize], matmul: MatmulUnit) -> Group {
        let c = width(output);
        let (members, positions) = (c / self.groups, elements(output) / (output[0] * c));
        let pairs = members.is_multiple_of(2);
        Group { members, positions, pairs, size: if pairs { matmul.size_bytes() } else { 4 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_group_and_fit_on_chip() {
        for (members, positions, size) in
            [(10, 65_536, 2), (10, 4096, 4), (20, 4096, 2), (1030, 3, 4), (4999, 1, 4), (513, 2, 2), (1, 1 << 20, 4)]
        {
            let group = Group { members, positions, size, pairs: members % 2 == 0 };
            let [part, span, parts] = group.parts();
            assert!(part * span * size <= SUMS.behind_sums(), "{members} {positions}");
            assert_eq!(positions.div_ceil(part), parts);
            assert!(span <= SUMS.threads && members % span == 0 && (!group.pairs || span % 2 == 0));
        }
    }
}
