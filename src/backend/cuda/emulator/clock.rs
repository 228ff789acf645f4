//! Who has seen what: the order that barriers, `mbarrier`s and waits make between the warps of a block and the units that
//! work for them.
//!
//! Time is counted in events that order something. Every agent has one row of times: for each other agent, up to when its
//! accesses come before whatever the row's owner does next. Agents are the warps and, in kernels that start asynchronous
//! work, for each warp the reads of its `wgmma`, for each warp the reads of its bulk stores, and for each `mbarrier` the
//! copies that it announces.
//!
//! A second table has the same rows for the asynchronous proxy, by which `wgmma` and bulk copies reach shared memory: what a
//! thread wrote the ordinary way is in it only once the thread has made `fence.proxy.async` after it. That the writers
//! make the fence, before they tell others, is what NVIDIA's programming guide asks for.

use super::warp::{LANES, Warp};

/// Most `mbarrier`s of a block.
pub(super) const MBARRIERS: usize = 32;

/// What an `mbarrier` hands on from those who arrive to those who wait.
#[derive(Clone, Default)]
pub(super) struct View {
    seen: Vec<u32>,
    proxied: Vec<u32>,
}

pub(super) struct Clock {
    pub now: u32,
    /// Rows of all warps.
    seen: Vec<u32>,
    proxied: Vec<u32>,
    /// The least in each row.
    oldest: Vec<u32>,
    /// Lanes that made a fence which not the whole warp made, and when.
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
    /// For a block of so many warps; `asynchronous` if its kernel starts asynchronous work.
    pub fn new(warps: usize, asynchronous: bool) -> Clock {
        let agents = if asynchronous { 3 * warps + MBARRIERS } else { warps };
        let rows = vec![0; warps * agents];
        let (oldest, fenced) = (vec![0; warps], vec![(0, 0); warps]);
        Clock { now: 1, proxied: rows.clone(), seen: rows, oldest, fenced, warps, agents }
    }

    pub fn warps(&self) -> usize {
        self.warps
    }

    /// The agent of the reads of a warp's `wgmma`.
    pub fn products_of(&self, warp: usize) -> usize {
        self.warps + warp
    }

    /// The agent of the reads of a warp's bulk stores.
    pub fn stores_of(&self, warp: usize) -> usize {
        2 * self.warps + warp
    }

    /// The agent of the copies that an `mbarrier` announces.
    pub fn copies_of(&self, mbarrier: usize) -> usize {
        3 * self.warps + mbarrier
    }

    /// The number of the `mbarrier` that announces what this agent writes.
    pub fn mbarrier_of(&self, agent: usize) -> Option<usize> {
        agent.checked_sub(3 * self.warps)
    }

    /// A moment that later accesses are after.
    pub fn tick(&mut self) -> u32 {
        self.now += 1;
        self.now - 1
    }

    /// Up to when warp `w` has seen what an agent did.
    pub fn seen(&self, w: usize, agent: usize) -> u32 {
        self.seen[w * self.agents + agent]
    }

    /// The least of what a warp has seen of all agents.
    pub fn oldest(&self, w: usize) -> u32 {
        self.oldest[w]
    }

    fn settle(&mut self, w: usize) {
        self.oldest[w] = self.seen[w * self.agents..][..self.agents].iter().copied().min().unwrap_or(0);
    }

    /// Warp `w` has seen all that warp `v` did up to `time`, and all that `v` had seen then.
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

    /// Warp `w` has seen what an agent did up to `time`.
    pub fn see_agent(&mut self, w: usize, agent: usize, time: u32) {
        let seen = &mut self.seen[w * self.agents + agent];
        *seen = (*seen).max(time);
        self.settle(w);
    }

    /// Warp `w` tells whoever will look at `view` what it has done and seen up to now.
    pub fn publish(&mut self, w: usize, view: &mut View) {
        let time = self.tick();
        let n = self.agents;
        view.seen.resize(n, 0);
        view.proxied.resize(n, 0);
        join(&mut view.seen, &self.seen[w * n..][..n]);
        join(&mut view.proxied, &self.proxied[w * n..][..n]);
        view.seen[w] = view.seen[w].max(time);
    }

    /// An agent that is no warp has worked up to `time`.
    pub fn publish_agent(&self, agent: usize, time: u32, view: &mut View) {
        view.seen.resize(self.agents, 0);
        view.proxied.resize(self.agents, 0);
        view.seen[agent] = view.seen[agent].max(time);
    }

    /// Warp `w` looks.
    pub fn adopt(&mut self, w: usize, view: &View) {
        let n = self.agents;
        join(&mut self.seen[w * n..][..n], &view.seen);
        join(&mut self.proxied[w * n..][..n], &view.proxied);
        self.settle(w);
    }

    /// `fence.proxy.async`: what these lanes wrote before, the asynchronous proxy sees too.
    pub fn fence_proxy(&mut self, w: &Warp, mask: u32) {
        let time = self.tick();
        if mask == w.running() {
            self.proxied[w.index * self.agents + w.index] = time;
        } else {
            self.fenced[w.index] = (mask, time);
        }
    }

    /// Whether asynchronous work that warp `w` starts sees what a thread wrote at that time.
    pub fn is_proxied(&self, w: usize, writer: u16, time: u32) -> bool {
        let (v, lane) = (usize::from(writer) / LANES, usize::from(writer) % LANES);
        let (mask, fenced) = self.fenced[w];
        time <= self.proxied[w * self.agents + v] || v == w && mask >> lane & 1 != 0 && time <= fenced
    }
}
