//! What the checks find, and what is counted.

use std::fmt;

/// Which check stopped a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// An access outside of the launch's tensors or the block's shared memory.
    OutOfBounds,
    /// An access whose address is no multiple of its size.
    Misaligned,
    /// A write to a tensor that the launch only reads.
    ReadOnly,
    /// A read of memory that nobody wrote.
    UnwrittenMemory,
    /// A read of a register that was not written.
    UnwrittenRegister,
    /// Two threads used the same shared memory, one of them writing, with nothing to order them.
    SharedRace,
    /// An instruction for whole warps where only a part of one arrived.
    DivergentWarp,
    /// A barrier at which some threads never arrive, or a phase of an `mbarrier` that never ends.
    Barrier,
    /// A use of what `cp.async` or a bulk copy still brings, or an end with copies under way.
    MissingWait,
    /// Asynchronous work on shared memory that threads wrote without `fence.proxy.async` after it.
    MissingProxyFence,
    /// A write to shared memory that `wgmma` or a bulk store may still be reading.
    OperandInUse,
    /// A register that belongs to a `wgmma` whose group was not waited for.
    RegisterInUse,
    /// A `wgmma` on registers that were written after the last `wgmma.fence`.
    MissingFence,
    /// The warps of a warpgroup do not all come to the same instructions for warpgroups.
    Warpgroup,
    /// A matrix descriptor or tensor map that the hardware does not take, or a tile that is not aligned to its swizzle.
    Descriptor,
    /// An `mbarrier` that is none, or that is used against its rules.
    Mbarrier,
    /// More or fewer bytes come to an `mbarrier` than were announced.
    Transactions,
    /// Two blocks used the same global memory, one of them writing.
    GlobalRace,
    /// A warp that runs for longer than any kernel here could.
    Endless,
}

/// A stopped kernel: what was found, where, and who did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The entry's name.
    pub kernel: String,
    /// The line of its text.
    pub line: u32,
    /// The block.
    pub block: [u32; 3],
    /// The thread in it.
    pub thread: [u32; 3],
    /// The check that was not met.
    pub check: Check,
    /// One sentence.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { kernel, line, block, thread, check, detail } = self;
        write!(f, "{kernel}, line {line}, block {block:?}, thread {thread:?}: {check:?}: {detail}")
    }
}

/// A fault where only the lane is known yet.
#[derive(Debug)]
pub(super) struct Stop {
    pub lane: u32,
    pub check: Check,
    pub detail: String,
    /// File and number of a register that the message should name.
    pub register: Option<(usize, u16)>,
}

pub(super) type Outcome<T = ()> = Result<T, Box<Stop>>;

#[cold]
pub(super) fn stop<T>(lane: usize, check: Check, detail: impl Into<String>) -> Outcome<T> {
    Err(Box::new(Stop { lane: lane as u32, check, detail: detail.into(), register: None }))
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Instructions, one for all threads of a warp that ran it together.
    pub instructions: u64,
    /// Bytes that threads read of global memory.
    pub global_read_bytes: u64,
    /// Those of them that come from a cache by any reckoning: what was read of a tensor of at most 16 KiB beyond its size.
    pub cached_read_bytes: u64,
    /// Bytes that threads wrote to global memory.
    pub global_written_bytes: u64,
    /// Accesses to global memory, one for all threads of a warp.
    pub global_requests: u64,
    /// Pieces of 32 bytes that these touched.
    pub sectors: u64,
    /// Accesses to shared memory, one for all threads of a warp.
    pub shared_requests: u64,
    /// Further passes that these took because threads asked the same bank for different words.
    pub bank_conflicts: u64,
    /// Barriers of blocks, each counted once.
    pub barriers: u64,
}

impl Counters {
    /// Bytes that threads moved between the chip and global memory.
    pub fn moved_bytes(&self) -> u64 {
        self.global_read_bytes - self.cached_read_bytes + self.global_written_bytes
    }

    /// Sectors of a request on average: 4 where 32 threads read 128 bytes in a row.
    pub fn sectors_per_request(&self) -> f64 {
        self.sectors as f64 / self.global_requests.max(1) as f64
    }
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Counters) {
        self.instructions += other.instructions;
        self.global_read_bytes += other.global_read_bytes;
        self.cached_read_bytes += other.cached_read_bytes;
        self.global_written_bytes += other.global_written_bytes;
        self.global_requests += other.global_requests;
        self.sectors += other.sectors;
        self.shared_requests += other.shared_requests;
        self.bank_conflicts += other.bank_conflicts;
        self.barriers += other.barriers;
    }
}

impl std::iter::Sum for Counters {
    fn sum<I: Iterator<Item = Counters>>(all: I) -> Counters {
        all.fold(Counters::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}
