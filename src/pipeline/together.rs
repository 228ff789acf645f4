//! Several requests in one run: the pictures of all of them are computed as one request's are.
//!
//! A picture's prompt, its negative prompt, its given picture and its noise are rows of the tensors that stages are given. What
//! is one for all rows, steps and sizes, has to be the same for all requests.

use super::Pipeline;
use super::event::Observer;
use super::request::{Request, Settings, Task};
use super::trace::Trace;
use crate::error::{Error, Result};
use crate::image::Image;
use std::mem::discriminant;

impl Pipeline {
    /// Whether the pictures of both requests can be computed together: both are of prompts or both of pictures, and differ in
    /// nothing but these, their negative prompts, seeds, counts, and scales of guidance that is on for both or for none.
    pub fn can_join(&self, a: &Request, b: &Request) -> bool {
        let joins = |request: &Request| {
            let alone = request.edit.is_some() || request.hint.is_some() || request.inversion.is_some();
            !alone && !matches!(request.task, Task::Blend(_))
        };
        // Scales are data; whether there is guidance is a matter of shapes.
        let shared = |request: &Request| {
            let settings = request.settings(self.defaults());
            let on = |scale: f32| f32::from(u8::from(scale > 1.0));
            Settings {
                prior_guidance: on(settings.prior_guidance),
                decoder_guidance: on(settings.decoder_guidance),
                ..settings
            }
        };
        joins(a)
            && joins(b)
            && discriminant(&a.task) == discriminant(&b.task)
            && shared(a) == shared(b)
            && (a.size, a.noise, a.noise_dtype, a.generator) == (b.size, b.noise, b.noise_dtype, b.generator)
            // Where the prior makes an embedding of it, a negative prompt is a row more.
            && a.negative.is_some() == b.negative.is_some()
            // Pictures with a text beside them may pass through the prior, all from one of its steps.
            && (a.text.is_some(), a.prior_strength) == (b.text.is_some(), b.prior_strength)
            // Where it begins from pictures, all rows begin at one step.
            && self.family.prior_strength(a) == self.family.prior_strength(b)
    }

    /// Makes the pictures of several requests together: those of the first, then those of the second. Each is the picture that
    /// its request gives alone, to the bit. With `previews` steps have guesses, as [`Pipeline::previews`] says, in this run.
    ///
    /// # Errors
    /// As for [`Pipeline::run`], and [`Error::Request`] for requests that [cannot be joined](Pipeline::can_join).
    pub fn run_together(
        &self,
        requests: &[Request],
        previews: Option<usize>,
        observer: &mut Observer<'_>,
    ) -> Result<Vec<Image>> {
        let Some((first, others)) = requests.split_first() else { return Ok(Vec::new()) };
        if others.iter().any(|other| !self.can_join(first, other)) {
            return Err(Error::request("requests", "of different kinds, settings or sizes; run them one by one"));
        }
        others.iter().try_for_each(Request::check)?;
        let mut trace = Trace::off();
        let mut session = self.session(first, observer, &mut trace)?;
        session.previews = previews.map(|every| every.max(1)).or(session.previews);
        self.run_session(&mut session, requests)
    }
}
