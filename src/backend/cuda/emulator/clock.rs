//! Vector clocks: the happens-before order that barriers, `mbarrier`s and waits create within a block.
//!
//! Time advances with every synchronising event. Each warp has a row of times, one for each agent: the agent's accesses
//! up to that time happen before the warp's next access. The agents are the warps and, in kernels with asynchronous
//! work, the `wgmma` reads of each warp, the bulk-store reads of each warp, and the bulk copies of each `mbarrier`. An
//! agent other than a warp counts from its first access on.
//!
//! A second table has the same rows for the asynchronous proxy, through which `wgmma` and bulk copies access shared
//! memory. A thread's ordinary write is visible there only after the thread's own `fence.proxy.async`, as NVIDIA's
//! programming guide requires.

use super::warp::{LANES, Warp};

/// Limit of `mbarrier`s per block.
pub(super) const MBARRIERS: usize = 32;

/// The clock that an `mbarrier` passes from arriving to waiting threads.
#[derive(Clone, Default)]
pub(super) struct Snapshot {
    seen: Vec<u32>,
    proxied: Vec<u32>,
}

pub(super) struct Clock {
    pub now: u32,
    /// Rows of all warps for ordinary accesses.
    seen: Vec<u32>,
    /// Rows of all warps for the asynchronous proxy.
    proxied: Vec<u32>,
    /// Whether each agent may have accessed memory.
    acts: Vec<bool>,
    /// The minimum of each row of `seen` over the agents that act.
    oldest: Vec<u32>,
    /// Each warp's last proxy fence by only a part of its lanes: mask and time.
    fenced: Vec<(u32, u32)>,
    warps: usize,
    agents: usize,
}

fn join(own: &mut [u32], other: &[u32]) {
    for (own, other) in own.iter_mut().zip(other) {
        *own = (*own).max(*other);
    }
}

impl Clock {
    /// The clocks of a block of `warps` warps; `asynchronous` if its kernel has asynchronous work.
    pub fn new(warps: usize, asynchronous: bool) -> Clock {
        let agents = if asynchronous { 3 * warps + MBARRIERS } else { warps };
        let rows = vec![0; warps * agents];
        let (oldest, fenced) = (vec![0; warps], vec![(0, 0); warps]);
        let acts = (0..agents).map(|agent| agent < warps).collect();
        Clock { now: 1, proxied: rows.clone(), seen: rows, acts, oldest, fenced, warps, agents }
    }

    /// The agent of a warp's `wgmma` reads.
    pub fn wgmma_agent(&self, warp: usize) -> usize {
        self.warps + warp
    }

    /// The agent of a warp's bulk-store reads.
    pub fn store_agent(&self, warp: usize) -> usize {
        2 * self.warps + warp
    }

    /// The agent of the bulk copies that an `mbarrier` tracks.
    pub fn copy_agent(&self, mbarrier: usize) -> usize {
        3 * self.warps + mbarrier
    }

    /// The `mbarrier` that tracks this agent's bulk copies, if it is such an agent.
    pub fn mbarrier_of(&self, agent: usize) -> Option<usize> {
        agent.checked_sub(3 * self.warps)
    }

    /// Advances the time; returns the time of the event.
    pub fn tick(&mut self) -> u32 {
        self.now += 1;
        self.now - 1
    }

    /// Up to which time an agent's accesses happen before warp `w`'s next one.
    #[inline]
    pub fn seen(&self, w: usize, agent: usize) -> u32 {
        self.seen[w * self.agents + agent]
    }

    /// The minimum of [`Clock::seen`] over all agents that act.
    #[inline]
    pub fn oldest(&self, w: usize) -> u32 {
        self.oldest[w]
    }

    fn update_oldest(&mut self, w: usize) {
        let seen = self.seen[w * self.agents..][..self.agents].iter().zip(&self.acts);
        self.oldest[w] = seen.filter_map(|(&time, &acts)| acts.then_some(time)).min().unwrap_or(0);
    }

    /// An agent is about to access memory.
    #[inline]
    pub fn act(&mut self, agent: usize) {
        if !self.acts[agent] {
            self.acts[agent] = true;
            (0..self.warps).for_each(|w| self.update_oldest(w));
        }
    }

    /// Everything that happened before warp `v` at `time` now happens before warp `w`.
    pub fn see(&mut self, w: usize, v: usize, time: u32) {
        let n = self.agents;
        if w != v {
            for rows in [&mut self.seen, &mut self.proxied] {
                let (low, high) = rows.split_at_mut(w.max(v) * n);
                let (own, other) =
                    if w < v { (&mut low[w * n..][..n], &high[..n]) } else { (&mut high[..n], &low[v * n..][..n]) };
                join(own, other);
            }
        }
        self.see_agent(w, v, time);
    }

    /// An agent's accesses up to `time` now happen before warp `w`.
    pub fn see_agent(&mut self, w: usize, agent: usize, time: u32) {
        let seen = &mut self.seen[w * self.agents + agent];
        *seen = (*seen).max(time);
        self.update_oldest(w);
    }

    /// Release: joins warp `w`'s clock into `snapshot`.
    pub fn publish(&mut self, w: usize, snapshot: &mut Snapshot) {
        let time = self.tick();
        let n = self.agents;
        snapshot.seen.resize(n, 0);
        snapshot.proxied.resize(n, 0);
        join(&mut snapshot.seen, &self.seen[w * n..][..n]);
        join(&mut snapshot.proxied, &self.proxied[w * n..][..n]);
        snapshot.seen[w] = snapshot.seen[w].max(time);
    }

    /// Release by an agent that is not a warp, for its accesses up to `time`.
    pub fn publish_agent(&self, agent: usize, time: u32, snapshot: &mut Snapshot) {
        snapshot.seen.resize(self.agents, 0);
        snapshot.proxied.resize(self.agents, 0);
        snapshot.seen[agent] = snapshot.seen[agent].max(time);
    }

    /// Acquire: joins `snapshot` into warp `w`'s clock.
    pub fn adopt(&mut self, w: usize, snapshot: &Snapshot) {
        let n = self.agents;
        join(&mut self.seen[w * n..][..n], &snapshot.seen);
        join(&mut self.proxied[w * n..][..n], &snapshot.proxied);
        self.update_oldest(w);
    }

    /// `fence.proxy.async`: earlier writes of these lanes become visible to the asynchronous proxy.
    pub fn fence_proxy(&mut self, w: &Warp, mask: u32) {
        let time = self.tick();
        if mask == w.running() {
            self.proxied[w.index * self.agents + w.index] = time;
        } else {
            self.fenced[w.index] = (mask, time);
        }
    }

    /// Whether a thread's write at `time` is visible to asynchronous work that warp `w` starts.
    pub fn is_proxied(&self, w: usize, writer: u16, time: u32) -> bool {
        let (v, lane) = (usize::from(writer) / LANES, usize::from(writer) % LANES);
        let (mask, fenced) = self.fenced[w];
        time <= self.proxied[w * self.agents + v] || v == w && mask >> lane & 1 != 0 && time <= fenced
    }
}
