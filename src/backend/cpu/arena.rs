//! Trained values, their gradients and what an optimiser keeps of them, each in one flat piece of memory, so that an
//! optimisation step is a loop over all of them.
#![allow(unsafe_code)]

use super::lanes::{AlignedVec, LANES};
use super::simd::per_isa;
use super::{Isa, TASK_ELEMENTS};
use crate::backend::{TrainedPart, Update};
use crate::error::{Error, Result};
use crate::ops::elements;
use crate::plan::{Plan, ValueId};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;

/// Added to the norm that larger gradients are divided by, as torch does.
const CLIP_EPSILON: f64 = 1e-6;

/// All memory is of the same order; between values are zeros, which stay zero.
#[derive(Default)]
pub struct Arena {
    places: HashMap<ValueId, Range<usize>>,
    /// Step and the places that its output is added to.
    steps: HashMap<usize, Vec<Range<usize>>>,
    values: AlignedVec,
    gradients: AlignedVec,
    means: AlignedVec,
    squares: AlignedVec,
    /// Empty until an update asks for it.
    averages: AlignedVec,
}

impl Arena {
    /// Room for the trained values of a plan.
    pub fn of(plan: &Plan) -> Arena {
        let mut arena = Arena::default();
        let mut length = 0;
        for (_, id) in plan.trained() {
            let end = length + elements(plan.shape(id));
            arena.places.insert(id, length..end);
            length = end.next_multiple_of(LANES);
        }
        for (value, gradient) in &plan.gradients {
            let root = plan.root(*gradient);
            let step = plan.steps.iter().position(|step| step.output() == root).expect("a step writes each gradient");
            arena.steps.entry(step).or_default().push(arena.places[value].clone());
        }
        let memory = [&mut arena.values, &mut arena.gradients, &mut arena.means, &mut arena.squares];
        memory.into_iter().for_each(|part| *part = AlignedVec::zeros(length));
        arena
    }

    /// Bytes of all of it.
    pub fn size_bytes(&self) -> u64 {
        let parts = [&self.values, &self.gradients, &self.means, &self.squares, &self.averages];
        parts.into_iter().map(|part| size_of_val(&part[..]) as u64).sum()
    }

    /// A trained value.
    pub fn value(&self, id: ValueId) -> Option<&[f32]> {
        self.places.get(&id).map(|place| &self.values[place.clone()])
    }

    /// The gradients that the output of a step is added to.
    pub fn gradients_of(&self, step: usize) -> Vec<Range<usize>> {
        self.steps.get(&step).cloned().unwrap_or_default()
    }

    /// Adds to a gradient.
    pub fn accumulate(&mut self, place: Range<usize>, gradient: &[f32]) {
        let sum = &mut self.gradients[place];
        let chunks = sum.par_chunks_mut(TASK_ELEMENTS).zip(gradient.par_chunks(TASK_ELEMENTS));
        chunks.for_each(|(sum, gradient)| sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g));
    }

    /// A part of a trained value.
    pub fn part(&self, plan: &Plan, name: &str, part: TrainedPart) -> Result<&[f32]> {
        let place = self.place(plan, name)?;
        let of = match part {
            TrainedPart::Value => &self.values,
            TrainedPart::Gradient => &self.gradients,
            TrainedPart::Mean => &self.means,
            TrainedPart::Square => &self.squares,
            // Without updates the average is the value.
            TrainedPart::Average if self.averages.is_empty() => &self.values,
            TrainedPart::Average => &self.averages,
        };
        Ok(&of[place])
    }

    /// Sets a part of a trained value.
    pub fn write(&mut self, plan: &Plan, name: &str, part: TrainedPart, data: &[f32]) -> Result<()> {
        let place = self.place(plan, name)?;
        if place.len() != data.len() {
            let reason = format!("{} elements for {}", data.len(), place.len());
            return Err(Error::Shape { at: format!("{}, trained {name}", plan.name), reason });
        }
        let of = match part {
            TrainedPart::Value => &mut self.values,
            TrainedPart::Gradient => &mut self.gradients,
            TrainedPart::Mean => &mut self.means,
            TrainedPart::Square => &mut self.squares,
            TrainedPart::Average => {
                self.begin_averages();
                &mut self.averages
            }
        };
        of[place].copy_from_slice(data);
        Ok(())
    }

    fn place(&self, plan: &Plan, name: &str) -> Result<Range<usize>> {
        let id = plan.trained().find(|(known, _)| *known == name).map(|(_, id)| id);
        id.map(|id| self.places[&id].clone())
            .ok_or_else(|| Error::Shape { at: plan.name.clone(), reason: format!("the plan trains no tensor {name}") })
    }

    fn begin_averages(&mut self) {
        if self.averages.len() < self.values.len() {
            self.averages = AlignedVec::zeros(self.values.len());
            self.averages.copy_from_slice(&self.values);
        }
    }

    /// One optimisation step; returns the norm of all gradients before clipping.
    pub fn update(&mut self, isa: Isa, update: &Update) -> f32 {
        // Partial sums over chunks of one size, added in order: the same for any number of threads.
        let sums: Vec<f64> = self.gradients.par_chunks(TASK_ELEMENTS).map(|part| squares(isa, part)).collect();
        let norm = sums.iter().sum::<f64>().sqrt() / f64::from(update.batches);
        let clip = update.max_norm.map_or(1.0, |most| (most / (norm + CLIP_EPSILON)).min(1.0));
        let number = f64::from(update.number);
        let [first, second] = update.betas.map(|beta| 1.0 - beta.powf(number));
        let rates = Rates {
            clip: (clip / f64::from(update.batches)) as f32,
            keep: (1.0 - update.rate * update.decay) as f32,
            mean: (1.0 - update.betas[0]) as f32,
            square: [update.betas[1] as f32, (1.0 - update.betas[1]) as f32],
            step: (update.rate / first) as f32,
            root: second.sqrt() as f32,
            epsilon: update.epsilon as f32,
        };
        if update.average.is_some() {
            self.begin_averages();
        }
        let values = self.values.par_chunks_mut(TASK_ELEMENTS).zip(self.gradients.par_chunks_mut(TASK_ELEMENTS));
        let moments = self.means.par_chunks_mut(TASK_ELEMENTS).zip(self.squares.par_chunks_mut(TASK_ELEMENTS));
        values.zip(moments).for_each(|((p, g), (m, s))| adamw(isa, rates, p, g, m, s));
        self.gradients.fill(0.0);
        if let Some(decay) = update.average {
            let weight = (1.0 - decay) as f32;
            let chunks = self.averages.par_chunks_mut(TASK_ELEMENTS).zip(self.values.par_chunks(TASK_ELEMENTS));
            chunks.for_each(|(average, value)| {
                average.iter_mut().zip(value).for_each(|(a, p)| *a += weight * (p - *a));
            });
        }
        norm as f32
    }
}

/// The factors of an optimisation step, rounded once.
#[derive(Clone, Copy)]
pub struct Rates {
    /// Of gradients.
    clip: f32,
    /// What weight decay leaves of a value.
    keep: f32,
    /// What a gradient has in its mean.
    mean: f32,
    /// What the mean of squares keeps, and what a new square has in it.
    square: [f32; 2],
    /// The rate over the first moment's correction.
    step: f32,
    /// Root of the second moment's correction.
    root: f32,
    epsilon: f32,
}

per_isa! {
    /// AdamW of some elements.
    pub fn adamw(rates: Rates, p: &mut [f32], g: &[f32], m: &mut [f32], s: &mut [f32]) {
        let Rates { clip, keep, mean, square, step, root, epsilon } = rates;
        for (((p, g), m), s) in p.iter_mut().zip(g).zip(m).zip(s) {
            let g = g * clip;
            *m += mean * (g - *m);
            *s = square[0] * *s + square[1] * (g * g);
            *p = *p * keep - step * (*m / (s.sqrt() / root + epsilon));
        }
    }
}

per_isa! {
    /// The sum of squares.
    pub fn squares(values: &[f32]) -> f64 {
        let mut sums = [0.0f64; 16];
        let (chunks, rest) = values.as_chunks::<16>();
        for chunk in chunks {
            for j in 0..16 {
                let x = f64::from(chunk[j]);
                sums[j] += x * x;
            }
        }
        sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    }
}
