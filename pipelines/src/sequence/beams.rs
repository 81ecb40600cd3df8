//! Search by beams: the likeliest answers so far go on side by side (`_beam_search` in `transformers`'
//! `generation/utils.py`, for one input and one answer).
//!
//! Which beam wins is known only at the end. Equal scores go to the earlier candidate.

use crate::generation::rules::Rules;
use crate::generation::sampling::{self, NotNumbers};
use crate::generation::settings::EarlyStopping;

/// What takes a candidate out of the running.
const OUT: f32 = -1e9;

/// Log probability of a token before all rules, and the likeliest tokens with theirs.
pub type Logprob = (f32, Vec<(u32, f32)>);

/// What a search goes by.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
    /// The most tokens of a sequence.
    pub max_length: usize,
    /// The power of an answer's length that its score is divided by.
    pub length_penalty: f64,
    /// When the search ends.
    pub early_stopping: EarlyStopping,
    /// How many alternatives are reported with each token.
    pub logprobs: Option<usize>,
}

/// A search.
#[derive(Clone, Debug)]
pub struct Beams {
    running: Vec<Beam>,
    finished: Vec<Beam>,
    improvable: bool,
    /// Tokens that all beams begin with.
    prompt: usize,
    /// Tokens that have to follow these.
    forced: Vec<u32>,
}

/// A sequence.
#[derive(Clone, Debug)]
struct Beam {
    tokens: Vec<u32>,
    logprobs: Vec<Option<Logprob>>,
    score: f32,
    finished: bool,
}

/// How a search goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Each beam goes on from the one of the given place.
    On(Vec<usize>),
    /// The search has ended.
    Ended,
}

impl Beams {
    /// So many beams after what all begin with.
    pub fn new(count: usize, prompt: &[u32], forced: Vec<u32>) -> Self {
        let beam = |score| Beam { tokens: prompt.to_vec(), logprobs: Vec::new(), score, finished: false };
        // All beams are alike at first: only one of them counts.
        let running = (0..count).map(|number| beam(if number == 0 { 0.0 } else { OUT })).collect();
        Self { running, finished: vec![beam(OUT); count], improvable: true, prompt: prompt.len(), forced }
    }

    /// Tokens after the prompt in each beam.
    pub fn length(&self) -> usize {
        self.running.first().map_or(0, |beam| beam.tokens.len() - self.prompt)
    }

    /// The last token of each beam.
    pub fn last(&self) -> Vec<i64> {
        self.running.iter().map(|beam| beam.tokens.last().map_or(0, |&token| token.into())).collect()
    }

    /// Goes on by one token. logits: `[vocabulary]` of each beam.
    ///
    /// # Errors
    ///
    /// When logits are not numbers.
    pub fn advance(
        &mut self,
        logits: impl Iterator<Item = Vec<f32>>,
        rules: &Rules,
        limits: &Limits,
    ) -> Result<Next, NotNumbers> {
        let (position, count) = (self.length(), self.running.len());
        let mut plain = Vec::with_capacity(count);
        let mut all = Vec::new();
        for (beam, logits) in self.running.iter().zip(logits) {
            let mut scores = sampling::logprobs_of(&logits, position)?;
            if limits.logprobs.is_some() {
                plain.push(scores.clone());
            }
            sampling::penalise(&mut scores, &beam.tokens, rules.repetition_penalty);
            rules.apply(&beam.tokens, &mut scores, &limits.ends, limits.max_length);
            if let Some(&forced) = self.forced.get(position) {
                let only = |(id, score): (usize, &mut f32)| {
                    if id != forced as usize {
                        *score = f32::NEG_INFINITY;
                    } else if *score == f32::NEG_INFINITY {
                        *score = 0.0;
                    }
                };
                scores.iter_mut().enumerate().for_each(only);
            }
            all.extend(scores.into_iter().map(|score| score + beam.score));
        }
        let vocabulary = (all.len() / count.max(1)).max(1);
        let best = sampling::likeliest(&all, 2.max(1 + limits.ends.len()) * count);
        let mut candidates = Vec::with_capacity(best.len());
        for place in best {
            let (from, token) = (place as usize / vocabulary, (place as usize % vocabulary) as u32);
            let mut beam = self.running[from].clone();
            beam.tokens.push(token);
            beam.logprobs.push(limits.logprobs.and_then(|count| {
                let plain = plain.get(from)?;
                let top = sampling::likeliest(plain, count).into_iter().map(|id| (id, plain[id as usize]));
                Some((plain[token as usize], top.collect()))
            }));
            beam.score = all[place as usize];
            beam.finished = limits.ends.contains(&token) || beam.tokens.len() >= limits.max_length;
            candidates.push((from, beam));
        }
        let all_ended = candidates.iter().all(|(_, beam)| beam.finished);
        let from = self.keep_running(&candidates);
        self.keep_finished(candidates, limits);
        self.improvable &= self.can_improve(limits);
        let full = self.finished.iter().all(|beam| beam.finished);
        let stopped = full && limits.early_stopping == EarlyStopping::Yes;
        Ok(if self.improvable && !stopped && !all_ended { Next::On(from) } else { Next::Ended })
    }

    /// `_get_running_beams_for_next_iteration`
    fn keep_running(&mut self, candidates: &[(usize, Beam)]) -> Vec<usize> {
        let score = |(_, beam): &(usize, Beam)| if beam.finished { beam.score + OUT } else { beam.score };
        let scores: Vec<f32> = candidates.iter().map(score).collect();
        let best = sampling::likeliest(&scores, self.running.len());
        let go_on = |&place: &u32| {
            let (_, beam) = &candidates[place as usize];
            Beam { score: scores[place as usize], finished: false, ..beam.clone() }
        };
        self.running = best.iter().map(go_on).collect();
        best.iter().map(|&place| candidates[place as usize].0).collect()
    }

    /// `_update_finished_beams`
    fn keep_finished(&mut self, candidates: Vec<(usize, Beam)>, limits: &Limits) {
        let count = self.finished.len();
        let full = limits.early_stopping == EarlyStopping::Yes && self.finished.iter().all(|beam| beam.finished);
        let mut merged = std::mem::take(&mut self.finished);
        for (rank, (_, mut beam)) in candidates.into_iter().enumerate() {
            beam.finished &= rank < count;
            beam.score /= powered(beam.tokens.len() - self.prompt, limits.length_penalty);
            for _ in 0..usize::from(full) + usize::from(!self.improvable) + usize::from(!beam.finished) {
                beam.score += OUT;
            }
            merged.push(beam);
        }
        let scores: Vec<f32> = merged.iter().map(|beam| beam.score).collect();
        let best = sampling::likeliest(&scores, count);
        self.finished = best.into_iter().map(|place| merged[place as usize].clone()).collect();
    }

    /// `_check_early_stop_heuristic`
    fn can_improve(&self, limits: &Limits) -> bool {
        let length = match limits.early_stopping {
            EarlyStopping::Never if limits.length_penalty > 0.0 => limits.max_length - self.prompt,
            _ => self.length(),
        };
        let best = self.running.first().map_or(OUT, |beam| beam.score) / powered(length, limits.length_penalty);
        let worst = self.finished.iter().map(|beam| beam.score).fold(f32::INFINITY, f32::min);
        self.finished.iter().any(|beam| best > if beam.finished { worst } else { OUT })
    }

    /// The best answer: its tokens after the prompt, each with its log probabilities.
    pub fn answer(&self) -> Vec<(u32, Option<Logprob>)> {
        let Some(best) = self.finished.first() else { return Vec::new() };
        best.tokens[self.prompt..].iter().copied().zip(best.logprobs.iter().cloned()).collect()
    }
}

fn powered(length: usize, penalty: f64) -> f32 {
    libm::pow(length as f64, penalty) as f32
}
