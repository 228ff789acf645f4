use super::launch::{grid, optional};
use super::{
    Activation, Choice, Launch, MatmulUnit, Operand, Operation, Scalar, Statistics, StorageRule, Tiles, Tiling, count,
    elements, require, width,
};

/// Normalises each group of channels of each image over all positions, then scales and shifts.
///
/// *Shapes* `x [N, .., C]`, `gamma [C]`, `beta [C]`, then `style [N, 2C]` if `style`, gives `[N, .., C]`. With
/// `statistics`, those of `x` follow: one value, or two for the two parts of a concatenation.
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
/// Entry points of the kernel that reads all elements again, and how many channels a thread owns there.
const APPLY: [(&str, usize); 2] = [("group_norm_apply_512x1", 1), ("group_norm_apply_512x4", 4)];
const APPLY_THREADS: usize = 512;
/// Positions of a thread there, and the fewest of a block, which first reads two floats for each of its channels.
const APPLY_POSITIONS: [usize; 2] = [4, 32];
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

impl Group {
    fn bytes(&self) -> usize {
        self.positions * self.members * self.size
    }

    /// The block that holds it.
    fn chip(&self) -> Option<&'static BlockSize> {
        BLOCK_SIZES.iter().find(|chip| chip.holds(self.members, self.bytes()))
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
        count(inputs, self.first_statistics() + self.statistics.len())?;
        let (x, c) = (inputs[0], width(inputs[0]));
        require(x.len() >= 2 && self.groups > 0 && c.is_multiple_of(self.groups), || {
            format!("group_norm: {c} channels of {x:?} cannot be divided into {} groups", self.groups)
        })?;
        require(inputs[1] == [c] && inputs[2] == [c], || {
            format!("group_norm: gamma {:?} and beta {:?} for {c} channels", inputs[1], inputs[2])
        })?;
        if self.style {
            require(inputs[3] == [x[0], 2 * c], || format!("group_norm: style {:?} for x {x:?}", inputs[3]))?;
        }
        Ok(x.to_vec())
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        5 * elements(output) as u64
    }

    fn storage_rule(&self, tensor: Operand) -> StorageRule {
        match tensor {
            Operand::Input(1 | 2) => StorageRule::F32,
            Operand::Input(i) if i >= self.first_statistics() => StorageRule::F32,
            _ => StorageRule::Storage,
        }
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let (images, c) = (output[0], width(output));
        let positions = elements(inputs[0]) / (images * c);
        let mut next = 3;
        let mut tensors: Vec<Operand> = (0..3).map(Operand::Input).collect();
        tensors.extend([optional(self.style, &mut next), Operand::Output(0)]);
        let mut scalars: Vec<Scalar> = [positions, c, self.groups].map(Scalar::from).to_vec();
        scalars.extend([self.style.into(), Activation::code(self.activation), self.eps.into()]);
        let grid = [grid(self.groups), grid(images), 1];
        let (stem, choice) = ("group_norm", Choice::new(None, "one block a group of an image"));
        vec![Launch { stem, entry: stem, threads: 256, grid, tensors, scalars, tiling: None, choice }]
    }

    /// One launch if a group fits into a block's shared memory. Otherwise three: (1) partial statistics, unless they are
    /// inputs; (2) scale and shift of each channel; (3) apply.
    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], unit: MatmulUnit) -> Vec<Launch> {
        let output = outputs[0];
        let (images, c) = (output[0], width(output));
        let group = self.group(output, unit);
        let Group { members, positions, .. } = group;
        let plain = self.wgsl(inputs, output, Tiles::Shared).remove(0);
        let on_chip =
            |chip: &BlockSize| Some(Tiling { walks: Vec::new(), shared_bytes: chip.shared_bytes, cluster: 1 });
        if let Some(chip) = group.chip() {
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
        let partial: Vec<(Operand, Statistics)> = if self.statistics.is_empty() {
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
        let factors = Operand::Scratch { first: scratch, count: 2 * images * c };
        let (first, second) = (partial[0], partial.get(1));
        let sizes = |partial: Option<&(Operand, Statistics)>| {
            partial.map_or([0, 0, 1], |(_, m)| [m.parts, m.channels, m.unit]).map(Scalar::from)
        };
        let merged = if self.statistics.is_empty() { "merges the parts" } else { "merges what matmuls left" };
        launches.push(Launch {
            stem: "group_norm_scale_shift",
            entry: "group_norm_scale_shift",
            tensors: vec![style, gamma, beta, first.0, second.map_or(x, |second| second.0), factors],
            scalars: [positions * members, c, self.groups]
                .map(Scalar::from)
                .into_iter()
                .chain(sizes(Some(&first)))
                .chain(sizes(second))
                .chain([self.style.into(), self.eps.into()])
                .collect(),
            choice: Choice::new(None, merged),
            ..plain.clone()
        });
        let (entry, wide) = APPLY[usize::from(c.is_multiple_of(APPLY[1].1))];
        let span = c.min(APPLY_THREADS * wide);
        let part = (APPLY_POSITIONS[0] * (APPLY_THREADS / (span / wide))).max(APPLY_POSITIONS[1]);
        launches.push(Launch {
            stem: "group_norm_apply",
            entry,
            threads: APPLY_THREADS as u32,
            grid: [grid(c.div_ceil(span)), grid(positions.div_ceil(part)), grid(images)],
            tensors: vec![x, factors, y],
            scalars: [positions, c, part, span]
                .map(Scalar::from)
                .into_iter()
                .chain([Activation::code(self.activation)])
                .collect(),
            tiling: None,
            choice: Choice::new(Some([part, span]), format!("channels a thread: {wide}")),
        });
        launches
    }
}

impl GroupNorm {
    /// The input at which statistics begin.
    fn first_statistics(&self) -> usize {
        3 + usize::from(self.style)
    }

    /// The channels of a group, if a group does not fit into a block's shared memory: the kernels then read their input
    /// twice unless they are given [`Statistics`] of it.
    pub fn wants_statistics(&self, output: &[usize], unit: MatmulUnit) -> Option<usize> {
        let group = self.group(output, unit);
        group.chip().is_none().then_some(group.members)
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
