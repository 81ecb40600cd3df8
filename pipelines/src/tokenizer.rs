//! Texts to tokens and back, from `tokenizer.json` or from the metadata of a GGUF file.
//!
//! Both become one tokenizer of Hugging Face's library; a GGUF vocabulary is first written as the `tokenizer.json` that
//! it came from.

mod detokenizer;
mod gguf;
mod special;

use accel_backends::files::{ModelFiles, read_small};
use accel_backends::weights::gguf::Metadata;

use crate::chat::ChatTemplate;
use crate::error::PipelineError;
pub use detokenizer::Detokenizer;

/// A `tokenizer.json`; the largest in use have some 40 MB.
const TOKENIZER_BYTES_MAX: u64 = 128 << 20;
const TOKENIZER_FILE: &str = "tokenizer.json";

/// A model's tokenizer with everything it knows about prompts and ends.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Put before a plain text.
    bos: Option<u32>,
    /// Tokens that end an answer.
    ends: Vec<u32>,
    chat: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Reads the tokenizer of a model.
    ///
    /// # Errors
    ///
    /// When it is missing, damaged, or of a kind that is not known.
    pub fn load(files: &dyn ModelFiles, metadata: Option<&Metadata>) -> Result<Self, PipelineError> {
        let (inner, special) = match metadata {
            Some(metadata) => {
                let text = gguf::tokenizer_json(metadata)?;
                (parse(&text, "GGUF metadata: tokenizer.ggml")?, special::from_gguf(metadata)?)
            }
            None => {
                let text = read_small(files, TOKENIZER_FILE, TOKENIZER_BYTES_MAX)
                    .map_err(|error| PipelineError::tokenizer(TOKENIZER_FILE, error))?
                    .ok_or_else(|| PipelineError::tokenizer(TOKENIZER_FILE, "expected the file, found none"))?;
                (parse(&text, TOKENIZER_FILE)?, special::from_files(files)?)
            }
        };
        let text = |id: Option<u32>| id.and_then(|id| inner.id_to_token(id)).unwrap_or_default();
        let bos_text = special.bos_text.clone().unwrap_or_else(|| text(special.bos));
        let eos_text = special.eos_text.clone().unwrap_or_else(|| text(special.ends.first().copied()));
        let mut ends = special.ends;
        // Models that chat end their turn by a token that their files often do not name as the end.
        let turn_ends = ["<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>"];
        let named = special.eos_text.as_deref().into_iter().chain(turn_ends);
        ends.extend(named.filter_map(|name| inner.token_to_id(name)));
        ends.sort_unstable();
        ends.dedup();
        let chat = special.template.map(|source| ChatTemplate::new(source, bos_text, eos_text)).transpose()?;
        Ok(Self { inner, bos: special.bos.filter(|_| special.add_bos), ends, chat })
    }

    /// The tokens of a text that is to be continued as it stands.
    ///
    /// # Errors
    ///
    /// In words, when the tokenizer refuses the text.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoded = self.inner.encode_fast(text, true).map_err(|error| error.to_string())?;
        let ids = encoded.get_ids();
        let bos = self.bos.filter(|bos| ids.first() != Some(bos));
        Ok(bos.into_iter().chain(ids.iter().copied()).collect())
    }

    /// The tokens of a rendered prompt, which names its special tokens itself.
    ///
    /// # Errors
    ///
    /// In words, when the tokenizer refuses the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoded = self.inner.encode_fast(text, false).map_err(|error| error.to_string())?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The text of tokens, without special tokens; incomplete characters are U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.inner.decode(ids, true).map_err(|error| error.to_string())
    }

    /// The text of one token, special or not.
    pub fn token_text(&self, id: u32) -> String {
        self.inner.decode(&[id], false).unwrap_or_default()
    }

    /// Whether a token ends an answer.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// The chat template, if the model has one.
    pub fn chat(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }
}

fn parse(text: &[u8], place: &str) -> Result<tokenizers::Tokenizer, PipelineError> {
    let mut tokenizer =
        tokenizers::Tokenizer::from_bytes(text).map_err(|error| PipelineError::tokenizer(place, error))?;
    // A file may ask for its texts to be cut or filled up, as in training; a prompt is taken as it is.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| PipelineError::tokenizer(place, error))?;
    Ok(tokenizer)
}
