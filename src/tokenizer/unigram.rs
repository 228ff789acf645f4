//! XLM-R's tokenizer: the most likely split of a text into pieces of a vocabulary (Kudo 2018), equal to transformers'
//! `XLMRobertaTokenizer`.
//!
//! Characters are normalised by the table that SentencePiece compiled; words, parted at white space, begin with a mark of
//! their own. As in transformers 5, `tokenizer.json` supplies vocabulary, table and added tokens only.

use super::{added_token, charsmap};
use crate::error::{Error, Result};
use crate::weights::Checkpoint;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

/// What a word begins with.
const MARK: char = '\u{2581}';
/// The vocabulary in SentencePiece's own form.
const SENTENCE_PIECE: &str = "sentencepiece.bpe.model";

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Value>,
    #[serde(default)]
    normalizer: Value,
    model: Value,
}

#[derive(Deserialize)]
struct Model {
    unk_id: Option<usize>,
    vocab: Vec<(String, f64)>,
}

/// Reads the tokenizer of a checkpoint's folder.
pub fn read(checkpoint: &Checkpoint, folder: &str) -> Result<tokenizers::Tokenizer> {
    let name = format!("{folder}/tokenizer.json");
    let path = checkpoint.path_of(&name);
    let refused = |reason: String| Error::config(&path, reason);
    if !checkpoint.has(&name) && checkpoint.has(&format!("{folder}/{SENTENCE_PIECE}")) {
        let reason = format!("no such file, and {SENTENCE_PIECE} is not read; transformers makes the one of the other");
        return Err(refused(reason));
    }
    let File { added_tokens, normalizer, model } = checkpoint.json(&name)?;
    match model.get("type").and_then(Value::as_str) {
        Some("Unigram") => {}
        found => return Err(refused(format!("model.type is {found:?}; expected \"Unigram\", XLM-R's"))),
    }
    let model = serde_json::from_value(model).map_err(|error| refused(format!("model: {error}")))?;
    let table = compiled(&normalizer).map(charsmap::read).transpose().map_err(refused)?;
    let added = added_tokens.iter().map(|token| added_token(token, false)).collect::<Result<_, _>>();
    let added = added.map_err(|reason| refused(format!("added_tokens: {reason}")))?;
    assemble(model, table, added).map_err(|error| refused(format!("cannot build the tokenizer: {error}")))
}

/// The table among the normalisers.
fn compiled(normalizer: &Value) -> Option<&str> {
    match normalizer.get("type").and_then(Value::as_str) {
        Some("Precompiled") => normalizer.get("precompiled_charsmap")?.as_str(),
        Some("Sequence") => normalizer.get("normalizers")?.as_array()?.iter().find_map(compiled),
        _ => None,
    }
}

fn assemble(
    model: Model,
    table: Option<Precompiled>,
    added: Vec<AddedToken>,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut inner = tokenizers::Tokenizer::new(Unigram::from(model.vocab, model.unk_id, false)?);
    inner.with_normalizer(table)?;
    let mark = || Metaspace::new(MARK, PrependScheme::Always, true);
    inner.with_pre_tokenizer(Some(Sequence::new(vec![WhitespaceSplit.into(), mark().into()])));
    inner.with_decoder(Some(mark()));
    inner.add_tokens(added)?;
    Ok(inner)
}
