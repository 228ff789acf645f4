//! Texts: tokenizer and text encoder.

use super::row;
use crate::backend::Executable;
use crate::error::{Error, Result};
use crate::model::text_encoder::{self, Tokens};
use crate::pipeline::event::Stage;
use crate::pipeline::family::{EncodedText, Shapes};
use crate::pipeline::request::{Prompt, Request};
use crate::pipeline::session::Session;
use crate::plan::{Plan, WeightSource};
#[cfg(feature = "tokenizer")]
use crate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;
use crate::weights::config::Configured;
use std::sync::Arc;

/// What turns texts into embeddings.
pub struct Texts {
    pub stage: Stage,
    pub config: Configured<text_encoder::Config>,
    /// Whether a text has an embedding beside the states of its tokens.
    has_embedding: bool,
    #[cfg(feature = "tokenizer")]
    tokenizer: Tokenizer,
}

impl Texts {
    /// `tokenizer` is the tokenizer's folder.
    ///
    /// # Errors
    /// A folder is missing, or a configuration is damaged or not implemented.
    pub fn read(checkpoint: &Checkpoint, stage: Stage, tokenizer: &str) -> Result<Texts> {
        let config: Configured<text_encoder::Config> = checkpoint.config(&format!("{}/config.json", stage.name()))?;
        #[cfg(not(feature = "tokenizer"))]
        let _ = tokenizer;
        Ok(Texts {
            stage,
            #[cfg(feature = "tokenizer")]
            tokenizer: Tokenizer::from_checkpoint(checkpoint, tokenizer, config.max_position_embeddings)?,
            config,
            has_embedding: true,
        })
    }

    /// The same for an encoder that ends in the states of the tokens.
    pub fn without_embedding(self) -> Texts {
        Texts { has_embedding: false, ..self }
    }

    /// Records the text encoder.
    pub fn record(&self, source: &dyn WeightSource, batch: usize) -> Result<Plan> {
        text_encoder::plan(&self.config, source, batch, self.has_embedding)
    }

    /// Tokens of a text.
    pub fn length(&self) -> usize {
        self.config.max_position_embeddings
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
        let vocabulary = self.config.vocab_size;
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
                let mask = t.mask.iter().map(|&seen| f32::from(u8::from(seen))).collect();
                Arc::new(EncodedText { embeds: of(&embeds), hidden: of(&hidden), mask })
            }));
            Ok(())
        })?;
        Ok(texts)
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
            let ids: Vec<u32> = tokens.iter().flat_map(|t| &t.ids).copied().collect();
            let pooled: Vec<u32> = tokens.iter().map(|t| self.config.pooled_position(&t.ids)).collect();
            executable.write_u32("ids", &ids)?;
            if self.has_embedding {
                executable.write_u32("pooled", &pooled)?;
            }
            executable.run_once()?;
            take(session, executable, tokens)
        })
    }
}
