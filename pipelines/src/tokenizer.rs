//! Texts to tokens and back, from `tokenizer.json`, from the vocabularies of before, or from the metadata of a GGUF file.
//!
//! All become one tokenizer of Hugging Face's library; other vocabularies are first written as the `tokenizer.json` that
//! they stand for.

mod detokenizer;
mod gguf;
mod special;
mod vocabulary;

use accel_backends::files::{ModelFiles, read_small};
use accel_backends::weights::gguf::Metadata;
use tokenizers::{
    Decoder, Encoding, ModelWrapper, PostProcessor, PostProcessorWrapper, TruncationDirection, TruncationParams,
};

use crate::chat::ChatTemplate;
use crate::error::PipelineError;
pub use detokenizer::Detokenizer;
use special::Special;

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
    special: Special,
    windows: Option<Windows>,
}

/// How pairs of texts are cut.
#[derive(Debug)]
struct Windows {
    /// Tokens of the texts in a window.
    room: usize,
    /// Tokens of the second text that neighbours share.
    overlap: usize,
    /// What adds special tokens to each window. It is taken out of the tokenizer, which would have it work on each text
    /// alone before, and trim spaces from the characters of its tokens twice.
    processor: Option<PostProcessorWrapper>,
}

/// Where texts that are too long are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// What is over the length is left away.
    Rest {
        /// Tokens with special ones.
        length: usize,
    },
    /// The second of two texts is read in several windows.
    Windows {
        /// Tokens of a window, with the first text and special tokens.
        length: usize,
        /// Tokens that neighbours share.
        overlap: usize,
    },
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
                let mut special = special::from_files(files)?;
                let text = read_small(files, TOKENIZER_FILE, TOKENIZER_BYTES_MAX)
                    .map_err(|error| PipelineError::tokenizer(TOKENIZER_FILE, error))?;
                let text = match text {
                    None => vocabulary::tokenizer_json(files, &mut special)?,
                    text => text,
                };
                let missing = || PipelineError::tokenizer(TOKENIZER_FILE, "expected the file, found none");
                (parse(&text.ok_or_else(missing)?, TOKENIZER_FILE)?, special)
            }
        };
        let text = |id: Option<u32>| id.and_then(|id| inner.id_to_token(id)).unwrap_or_default();
        let bos_text = special.bos_text.clone().unwrap_or_else(|| text(special.bos));
        let eos_text = special.eos_text.clone().unwrap_or_else(|| text(special.ends.first().copied()));
        let mut ends = special.ends.clone();
        // Models that chat end their turn by a token that their files often do not name as the end.
        let turn_ends = ["<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>"];
        let named = special.eos_text.as_deref().into_iter().chain(turn_ends);
        ends.extend(named.filter_map(|name| inner.token_to_id(name)));
        ends.sort_unstable();
        ends.dedup();
        let template = special.template.clone();
        let chat = template.map(|source| ChatTemplate::new(source, bos_text, eos_text)).transpose()?;
        Ok(Self { inner, bos: special.bos.filter(|_| special.add_bos), ends, chat, special, windows: None })
    }

    /// The tokens of a text that is to be continued as it stands.
    ///
    /// # Errors
    ///
    /// In words, when the tokenizer refuses the text.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoded = self.inner.encode_fast(text, true).map_err(|error| error.to_string())?;
        let ids = self.known(encoded.get_ids());
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
        Ok(self.known(encoded.get_ids()))
    }

    /// The tokens of a rendered prompt that gets special tokens unless it begins with one itself
    /// (`ProcessorMixin.apply_chat_template`).
    ///
    /// # Errors
    ///
    /// In words, when the tokenizer refuses the text.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, String> {
        match self.special.bos_text.as_deref() {
            Some(bos) if text.starts_with(bos) => self.encode_prompt(text),
            _ => self.encode_text(text),
        }
    }

    /// From now on, cuts texts that are too long.
    ///
    /// # Errors
    ///
    /// When special tokens leave no room for a text.
    pub fn cut(&mut self, cut: Cut) -> Result<(), PipelineError> {
        let place = "tokenizer_config.json: model_max_length";
        let added = self.inner.get_post_processor().map_or(0, |processor| processor.added_tokens(true));
        let (length, least) = match cut {
            Cut::Rest { length } => (length, added),
            Cut::Windows { length, overlap } => (length, added + overlap),
        };
        if length <= least {
            return Err(PipelineError::tokenizer(place, format!("expected over {least}, found {length}")));
        }
        match cut {
            Cut::Windows { overlap, .. } => {
                let processor = self.inner.get_post_processor().cloned();
                self.inner.with_post_processor(None::<PostProcessorWrapper>);
                self.windows = Some(Windows { room: length - added, overlap, processor });
            }
            Cut::Rest { .. } => {
                let params = TruncationParams { max_length: length, ..TruncationParams::default() };
                let set = self.inner.with_truncation(Some(params)).map(|_| ());
                set.map_err(|error| PipelineError::tokenizer(place, error))?;
            }
        }
        Ok(())
    }

    /// A text, or two that belong together, as a model reads them: with special tokens, and with the characters that each
    /// token stands for. Several where it is cut into windows.
    ///
    /// # Errors
    ///
    /// When the tokenizer refuses the text.
    pub fn encode(&self, text: &str, second: Option<&str>) -> Result<Vec<Encoding>, PipelineError> {
        let refused = |error| PipelineError::input("the text", error);
        let (mut encoded, windows) = match (second, &self.windows) {
            (Some(second), Some(Windows { room, overlap, processor })) => {
                // Cut here: when the library (0.23) is told to, it reads no further than the first window.
                let first = self.inner.encode_char_offsets(text, false).map_err(refused)?;
                let mut second = self.inner.encode_char_offsets(second, false).map_err(refused)?;
                let room = room.saturating_sub(first.len());
                if room <= *overlap {
                    let words = format!("expected a shorter first text, found {} tokens", first.len());
                    return Err(PipelineError::input("the text", words));
                }
                // Templates set the type of the first window's tokens only.
                second.set_type_ids(vec![1; second.len()]);
                second.truncate(room, *overlap, TruncationDirection::Right);
                let encoded = match processor {
                    Some(processor) => processor.process(first, Some(second), true),
                    None => self.inner.post_process(first, Some(second), true),
                };
                (encoded.map_err(refused)?, true)
            }
            (Some(second), None) => (self.inner.encode_char_offsets((text, second), true).map_err(refused)?, false),
            (None, _) => (self.inner.encode_char_offsets(text, true).map_err(refused)?, false),
        };
        let rest = encoded.take_overflowing();
        // What is cut off is read by nobody but windows.
        let encoded = [encoded].into_iter().chain(rest.into_iter().filter(|_| windows));
        Ok(encoded.map(|encoded| self.known_encoding(encoded)).collect())
    }

    /// The tokens with the unknown one for each that the model has no number for.
    fn known(&self, ids: &[u32]) -> Vec<u32> {
        let (beyond, unknown) = self.special.beyond.zip(self.unknown()).unwrap_or((u32::MAX, 0));
        ids.iter().map(|&id| if id >= beyond { unknown } else { id }).collect()
    }

    fn known_encoding(&self, encoded: Encoding) -> Encoding {
        let ids = self.known(encoded.get_ids());
        if ids == encoded.get_ids() {
            return encoded;
        }
        let texts = encoded.get_sequence_ids();
        let range = |text| {
            let is_of = |of: &Option<usize>| *of == Some(text);
            let begin = texts.iter().position(is_of)?;
            Some((text, begin..texts.iter().rposition(is_of)? + 1))
        };
        let ranges = (0..encoded.n_sequences()).filter_map(range).collect();
        Encoding::new(
            ids,
            encoded.get_type_ids().to_vec(),
            encoded.get_tokens().to_vec(),
            encoded.get_word_ids().to_vec(),
            encoded.get_offsets().to_vec(),
            encoded.get_special_tokens_mask().to_vec(),
            encoded.get_attention_mask().to_vec(),
            encoded.get_overflowing().clone(),
            ranges,
        )
    }

    /// The text of tokens, with the spaces before punctuation taken away where the files ask for it.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot decode.
    pub fn decode_tidy(&self, ids: &[u32], without_special: bool) -> Result<String, PipelineError> {
        let text = self.inner.decode(ids, without_special);
        let text = text.map_err(|error| PipelineError::tokenizer(TOKENIZER_FILE, error))?;
        Ok(if self.special.tidy { tidied(&text) } else { text })
    }

    /// Whether the files ask for the spaces before punctuation to be taken away.
    pub fn is_tidy(&self) -> bool {
        self.special.tidy
    }

    /// The text of tokens that are given as the vocabulary has them.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot decode.
    pub fn text_of(&self, tokens: Vec<String>) -> Result<String, PipelineError> {
        match self.inner.get_decoder() {
            Some(decoder) => {
                decoder.decode(tokens).map_err(|error| PipelineError::tokenizer("tokenizer.json: decoder", error))
            }
            None => Ok(tokens.join(" ")),
        }
    }

    /// A token as the vocabulary has it.
    pub fn token(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default()
    }

    /// The token that stands for what is to be filled in, and its text.
    pub fn mask(&self) -> Option<(u32, &str)> {
        self.named(self.special.mask.as_deref()).zip(self.special.mask.as_deref())
    }

    /// The token that fills texts up.
    pub fn padding(&self) -> Option<u32> {
        self.named(self.special.padding.as_deref())
    }

    /// The token for what is not in the vocabulary.
    pub fn unknown(&self) -> Option<u32> {
        self.named(self.special.unknown.as_deref())
    }

    /// The token whose state stands for a whole text.
    pub fn class(&self) -> Option<u32> {
        self.named(self.special.class.as_deref())
    }

    fn named(&self, token: Option<&str>) -> Option<u32> {
        token.and_then(|token| self.id(token))
    }

    /// The token of that name.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The most tokens that the model was made for, where the files say so.
    pub fn length_max(&self) -> Option<usize> {
        self.special.length_max
    }

    /// Whether tokens say themselves that they go on with a word.
    pub fn marks_subwords(&self) -> bool {
        match self.inner.get_model() {
            ModelWrapper::WordPiece(model) => !model.continuing_subword_prefix.is_empty(),
            ModelWrapper::BPE(model) => {
                model.continuing_subword_prefix.as_ref().is_some_and(|prefix| !prefix.is_empty())
            }
            _ => false,
        }
    }

    /// The text of tokens, without special tokens; incomplete characters are U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.inner.decode(ids, true).map_err(|error| error.to_string())
    }

    /// The text of one token, special or not.
    pub fn token_text(&self, id: u32) -> String {
        self.inner.decode(&[id], false).unwrap_or_default()
    }

    /// The tokens that end an answer.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The chat template, if the model has one.
    pub fn chat(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }
}

/// What [`tidied`] takes the spaces from, in its order.
const SPACED: [&str; 10] = [" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"];

/// A text without the spaces before its punctuation: `clean_up_tokenization` of `tokenization_utils_base.py`.
pub fn tidied(text: &str) -> String {
    SPACED.iter().fold(text.to_owned(), |text, spaced| text.replace(spaced, spaced.trim()))
}

fn parse(text: &[u8], place: &str) -> Result<tokenizers::Tokenizer, PipelineError> {
    let mut tokenizer =
        tokenizers::Tokenizer::from_bytes(text).map_err(|error| PipelineError::tokenizer(place, error))?;
    // A file may ask for its texts to be cut or filled up, as in training; a prompt is taken as it is.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| PipelineError::tokenizer(place, error))?;
    Ok(tokenizer)
}
