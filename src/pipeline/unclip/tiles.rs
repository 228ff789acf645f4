//! Super-resolution alone: a picture of any size, in tiles.

use super::{SUPER_RES_FIRST, SUPER_RES_LAST, UnClip};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::noise::NoiseSource;
use crate::ops::Noise;
use crate::pipeline::enlarge::Enlarge;
use crate::pipeline::event::{Latents, Stage};
use crate::pipeline::family::Shapes;
use crate::pipeline::parts::time_table;
use crate::pipeline::sampling::Loop;
use crate::pipeline::session::Session;
use crate::pipeline::tiles::{Axis, add, cut, cut_planes};
use crate::pipeline::trace::channels_last;
use std::ops::Range;

/// An overlap of tiles is this part of their side.
const OVERLAP: usize = 4;
/// Shortest side of a tile, in units of its alignment.
const LEAST: usize = 4;

/// A picture and its tiles.
struct Tiled {
    /// `[H, W, 3]` in -1..1, repeated at its right and lower border up to what tiles are made of.
    small: Vec<f32>,
    /// Height and width of that.
    size: [usize; 2],
    /// Down and across.
    axes: [Axis; 2],
    /// Height and width of all tiles.
    tile: [usize; 2],
    times: usize,
}

impl UnClip {
    /// How much larger super-resolution makes the decoder's pictures.
    pub fn times(&self) -> usize {
        self.super_res_first.sample_size.unwrap_or(0) / self.decoder.sample_size.unwrap_or(1).max(1)
    }

    /// Enlarges a picture by the two networks, once or several times.
    pub fn enlarge_tiles(&self, session: &mut Session<'_, '_>, enlarge: &Enlarge) -> Result<Image> {
        let times = self.times();
        let passes = enlarge.passes(times)?;
        let first = self.tiles(&enlarge.image, enlarge)?;
        let sampling = self.super_res_loop(session, &first)?;
        let shapes = Shapes::sampling(1, 1, false, Noise::Given).at(first.tile);
        session.check(&[(SUPER_RES_FIRST, shapes), (SUPER_RES_LAST, shapes)])?;
        let mut noise = enlarge.noise();
        let mut image = self.enlarge_once(session, &first, &sampling, &mut noise, &enlarge.image)?;
        for _ in 1..passes {
            let tiled = self.tiles(&image, enlarge)?;
            let sampling = self.super_res_loop(session, &tiled)?;
            image = self.enlarge_once(session, &tiled, &sampling, &mut noise, &image)?;
        }
        Ok(image)
    }

    fn super_res_loop(&self, session: &Session<'_, '_>, tiled: &Tiled) -> Result<Loop> {
        let setting = ("super-resolution steps", session.settings.super_res_steps);
        let [height, width] = tiled.size.map(|side| side * tiled.times);
        Loop::new("super_res", &self.super_res_scheduler, setting, vec![height, width, 3], None, Noise::Given)
    }

    /// The side of tiles, and what they are a multiple of: the networks halve results of tiles, and all must be halved at the
    /// same places.
    pub fn checked_tile(&self, enlarge: &Enlarge) -> Result<[usize; 2]> {
        let halvings = self.super_res_first.halvings().max(self.super_res_last.halvings());
        let unit = (1usize << halvings).div_ceil(self.times().max(1)).next_power_of_two();
        let side = enlarge.tile.unwrap_or(self.decoder.sample_size.unwrap_or(0));
        if side < LEAST * unit || !side.is_multiple_of(unit) {
            return Err(Error::value("tile", side, format!("must be a multiple of {unit}, {} at least", LEAST * unit)));
        }
        Ok([side, unit])
    }

    /// Where a picture's tiles lie.
    fn tiles(&self, image: &Image, enlarge: &Enlarge) -> Result<Tiled> {
        let times = self.times();
        let [side, unit] = self.checked_tile(enlarge)?;
        let given = [image.height, image.width];
        let size = given.map(|length| length.next_multiple_of(unit).max(LEAST * unit));
        let tile = size.map(|length| side.min(length));
        let axis = |k: usize| Axis::new(size[k], tile[k], (tile[k] / OVERLAP).next_multiple_of(unit), unit, times);
        let unit_range = image.unit_range();
        let pixel = |y: usize, x: usize| &unit_range[3 * (y.min(given[0] - 1) * given[1] + x.min(given[1] - 1))..][..3];
        let small = (0..size[0]).flat_map(|y| (0..size[1]).flat_map(move |x| pixel(y, x))).copied().collect();
        Ok(Tiled { small, size, axes: [axis(0), axis(1)], tile, times })
    }

    /// All steps of a picture: the first network takes all but the last, the second takes that.
    fn enlarge_once(
        &self,
        session: &mut Session<'_, '_>,
        tiled: &Tiled,
        sampling: &Loop,
        noise: &mut NoiseSource,
        given: &Image,
    ) -> Result<Image> {
        let [height, width] = [sampling.shape[0], sampling.shape[1]];
        let mut drawn = vec![0.0; height * width * 3];
        noise.fill_normal(&mut drawn);
        let mut x = channels_last(&drawn, height * width, 3);
        let last = sampling.steps() - 1;
        let time = time_table(sampling, &self.super_res_first);
        self.tile_steps(session, SUPER_RES_FIRST, tiled, sampling, 0..last, &time, noise, &mut drawn, &mut x)?;
        let time = time_table(sampling, &self.super_res_last);
        self.tile_steps(session, SUPER_RES_LAST, tiled, sampling, last..last + 1, &time, noise, &mut drawn, &mut x)?;
        drop(drawn);
        let [rows, columns] = [given.height, given.width].map(|side| side * tiled.times);
        let mut pixels = Vec::with_capacity(3 * rows * columns);
        for row in x.chunks_exact(3 * width).take(rows) {
            pixels.extend(Image::from_unit_range(columns, 1, &row[..3 * columns])?.pixels);
        }
        Ok(Image { width: columns, height: rows, pixels })
    }

    /// Takes steps of the whole picture `x [H, W, 3]`: each tile by tile, blended before the next. `drawn` holds a draw.
    fn tile_steps(
        &self,
        session: &mut Session<'_, '_>,
        stage: Stage,
        tiled: &Tiled,
        sampling: &Loop,
        steps: Range<usize>,
        time: &[f32],
        noise: &mut NoiseSource,
        drawn: &mut [f32],
        x: &mut Vec<f32>,
    ) -> Result<()> {
        let [down, across] = [&tiled.axes[0], &tiled.axes[1]];
        let (width, small_width) = (sampling.shape[1], tiled.size[1]);
        let tiles: Vec<[usize; 2]> =
            (0..down.count()).flat_map(|row| (0..across.count()).map(move |column| [row, column])).collect();
        let shapes = Shapes::sampling(1, 1, false, Noise::Given).at(tiled.tile);
        let [time_width, row_width] = [time, &sampling.table(1, &[])].map(|table| table.len() / sampling.steps());
        let reports = steps.len() * tiles.len();
        session.stage(stage, shapes, 1, reports, |session, executable, _| {
            for step in steps.clone() {
                executable.write("time", &time[step * time_width..][..time_width])?;
                executable.write("coefficients", &sampling.table(1, &[])[step * row_width..][..row_width])?;
                if sampling.timesteps[step] > 0.0 {
                    noise.fill_normal(drawn);
                } else {
                    drawn.fill(0.0);
                }
                let mut next = vec![0.0; x.len()];
                for &at in &tiles {
                    let (rows, columns) = (down.span(at[0]), across.span(at[1]));
                    executable.write("small", &cut(&tiled.small, small_width, 3, rows, columns))?;
                    let (rows, columns) = (down.large_span(at[0]), across.large_span(at[1]));
                    executable.write("noise", &cut_planes(drawn, width, 3, rows.clone(), columns.clone()))?;
                    executable.run_once()?;
                    executable.write("x_t", &cut(x, width, 3, rows.clone(), columns.clone()))?;
                    executable.run_step(0)?;
                    let part = session.read(stage, executable, "x")?;
                    add(&mut next, width, 3, [down, across], at, &part);
                    let shape = [rows.len(), columns.len(), 3];
                    session.step_done(stage, Latents::new(&|| Ok(part.clone()), &shape))?;
                }
                *x = next;
            }
            Ok(())
        })
    }
}
