//! The gradients of an operation's inputs, as operations: what [`Operation::backward`] leaves.

use super::{Op, Operation};

/// A tensor that a step of a gradient's rule reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An input of the differentiated step.
    Input(usize),
    /// Its output.
    Output,
    /// The gradient of its output.
    Gradient,
    /// What an earlier step of the rule has written.
    Made(usize),
}

/// A step of a rule.
#[derive(Clone, Debug)]
pub struct Made {
    /// What is done.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<Source>,
    /// The shape of what it writes.
    pub shape: Vec<usize>,
}

/// One step to be differentiated, and what its operation's rule has recorded so far.
pub struct Reverse<'a> {
    inputs: Vec<&'a [usize]>,
    output: &'a [usize],
    needed: Vec<bool>,
    made: Vec<Made>,
    gradients: Vec<(usize, Source)>,
}

impl<'a> Reverse<'a> {
    /// A step with these shapes, of whose inputs those that are `needed` want a gradient.
    pub fn new(inputs: Vec<&'a [usize]>, output: &'a [usize], needed: Vec<bool>) -> Reverse<'a> {
        Reverse { inputs, output, needed, made: Vec::new(), gradients: Vec::new() }
    }

    /// Whether an input wants a gradient.
    pub fn needs(&self, input: usize) -> bool {
        self.needed.get(input).is_some_and(|needed| *needed)
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs.len()
    }

    /// The shape of an input.
    pub fn shape(&self, input: usize) -> &'a [usize] {
        self.inputs[input]
    }

    /// Appends a step to the rule and returns what it writes.
    ///
    /// # Errors
    /// The shapes do not fit the operation.
    pub fn push(&mut self, op: impl Into<Op>, inputs: &[Source]) -> Result<Source, String> {
        let op = op.into();
        let shapes: Vec<&[usize]> = inputs.iter().map(|&source| self.shape_of(source)).collect();
        let shape = op.shape(&shapes)?;
        self.made.push(Made { op, inputs: inputs.to_vec(), shape });
        Ok(Source::Made(self.made.len() - 1))
    }

    /// Says what an input's gradient is.
    pub fn give(&mut self, input: usize, gradient: Source) {
        self.gradients.push((input, gradient));
    }

    /// Computes an input's gradient by one step, if it is needed.
    ///
    /// # Errors
    /// As for [`Reverse::push`].
    pub fn give_by(&mut self, input: usize, op: impl Into<Op>, inputs: &[Source]) -> Result<(), String> {
        if self.needs(input) {
            let gradient = self.push(op, inputs)?;
            self.give(input, gradient);
        }
        Ok(())
    }

    /// The rule's steps in order, and the gradient of each input that needs one.
    pub fn into_parts(self) -> (Vec<Made>, Vec<(usize, Source)>) {
        (self.made, self.gradients)
    }

    fn shape_of(&self, source: Source) -> &[usize] {
        match source {
            Source::Input(i) => self.inputs[i],
            Source::Output | Source::Gradient => self.output,
            Source::Made(i) => &self.made[i].shape,
        }
    }
}

/// The answer of an operation that training does not meet.
pub(super) fn no_rule(name: &str) -> Result<(), String> {
    Err(format!("{name}: there is no gradient of this operation"))
}
