//! A report on every component of a checkpoint, broken ones included.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Checkpoint;
use crate::dtype::StoredDtype;
use crate::error::Result;

/// What [`inspect`] found about one component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComponentReport {
    /// Name of the component and its folder.
    pub name: String,
    /// Class named by `model_index.json`; empty when it names none.
    pub class: String,
    /// Number of floating-point weights.
    pub parameters: u64,
    /// Number of tensors of each type.
    pub dtypes: BTreeMap<StoredDtype, usize>,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The files that would be read, relative to the checkpoint.
    pub files: Vec<String>,
    /// Weight variant that would be read; `None` for plain files.
    pub variant: Option<String>,
    /// What was chosen that a user may not expect, a line each.
    pub warnings: Vec<String>,
    /// Why it would not load.
    pub problem: Option<String>,
}

/// Looks at every component that is `needed` or that `model_index.json` names, and at those of `optional` that are
/// there, sorted by name.
///
/// Headers and configurations are read, tensors are not. Whether the models find the tensors they need is not checked here.
pub fn inspect(checkpoint: &Checkpoint, needed: &[&str], optional: &[&str]) -> Vec<ComponentReport> {
    let more = optional.iter().filter(|name| checkpoint.has(name));
    let mut classes: BTreeMap<&str, &str> = needed.iter().chain(more).map(|name| (*name, "")).collect();
    classes.extend(checkpoint.classes());
    let report = |(name, class): (&str, &str)| {
        let mut report = ComponentReport { name: name.into(), class: class.into(), ..Default::default() };
        report.problem = look(checkpoint, &mut report).err().map(|e| e.to_string());
        report
    };
    classes.into_iter().map(report).collect()
}

fn look(checkpoint: &Checkpoint, report: &mut ComponentReport) -> Result<()> {
    let name = report.name.clone();
    checkpoint.require(&[&name])?;
    // Components without weights need settings in JSON; who uses them checks their content.
    // Names may have a prefix: `prior_tokenizer`.
    let settings = match name.rsplit_once('_').map_or(name.as_str(), |(_, last)| last) {
        "tokenizer" if checkpoint.has(&format!("{name}/tokenizer.json")) => &["tokenizer.json"][..],
        "tokenizer" => {
            let merges = format!("{name}/merges.txt");
            checkpoint.read(&merges)?;
            report.files.push(merges);
            &["vocab.json"]
        }
        "extractor" | "processor" => &["preprocessor_config.json"],
        "scheduler" => &["scheduler_config.json"],
        _ => &[],
    };
    for file in settings {
        let relative = format!("{name}/{file}");
        checkpoint.json::<serde_json::Map<String, Value>>(&relative)?;
        report.files.push(relative);
    }
    if !settings.is_empty() {
        return Ok(());
    }

    let component = checkpoint.component(&name)?;
    report.variant = component.variant().map(str::to_string);
    report.warnings = component.warnings().to_vec();
    report.bytes = component.total_bytes();
    for file in component.files() {
        let path = file.path().strip_prefix(checkpoint.path()).unwrap_or(file.path());
        report.files.push(path.display().to_string());
    }
    for (_, info) in component.tensors() {
        *report.dtypes.entry(info.dtype.clone()).or_default() += 1;
        if info.dtype.is_float() {
            report.parameters += info.elements() as u64;
        }
    }
    checkpoint.json::<serde_json::Map<String, Value>>(&format!("{name}/config.json"))?;
    Ok(())
}
