//! What tokens may follow in an answer (`generation/logits_process.py` in `transformers`).
//!
//! A rule sets the scores of tokens that may not follow to minus infinity. Scores are logits where one token is chosen,
//! and logarithms of probabilities in a search by beams.

/// What a model's files say about tokens that may follow.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Scores of tokens seen so far are divided or, below zero, multiplied by this.
    pub repetition_penalty: f32,
    /// No so many tokens come twice in a row; 0 for no such rule.
    pub no_repeat_ngram: usize,
    /// What may not be said.
    pub bad_words: Vec<Vec<u32>>,
    /// The least tokens of the decoder's sequence before it may end.
    pub min_length: usize,
    /// The token that is always the first.
    pub forced_bos: Option<u32>,
    /// What the last token may be where the answer is as long as it may get; nothing for any.
    pub forced_eos: Vec<u32>,
    /// Tokens that never follow.
    pub suppressed: Vec<u32>,
    /// Tokens that do not come first.
    pub suppressed_first: Vec<u32>,
    /// The length of the decoder's sequence when its first free token is chosen.
    pub begin: usize,
}

impl Rules {
    /// The rules for a sequence that begins with so many tokens and has at least `min_length` before it ends.
    pub fn after(self, begun: usize, min_length: usize) -> Self {
        let forced = usize::from(begun == 1 && self.forced_bos.is_some());
        Self { min_length, begin: begun + forced, ..self }
    }

    /// Every token that is named.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        let single = [&self.forced_eos, &self.suppressed, &self.suppressed_first];
        let single = single.into_iter().flatten().chain(&self.forced_bos);
        single.chain(self.bad_words.iter().flatten()).copied()
    }

    /// Applies all rules but the penalty of what was seen.
    ///
    /// tokens: the decoder's sequence so far; scores: `[vocabulary]`.
    pub fn apply(&self, tokens: &[u32], scores: &mut [f32], ends: &[u32], max_length: usize) {
        let length = tokens.len();
        for token in self.repeating(tokens) {
            forbid(scores, token);
        }
        for word in &self.bad_words {
            if let Some((&last, before)) = word.split_last()
                && (before.is_empty() || (word.len() <= length && tokens.ends_with(before)))
            {
                forbid(scores, last);
            }
        }
        if length < self.min_length {
            ends.iter().for_each(|&end| forbid(scores, end));
        }
        if length == 1
            && let Some(token) = self.forced_bos
        {
            force(scores, &[token]);
        }
        if length + 1 == max_length && !self.forced_eos.is_empty() {
            force(scores, &self.forced_eos);
        }
        self.suppressed.iter().for_each(|&token| forbid(scores, token));
        if length == self.begin {
            self.suppressed_first.iter().for_each(|&token| forbid(scores, token));
        }
    }

    /// Tokens that would make the last tokens what they were before.
    fn repeating(&self, tokens: &[u32]) -> Vec<u32> {
        let size = self.no_repeat_ngram;
        if size == 0 || tokens.len() + 1 < size {
            return Vec::new();
        }
        let last = &tokens[tokens.len() + 1 - size..];
        let again = tokens.windows(size).filter(|window| window[..size - 1] == *last);
        again.filter_map(|window| window.last().copied()).collect()
    }
}

fn forbid(scores: &mut [f32], token: u32) {
    if let Some(score) = scores.get_mut(token as usize) {
        *score = f32::NEG_INFINITY;
    }
}

fn force(scores: &mut [f32], tokens: &[u32]) {
    scores.fill(f32::NEG_INFINITY);
    for &token in tokens {
        if let Some(score) = scores.get_mut(token as usize) {
            *score = 0.0;
        }
    }
}
