//! An answer as it grows: tokens to text, and the texts that stop it.
//!
//! Text that a stop text may begin with is held back until it is certain, so nothing of a stop text is ever said. Where
//! spaces before punctuation are taken away, a word is held back until the next begins.

use crate::tokenizer::{Detokenizer, Tokenizer, tidied};

/// An answer in progress.
#[derive(Clone, Debug)]
pub struct Answer {
    detokenizer: Detokenizer,
    stops: Vec<String>,
    /// Text from which spaces are yet to be taken away, where they are.
    untidy: Option<String>,
    held: String,
    tokens: usize,
    stopped: bool,
}

impl Answer {
    /// Begins after a prompt.
    pub fn new(prompt: &[u32], stops: &[String]) -> Self {
        let detokenizer = Detokenizer::new(prompt);
        Self { detokenizer, stops: stops.to_vec(), untidy: None, held: String::new(), tokens: 0, stopped: false }
    }

    /// The same, with the spaces before punctuation taken away.
    pub fn tidy(self) -> Self {
        Self { untidy: Some(String::new()), ..self }
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Whether a stop text has come.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes a token, and gives the text that became certain with it.
    ///
    /// # Errors
    ///
    /// In words, when the tokenizer cannot decode.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, String> {
        self.tokens += 1;
        let text = self.detokenizer.push(tokenizer, id)?;
        Ok(self.hear(text))
    }

    /// Takes a token that has no text.
    pub fn pass(&mut self) {
        self.tokens += 1;
    }

    /// The rest of the text, and whether a stop text ended it.
    ///
    /// # Errors
    ///
    /// In words, when the tokenizer cannot decode.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<(String, bool), String> {
        if self.stopped {
            return Ok((String::new(), true));
        }
        let text = self.detokenizer.finish(tokenizer)?;
        let mut rest = self.hear(text);
        if let Some(untidy) = self.untidy.take() {
            rest += &self.say(&tidied(&untidy));
        }
        rest += &std::mem::take(&mut self.held);
        Ok((rest, self.stopped))
    }

    /// Takes more text, and gives what became certain with it.
    fn hear(&mut self, text: String) -> String {
        let Some(untidy) = &mut self.untidy else { return self.say(&text) };
        *untidy += &text;
        let rest = untidy.split_off(tidiable(untidy));
        let text = tidied(untidy);
        *untidy = rest;
        self.say(&text)
    }

    fn say(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held += text;
        if let Some(end) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(end);
            return std::mem::take(&mut self.held);
        }
        let certain = self.held.len() - self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }
}

/// How much of a text is tidied alike whatever follows it: up to the last space between two words. Nothing that loses a
/// space reaches over one, if it does not begin the second word.
fn tidiable(text: &str) -> usize {
    let alone = |&(at, _): &(usize, &str)| {
        let (before, after) = (&text[..at], &text[at + 1..]);
        let begun = after.starts_with("n't") || "n't".starts_with(after);
        !begun && before.ends_with(char::is_alphanumeric) && after.starts_with(char::is_alphanumeric)
    };
    text.rmatch_indices(' ').find(alone).map_or(0, |(at, _)| at)
}

/// The length of the longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len());
    (1..=longest).rev().find(|&length| text.as_bytes().ends_with(&stop.as_bytes()[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Answer, tidied};

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut answer = Answer::new(&[], &stops);
        let said = pieces.iter().map(|piece| answer.say(piece)).collect();
        (said, answer.held.clone(), answer.stopped)
    }

    #[test]
    fn a_stop_text_is_never_said() {
        let (said, held, stopped) = run(&["END"], &["a E", "N", "D b", "c"]);
        assert_eq!((said, held, stopped), (vec!["a ".into(), "".into(), "".into(), "".into()], "".into(), true));
    }

    #[test]
    fn what_only_looks_like_a_stop_text_comes_late() {
        let (said, held, stopped) = run(&["END", "é!"], &["E", "N", "x", "é", "E"]);
        assert_eq!(said, ["", "", "ENx", "", "é"]);
        assert_eq!((held.as_str(), stopped), ("E", false));
    }

    #[test]
    fn the_earliest_stop_text_counts() {
        let (said, _, stopped) = run(&["b", "ab"], &["xabc"]);
        assert_eq!((said, stopped), (vec!["x".to_owned()], true));
    }

    proptest! {
        #[test]
        fn pieces_are_tidied_as_the_whole(pieces in proptest::collection::vec("[ab n'tsmve.?!é]{0,3}", 0..12)) {
            let mut answer = Answer::new(&[], &[]).tidy();
            let mut said: String = pieces.iter().map(|piece| answer.hear(piece.clone())).collect();
            said += &tidied(&answer.untidy.unwrap_or_default());
            prop_assert_eq!(said, tidied(&pieces.concat()));
        }
    }
}
