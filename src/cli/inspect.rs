//! `engine inspect`: what a checkpoint is made of, and what would not load and why; or the settings of a picture, or what
//! an adapter changes.

use super::args::InspectArguments;
use super::known::Known;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use unclip::backend::cpu::Cpu;
use unclip::image;
use unclip::pipeline::{self, Pipeline, Settings};
use unclip::weights::{Adapter, Checkpoint, ComponentReport, LoadOptions};
use unclip::{Error, Result};

/// Prints one line per component.
///
/// # Errors
/// The first thing that would not load, after everything has been printed.
pub fn inspect(arguments: &InspectArguments) -> Result<()> {
    // What is named like a picture is meant as one, also if it is missing or something else.
    let is_meant = |path: &Path| image::Format::of(path).is_some() && !path.is_dir();
    if let Some(path) = arguments.model.as_deref().filter(|path| is_meant(path) || image::is_picture(path)) {
        return super::picture::inspect(path, arguments.json);
    }
    let options = LoadOptions { mmap: true, variant: arguments.variant.clone() };
    if let Some(path) = arguments.model.as_deref().filter(|path| Adapter::is_meant(path)) {
        let base = arguments.base.as_deref();
        let base =
            base.map(|base| super::open_with_prior(Some(base), arguments.prior.as_deref(), options)).transpose()?;
        return super::adapter::inspect(path, base.as_ref(), arguments.json);
    }
    if let Some(base) = &arguments.base {
        return Err(Error::value("--model", base.display(), "goes with an adapter; a checkpoint is named without it"));
    }
    let open = || super::open_with_prior(arguments.model.as_deref(), arguments.prior.as_deref(), options.clone());
    let checkpoint = open()?;
    let known = Known::read(&checkpoint)?;
    let mut reports = pipeline::inspect(&checkpoint)?;
    let models = check_models(open()?, &mut reports);
    let of_files = reports.iter().flat_map(|report| &report.warnings);
    of_files.chain(&models.warnings).for_each(|warning| eprintln!("engine: warning: {warning}"));
    super::print(&if arguments.json {
        format!("{}\n", as_json(&checkpoint, &reports, &models, &known))
    } else {
        table(&checkpoint, &reports, &models) + &listing(&known)
    })?;
    let broken: Vec<&str> = reports.iter().filter(|r| r.problem.is_some()).map(|r| r.name.as_str()).collect();
    match (broken.is_empty(), models.problem) {
        (false, _) => Err(Error::config(checkpoint.path(), format!("would not load: {}", broken.join(", ")))),
        (true, Some(problem)) => Err(Error::config(checkpoint.path(), format!("would not run: {problem}"))),
        _ => Ok(()),
    }
}

/// What the models say of their components.
#[derive(Default)]
struct Models {
    /// Tensors that no plan uses, by component.
    unused: BTreeMap<&'static str, Vec<String>>,
    /// Steps and guidance scales of a run that says nothing else, if there is a pipeline.
    defaults: Option<Settings>,
    /// What to know about the configurations, a line each.
    warnings: Vec<String>,
    /// Why the pipeline as a whole would not run, if no component is to blame.
    problem: Option<String>,
}

/// Records every stage's plan, which asks for every tensor by name and shape; complaints go to their component.
fn check_models(checkpoint: Checkpoint, reports: &mut [ComponentReport]) -> Models {
    let mut models = Models::default();
    if reports.iter().any(|r| r.problem.is_some()) {
        return models; // a pipeline needs all of them
    }
    if pipeline::is_prior(&checkpoint) {
        models
            .warnings
            .push("a prior alone: with a decoder's folder it makes pictures, see `engine run --prior`".into());
        return models;
    }
    let pipeline = match Cpu::new(1).and_then(|cpu| Pipeline::open(checkpoint, Box::new(cpu))) {
        Ok(pipeline) => pipeline,
        Err(error) => {
            models.problem = Some(error.to_string());
            return models;
        }
    };
    models.defaults = pipeline.makes_pictures().then(|| *pipeline.defaults());
    // Prior and image encoder may be missing, one of them.
    for stage in pipeline.stages().into_iter().filter(|stage| pipeline.checkpoint().has(stage.component())) {
        let found = pipeline.unused_tensors(stage);
        let report = reports.iter_mut().find(|r| r.name == stage.component());
        match (found, report) {
            (Ok(unused), _) if unused.is_empty() => {}
            (Ok(unused), _) => models.unused.entry(stage.component()).or_default().extend(unused),
            (Err(error), Some(report)) => report.problem = Some(error.to_string()),
            (Err(error), None) => models.problem = Some(error.to_string()),
        }
    }
    models.warnings = pipeline.warnings().into_iter().map(str::to_owned).collect();
    models
}

fn table(checkpoint: &Checkpoint, reports: &[ComponentReport], models: &Models) -> String {
    let mut text = format!("{} ({})\n", checkpoint.path().display(), checkpoint.class_name());
    let mut line = |name: &str, parameters: &str, size: &str, dtypes: &str, what: &str| {
        _ = writeln!(text, "{}", format!("{name:<20} {parameters:>13} {size:>11}  {dtypes:<10} {what}").trim_end());
    };
    line("component", "parameters", "MiB", "types", "files");
    for report in reports {
        let dtypes: Vec<String> = report.dtypes.keys().map(ToString::to_string).collect();
        let mib = report.bytes as f64 / f64::from(1 << 20);
        let (parameters, size) = match report.parameters {
            0 => (String::new(), String::new()),
            n => (n.to_string(), format!("{mib:.2}")),
        };
        line(&report.name, &parameters, &size, &dtypes.join(" "), &report.files.join(" "));
        if let Some(problem) = &report.problem {
            line("", "", "", "", &format!("would not load: {problem}"));
        }
        if let Some(unused) = models.unused.get(report.name.as_str()) {
            line("", "", "", "", &format!("not used: {}", unused.join(", ")));
        }
    }
    let (parameters, bytes) = totals(reports);
    line("total", &parameters.to_string(), &format!("{:.2}", bytes as f64 / f64::from(1 << 20)), "", "");
    if let Some(d) = &models.defaults {
        let steps =
            format!("prior {}, decoder {}, super-resolution {}", d.prior_steps, d.decoder_steps, d.super_res_steps);
        let guidance = format!("prior {}, decoder {}", d.prior_guidance, d.decoder_guidance);
        _ = writeln!(text, "\ndefault steps: {steps}; default guidance: {guidance}");
    }
    text
}

/// The things that a model knows, in lines that fit a terminal.
fn listing(known: &Known) -> String {
    let mut text = String::new();
    if !known.0.is_empty() {
        text += &format!("\nknows {} things:\n", known.0.len());
    }
    let mut column = 0;
    for (k, name) in known.names().enumerate() {
        let comma = if k + 1 < known.0.len() { "," } else { "\n" };
        let length = name.chars().count() + 2;
        if column + length > 100 {
            text += "\n";
            column = 0;
        }
        text += &format!("{}{name}{comma}", if column == 0 { "  " } else { " " });
        column += length;
    }
    text
}

fn totals(reports: &[ComponentReport]) -> (u64, u64) {
    reports.iter().fold((0, 0), |(p, b), r| (p + r.parameters, b + r.bytes))
}

fn as_json(checkpoint: &Checkpoint, reports: &[ComponentReport], models: &Models, known: &Known) -> serde_json::Value {
    let component = |r: &ComponentReport| {
        let dtypes: BTreeMap<String, usize> = r.dtypes.iter().map(|(dtype, n)| (dtype.to_string(), *n)).collect();
        json!({
            "name": r.name, "class": r.class, "parameters": r.parameters, "bytes": r.bytes, "dtypes": dtypes,
            "files": r.files, "variant": r.variant, "problem": r.problem,
            "warnings": r.warnings, "unused": models.unused.get(r.name.as_str()).cloned().unwrap_or_default(),
        })
    };
    let (parameters, bytes) = totals(reports);
    json!({
        "path": checkpoint.path().display().to_string(), "name": checkpoint.name(), "defaults": models.defaults,
        "subjects": known.0, "class": checkpoint.class_name(), "problem": models.problem,
        "parameters": parameters, "bytes": bytes, "components": reports.iter().map(component).collect::<Vec<_>>(),
    })
}
