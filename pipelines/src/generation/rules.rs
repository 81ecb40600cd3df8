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
    /// How times follow one another, where the model says them.
    pub timestamps: Option<Timestamps>,
}

/// How times follow one another and the text between them (`WhisperTimeStampLogitsProcessor`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamps {
    /// The token that says that there are none; those after it are times, in steps from zero.
    pub none: u32,
    /// The token that ends an answer; those before it are text.
    pub end: u32,
    /// The latest that the first time may be, in steps.
    pub initial_max: Option<u32>,
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
        if let Some(timestamps) = &self.timestamps {
            timestamps.apply(tokens.get(self.begin..).unwrap_or_default(), scores);
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

impl Timestamps {
    /// said: what follows the prompt; scores: `[vocabulary]`.
    fn apply(&self, said: &[u32], scores: &mut [f32]) {
        let first = (self.none as usize + 1).min(scores.len());
        let is_time = |token: &u32| *token as usize >= first;
        forbid(scores, self.none);
        let last_is_time = said.last().is_some_and(is_time);
        let one_before_is = said.len() < 2 || is_time(&said[said.len() - 2]);
        if last_is_time && one_before_is {
            scores[first..].fill(f32::NEG_INFINITY);
        } else if last_is_time {
            let end = (self.end as usize).min(scores.len());
            scores[..end].fill(f32::NEG_INFINITY);
        }
        if let Some(&latest) = said.iter().rfind(|token| is_time(token)) {
            // A part begins where the one before ended, and ends later than it began.
            let least = latest as usize + usize::from(!last_is_time || one_before_is);
            let least = least.clamp(first, scores.len());
            scores[first..least].fill(f32::NEG_INFINITY);
        }
        if said.is_empty() {
            scores[..first].fill(f32::NEG_INFINITY);
            let most = self.initial_max.map_or(usize::MAX, |most| first.saturating_add(most as usize + 1));
            let most = most.min(scores.len());
            scores[most..].fill(f32::NEG_INFINITY);
        }
        // A time is said when all times together are likelier than any text.
        let (text, times) = scores.split_at(first);
        let likeliest = |scores: &[f32]| scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (text, most) = (likeliest(text), f64::from(likeliest(times)));
        let sum: f64 = times.iter().map(|&score| libm::exp(f64::from(score) - most)).sum();
        if most.is_finite() && most + libm::log(sum) > f64::from(text) {
            scores[..first].fill(f32::NEG_INFINITY);
        }
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
