//! A kernel in the form in which it runs: operands are numbers of registers, and everything that text can say about an
//! instruction is decided.
//!
//! Constants and special registers (`%tid.x`) are registers that are filled before the first instruction, so no
//! instruction asks what kind of operand it has.

/// Number of a register in the file of its size; 16-bit values live in the lower half of 32-bit registers.
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
    AddSingle,
    SubSingle,
    MulSingle,
    DivSingle,
    MinSingle,
    MaxSingle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Not,
    Negate,
    NegateSingle,
    AbsSigned,
    AbsSingle,
    PopulationCount,
    LeadingZeros,
    ReverseBits,
    Exp2,
    Log2,
    Reciprocal,
    ReciprocalRoot,
    Root,
    Sine,
    Cosine,
    HyperbolicTangent,
    SingleOfUnsigned,
    SingleOfSigned,
    /// Single precision to integers or integral numbers, with the rounding that comes first.
    UnsignedOfSingle(Rounding),
    SignedOfSingle(Rounding),
    IntegralSingle(Rounding),
    /// To the range from 0 to 1; a NaN becomes 0.
    Saturate,
    SingleOfHalf,
    HalfOfSingle,
    SingleOfBrain,
    BrainOfSingle,
    /// To 10 bits of fraction, ties away from zero.
    Tensor,
    /// The lower bits, or their sign or zeros above them.
    Low8,
    Low16,
    Sign8,
    Sign16,
    Move,
}

/// To an integral number.
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
    FusedSingle,
    /// `lop3` with its table.
    Logic(u8),
    /// `bfe.u32`
    Field,
    Permute,
    /// `cvt` of two numbers to one register, the first to the upper half.
    HalfPair,
    BrainPair,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// True also where one is a NaN: `equ`, `neu`, `ltu`, `leu`, `gtu`, `geu`.
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
pub(super) enum Number {
    Unsigned,
    Signed,
    Single,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logic {
    And,
    Or,
    Xor,
}

/// A number in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub bytes: u8,
    /// Whether a smaller number than its register has its sign repeated.
    pub signed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Global,
    Shared,
}

/// A register plus a fixed distance; shared addresses are in 32-bit registers, global ones in 64-bit registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub base: Reg,
    /// Whether the base is in a 64-bit register.
    pub wide: bool,
    pub offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Atomic {
    Add,
    AddSingle,
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

/// Element types of a matrix product's first two operands; sums are in single precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MatrixElement {
    Half,
    Brain,
    Tensor,
}

/// Which phase of an `mbarrier` is waited for: the last one of a parity, or that of a token from an arrival.
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
    /// Announces bytes, if any, then arrives.
    Arrive {
        token: Option<Reg>,
        count: Option<Reg>,
        bytes: Option<Reg>,
    },
    Expect {
        bytes: Reg,
    },
    /// `try_wait` suspends its thread, `test_wait` does not.
    Wait {
        suspends: bool,
        done: Reg,
        phase: Phase,
    },
}

/// Where a bulk copy has its global side.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outside {
    /// A tile of a tensor map, the innermost coordinate first.
    Tile { map: Reg, coordinates: Vec<Reg> },
    /// Bytes in a row.
    Row { at: Address, bytes: Reg },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Bulk {
    Load {
        to: Address,
        from: Outside,
        mbarrier: Address,
    },
    Store {
        to: Outside,
        from: Address,
    },
    Commit,
    /// Waits until so many groups are left, for their reads or for all of them.
    Wait(u32),
}

/// Where `wgmma` has its first operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Shared { descriptor: Reg, transposed: bool },
    Registers([Reg; 4]),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Multiply {
    pub element: MatrixElement,
    pub d: Vec<Reg>,
    pub a: Left,
    pub b: Reg,
    /// Whether the second operand has its columns in rows of memory.
    pub transposed: bool,
    /// Whether the product is added to `d`.
    pub adds: Reg,
    /// Whether the operands are negated.
    pub negated: [bool; 2],
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Product {
    Fence,
    Multiply(Multiply),
    Commit,
    /// Waits until so many groups are left.
    Wait(u32),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    Unary(Unary, Reg, Reg),
    Binary(Binary, Reg, Reg, Reg),
    Ternary(Ternary, Reg, Reg, Reg, Reg),
    /// 64-bit arithmetic; shifts take their distance from a 32-bit register.
    Binary64(Binary, Reg, Reg, Reg),
    MulAdd64(Reg, Reg, Reg, Reg),
    Unary64(Unary, Reg, Reg),
    /// 32 by 32 to 64 bits, plus a 64-bit register if there is one.
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
    /// Two registers to one of twice the size, or back.
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
        number: Number,
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
        cell: Cell,
        to: Vec<Option<Reg>>,
        at: Address,
    },
    Store {
        space: Space,
        cell: Cell,
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
        filled: Option<Reg>,
    },
    CommitAsync,
    /// How many groups may still be under way; none also waits for what was not committed.
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
    Matrix {
        element: MatrixElement,
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
    /// Orders memory; blocks of an emulated grid see each other's writes in order anyway.
    Fence,
    /// Between what threads write and what asynchronous work reads; without `data` for `mbarrier`s alone.
    ProxyFence {
        data: bool,
    },
    Mbarrier {
        what: Mbarrier,
        at: Address,
    },
    Bulk(Bulk),
    Product(Product),
    /// `setmaxnreg`
    Registers,
    Elect {
        lane: Option<Reg>,
        is: Reg,
        members: Reg,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Instruction {
    pub line: u32,
    /// A predicate, and whether it is negated.
    pub guard: Option<(Reg, bool)>,
    pub op: Op,
    /// 32-bit registers that it writes.
    pub targets: Vec<Reg>,
}

impl Op {
    /// Whether it is asynchronous work, or what belongs to that.
    pub fn is_asynchronous(&self) -> bool {
        matches!(self, Op::Mbarrier { .. } | Op::Bulk(_) | Op::Product(_))
    }
}

/// What fills a register before the first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preset {
    Constant(u64),
    Thread(u8),
    Threads(u8),
    Block(u8),
    Blocks(u8),
    Lane,
    Warp,
    /// Lanes before this one.
    LanesBelow,
}

/// A parameter's place among the bytes of all parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parameter {
    pub name: String,
    pub offset: u32,
    pub bytes: u32,
    /// Whether it is the 128 bytes of a tensor map.
    pub is_map: bool,
}

/// Where parameters have addresses, which only tensor maps need.
pub(super) const PARAMETERS: u64 = 0x8_0000_0000;
/// Bytes of a tensor map.
pub(super) const MAP_BYTES: u32 = 128;

/// An entry of a module, ready to run.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub(super) name: String,
    pub(super) threads: [u32; 3],
    pub(super) parameters: Vec<Parameter>,
    /// Most shared memory of a block on any device that runs it.
    pub(super) most_shared: u32,
    /// The address at which its shared memory begins.
    pub(super) shared_base: u32,
    pub(super) shared_bytes: u32,
    /// Where shared memory begins whose length a launch says.
    pub(super) dynamic: Option<u32>,
    pub(super) code: Vec<Instruction>,
    /// Whether it starts asynchronous work.
    pub(super) asynchronous: bool,
    /// Names of 32-bit, 64-bit and predicate registers, for messages.
    pub(super) names: [Vec<String>; 3],
    pub(super) presets: Vec<(Reg, Preset)>,
    pub(super) presets64: Vec<(Reg, u64)>,
}

impl Kernel {
    /// The entry's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.threads.iter().product()
    }

    /// Bytes that a block shares beside those that a launch asks for.
    pub fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }
}
