//! A decoded kernel: instructions with register indices as operands.
//!
//! Constants and special registers (`%tid.x`) are registers filled before the first instruction, so an instruction
//! never distinguishes kinds of operands.

/// Index of a register in its register file. 16-bit values use the lower half of 32-bit registers.
pub(super) type Reg = u16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    MulLow,
    MulHighUnsigned,
    MulHighSigned,
    DivUnsigned,
    DivSigned,
    RemUnsigned,
    RemSigned,
    MinUnsigned,
    MinSigned,
    MaxUnsigned,
    MaxSigned,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRightUnsigned,
    ShiftRightSigned,
    AddF32,
    SubF32,
    MulF32,
    DivF32,
    MinF32,
    MaxF32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Not,
    Negate,
    NegateF32,
    AbsSigned,
    AbsF32,
    PopulationCount,
    LeadingZeros,
    ReverseBits,
    Exp2,
    Log2,
    Reciprocal,
    ReciprocalSqrt,
    Sqrt,
    Sine,
    Cosine,
    Tanh,
    F32FromU32,
    F32FromS32,
    /// f32 to integers, or to integral f32, with a rounding mode.
    U32FromF32(Rounding),
    S32FromF32(Rounding),
    RoundF32(Rounding),
    /// Clamp to [0, 1]; NaN becomes 0.
    Saturate,
    F32FromF16,
    F16FromF32,
    F32FromBf16,
    Bf16FromF32,
    /// Round to a 10-bit fraction, ties away from zero.
    Tf32FromF32,
    /// Keep the low bits, zero-extended or sign-extended.
    Low8,
    Low16,
    Sign8,
    Sign16,
    Move,
}

/// Rounding mode of a conversion to integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ternary {
    MulAdd,
    FmaF32,
    /// `lop3` with its truth table.
    Lop3(u8),
    /// `bfe.u32`
    BitField,
    Permute,
    /// `cvt` of two f32 to one register, the first to the upper half.
    F16Pair,
    Bf16Pair,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Also true if an operand is NaN: `equ`, `neu`, `ltu`, `leu`, `gtu`, `geu`.
    Unordered(Order),
    IsNumber,
    IsNan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CompareType {
    Unsigned,
    Signed,
    F32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logic {
    And,
    Or,
    Xor,
}

/// Element type of a load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ElementType {
    pub bytes: u8,
    /// Whether elements narrower than their register are sign-extended.
    pub signed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Global,
    Shared,
}

/// A base register plus a constant offset. Shared addresses are in 32-bit registers, global ones in 64-bit registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub base: Reg,
    /// Whether the base is a 64-bit register.
    pub wide: bool,
    pub offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Atomic {
    Add,
    AddF32,
    MinUnsigned,
    MinSigned,
    MaxUnsigned,
    MaxSigned,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shuffle {
    Index,
    Up,
    Down,
    Butterfly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// Element type of the A and B operands of `mma` and `wgmma`; accumulators are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MatrixType {
    F16,
    Bf16,
    Tf32,
}

/// The `mbarrier` phase of a wait: the latest of a parity, or the phase of an arrival's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Parity(Reg),
    Token(Reg),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mbarrier {
    Init {
        count: Reg,
    },
    Invalidate,
    /// Adds `bytes` to the expected transactions, if given, then arrives.
    Arrive {
        token: Option<Reg>,
        count: Option<Reg>,
        bytes: Option<Reg>,
    },
    Expect {
        bytes: Reg,
    },
    /// `try_wait` suspends the thread, `test_wait` does not.
    Wait {
        suspends: bool,
        done: Reg,
        phase: Phase,
    },
}

/// The global-memory side of a bulk copy.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum GlobalSide {
    /// A tile of a tensor map, the innermost coordinate first.
    Tile { map: Reg, coordinates: Vec<Reg> },
    /// Contiguous bytes.
    Bytes { at: Address, bytes: Reg },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Bulk {
    Load {
        to: Address,
        from: GlobalSide,
        mbarrier: Address,
    },
    Store {
        to: GlobalSide,
        from: Address,
    },
    Commit,
    /// Waits until at most this many groups are in flight.
    Wait(u32),
}

/// The A operand of `wgmma`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OperandA {
    Shared { descriptor: Reg, transposed: bool },
    Registers([Reg; 4]),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct MmaAsync {
    pub element: MatrixType,
    pub d: Vec<Reg>,
    pub a: OperandA,
    pub b: Reg,
    /// Whether B is MN-major in shared memory.
    pub transposed: bool,
    /// `scale-d`, a predicate: whether the result is added to `d` or replaces it.
    pub accumulate: Reg,
    /// `imm-scale-a` and `imm-scale-b` of -1.
    pub negated: [bool; 2],
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wgmma {
    Fence,
    MmaAsync(MmaAsync),
    Commit,
    /// Waits until at most this many groups are in flight.
    Wait(u32),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    Unary(Unary, Reg, Reg),
    Binary(Binary, Reg, Reg, Reg),
    Ternary(Ternary, Reg, Reg, Reg, Reg),
    /// 64-bit arithmetic; the shift amount is in a 32-bit register.
    Binary64(Binary, Reg, Reg, Reg),
    MulAdd64(Reg, Reg, Reg, Reg),
    Unary64(Unary, Reg, Reg),
    /// 32 x 32 to 64 bits, plus an optional 64-bit addend.
    MulWide {
        signed: bool,
        d: Reg,
        a: Reg,
        b: Reg,
        add: Option<Reg>,
    },
    Widen {
        signed: bool,
        d: Reg,
        a: Reg,
    },
    Narrow {
        d: Reg,
        a: Reg,
    },
    /// Two registers into one of twice the width, or back.
    Join64(Reg, [Reg; 2]),
    Split64([Option<Reg>; 2], Reg),
    Join32(Reg, [Reg; 2]),
    Split32([Option<Reg>; 2], Reg),
    Select {
        d: Reg,
        a: Reg,
        b: Reg,
        predicate: Reg,
        wide: bool,
    },
    SetPredicate {
        compare: Compare,
        compare_type: CompareType,
        wide: bool,
        d: Reg,
        not: Option<Reg>,
        a: Reg,
        b: Reg,
        with: Option<(Logic, Reg, bool)>,
    },
    PredicateLogic(Logic, Reg, Reg, Reg),
    PredicateNot(Reg, Reg),
    PredicateMove(Reg, Reg),
    Parameter {
        d: Reg,
        offset: u32,
        wide: bool,
    },
    Load {
        space: Space,
        element: ElementType,
        to: Vec<Option<Reg>>,
        at: Address,
    },
    Store {
        space: Space,
        element: ElementType,
        from: Vec<Reg>,
        at: Address,
    },
    Atomic {
        atomic: Atomic,
        space: Space,
        d: Option<Reg>,
        at: Address,
        a: Reg,
        b: Reg,
    },
    CopyAsync {
        to: Address,
        from: Address,
        bytes: u32,
        /// `src-size`; the rest of the destination becomes zero.
        source_bytes: Option<Reg>,
    },
    CommitAsync,
    /// Waits until at most this many groups are in flight; `None` waits for uncommitted copies too.
    WaitAsync(Option<u32>),
    Shuffle {
        shuffle: Shuffle,
        d: Reg,
        found: Option<Reg>,
        a: Reg,
        b: Reg,
        c: Reg,
        members: Reg,
    },
    Vote {
        vote: Vote,
        d: Reg,
        a: Reg,
        negated: bool,
        members: Reg,
    },
    Reduce {
        with: Binary,
        d: Reg,
        a: Reg,
        members: Reg,
    },
    ActiveMask(Reg),
    LoadMatrix {
        to: Vec<Reg>,
        transposed: bool,
        at: Address,
    },
    StoreMatrix {
        from: Vec<Reg>,
        transposed: bool,
        at: Address,
    },
    Mma {
        element: MatrixType,
        depth: u8,
        d: [Reg; 4],
        a: [Reg; 4],
        b: [Reg; 2],
        c: [Reg; 4],
    },
    Branch(u32),
    Exit,
    Barrier {
        id: Reg,
        threads: Option<Reg>,
        waits: bool,
        aligned: bool,
    },
    WarpBarrier(Reg),
    /// `barrier.cluster`
    ClusterBarrier(ClusterBarrier),
    /// `mapa`: the address `a` in the shared memory of another block of the cluster.
    MapRank {
        d: Reg,
        a: Reg,
        rank: Reg,
    },
    /// `ld.shared::cluster` of 32-bit elements.
    LoadCluster {
        element: ElementType,
        to: Vec<Option<Reg>>,
        at: Address,
    },
    /// A memory fence. No effect: emulated blocks see each other's writes in order.
    Fence,
    /// `fence.proxy.async`; without `data` it is `fence.mbarrier_init`, for `mbarrier`s only.
    ProxyFence {
        data: bool,
    },
    Mbarrier {
        what: Mbarrier,
        at: Address,
    },
    Bulk(Bulk),
    Wgmma(Wgmma),
    /// `setmaxnreg`
    Registers,
    Elect {
        lane: Option<Reg>,
        is: Reg,
        members: Reg,
    },
}

/// The two halves of a cluster barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClusterBarrier {
    /// Whether the warp's writes so far become visible to the other blocks.
    Arrive {
        releases: bool,
    },
    Wait,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Instruction {
    pub line: u32,
    /// A predicate, and whether it is negated.
    pub guard: Option<(Reg, bool)>,
    pub op: Op,
    /// 32-bit registers that the instruction writes.
    pub targets: Vec<Reg>,
}

impl Op {
    /// Whether the instruction belongs to Hopper's asynchronous ones.
    pub fn is_asynchronous(&self) -> bool {
        matches!(self, Op::Mbarrier { .. } | Op::Bulk(_) | Op::Wgmma(_))
    }
}

/// Value of a register before the first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preset {
    Constant(u64),
    Thread(u8),
    Threads(u8),
    Block(u8),
    Blocks(u8),
    Lane,
    Warp,
    /// Mask of the lanes below this one.
    LanesBelow,
}

/// A kernel parameter and its offset in the parameter space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parameter {
    pub name: String,
    pub offset: u32,
    pub bytes: u32,
    /// Whether the parameter is a tensor map (128 bytes).
    pub is_map: bool,
}

/// Generic address of the parameter space, needed for tensor maps.
pub(super) const PARAMETERS: u64 = 0x8_0000_0000;
/// Size of a tensor map.
pub(super) const MAP_BYTES: u32 = 128;

/// A decoded entry of a module.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub(super) name: String,
    pub(super) threads: [u32; 3],
    pub(super) parameters: Vec<Parameter>,
    /// Limit of shared memory per block on the smallest device that runs this kernel.
    pub(super) max_shared: u32,
    /// Address of the first byte of shared memory.
    pub(super) shared_base: u32,
    pub(super) shared_bytes: u32,
    /// Offset of dynamic shared memory, if the kernel declares any.
    pub(super) dynamic_shared: Option<u32>,
    pub(super) code: Vec<Instruction>,
    /// Whether it has Hopper's asynchronous instructions.
    pub(super) asynchronous: bool,
    /// Names of the 32-bit, 64-bit and predicate registers, for messages.
    pub(super) names: [Vec<String>; 3],
    pub(super) presets: Vec<(Reg, Preset)>,
    pub(super) presets64: Vec<(Reg, u64)>,
}

impl Kernel {
    /// The entry's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Threads per block.
    pub fn threads(&self) -> u32 {
        self.threads.iter().product()
    }

    /// Static shared memory of a block, in bytes.
    pub fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }
}
