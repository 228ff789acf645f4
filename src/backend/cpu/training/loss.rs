//! Losses, in f64: they are a small part of a step, and the variational bound takes differences of nearly equal numbers.

use crate::ops::training::{DiffusionLoss, HYBRID, LossPart, SquaredError};
use std::f64::consts::{FRAC_2_PI, LN_2};

pub fn squared(op: &SquaredError, inputs: &[&[f32]], shapes: &[&[usize]], out: &mut [f32]) {
    let (output, target) = (inputs[0], inputs[1]);
    let image = output.len() / shapes[0][0];
    let errors = output.iter().zip(target).map(|(y, t)| f64::from(*y) - f64::from(*t));
    match op.part {
        LossPart::Seed => {
            let factor = 2.0 / output.len() as f64;
            out.iter_mut().zip(errors).for_each(|(y, error)| *y = (factor * error) as f32);
        }
        LossPart::Values => {
            let squares: Vec<f64> = errors.map(|error| error * error).collect();
            let means = squares.chunks_exact(image).map(|image| image.iter().sum::<f64>() / image.len() as f64);
            out.iter_mut().zip(means).for_each(|(y, mean)| *y = mean as f32);
        }
    }
}

/// A timestep's row of coefficients.
struct Timestep {
    log_beta: f64,
    log_posterior: f64,
    kappa: f64,
    off: f64,
    first: bool,
}

/// Distance of a level of an 8-bit picture in [-1, 1] from the borders of what is rounded to it.
const HALF_LEVEL: f64 = 1.0 / 255.0;
/// Beyond this the level is the lowest or highest.
const OUTER_LEVEL: f64 = 0.999;
/// Least probability.
const LEAST: f64 = 1e-12;

/// The normal distribution function by tanh, and its slope.
fn normal(x: f64) -> (f64, f64) {
    let rate = FRAC_2_PI.sqrt();
    let inner = (rate * (x + 0.044_715 * x.powi(3))).tanh();
    (0.5 * (1.0 + inner), 0.5 * (1.0 - inner * inner) * rate * (1.0 + 3.0 * 0.044_715 * x * x))
}

impl Timestep {
    fn of(row: &[f32]) -> Timestep {
        let [log_beta, log_posterior, kappa, off, first] = std::array::from_fn(|i| f64::from(row[i]));
        Timestep { log_beta, log_posterior, kappa, off, first: first != 0.0 }
    }

    /// The bound of one element in bits, and its slope in the network's number `v`.
    fn bound(&self, x0: f64, error: f64, v: f64) -> (f64, f64) {
        let room = self.log_beta - self.log_posterior;
        let log_variance = (v + 1.0) / 2.0 * room + self.log_posterior;
        let (nats, slope) = if self.first {
            let (inverse, off) = ((-0.5 * log_variance).exp(), error * self.off);
            let (high, low) = (inverse * (off + HALF_LEVEL), inverse * (off - HALF_LEVEL));
            let ((above, rise), (below, fall)) = (normal(high), normal(low));
            let (probability, change) = match x0 {
                x if x < -OUTER_LEVEL => (above, rise * high),
                x if x > OUTER_LEVEL => (1.0 - below, -fall * low),
                _ => (above - below, rise * high - fall * low),
            };
            let slope = if probability > LEAST { 0.5 * change / probability } else { 0.0 };
            (-probability.max(LEAST).ln(), slope)
        } else {
            let ratio = (self.log_posterior - log_variance).exp();
            let distance = self.kappa * error * error * (-log_variance).exp();
            (0.5 * (-1.0 + log_variance - self.log_posterior + ratio + distance), 0.5 * (1.0 - ratio - distance))
        };
        (nats / LN_2, slope * room / 2.0 / LN_2)
    }
}

pub fn diffusion(op: &DiffusionLoss, inputs: &[&[f32]], shapes: &[&[usize]], out: &mut [f32]) {
    let [output, x0, noise, rows] = [0, 1, 2, 3].map(|i| inputs[i]);
    let images = shapes[1][0];
    let c = shapes[1][shapes[1].len() - 1];
    let image = x0.len() / images;
    let per_image = out.len() / images;
    for (n, out) in out.chunks_exact_mut(per_image).enumerate() {
        let timestep = Timestep::of(&rows[n * HYBRID..][..HYBRID]);
        let (mut square, mut bound) = (0.0, 0.0);
        for i in 0..image {
            let (position, channel) = (i / c, i % c);
            let at = (n * image / c + position) * 2 * c + channel;
            let error = f64::from(output[at]) - f64::from(noise[n * image + i]);
            let (bits, slope) = timestep.bound(f64::from(x0[n * image + i]), error, f64::from(output[at + c]));
            match op.part {
                LossPart::Values => (square, bound) = (square + error * error, bound + bits),
                LossPart::Seed => {
                    let count = x0.len() as f64;
                    out[position * 2 * c + channel] = (2.0 * error / count) as f32;
                    out[position * 2 * c + c + channel] = (slope / count) as f32;
                }
            }
        }
        if op.part == LossPart::Values {
            out[0] = (square / image as f64) as f32;
            out[1] = (bound / image as f64) as f32;
        }
    }
}
