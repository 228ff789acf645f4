//! `engine classify`: which of some labels fits a picture best.

use super::args::flagged;
use super::flags::{DeviceArguments, HOW, ModelArguments, OUTPUT, WHAT};
use super::given::{self, Given, ReadArguments};
use super::known::Known;
use super::progress::Progress;
use super::{opened, subject};
use clap::Args;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;
use unclip::pipeline::{Classifier, Classify, Score};
use unclip::{Error, Result};

pub const EXAMPLES: &str = "\
Examples:
  engine classify -i photo.png --labels cat,dog,\"a red car\"
  engine classify -i photos --labels-file labels.txt --csv > labels.csv
  engine classify -i photo.png --labels cat,dog --template \"a drawing of a {}\"
  engine classify -i out.png -m openai/clip-vit-large-patch14 --labels cat,dog

With a model that says what it knows, as the built-in one does, all of that are the labels where none are given. A label's direction is the mean of those of its texts, one for each template; its logit is the cosine between that and the picture's embedding, times the checkpoint's scale; probabilities are a softmax over all labels.";

#[derive(Debug, Args)]
pub struct ClassifyArguments {
    /// Picture, or folder of pictures, to classify; may be given several times
    #[arg(short, long, value_name = "FILE|DIR", required = true, num_args = 1.., help_heading = WHAT)]
    pub image: Vec<PathBuf>,
    /// What pictures may show, with commas between [default: what the model says that it knows]
    #[arg(short, long, value_name = "LABEL,..", value_delimiter = ',', allow_hyphen_values = true, help_heading = WHAT)]
    pub labels: Vec<String>,
    /// File with a label on each line; - is standard input
    #[arg(long, value_name = "FILE", help_heading = WHAT)]
    pub labels_file: Option<PathBuf>,
    /// Text for each label, which goes where {} is; several are averaged [default: a photo of a {}]
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = HOW)]
    pub template: Vec<String>,
    /// Factor of the cosines [default: the checkpoint's, or 100]
    #[arg(long, value_name = "FACTOR", help_heading = HOW)]
    pub scale: Option<f32>,
    #[command(flatten)]
    pub read: ReadArguments,
    #[command(flatten)]
    pub model: ModelArguments,
    #[command(flatten)]
    pub device: DeviceArguments,
    /// Labels that are reported of each picture, the best first
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..),
          help_heading = OUTPUT)]
    pub top: u32,
    /// Report in JSON, a picture a line
    #[arg(long, conflicts_with = "csv", help_heading = OUTPUT)]
    pub json: bool,
    /// Report in CSV, a label a line
    #[arg(long, help_heading = OUTPUT)]
    pub csv: bool,
    /// Results and errors only
    #[arg(short, long, help_heading = OUTPUT)]
    pub quiet: bool,
}

/// Classifies the pictures and prints the best labels of each.
///
/// # Errors
/// What is wrong with the labels, the pictures or the checkpoint, before anything is printed.
pub fn classify(arguments: &ClassifyArguments) -> Result<()> {
    let mut progress = Progress::new(false, arguments.quiet, false);
    let checkpoint = super::checkpoint(&arguments.model)?;
    let labels = labels(arguments, &Known::read(&checkpoint)?)?;
    let files = given::find("--image", &arguments.image)?;
    let check = |pipeline: &unclip::pipeline::Pipeline| pipeline.check_towers(true, true);
    let pipeline = opened::open(checkpoint, &arguments.model.adapters, &arguments.device, &progress, check)?;
    let classifier =
        pipeline.classifier(&labels, &mut opened::observer(&mut progress)).map_err(|error| flagged(error, &FLAGS))?;
    if !classifier.has_own_scale() {
        progress.note(&format!("logit scale {}, that of CLIP: the checkpoint has none", classifier.scale()));
    }
    let report = Report { arguments, classifier: &classifier, files: &files };
    super::print(report.header())?;
    let mut done = 0;
    given::in_batches(&files, &arguments.read.options(), |batch| {
        let scores = pipeline.classify(&classifier, &batch.images, &mut opened::observer(&mut progress))?;
        done += scores.len();
        let text: String =
            batch.numbers.iter().zip(&scores).map(|(&number, scores)| report.of(number, scores)).collect();
        super::print(&text)?;
        for (number, error) in &batch.failed {
            progress.passed_over(error);
            super::print(&report.failed(*number, error))?;
        }
        Ok(())
    })?;
    if done == 0 {
        return Err(Error::value("--image", arguments.image[0].display(), "no picture in it could be read"));
    }
    Ok(())
}

/// The labels that are given, or else what the model knows.
fn labels(arguments: &ClassifyArguments, known: &Known) -> Result<Classify> {
    let mut names: Vec<String> = arguments.labels.iter().map(|label| label.trim().to_owned()).collect();
    if let Some(path) = &arguments.labels_file {
        names.extend(subject::lines("--labels-file", path)?);
    }
    if names.is_empty() {
        names.extend(known.names().map(str::to_owned));
    }
    if names.is_empty() {
        return Err(Error::request("--labels", "missing; give what the pictures may show, with commas between"));
    }
    if let Some(template) = arguments.template.iter().find(|template| !template.contains("{}")) {
        return Err(Error::value("--template", format!("{template:?}"), "expected {} in it, where the label goes"));
    }
    let mut classify = Classify::new(names);
    if !arguments.template.is_empty() {
        classify = classify.templates(&arguments.template);
    }
    classify.scale = arguments.scale;
    classify.check().map_err(|error| flagged(error, &FLAGS))?;
    Ok(classify)
}

/// What the library calls a setting, and the flag that sets it.
const FLAGS: [(&str, &str); 2] = [("labels", "--labels"), ("logit scale", "--scale")];

/// How results are printed.
struct Report<'a> {
    arguments: &'a ClassifyArguments,
    classifier: &'a Classifier,
    files: &'a [Given],
}

impl Report<'_> {
    fn header(&self) -> &'static str {
        if self.arguments.csv { "picture,rank,label,probability,logit\n" } else { "" }
    }

    /// A picture that could not be read, for programs.
    fn failed(&self, number: usize, error: &Error) -> String {
        let picture = self.files[number].path.display().to_string();
        let line = || format!("{}\n", json!({ "picture": picture, "error": error.to_string() }));
        if self.arguments.json { line() } else { String::new() }
    }

    /// The best labels of a picture.
    fn of(&self, number: usize, scores: &[Score]) -> String {
        let picture = self.files[number].path.display().to_string();
        let best = &scores[..scores.len().min(self.arguments.top as usize)];
        let label = |score: &Score| self.classifier.labels()[score.label].as_str();
        if self.arguments.json {
            let scores = best
                .iter()
                .map(|score| json!({ "label": label(score), "probability": score.probability, "logit": score.logit }));
            return format!("{}\n", json!({ "picture": picture, "scores": scores.collect::<Vec<_>>() }));
        }
        let mut text = if self.arguments.csv { String::new() } else { format!("{picture}\n") };
        for (rank, score) in best.iter().enumerate() {
            _ = match self.arguments.csv {
                true => writeln!(
                    text,
                    "{},{},{},{},{}",
                    csv(&picture),
                    rank + 1,
                    csv(label(score)),
                    score.probability,
                    score.logit
                ),
                false => writeln!(text, "  {:6.2} %  {}", 100.0 * score.probability, label(score)),
            };
        }
        text
    }
}

/// A field of CSV (RFC 4180).
fn csv(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_csv_are_quoted_where_they_must_be() {
        assert_eq!(csv("a red car"), "a red car");
        assert_eq!(csv("cat, \"wild\""), "\"cat, \"\"wild\"\"\"");
    }
}
