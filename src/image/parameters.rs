//! Settings as the text that image tools show.

/// The settings of a picture as image tools expect them, as the text
/// `parameters`.
///
/// Prompt, a line `Negative prompt: ...`, and a line of `Key: value` pairs, which readers recognise by three or more
/// pairs; customary keys are Steps, Sampler, CFG scale, Seed, Size, Model and Version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// What was asked for; may have several lines.
    pub prompt: String,
    /// What was asked not to be there; left out when empty.
    pub negative_prompt: String,
    /// Keys and values of the last line, in order.
    pub fields: Vec<(String, String)>,
}

impl Parameters {
    /// The text of the chunk. A value with a comma, a colon, a quote or a line break is written as a JSON string.
    pub fn text(&self) -> String {
        let mut text = self.prompt.clone();
        if !self.negative_prompt.is_empty() {
            text += "\nNegative prompt: ";
            text += &self.negative_prompt;
        }
        let quoted = |value: &str| match value.contains([',', ':', '"', '\n', '\r']) {
            true => serde_json::Value::from(value).to_string(),
            false => value.to_string(),
        };
        let fields: Vec<String> = self.fields.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
        if !fields.is_empty() {
            text += "\n";
            text += &fields.join(", ");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_quote_what_would_end_a_value() {
        let pairs = [("Steps", "25"), ("Model", "a, b: \"c\"\nd"), ("Size", "256x256"), ("Note", "é")];
        let parameters = Parameters {
            prompt: "a cat\non a mat".into(),
            negative_prompt: "dog".into(),
            fields: pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        };
        let want = "a cat\non a mat\nNegative prompt: dog\n\
                    Steps: 25, Model: \"a, b: \\\"c\\\"\\nd\", Size: 256x256, Note: é";
        assert_eq!(parameters.text(), want);
        let bare = Parameters { prompt: "a cat".into(), ..Default::default() };
        assert_eq!(bare.text(), "a cat");
    }
}
