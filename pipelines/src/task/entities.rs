//! Parts of a text that have a label (`pipelines/token_classification.py`).

use accel_protocol::Aggregation;
use accel_protocol::result::Entity;
use tokenizers::Encoding;

use super::labels::{Labels, likeliest, softmax};
use crate::error::PipelineError;
use crate::tokenizer::Tokenizer;

/// The label of what is no entity.
const OUTSIDE: &str = "O";

/// A token with what it may be.
pub struct Token {
    word: String,
    scores: Vec<f32>,
    index: u32,
    start: u32,
    end: u32,
    /// Whether it goes on with the word before it.
    continues: bool,
}

/// The tokens of a window that stand for text; their logits are `[tokens, labels]`.
pub fn tokens(tokenizer: &Tokenizer, text: &str, window: &Encoding, logits: &[f32]) -> Vec<Token> {
    let labels = (logits.len() / window.get_ids().len().max(1)).max(1);
    let characters: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    for (index, scores) in logits.chunks_exact(labels).enumerate() {
        if window.get_special_tokens_mask()[index] != 0 {
            continue;
        }
        let (id, (start, end)) = (window.get_ids()[index], window.get_offsets()[index]);
        let part = characters.get(start..end).unwrap_or_default();
        let mut word = tokenizer.token(id);
        let continues = if tokenizer.marks_subwords() {
            word.chars().count() != part.len()
        } else {
            let around = characters.get(start.saturating_sub(1)..=start.min(characters.len().saturating_sub(1)));
            start > 0 && !around.unwrap_or_default().contains(&' ')
        };
        let unknown = tokenizer.unknown() == Some(id);
        if unknown {
            word = part.iter().collect();
        }
        let mut scores = scores.to_vec();
        softmax(&mut scores);
        let (index, start, end) = (index as u32, start as u32, end as u32);
        tokens.push(Token { word, scores, index, start, end, continues: continues && !unknown });
    }
    tokens
}

/// The entities that tokens are.
pub fn of(
    tokenizer: &Tokenizer,
    labels: &Labels,
    tokens: Vec<Token>,
    aggregation: Aggregation,
) -> Result<Vec<Entity>, PipelineError> {
    let mut entities = Vec::new();
    match aggregation {
        Aggregation::None | Aggregation::Simple => {
            for Token { word, scores, index, start, end, .. } in tokens {
                let (entity, score) = best(labels, &scores);
                entities.push(Entity { entity, score, index: Some(index), word, start, end });
            }
        }
        Aggregation::First | Aggregation::Average | Aggregation::Max => {
            let starts = tokens.chunk_by(|_, next| next.continues);
            for word in starts {
                let (entity, score) = best(labels, &of_word(word, aggregation));
                let [first, .., last] = [&word[0], &word[word.len() - 1]];
                let parts = word.iter().map(|token| token.word.clone()).collect();
                let (start, end) = (first.start, last.end);
                entities.push(Entity { entity, score, index: None, word: tokenizer.text_of(parts)?, start, end });
            }
        }
    }
    if aggregation != Aggregation::None {
        let together = |a: &Entity, b: &Entity| tag(&a.entity).1 == tag(&b.entity).1 && !tag(&b.entity).0;
        entities = entities.chunk_by(together).map(|group| joined(tokenizer, group)).collect::<Result<_, _>>()?;
    }
    entities.retain(|entity| entity.entity != OUTSIDE);
    Ok(entities)
}

fn best(labels: &Labels, scores: &[f32]) -> (String, f32) {
    let at = likeliest(scores, 1).first().copied().unwrap_or(0);
    (labels.name(at), scores.get(at).copied().unwrap_or(0.0))
}

/// What a word may be, of which a first token is always there.
fn of_word(tokens: &[Token], aggregation: Aggregation) -> Vec<f32> {
    let largest = |token: &Token| token.scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    match aggregation {
        Aggregation::Max => {
            // Of equals, the first.
            let surest = tokens.iter().rev().max_by(|a, b| largest(a).total_cmp(&largest(b)));
            surest.map(|token| token.scores.clone()).unwrap_or_default()
        }
        Aggregation::Average => {
            let mean = |label| tokens.iter().map(|token| token.scores[label]).sum::<f32>() / tokens.len() as f32;
            (0..tokens[0].scores.len()).map(mean).collect()
        }
        _ => tokens[0].scores.clone(),
    }
}

/// Whether a label begins an entity, and which: `B-PER`, `I-PER`, or a name without either.
fn tag(label: &str) -> (bool, &str) {
    match (label.strip_prefix("B-"), label.strip_prefix("I-")) {
        (Some(tag), _) => (true, tag),
        (None, Some(tag)) => (false, tag),
        (None, None) => (false, label),
    }
}

fn joined(tokenizer: &Tokenizer, group: &[Entity]) -> Result<Entity, PipelineError> {
    let (first, last) = (&group[0], &group[group.len() - 1]);
    let score = group.iter().map(|entity| entity.score).sum::<f32>() / group.len() as f32;
    let word = tokenizer.text_of(group.iter().map(|entity| entity.word.clone()).collect())?;
    let entity = first.entity.split_once('-').map_or(first.entity.as_str(), |(_, rest)| rest).to_owned();
    Ok(Entity { entity, score, index: None, word, start: first.start, end: last.end })
}
