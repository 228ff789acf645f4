//! Faults that the checks report, and counters of a launch.

use std::fmt;

/// The rule that a kernel broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// An access outside the launch's tensors or the block's shared memory.
    OutOfBounds,
    /// An access at an address that is not a multiple of its size.
    Misaligned,
    /// A write to a tensor that the launch only reads.
    ReadOnly,
    /// A read of memory that was never written.
    UnwrittenMemory,
    /// A read of a register that was never written.
    UnwrittenRegister,
    /// Unordered accesses of two threads to the same shared memory, at least one a write.
    SharedRace,
    /// A warp-wide instruction that only part of the warp executes.
    DivergentWarp,
    /// A barrier at which some threads never arrive, or an `mbarrier` phase that never completes.
    Barrier,
    /// A use of the destination of a `cp.async` or bulk copy in flight, or an exit with copies in flight.
    MissingWait,
    /// Asynchronous work on shared memory that a thread wrote without a later `fence.proxy.async`.
    MissingProxyFence,
    /// A write to shared memory that a `wgmma` or bulk store may still be reading.
    OperandInUse,
    /// A use of a register of a `wgmma` whose group was not waited for.
    RegisterInUse,
    /// A `wgmma` on registers written after the last `wgmma.fence`.
    MissingFence,
    /// The warps of a warpgroup execute different warpgroup instructions.
    Warpgroup,
    /// A matrix descriptor or tensor map that the hardware rejects, or a tile that is not aligned to its swizzle.
    Descriptor,
    /// An uninitialised `mbarrier`, or one used against its rules.
    Mbarrier,
    /// An `mbarrier` receives more or fewer bytes than announced by `expect_tx`.
    Transactions,
    /// Accesses of two blocks to the same global memory, at least one a write.
    GlobalRace,
    /// A warp that executes more instructions than any kernel here needs.
    Endless,
}

/// Why a kernel was stopped, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Name of the entry.
    pub kernel: String,
    /// Line in the PTX text.
    pub line: u32,
    /// Index of the block.
    pub block: [u32; 3],
    /// Index of the thread in the block.
    pub thread: [u32; 3],
    /// The broken rule.
    pub check: Check,
    /// What happened, in one sentence.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { kernel, line, block, thread, check, detail } = self;
        write!(f, "{kernel}, line {line}, block {block:?}, thread {thread:?}: {check:?}: {detail}")
    }
}

/// A fault before line, block and thread are filled in.
#[derive(Debug)]
pub(super) struct Stop {
    pub lane: u32,
    pub check: Check,
    pub detail: String,
    /// Register file and index of a register that the message names.
    pub register: Option<(usize, u16)>,
}

pub(super) type Outcome<T = ()> = Result<T, Box<Stop>>;

#[cold]
pub(super) fn stop<T>(lane: usize, check: Check, detail: impl Into<String>) -> Outcome<T> {
    Err(Box::new(Stop { lane: lane as u32, check, detail: detail.into(), register: None }))
}

/// Counters of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Warp instructions.
    pub instructions: u64,
    /// Bytes that threads read from global memory.
    pub global_read_bytes: u64,
    /// Part of `global_read_bytes` that is surely cached: repeated reads of tensors of at most 16 KiB.
    pub cached_read_bytes: u64,
    /// Bytes that threads wrote to global memory.
    pub global_written_bytes: u64,
    /// Warp accesses to global memory.
    pub global_requests: u64,
    /// 32-byte sectors of these accesses.
    pub sectors: u64,
    /// Warp accesses to shared memory.
    pub shared_requests: u64,
    /// Extra passes of these accesses, for different words in the same bank.
    pub bank_conflicts: u64,
    /// Completed block barriers.
    pub barriers: u64,
}

impl Counters {
    /// Bytes moved between the chip and global memory: reads, without the cached ones, and writes.
    pub fn moved_bytes(&self) -> u64 {
        self.global_read_bytes - self.cached_read_bytes + self.global_written_bytes
    }

    /// Average sectors per request: 4 if the 32 threads of a warp read 128 contiguous bytes.
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
