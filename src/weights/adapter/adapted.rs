//! Several adapters with a scale each, and the source of weights that they stand in.

use super::module::Change;
use super::{Adapter, Checkpoint};
use crate::dtype::{Dtype, StoredDtype};
use crate::error::{Error, Result};
use crate::plan::{StoredTensor, TensorData, WeightSource};
use crate::weights::{Component, few};
use half::{bf16, f16};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Adapters of a checkpoint, in the order in which they were given.
#[derive(Debug, Default)]
pub struct Adapters {
    used: Vec<(Adapter, f32)>,
    /// By component and tensor: the adapters' numbers, with what each changes.
    changes: BTreeMap<String, BTreeMap<String, Vec<(usize, Change)>>>,
    warnings: Vec<String>,
}

impl Adapters {
    /// Looks up what the adapters change in a checkpoint; each has a scale that multiplies its own.
    ///
    /// # Errors
    /// [`Error::WeightFile`] for an adapter that does not fit, or was made for another family; [`Error::Request`] for a scale
    /// that cannot be used.
    pub fn new(checkpoint: &Checkpoint, given: Vec<(Adapter, f32)>) -> Result<Adapters> {
        let mut adapters = Adapters::default();
        for (number, (adapter, _)) in given.iter().enumerate() {
            let fit = adapter.fit(checkpoint)?;
            if !fit.problems.is_empty() {
                return Err(adapter.refused(format!("does not fit {}: {}", checkpoint.name(), few(&fit.problems))));
            }
            adapters.warnings.extend(fit.warnings);
            for (component, tensors) in fit.changes {
                let of_component = adapters.changes.entry(component).or_default();
                for (tensor, change) in tensors {
                    of_component.entry(tensor).or_default().push((number, change));
                }
            }
        }
        adapters.used = given;
        adapters.check(&adapters.scales())?;
        Ok(adapters)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    /// The adapters with their scales.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Adapter, f32)> {
        self.used.iter().map(|(adapter, scale)| (adapter, *scale))
    }

    /// The scales.
    pub fn scales(&self) -> Vec<f32> {
        self.used.iter().map(|(_, scale)| *scale).collect()
    }

    /// What a user should know of them, a line each.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.warnings.iter().map(String::as_str)
    }

    /// Components and the tensors of each that are changed, whatever the scales.
    pub fn changed(&self) -> impl Iterator<Item = (&str, impl Iterator<Item = &str>)> {
        self.changes.iter().map(|(component, tensors)| (component.as_str(), tensors.keys().map(String::as_str)))
    }

    /// Sets the scales, and gives the tensors, by component, that are not any more what they were.
    ///
    /// # Errors
    /// [`Error::Request`] for another number of scales than there are adapters, and for a scale that cannot be used; nothing is
    /// changed then.
    pub fn set_scales(&mut self, scales: &[f32]) -> Result<BTreeMap<String, BTreeSet<String>>> {
        if scales.len() != self.used.len() {
            let reason = format!("expected one for each of {} adapters", self.used.len());
            return Err(Error::value("adapter scales", format!("{scales:?}"), reason));
        }
        self.check(scales)?;
        let is_other: Vec<bool> = self.used.iter().zip(scales).map(|((_, old), new)| old != new).collect();
        self.used.iter_mut().zip(scales).for_each(|((_, old), new)| *old = *new);
        let stale = |tensors: &BTreeMap<String, Vec<(usize, Change)>>| -> BTreeSet<String> {
            let is_stale = |changes: &[(usize, Change)]| changes.iter().any(|(number, _)| is_other[*number]);
            tensors.iter().filter(|(_, changes)| is_stale(changes)).map(|(tensor, _)| tensor.clone()).collect()
        };
        let all = self.changes.iter().map(|(component, tensors)| (component.clone(), stale(tensors)));
        Ok(all.filter(|(_, tensors)| !tensors.is_empty()).collect())
    }

    /// Refuses scales that are no numbers, and DoRA with another scale than 1 or beside other changes of the same tensor: its
    /// norm is that of everything together, so the order would matter.
    fn check(&self, scales: &[f32]) -> Result<()> {
        for ((adapter, _), scale) in self.used.iter().zip(scales) {
            if !scale.is_finite() {
                return Err(Error::value("adapter scale", scale, format!("{}: expected a number", adapter.name())));
            }
        }
        for (tensor, changes) in self.changes.values().flatten() {
            let Some((number, _)) = changes.iter().find(|(_, change)| change.is_dora()) else { continue };
            let (adapter, scale) = (&self.used[*number].0, scales[*number]);
            if scale != 1.0 {
                let reason = format!("{}: DoRA has no scale but 1: it sets norms (tensor {tensor})", adapter.name());
                return Err(Error::value("adapter scale", scale, reason));
            }
            if let Some((other, _)) = changes.iter().find(|(other, _)| other != number) {
                let other = self.used[*other].0.name();
                return Err(
                    adapter.refused(format!("DoRA sets norms and cannot stand beside {other} (tensor {tensor})"))
                );
            }
        }
        Ok(())
    }

    /// The component with the adapters in front of it.
    pub fn over<'a>(&'a self, component: &'a Component) -> Adapted<'a> {
        Adapted { component, adapters: self, changes: self.changes.get(component.name()) }
    }
}

/// A component as adapters change it.
#[derive(Clone, Copy)]
pub struct Adapted<'a> {
    component: &'a Component,
    adapters: &'a Adapters,
    changes: Option<&'a BTreeMap<String, Vec<(usize, Change)>>>,
}

impl<'a> Adapted<'a> {
    /// The component as it is stored.
    pub fn component(&self) -> &'a Component {
        self.component
    }

    /// Checks that neither the component's files nor the adapters' changed since they were opened.
    ///
    /// # Errors
    /// [`Error::Changed`] naming the file.
    pub fn check_unchanged(&self) -> Result<()> {
        self.component.check_unchanged()?;
        self.adapters.used.iter().try_for_each(|(adapter, _)| adapter.file.check_unchanged())
    }

    /// Whether an adapter changes a tensor.
    pub fn is_changed(&self, tensor: &str) -> bool {
        !self.of(tensor).is_empty()
    }

    /// What changes a tensor, without adapters whose scale is 0.
    fn of(&self, tensor: &str) -> Vec<(&'a Adapter, f32, &'a Change)> {
        let changes = self.changes.and_then(|changes| changes.get(tensor)).into_iter().flatten();
        let with_scale = changes.map(|(number, change)| {
            let (adapter, scale) = &self.adapters.used[*number];
            (adapter, *scale, change)
        });
        with_scale.filter(|(_, scale, _)| *scale != 0.0).collect()
    }
}

impl WeightSource for Adapted<'_> {
    fn find(&self, tensor: &str) -> Option<(StoredDtype, Vec<usize>)> {
        self.component.find(tensor)
    }

    fn load(&self, tensor: &str) -> Result<TensorData<'_>> {
        let changes = self.of(tensor);
        let (Some(info), false) = (self.component.info(tensor), changes.is_empty()) else {
            return self.component.load(tensor);
        };
        let mut weight = self.component.f32s(tensor)?;
        for (adapter, scale, change) in changes {
            change.apply(&|tensor| adapter.read(tensor), scale, &mut weight, &info.shape)?;
        }
        Ok(match info.dtype {
            StoredDtype::Known(Dtype::F16) => TensorData::F16(weight.into_iter().map(f16::from_f32).collect()),
            StoredDtype::Known(Dtype::Bf16) => TensorData::Bf16(weight.into_iter().map(bf16::from_f32).collect()),
            _ => TensorData::F32(Cow::Owned(weight)),
        })
    }

    fn open(&self, tensor: &str) -> Result<StoredTensor<'_>> {
        if self.is_changed(tensor) { Ok(self.load(tensor)?.into()) } else { self.component.open(tensor) }
    }

    fn path(&self, tensor: &str) -> &Path {
        WeightSource::path(self.component, tensor)
    }
}
