//! Memory whose first number begins a cache line: vectors of 64 bytes that straddle two lines are loaded at half the
//! speed.

use std::ops::{Deref, DerefMut};

/// How many numbers a cache line holds.
const LANES: usize = 16;

/// A cache line.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Numbers whose first one lies at a multiple of 64 bytes.
#[derive(Default)]
pub struct Aligned {
    lines: Vec<Line>,
    length: usize,
}

impl Aligned {
    /// That many zeros.
    pub fn zeros(length: usize) -> Aligned {
        Aligned { lines: vec![Line::default(); length.div_ceil(LANES)], length }
    }

    /// Makes it as long as asked; what is in it is of no meaning afterwards.
    pub fn reserve(&mut self, length: usize) {
        if self.lines.len() * LANES < length {
            self.lines = Vec::new();
            self.lines = vec![Line::default(); length.div_ceil(LANES)];
        }
        self.length = length;
    }
}

impl Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}
