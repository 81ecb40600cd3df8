//! The part of a text that answers a question (`pipelines/question_answering.py`).

use accel_protocol::result::Span;
use tokenizers::Encoding;

use super::labels::softmax;
use crate::tokenizer::Tokenizer;

/// The most tokens of a question with a part of a text.
pub const WINDOW: usize = 384;
/// Tokens that two neighbouring parts share, at most.
pub const OVERLAP: usize = 128;
/// The most tokens of an answer.
const LENGTH_MAX: usize = 15;

/// Answers as they are found.
pub struct Answers {
    top: usize,
    spans: Vec<Span>,
}

impl Answers {
    /// None yet, of which the best `top` are wanted.
    pub fn new(top: usize) -> Self {
        Self { top, spans: Vec::new() }
    }

    /// Adds those of one window, by logits of each token to begin and to end an answer.
    pub fn add(&mut self, tokenizer: &Tokenizer, text: &str, window: &Encoding, start: Vec<f32>, end: Vec<f32>) {
        let ids = window.get_ids();
        let within: Vec<bool> = (0..ids.len())
            // The classifying token stands for no answer.
            .map(|at| window.token_to_sequence(at) == Some(1) || tokenizer.class() == Some(ids[at]))
            .collect();
        let chances = |mut logits: Vec<f32>| {
            logits.iter_mut().zip(&within).filter(|(_, within)| !**within).for_each(|(logit, _)| *logit = -10_000.0);
            softmax(&mut logits);
            logits.iter_mut().take(1).for_each(|first| *first = 0.0);
            logits
        };
        let (start, end) = (chances(start), chances(end));
        let spans = (0..start.len()).flat_map(|from| {
            let end = &end;
            let start = start[from];
            (from..end.len().min(from + LENGTH_MAX)).map(move |to| (start * end[to], from, to))
        });
        let mut spans: Vec<(f32, usize, usize)> = spans.collect();
        spans.sort_by(|a, b| b.0.total_cmp(&a.0));
        // Several spans may be the same words.
        spans.truncate(self.top * 2 + 10);
        spans.retain(|&(_, from, to)| within[from] && within[to]);
        let characters: Vec<char> = text.chars().collect();
        for (score, from, to) in spans {
            let (start, end) = words(window, from, to);
            let answer: String = characters.get(start..end).unwrap_or_default().iter().collect();
            let lower = answer.to_lowercase();
            match self.spans.iter_mut().find(|span| span.answer.to_lowercase() == lower) {
                Some(span) => span.score += score,
                None => self.spans.push(Span { answer, score, start: start as u32, end: end as u32 }),
            }
        }
    }

    /// The best, best first.
    pub fn best(mut self) -> Vec<Span> {
        self.spans.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.spans.truncate(self.top);
        self.spans
    }
}

/// The characters of the words that tokens begin and end in.
fn words(window: &Encoding, from: usize, to: usize) -> (usize, usize) {
    let word = |token| window.token_to_word(token).and_then(|(_, word)| window.word_to_chars(word, 1));
    match (word(from), word(to)) {
        (Some((start, _)), Some((_, end))) => (start, end),
        // Some tokenizers know no words.
        _ => (window.get_offsets()[from].0, window.get_offsets()[to].1),
    }
}
