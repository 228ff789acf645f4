//! What a small model was trained on: the things that `model_index.json` lists under `_engine_subjects`, each as its names
//! with commas between them, the commonest first.

use serde::Deserialize;
use unclip::Result;
use unclip::weights::Checkpoint;

/// Words that say nothing about what is in a picture.
const IDLE: [&str; 22] = [
    "a",
    "an",
    "the",
    "of",
    "on",
    "in",
    "with",
    "and",
    "picture",
    "drawing",
    "image",
    "icon",
    "emoji",
    "background",
    "red",
    "yellow",
    "green",
    "blue",
    "purple",
    "black",
    "white",
    "3d",
];

/// Things, each with its names, the commonest first. Empty for a model that does not say.
#[derive(Default)]
pub struct Known(pub Vec<Vec<String>>);

impl Known {
    /// # Errors
    /// `model_index.json` cannot be read, or lists something else.
    pub fn read(checkpoint: &Checkpoint) -> Result<Known> {
        #[derive(Deserialize)]
        struct Index {
            #[serde(default, rename = "_engine_subjects")]
            subjects: Vec<String>,
        }
        let things = checkpoint.json::<Index>("model_index.json")?.subjects;
        Ok(Known(things.iter().map(|names| names.split(", ").map(str::to_owned).collect()).collect()))
    }

    /// Everyday names, in the list's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|names| names.first().map(String::as_str))
    }

    /// Three prompts from different parts of the list.
    pub fn examples(&self) -> Vec<String> {
        let names: Vec<&str> = self.names().filter(|name| !name.ends_with('s') && !name.contains(' ')).collect();
        let pick = |part: usize| names.get(part * names.len() / 3);
        let article = |name: &&str| if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        (0..3).filter_map(pick).map(|name| format!("{} {name}", article(name))).collect()
    }

    /// Whether a prompt has words for things, and none of them is known.
    pub fn is_strange(&self, prompt: &str) -> bool {
        let mut words = words(prompt).peekable();
        let known =
            |word: String| self.0.iter().flatten().flat_map(|name| self::words(name)).any(|known| known == word);
        !self.0.is_empty() && words.peek().is_some() && !words.any(known)
    }
}

/// The words of a text that may name things, in the singular.
fn words(text: &str) -> impl Iterator<Item = String> {
    let all = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase);
    all.filter(|word| !IDLE.contains(&word.as_str())).map(|word| singular(&word))
}

/// Near enough for words to be found again.
fn singular(word: &str) -> String {
    let ending = ["sses", "xes", "ches", "shes"].into_iter().find(|ending| word.ends_with(ending));
    match word {
        _ if ending.is_some() => word[..word.len() - 2].to_owned(),
        _ if word.len() > 4 && word.ends_with("ies") => word[..word.len() - 3].to_owned() + "y",
        _ if word.len() > 3 && word.ends_with('s') && !word.ends_with("ss") => word[..word.len() - 1].to_owned(),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let things = [&["dog", "puppy", "dog face"][..], &["strawberry"], &["glasses"], &["fox"], &["umbrella"]];
        Known(things.map(|names| names.iter().map(|name| (*name).to_owned()).collect()).to_vec())
    }

    #[test]
    fn a_prompt_is_strange_if_all_its_things_are() {
        let known = known();
        for prompt in
            ["a dog", "Two PUPPIES", "strawberries", "foxes in glasses", "a red dog-house", "", "red", "a glass"]
        {
            assert!(!known.is_strange(prompt), "{prompt}");
        }
        for prompt in ["a spaceship", "кошка", "a red spaceship on a blue background", "hotdog"] {
            assert!(known.is_strange(prompt), "{prompt}");
        }
        assert!(!Known::default().is_strange("a spaceship"));
    }

    #[test]
    fn examples_come_from_all_over_the_list() {
        assert_eq!(known().examples(), ["a dog", "a strawberry", "a fox"]);
        assert!(Known::default().examples().is_empty());
    }
}
