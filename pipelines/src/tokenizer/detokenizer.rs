//! Tokens to text, one by one: a character comes when it is whole.
//!
//! A token's text depends on its neighbours (spaces, characters of several tokens), so a window of tokens is decoded with
//! and without the new one, and the difference is the text. What comes out is a function of the tokens alone, so a
//! stream that is taken up elsewhere goes on in the same pieces.

use super::Tokenizer;

/// Tokens before the first that its text may depend on.
const CONTEXT_TOKENS: usize = 4;
/// Tokens that may wait for a character to become whole; one of four bytes takes four.
const WAITING_TOKENS_MAX: usize = 8;

/// The state of one stream.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    window: Vec<u32>,
    /// Tokens of the window whose text is out.
    done: usize,
}

impl Detokenizer {
    /// Begins after a prompt.
    pub fn new(prompt: &[u32]) -> Self {
        let window = prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..].to_vec();
        Self { done: window.len(), window }
    }

    /// Takes a token, and gives the text that became whole with it.
    ///
    /// # Errors
    ///
    /// In words, when the tokenizer cannot decode.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, String> {
        self.window.push(id);
        let waiting = self.window.len() - self.done;
        let text = self.text(tokenizer)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && waiting < WAITING_TOKENS_MAX {
            return Ok(String::new());
        }
        // A token without text, as special ones are, is no context for the next: what came before it is.
        if text.is_empty() && waiting < WAITING_TOKENS_MAX {
            return Ok(text);
        }
        // The new tokens stay as the context of the next.
        self.window.drain(..self.done);
        self.done = self.window.len();
        Ok(text)
    }

    /// The text of what still waits: characters that never became whole.
    ///
    /// # Errors
    ///
    /// In words, when the tokenizer cannot decode.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, String> {
        let text = self.text(tokenizer)?;
        self.done = self.window.len();
        Ok(text)
    }

    fn text(&self, tokenizer: &Tokenizer) -> Result<String, String> {
        let before = tokenizer.decode(&self.window[..self.done])?;
        let mut after = tokenizer.decode(&self.window)?;
        // A decoder that changes earlier text by later tokens would give a shorter or different beginning.
        let common = before.bytes().zip(after.bytes()).take_while(|(a, b)| a == b).count();
        let common = (0..=common).rev().find(|&place| after.is_char_boundary(place)).unwrap_or(0);
        Ok(after.split_off(common))
    }
}
