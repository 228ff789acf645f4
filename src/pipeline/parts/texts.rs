//! Texts: tokenizer and text encoder.

use super::{recording, row};
use crate::backend::Executable;
use crate::error::{Error, Result};
use crate::model::multilingual;
use crate::model::text_encoder::{self, Tokens};
use crate::pipeline::event::Stage;
use crate::pipeline::family::{EncodedText, Seen, Shapes};
use crate::pipeline::request::{Prompt, Request};
use crate::pipeline::session::Session;
use crate::plan::{Plan, WeightSource};
#[cfg(feature = "tokenizer")]
use crate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;
use crate::weights::config::{Configured, Schema};
use std::sync::Arc;

/// A network that encodes texts.
pub trait Encoder: Schema {
    /// Tokens of a text, padding included.
    fn length(&self) -> usize;

    /// Number of different tokens.
    fn vocabulary(&self) -> usize;

    /// Reads the tokenizer in a checkpoint's folder.
    #[cfg(feature = "tokenizer")]
    fn tokenizer(&self, checkpoint: &Checkpoint, folder: &str) -> Result<Tokenizer>;

    /// Records the network.
    fn plan(&self, source: &dyn WeightSource, batch: usize, has_embedding: bool) -> Result<Plan>;

    /// Writes its inputs.
    fn write(&self, executable: &mut dyn Executable, tokens: &[Tokens], has_embedding: bool) -> Result<()>;
}

impl Encoder for text_encoder::Config {
    fn length(&self) -> usize {
        self.max_position_embeddings
    }

    fn vocabulary(&self) -> usize {
        self.vocab_size
    }

    #[cfg(feature = "tokenizer")]
    fn tokenizer(&self, checkpoint: &Checkpoint, folder: &str) -> Result<Tokenizer> {
        Tokenizer::from_checkpoint(checkpoint, folder, self.max_position_embeddings)
    }

    fn plan(&self, source: &dyn WeightSource, batch: usize, has_embedding: bool) -> Result<Plan> {
        text_encoder::plan(self, source, batch, has_embedding)
    }

    fn write(&self, executable: &mut dyn Executable, tokens: &[Tokens], has_embedding: bool) -> Result<()> {
        executable.write_u32("ids", &ids(tokens))?;
        if has_embedding {
            let pooled: Vec<u32> = tokens.iter().map(|t| self.pooled_position(&t.ids)).collect();
            executable.write_u32("pooled", &pooled)?;
        }
        Ok(())
    }
}

impl Encoder for multilingual::Config {
    fn length(&self) -> usize {
        multilingual::TOKENS
    }

    fn vocabulary(&self) -> usize {
        self.vocab_size
    }

    #[cfg(feature = "tokenizer")]
    fn tokenizer(&self, checkpoint: &Checkpoint, folder: &str) -> Result<Tokenizer> {
        Tokenizer::multilingual(checkpoint, folder, multilingual::TOKENS)
    }

    fn plan(&self, source: &dyn WeightSource, batch: usize, _: bool) -> Result<Plan> {
        multilingual::plan(self, source, batch)
    }

    fn write(&self, executable: &mut dyn Executable, tokens: &[Tokens], _: bool) -> Result<()> {
        executable.write_u32("ids", &ids(tokens))?;
        let positions: Vec<u32> = tokens.iter().flat_map(|t| self.positions(&t.ids)).collect();
        executable.write_u32("positions", &positions)?;
        let mask: Vec<f32> = tokens.iter().flat_map(mask).collect();
        executable.write("mask", &mask)
    }
}

fn ids(tokens: &[Tokens]) -> Vec<u32> {
    tokens.iter().flat_map(|t| &t.ids).copied().collect()
}

/// 1 for tokens that may be seen.
fn mask(tokens: &Tokens) -> impl Iterator<Item = f32> {
    tokens.mask.iter().map(|&seen| f32::from(u8::from(seen)))
}

/// What turns texts into embeddings.
pub struct Texts<C = text_encoder::Config> {
    pub stage: Stage,
    pub config: Configured<C>,
    /// Whether a text has an embedding beside the states of its tokens.
    has_embedding: bool,
    #[cfg(feature = "tokenizer")]
    tokenizer: Tokenizer,
}

impl<C: Encoder> Texts<C> {
    /// `tokenizer` is the tokenizer's folder.
    ///
    /// # Errors
    /// A folder is missing, or a configuration is damaged or not implemented.
    pub fn read(checkpoint: &Checkpoint, stage: Stage, tokenizer: &str) -> Result<Texts<C>> {
        let config: Configured<C> = checkpoint.config(&format!("{}/config.json", stage.name()))?;
        #[cfg(not(feature = "tokenizer"))]
        let _ = tokenizer;
        Ok(Texts {
            stage,
            #[cfg(feature = "tokenizer")]
            tokenizer: config.tokenizer(checkpoint, tokenizer)?,
            config,
            has_embedding: true,
        })
    }

    /// The same for an encoder that ends in the states of the tokens.
    pub fn without_embedding(self) -> Texts<C> {
        Texts { has_embedding: false, ..self }
    }

    /// Records the text encoder.
    pub fn record(&self, source: &dyn WeightSource, batch: usize) -> Result<Plan> {
        self.config.plan(source, batch, self.has_embedding)
    }

    /// Tokens of a text.
    pub fn length(&self) -> usize {
        self.config.length()
    }

    /// The tokens of prompts, and behind them those of the negative prompt, or of the empty one.
    pub fn tokens_with_negative(
        &self,
        session: &mut Session<'_, '_>,
        request: &Request,
        prompts: &[Prompt],
    ) -> Result<Vec<Tokens>> {
        let mut tokens = prompts.iter().map(|prompt| self.tokens(session, prompt)).collect::<Result<Vec<_>>>()?;
        tokens.push(match &request.negative {
            Some(negative) => self.tokens(session, negative)?,
            None => self.empty(session, request)?,
        });
        Ok(tokens)
    }

    /// A prompt's tokens; a run is told what is left out of a prompt that is too long.
    pub fn tokens(&self, session: &mut Session<'_, '_>, prompt: &Prompt) -> Result<Tokens> {
        let tokens = self.tokenize(prompt)?;
        if let Some(cut) = &tokens.cut {
            session.warn(&format!("the prompt is too long for {} tokens; left out: {cut}", tokens.ids.len()))?;
        }
        Ok(tokens)
    }

    fn tokenize(&self, prompt: &Prompt) -> Result<Tokens> {
        let length = self.length();
        let tokens = match prompt {
            #[cfg(feature = "tokenizer")]
            Prompt::Text(text) => self.tokenizer.encode(text)?,
            Prompt::Tokens(tokens) => tokens.clone(),
        };
        if tokens.ids.len() != length || tokens.mask.len() != length {
            let reason =
                format!("{} ids and {} mask entries; both must be {length}", tokens.ids.len(), tokens.mask.len());
            return Err(Error::request("tokens", reason));
        }
        let vocabulary = self.config.vocabulary();
        match tokens.ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(id) => {
                Err(Error::request("prompt", format!("token {id} lies beyond the model's vocabulary of {vocabulary}")))
            }
            None => Ok(tokens),
        }
    }

    /// The tokens of the empty prompt.
    #[cfg(feature = "tokenizer")]
    pub fn empty(&self, session: &mut Session<'_, '_>, _: &Request) -> Result<Tokens> {
        self.tokens(session, &Prompt::Text(String::new()))
    }

    /// The tokens of the empty prompt, which without a tokenizer the caller has to give.
    #[cfg(not(feature = "tokenizer"))]
    pub fn empty(&self, session: &mut Session<'_, '_>, request: &Request) -> Result<Tokens> {
        let reason = "missing; without a tokenizer guidance and variations need the tokens of the empty prompt";
        self.tokens(session, request.negative.as_ref().ok_or_else(|| Error::request("negative", reason))?)
    }

    /// Runs the text encoder.
    pub fn encode(&self, session: &mut Session<'_, '_>, tokens: &[Tokens]) -> Result<Vec<Arc<EncodedText>>> {
        let mut texts = Vec::new();
        self.run(session, tokens, |session, executable, tokens| {
            let mut read = |output| session.read(self.stage, executable, output);
            let embeds = if self.has_embedding { read("text_embeds")? } else { Vec::new() };
            let hidden = read("hidden")?;
            texts.extend(tokens.iter().enumerate().map(|(i, t)| {
                let of = |data: &[f32]| row(data, i, tokens.len()).to_vec();
                Arc::new(EncodedText { embeds: of(&embeds), hidden: of(&hidden), mask: mask(t).collect() })
            }));
            Ok(())
        })?;
        Ok(texts)
    }

    /// What a decoder reads for each prompt or given picture; of pictures of which nothing is `said`, the empty text. `names`
    /// are those in a trace.
    pub fn encode_seen(
        &self,
        session: &mut Session<'_, '_>,
        names: [&str; 2],
        request: &Request,
        said: &[Prompt],
    ) -> Result<Vec<Seen>> {
        let is_guided = session.settings.decoder_guidance > 1.0;
        let mut tokens = self.tokens_with_negative(session, request, said)?;
        if said.is_empty() {
            let empty = self.empty(session, request)?;
            tokens.splice(..0, vec![empty; request.subjects()]);
        }
        if !is_guided {
            tokens.pop();
        }
        let mut texts = self.encode(session, &tokens)?;
        recording::texts(session.trace, names, &texts, &tokens, is_guided);
        let unconditional = if is_guided { texts.pop() } else { None };
        Ok(texts.into_iter().map(|text| Seen { text, unconditional: unconditional.clone() }).collect())
    }

    /// Texts to embeddings `[D]` alone; states of tokens stay on the device.
    pub fn embed(&self, session: &mut Session<'_, '_>, tokens: &[Tokens]) -> Result<Vec<Vec<f32>>> {
        let mut embeds = Vec::new();
        self.run(session, tokens, |session, executable, tokens| {
            let found = session.read(self.stage, executable, "text_embeds")?;
            embeds.extend((0..tokens.len()).map(|i| row(&found, i, tokens.len()).to_vec()));
            Ok(())
        })?;
        Ok(embeds)
    }

    /// Runs the text encoder over groups of texts; `take` reads what it made of each.
    fn run(
        &self,
        session: &mut Session<'_, '_>,
        tokens: &[Tokens],
        mut take: impl FnMut(&mut Session<'_, '_>, &mut dyn Executable, &[Tokens]) -> Result<()>,
    ) -> Result<()> {
        session.stage(self.stage, Shapes::batch(1, false), tokens.len(), 0, |session, executable, group| {
            let tokens = &tokens[group];
            self.config.write(executable, tokens, self.has_embedding)?;
            executable.run_once()?;
            take(session, executable, tokens)
        })
    }
}
