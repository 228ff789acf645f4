//! Prompts to token ids: CLIP's byte-level byte-pair encoding, equal to transformers' `CLIPTokenizer`, and XLM-R's unigrams.
//!
//! The text is normalised (NFC, each run of white space to one space, lower case). Special tokens in it are split off,
//! and the rest is split into words, digits and runs of punctuation. The UTF-8 bytes of each word, with an end mark on
//! the last one, are merged pairwise by the rank of the pair in `merges.txt`. A begin and an end token enclose the
//! result, and padding fills it up to the models' length.
//!
//! The folder says which tokens are special. Published unCLIP checkpoints pad with `!`, so every exclamation mark of a
//! prompt becomes the padding token 0. That is kept: anything else would give other pictures than the original.
//!
//! Settings are read as transformers 5 reads them: `tokenizer.json` supplies vocabulary, merges and added tokens only;
//! `special_tokens_map.json` overrides `tokenizer_config.json` unless the latter has `added_tokens_decoder`.

mod charsmap;
mod unigram;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{self, Lowercase, NFC, Replace, replace::ReplacePattern};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::{self, byte_level::ByteLevel};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::error::{Error, Result};
use crate::model::text_encoder::Tokens;
use crate::weights::Checkpoint;

/// End-of-word mark of the vocabulary's entries.
const END_OF_WORD: &str = "</w>";
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// The tokens with a role, in the order in which they are registered.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const DEFAULTS: [(&str, &str); 4] = [
    ("bos_token", "<|startoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
    ("pad_token", "<|endoftext|>"),
];

/// The tokenizer of a checkpoint.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    context_length: usize,
    bos: u32,
    eos: u32,
    pad: u32,
}

impl Tokenizer {
    /// Reads a folder of the checkpoint, for models that take `context_length` tokens (the prior's
    /// `num_embeddings`, the text encoder's positions).
    ///
    /// # Errors
    /// [`Error::Config`] when a file is missing or damaged, `model_max_length` is another length, or padding or truncation
    /// is on the left.
    pub fn from_checkpoint(checkpoint: &Checkpoint, folder: &str, context_length: usize) -> Result<Tokenizer> {
        let path = checkpoint.path_of(folder);
        checkpoint.require(&[folder])?;
        let refused = |reason: String| Error::config(&path, reason);
        if context_length < 2 {
            return Err(refused(format!("the models take {context_length} tokens; expected at least 2")));
        }
        let files = Files::read(checkpoint, folder)?;
        let settings = Settings::read(checkpoint, folder, files.added).map_err(&refused)?;
        settings.check_length(context_length).map_err(&refused)?;
        check_merges(&files.vocab, &files.merges).map_err(&refused)?;

        let unknown = settings.content("unk_token");
        let inner = assemble(files.vocab, files.merges, unknown, settings.tokens(), settings.split_special)
            .map_err(|e| refused(format!("cannot build the tokenizer: {e}")))?;
        let id = |role: &str| {
            let token = settings.content(role);
            inner.token_to_id(&token).ok_or_else(|| refused(format!("{role}: {token:?} is not in the vocabulary")))
        };
        let (bos, eos, pad) = (id("bos_token")?, id("eos_token")?, id("pad_token")?);
        Ok(Tokenizer { inner, path, context_length, bos, eos, pad })
    }

    /// Reads a folder with the tokenizer of XLM-R, whose models take `context_length` tokens here.
    ///
    /// # Errors
    /// [`Error::Config`] when its `tokenizer.json` is missing or damaged, or is that of another tokenizer.
    pub fn multilingual(checkpoint: &Checkpoint, folder: &str, context_length: usize) -> Result<Tokenizer> {
        let path = checkpoint.path_of(folder);
        checkpoint.require(&[folder])?;
        let inner = unigram::read(checkpoint, folder)?;
        let id = |token: &str| {
            let missing = || Error::config(&path, format!("{token} is not in the vocabulary"));
            inner.token_to_id(token).ok_or_else(missing)
        };
        let (bos, eos, pad) = (id("<s>")?, id("</s>")?, id("<pad>")?);
        Ok(Tokenizer { inner, path, context_length, bos, eos, pad })
    }

    /// Length of [`Tokens::ids`].
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Number of ids: the text encoder's embedding table must have at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Encodes a prompt. If it is too long, the end is left out and quoted in [`Tokens::cut`].
    ///
    /// # Errors
    /// [`Error::Config`] when the vocabulary lacks both a part of the text and the unknown token.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        let failed = |e: tokenizers::Error| Error::config(&self.path, format!("cannot encode the prompt: {e}"));
        let encoding = self.inner.encode_fast(text, false).map_err(failed)?;
        let (kept, removed) = encoding.get_ids().split_at(encoding.len().min(self.context_length - 2));
        let cut = match removed {
            [] => None,
            _ => Some(self.decode(removed).map_err(failed)?),
        };
        let mut ids = Vec::with_capacity(self.context_length);
        ids.push(self.bos);
        ids.extend_from_slice(kept);
        ids.push(self.eos);
        let mut mask = vec![true; ids.len()];
        ids.resize(self.context_length, self.pad);
        mask.resize(self.context_length, false);
        Ok(Tokens { ids, mask, cut })
    }

    /// Ids to text: the vocabulary's lower-case words, a space after each.
    fn decode(&self, ids: &[u32]) -> tokenizers::Result<String> {
        let text = self.inner.decode(ids, false)?.replace(END_OF_WORD, " ");
        // Python's `strip` also removes the four separators of ASCII.
        Ok(text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)).to_string())
    }
}

/// The fixed steps of CLIP around a vocabulary.
fn assemble(
    vocab: Vocab,
    merges: Merges,
    unknown: String,
    tokens: Vec<AddedToken>,
    split_special: bool,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .unk_token(unknown)
        .end_of_word_suffix(END_OF_WORD.to_string())
        .build()?;
    let mut inner = tokenizers::Tokenizer::new(model);
    let white_space = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
    inner.with_normalizer(Some(normalizers::Sequence::new(vec![NFC.into(), white_space.into(), Lowercase.into()])))?;
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
    // The second split is GPT-2's. It only splits special names that are not registered in this spelling.
    let bytes = ByteLevel::new(false, true, true);
    inner.with_pre_tokenizer(Some(pre_tokenizers::sequence::Sequence::new(vec![words.into(), bytes.into()])));
    inner.with_decoder(Some(ByteLevel::default()));
    inner.add_tokens(tokens)?;
    inner.set_encode_special_tokens(split_special);
    Ok(inner)
}

/// The vocabulary: of `tokenizer.json` if there is one, as in transformers, else of the two older files.
struct Files {
    vocab: Vocab,
    merges: Merges,
    /// `added_tokens` of `tokenizer.json`.
    added: Vec<Value>,
}

impl Files {
    fn read(checkpoint: &Checkpoint, folder: &str) -> Result<Files> {
        let [unified_file, vocab_file, merges_file] =
            ["tokenizer.json", "vocab.json", "merges.txt"].map(|file| format!("{folder}/{file}"));
        if checkpoint.has(&unified_file) {
            #[derive(serde::Deserialize)]
            struct Unified {
                #[serde(default)]
                added_tokens: Vec<Value>,
                model: Model,
            }
            #[derive(serde::Deserialize)]
            struct Model {
                vocab: Vocab,
                merges: Vec<Pair>,
            }
            #[derive(serde::Deserialize)]
            #[serde(untagged)]
            enum Pair {
                Parts(String, String),
                Line(String),
            }
            let unified: Unified = checkpoint.json(&unified_file)?;
            let merge = |(i, pair)| match pair {
                Pair::Parts(a, b) => Ok((a, b)),
                Pair::Line(line) => merge(checkpoint, &unified_file, i, &line),
            };
            let merges = unified.model.merges.into_iter().enumerate().map(merge).collect::<Result<_>>()?;
            return Ok(Files { vocab: unified.model.vocab, merges, added: unified.added_tokens });
        }
        let vocab = checkpoint.json(&vocab_file)?;
        let bytes = checkpoint.read(&merges_file)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| Error::config(checkpoint.path_of(&merges_file), format!("expected text in UTF-8: {e}")))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version"));
        let merges = lines.map(|(i, line)| merge(checkpoint, &merges_file, i, line)).collect::<Result<_>>()?;
        Ok(Files { vocab, merges, added: Vec::new() })
    }
}

fn merge(checkpoint: &Checkpoint, file: &str, index: usize, line: &str) -> Result<(String, String)> {
    match line.split_once(' ') {
        Some((a, b)) if !b.contains(' ') => Ok((a.to_string(), b.to_string())),
        _ => {
            let reason = format!("merge {}: expected two parts with a space between, found {line:?}", index + 1);
            Err(Error::config(checkpoint.path_of(file), reason))
        }
    }
}

/// The `tokenizers` crate assumes that both parts of a merge and their concatenation are in the vocabulary.
fn check_merges(vocab: &Vocab, merges: &Merges) -> Result<(), String> {
    let mut whole = String::new();
    for (a, b) in merges {
        whole.clear();
        whole.push_str(a);
        whole.push_str(b);
        if let Some(missing) = [a, b, &whole].into_iter().find(|part| !vocab.contains_key(*part)) {
            return Err(format!("merge \"{a} {b}\": {missing:?} is not in the vocabulary"));
        }
    }
    Ok(())
}

/// The folder's special tokens and length.
struct Settings {
    /// Tokens registered by id, in front of those with a role.
    added: BTreeMap<u64, AddedToken>,
    /// Tokens with a role: a string, or an object with `content` and flags.
    roles: Map<String, Value>,
    /// Further special tokens without a role.
    extra: Vec<Value>,
    max_length: Option<f64>,
    split_special: bool,
}

impl Settings {
    fn read(checkpoint: &Checkpoint, folder: &str, added_tokens: Vec<Value>) -> Result<Settings, String> {
        let optional = |file: &str| -> Result<Option<Map<String, Value>>, String> {
            let relative = format!("{folder}/{file}");
            if !checkpoint.has(&relative) {
                return Ok(None);
            }
            checkpoint.json(&relative).map(Some).map_err(|e| match e {
                Error::Config { reason, .. } => format!("{file}: {reason}"),
                other => other.to_string(),
            })
        };
        let mut config = optional("tokenizer_config.json")?.unwrap_or_default();
        let max_length = config.get("model_max_length").and_then(Value::as_f64);
        let split_special = config.get("split_special_tokens") == Some(&Value::Bool(true));
        for side in ["padding_side", "truncation_side"] {
            match config.get(side).map(|v| v.as_str()) {
                None | Some(Some("right")) => {}
                _ => return Err(format!("tokenizer_config.json: {side}: expected \"right\", found {}", config[side])),
            }
        }

        let mut added = BTreeMap::new();
        if let Some(decoder) = config.remove("added_tokens_decoder") {
            for (id, token) in decoder.as_object().into_iter().flatten() {
                let id: u64 = id.parse().map_err(|_| format!("added_tokens_decoder: expected ids, found {id:?}"))?;
                added.insert(id, added_token(token, false)?);
            }
        } else {
            for (key, mut value) in optional("special_tokens_map.json")?.unwrap_or_default() {
                if let Some(flags) = value.as_object_mut() {
                    flags.insert("special".into(), Value::Bool(true));
                }
                config.insert(key, value);
            }
            for (token, id) in optional("added_tokens.json")?.unwrap_or_default() {
                let id = id.as_u64().ok_or_else(|| format!("added_tokens.json: {token:?}: expected an id"))?;
                let special = ROLES.iter().any(|r| config.get(*r).and_then(content) == Some(token.as_str()));
                added.insert(id, AddedToken::from(token, special));
            }
            for token in &added_tokens {
                let id = token.get("id").and_then(Value::as_u64);
                let id = id.ok_or("tokenizer.json: added_tokens: expected an id for each")?;
                added.insert(id, added_token(token, false)?);
            }
        }

        let extra = ["extra_special_tokens", "additional_special_tokens"].iter().find_map(|key| config.remove(*key));
        let extra = match extra {
            Some(Value::Array(tokens)) => tokens,
            Some(Value::Object(tokens)) => tokens.into_iter().map(|(_, token)| token).collect(),
            _ => Vec::new(),
        };
        let mut roles = config;
        roles.retain(|key, value| key.ends_with("_token") && content(value).is_some());
        for (role, token) in DEFAULTS {
            roles.entry(role).or_insert_with(|| token.into());
        }
        Ok(Settings { added, roles, extra, max_length, split_special })
    }

    fn content(&self, role: &str) -> String {
        self.roles.get(role).and_then(content).unwrap_or_default().to_string()
    }

    /// All tokens to register, in order; a later one with the same text replaces the flags of an earlier one.
    fn tokens(&self) -> Vec<AddedToken> {
        let named: Vec<&str> = self.roles.values().filter_map(content).collect();
        let mut tokens: Vec<AddedToken> = self.added.values().cloned().collect();
        for token in &mut tokens {
            token.special |= named.contains(&token.content.as_str());
        }
        let registered: Vec<String> = tokens.iter().map(|t| t.content.clone()).collect();
        let others = self.roles.iter().filter(|(role, _)| !ROLES.contains(&role.as_str())).map(|(_, token)| token);
        let in_order = ROLES.iter().filter_map(|role| self.roles.get(*role)).chain(others).chain(&self.extra);
        for value in in_order {
            // Not an error: roles were checked for `content` before, and an extra without text matches nothing.
            let Ok(token) = added_token(value, true) else { continue };
            if !registered.contains(&token.content) {
                tokens.push(token);
            }
        }
        tokens
    }

    fn check_length(&self, context_length: usize) -> Result<(), String> {
        match self.max_length {
            // transformers writes a huge value for "not given".
            Some(n) if n < 1e9 && n != context_length as f64 => {
                Err(format!("model_max_length: expected {context_length}, which the models take, found {n}"))
            }
            _ => Ok(()),
        }
    }
}

/// The text of a token given as a string or as an object.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

fn added_token(value: &Value, special: bool) -> Result<AddedToken, String> {
    let content = content(value).ok_or_else(|| format!("expected a token, found {value}"))?;
    let flag = |key: &str, default| value.get(key).and_then(Value::as_bool).unwrap_or(default);
    let special = special || flag("special", false);
    Ok(AddedToken {
        content: content.to_string(),
        single_word: flag("single_word", false),
        lstrip: flag("lstrip", false),
        rstrip: flag("rstrip", false),
        normalized: flag("normalized", !special),
        special,
    })
}
