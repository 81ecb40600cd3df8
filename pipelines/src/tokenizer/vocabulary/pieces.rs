//! Models of SentencePiece: the protocol buffer that they are (`sentencepiece_model.proto`), and the merges that follow from
//! the scores of pieces.

use std::collections::HashMap;

use prost::Message;

use crate::error::PipelineError;

/// Pieces longer than this, in characters, are not cut into merges: whitespace runs, the longest there are, are shorter.
const MERGED_PIECE_MAX: usize = 256;

/// A model.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Model {
    #[prost(message, repeated, tag = "1")]
    pub pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    pub trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    pub normalizer: Option<Normalizer>,
}

/// A piece of the vocabulary.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Piece {
    #[prost(string, optional, tag = "1")]
    pub text: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    pub kind: Option<i32>,
}

/// How the model was trained.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Trainer {
    #[prost(int32, optional, tag = "3")]
    pub algorithm: Option<i32>,
    #[prost(int32, optional, tag = "40")]
    pub unknown_id: Option<i32>,
    #[prost(string, optional, tag = "45")]
    pub unknown: Option<String>,
}

/// How texts are written before they are cut.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    pub characters: Option<Vec<u8>>,
}

/// A piece of texts, which those are that do not say what they are.
pub(super) const NORMAL: i32 = 1;
/// A token that is special.
pub(super) const CONTROL: i32 = 3;
/// A token that somebody has added.
pub(super) const ADDED: i32 = 4;
/// The numbers of the two ways to train.
pub(super) const UNIGRAM: i32 = 1;
/// Merges of pairs.
pub(super) const MERGES: i32 = 2;

impl Model {
    pub(super) fn read(file: &str, bytes: &[u8]) -> Result<Self, PipelineError> {
        let model = Self::decode(bytes).map_err(|error| PipelineError::tokenizer(file, error))?;
        if model.pieces.is_empty() {
            return Err(PipelineError::tokenizer(file, "expected a model of SentencePiece, found no pieces"));
        }
        Ok(model)
    }
}

/// The merges of pairs that make up the pieces, the likeliest first (`generate_merges`).
pub fn merges<'a>(pieces: &[(&'a str, f32)], ids: &HashMap<&str, usize>) -> Vec<[&'a str; 2]> {
    let mut merges: Vec<(f32, [&str; 2])> = Vec::new();
    for &(piece, score) in pieces {
        if piece.chars().count() > MERGED_PIECE_MAX {
            continue;
        }
        let cuts = piece.char_indices().skip(1).map(|(place, _)| piece.split_at(place));
        let mut found: Vec<_> =
            cuts.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?, [left, right]))).collect();
        found.sort_by_key(|&(left, right, _)| (left, right));
        merges.extend(found.into_iter().map(|(.., pair)| (score, pair)));
    }
    let characters = |[left, right]: [&str; 2]| (left.chars().count(), right.chars().count());
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| characters(b.1).cmp(&characters(a.1))));
    merges.into_iter().map(|(_, pair)| pair).collect()
}
