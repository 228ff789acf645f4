use super::launch::{grid, optional};
use super::{
    Activation, Factors, Keep, Launch, Operand, Operation, Scalar, Tiles, Tiling, count, elements, require, width,
};

/// Normalises each group of channels of each image over all positions, then scales and shifts.
///
/// *Shapes* `x [N, .., C]`, `gamma [C]`, `beta [C]`, then `style [N, 2C]` if `style`, gives `[N, .., C]`.
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
}

/// A block of the PTX kernel that keeps a group in shared memory while its mean and variance are computed.
struct Chip {
    /// Entry points for threads that own single channels and pairs of them.
    entries: [&'static str; 2],
    threads: usize,
    shared_bytes: u32,
}

/// Four of the first run on a multiprocessor side by side; every architecture from 8.0 on gives a block as much as the
/// second asks for.
const CHIPS: [Chip; 2] = [
    Chip { entries: ["group_norm_512x1", "group_norm_512x2"], threads: 512, shared_bytes: 48 << 10 },
    Chip { entries: ["group_norm_1024x1", "group_norm_1024x2"], threads: 1024, shared_bytes: 96 << 10 },
];
/// The block of the kernel that computes means and squares of parts.
const SUMS: Chip =
    Chip { entries: ["group_norm_sums_512x1", "group_norm_sums_512x2"], threads: 512, shared_bytes: 48 << 10 };
const APPLY: [&str; 2] = ["group_norm_apply_512x1", "group_norm_apply_512x2"];

impl Chip {
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
    /// What one element takes in shared memory: pairs as they are, one alone in single precision.
    size: usize,
    /// Threads own pairs of channels.
    pairs: bool,
}

impl Group {
    /// Divides it for [`SUMS`]: positions and channels of a part, and the number of parts. All but the last are alike, and
    /// no larger than they have to be.
    fn parts(&self) -> [usize; 3] {
        let span = self.members.min(SUMS.threads);
        let parts = self.positions.div_ceil(SUMS.behind_sums() / (span * self.size));
        let part = self.positions.div_ceil(parts);
        [part, span, self.positions.div_ceil(part) * self.members.div_ceil(span)]
    }
}

impl Operation for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 3 + usize::from(self.style))?;
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

    fn keep(&self, tensor: Operand) -> Keep {
        if matches!(tensor, Operand::Input(1 | 2)) { Keep::Single } else { Keep::Storage }
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let (images, c) = (output[0], width(output));
        let positions = elements(inputs[0]) / (images * c);
        let mut next = 3;
        let mut tensors: Vec<Operand> = (0..3).map(Operand::Input).collect();
        tensors.extend([optional(self.style, &mut next), Operand::Output]);
        let mut scalars: Vec<Scalar> = [positions, c, self.groups].map(Scalar::from).to_vec();
        scalars.extend([self.style.into(), Activation::code(self.activation), self.eps.into()]);
        let grid = [grid(self.groups), grid(images), 1];
        vec![Launch { stem: "group_norm", entry: "group_norm", threads: 256, grid, tensors, scalars, tiling: None }]
    }

    /// One launch where a group fits into a block's shared memory, so that it is read once; otherwise one for means and
    /// squares of parts and one that reads all elements again.
    fn ptx(&self, inputs: &[&[usize]], output: &[usize], factors: Factors) -> Vec<Launch> {
        let (images, c) = (output[0], width(output));
        let (members, positions) = (c / self.groups, elements(inputs[0]) / (images * c));
        let pairs = members.is_multiple_of(2);
        let group = Group { members, positions, pairs, size: if pairs { factors.size_bytes() } else { 4 } };
        let plain = self.wgsl(inputs, output, Tiles::Shared).remove(0);
        let on_chip = |chip: &Chip| Some(Tiling { walks: Vec::new(), shared_bytes: chip.shared_bytes });
        if let Some(chip) = CHIPS.iter().find(|chip| chip.holds(members, positions * members * group.size)) {
            let entry = chip.entries[usize::from(group.pairs)];
            return vec![Launch { entry, threads: chip.threads as u32, tiling: on_chip(chip), ..plain }];
        }
        let [part, span, parts] = group.parts();
        let sums = Operand::Scratch(3 * images * self.groups * parts);
        let sizes = [positions, c, self.groups, part, span].map(Scalar::from);
        let launch = Launch {
            stem: "group_norm_sums",
            entry: SUMS.entries[usize::from(group.pairs)],
            threads: SUMS.threads as u32,
            grid: [grid(self.groups), grid(parts), grid(images)],
            tensors: vec![Operand::Input(0), sums],
            scalars: sizes.to_vec(),
            tiling: on_chip(&SUMS),
        };
        let [x, gamma, beta, style, y] = plain.tensors[..] else { unreachable!("so many tensors has the kernel") };
        let apply = Launch {
            stem: "group_norm_apply",
            entry: APPLY[usize::from(group.pairs)],
            tensors: vec![x, gamma, beta, style, sums, y],
            scalars: sizes.into_iter().chain(plain.scalars[3..].iter().copied()).collect(),
            tiling: None,
            ..launch.clone()
        };
        vec![launch, apply]
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
            assert_eq!(positions.div_ceil(part) * members.div_ceil(span), parts);
            assert!(span <= SUMS.threads && (!group.pairs || span % 2 == 0));
        }
    }
}
