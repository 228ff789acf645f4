//! Which tensors of a checkpoint an adapter changes.

use super::module::{Change, changes};
use super::names::{Target, flat, nearest};
use super::peft::PeftConfig;
use super::{Adapter, Checkpoint, Stem, base};
use crate::error::Result;
use crate::weights::{Component, few};
use std::collections::{BTreeMap, BTreeSet};

/// How an adapter meets a checkpoint.
#[derive(Debug, Default)]
pub struct Fit {
    /// By component and tensor.
    pub(super) changes: BTreeMap<String, BTreeMap<String, Change>>,
    /// The modules that it changes.
    pub modules: Vec<Module>,
    /// What does not fit, a line each; an adapter with any is not used.
    pub problems: Vec<String>,
    /// What a user should know.
    pub warnings: Vec<String>,
}

/// A module that an adapter changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// The component; empty where no checkpoint was looked at.
    pub component: String,
    /// Its path in the component, or as the file has it.
    pub path: String,
    /// What kind of difference it is.
    pub kind: &'static str,
    /// Its rank, where it has one.
    pub rank: Option<usize>,
    /// The file's own scale, `alpha / r`.
    pub scale: f32,
}

impl Module {
    fn new(component: &str, path: &str, change: &Change) -> Module {
        let (component, path) = (component.to_owned(), path.to_owned());
        Module { component, path, kind: change.kind(), rank: change.rank(), scale: change.scale }
    }
}

/// A component's modules by their flat names.
struct Table {
    component: Component,
    modules: BTreeMap<String, String>,
}

impl Table {
    fn of(component: Component) -> Table {
        let flat = |path: &str| flat(path, component.name());
        let module = |name: &str| name.rsplit_once('.').map(|(path, _)| (flat(path), path.to_owned()));
        let modules = component.tensors().filter_map(|(name, _)| module(name)).collect();
        Table { component, modules }
    }

    /// The path of the module that a name means here.
    fn find(&self, target: &Target, stem: &Stem) -> Option<&str> {
        target
            .spellings(stem.naming, self.component.name())
            .iter()
            .find_map(|name| self.modules.get(name))
            .map(String::as_str)
    }

    /// Whether all changes fit a module's tensors.
    fn check(&self, path: &str, changes: &[Change]) -> Result<(), String> {
        changes.iter().try_for_each(|change| {
            let tensor = format!("{path}.{}", change.of.name());
            let info = self.component.info(&tensor).ok_or_else(|| format!("the base has no {tensor}"))?;
            if !info.dtype.is_float() {
                return Err(format!("the base has {tensor} in {}", info.dtype));
            }
            change.check(&info.shape)
        })
    }
}

/// The stems of a file behind one prefix.
type Group<'a> = Vec<(&'a str, &'a Stem, Target)>;

impl Adapter {
    /// The modules that the file changes, whatever the checkpoint; what is wrong with the file by itself is left out.
    pub fn modules(&self) -> Vec<Module> {
        let config = self.config.as_deref().and_then(|json| PeftConfig::read(json, "").ok());
        let of_stem = |(name, stem): (&String, &Stem)| {
            let target = Target::of(name, &[]);
            let config = config.as_ref().map(|config| (config, target.path.as_str()));
            let changes = changes(&stem.leaves, &stem.numbers, config).unwrap_or_default();
            changes.iter().map(|change| Module::new("", &target.path, change)).collect::<Vec<_>>()
        };
        self.stems.iter().flat_map(of_stem).collect()
    }

    /// What the file names as its base, if it does.
    pub fn base(&self) -> Option<String> {
        let config = self.config.as_deref().and_then(|json| PeftConfig::read(json, "").ok());
        base::named(self, config.as_ref())
    }

    /// Looks up every module in a checkpoint.
    ///
    /// # Errors
    /// The file names a base of another family, or says of itself what is not implemented. What fits no tensor is in
    /// [`Fit::problems`].
    pub fn fit(&self, checkpoint: &Checkpoint) -> Result<Fit> {
        let components: Vec<&str> = checkpoint.classes().map(|(name, _)| name).collect();
        let mut groups: BTreeMap<String, Group<'_>> = BTreeMap::new();
        for (name, stem) in &self.stems {
            let target = Target::of(name, &components);
            groups.entry(target.prefix.clone()).or_default().push((name, stem, target));
        }
        let mut fit = Fit::default();
        let mut tables: BTreeMap<&str, Option<Table>> = BTreeMap::new();
        let mut named = None;
        for (prefix, group) in &groups {
            let config = self.config.as_deref().map(|json| PeftConfig::read(json, prefix)).transpose();
            let config = config.map_err(|reason| self.refused(format!("its configuration: {reason}")))?;
            named = named.or_else(|| base::named(self, config.as_ref()));
            let candidates = group[0].2.candidates(&components);
            for name in &candidates {
                let open = || checkpoint.component(name).ok().map(Table::of);
                tables.entry(name).or_insert_with(open);
            }
            let candidates: Vec<(&str, &Table)> =
                candidates.into_iter().filter_map(|name| Some((name, tables[name].as_ref()?))).collect();
            fit.group(prefix, group, config.as_ref(), &candidates);
        }
        let mut names: Vec<String> = fit.changes.keys().map(|component| checkpoint.name_of(component)).collect();
        names.push(checkpoint.name());
        fit.warnings.extend(base::compare(self, named.as_deref(), &names, checkpoint.class_name())?);
        Ok(fit)
    }
}

impl Fit {
    /// Takes a group's changes into the component that most of its modules fit.
    fn group(&mut self, prefix: &str, group: &Group<'_>, config: Option<&PeftConfig>, candidates: &[(&str, &Table)]) {
        // Patterns of a configuration match paths with points, which the base's own names are.
        let changes_of = |stem: &Stem, path: &str| changes(&stem.leaves, &stem.numbers, config.map(|c| (c, path)));
        let fits = |table: &Table| {
            let one = |(_, stem, target): &&(&str, &Stem, Target)| {
                let Some(path) = table.find(target, stem) else { return false };
                changes_of(stem, path).is_ok_and(|changes| table.check(path, &changes).is_ok())
            };
            let named = group.iter().filter(|(_, stem, target)| table.find(target, stem).is_some()).count();
            (group.iter().filter(one).count(), named)
        };
        let counts: Vec<(usize, usize)> = candidates.iter().map(|(_, table)| fits(table)).collect();
        // The first of equals.
        let best = (0..counts.len()).rev().max_by_key(|&at| counts[at]).filter(|&at| counts[at].1 > 0);
        let Some(at) = best else {
            let names: Vec<&str> = group.iter().map(|(name, ..)| *name).collect();
            let known = candidates.iter().flat_map(|(_, table)| table.modules.keys().map(String::as_str));
            self.problems.push(match (candidates.is_empty(), nearest(&flat(&group[0].2.path, ""), known)) {
                (true, _) => format!("{}: the checkpoint has no part that {prefix:?} means", few(&names)),
                (_, Some(near)) => format!("{}: no such module; the nearest name is {near}", few(&names)),
                (_, None) => format!("{}: no such module", few(&names)),
            });
            return;
        };
        let (component, table) = candidates[at];
        let equals: Vec<&str> =
            (0..counts.len()).filter(|&other| counts[other] == counts[at]).map(|at| candidates[at].0).collect();
        if let [_, others @ ..] = &equals[..]
            && !others.is_empty()
        {
            self.warnings
                .push(format!("its names and shapes fit {} as well; {component} is changed", others.join(", ")));
        }
        let mut unknown = Vec::new();
        let mut met: BTreeSet<(String, &str)> = BTreeSet::new();
        for (name, stem, target) in group {
            let Some(path) = table.find(target, stem) else {
                let near = nearest(&flat(&target.path, component), table.modules.keys().map(String::as_str))
                    .unwrap_or_default();
                unknown.push(format!("{name} (nearest: {})", table.modules[near]));
                continue;
            };
            let changes = changes_of(stem, path).and_then(|changes| table.check(path, &changes).map(|()| changes));
            match changes {
                Err(reason) => self.problems.push(format!("{name}: {reason}")),
                Ok(changes) => {
                    for change in changes {
                        self.modules.push(Module::new(component, path, &change));
                        let tensor = format!("{path}.{}", change.of.name());
                        if !met.insert((tensor.clone(), component)) {
                            self.problems.push(format!("{name}: {tensor} is changed by another name, too"));
                        }
                        self.changes.entry(component.to_owned()).or_default().insert(tensor, change);
                    }
                }
            }
        }
        if !unknown.is_empty() {
            self.problems.push(format!("no such module in {component}: {}", few(&unknown)));
        }
    }
}
