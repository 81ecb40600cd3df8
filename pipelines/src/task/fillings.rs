//! What may stand where a text has its mask (`pipelines/fill_mask.py`).

use accel_protocol::result::Filling;
use tokenizers::Encoding;

use super::labels::{likeliest, softmax};
use super::text::Reading;
use crate::error::PipelineError;
use crate::tokenizer::Tokenizer;

/// Refuses a text without a mask.
pub fn check(tokenizer: &Tokenizer, reading: &Reading) -> Result<(), PipelineError> {
    let Some((mask, name)) = tokenizer.mask() else {
        return Err(PipelineError::tokenizer("tokenizer_config.json: mask_token", "expected a token, found none"));
    };
    let found = reading.windows.iter().any(|window| window.get_ids().contains(&mask));
    if found { Ok(()) } else { Err(PipelineError::input("the text", format!("expected {name} in it, found none"))) }
}

/// The likeliest tokens at each mask of a window, whose logits are `[tokens, vocabulary]`.
pub fn of(
    tokenizer: &Tokenizer,
    window: &Encoding,
    logits: &[f32],
    top: usize,
) -> Result<Vec<Vec<Filling>>, PipelineError> {
    let ids = window.get_ids();
    let Some((mask, _)) = tokenizer.mask() else { return Ok(Vec::new()) };
    let masks: Vec<usize> = (0..ids.len()).filter(|&place| ids[place] == mask).collect();
    let vocabulary = logits.len() / ids.len().max(1);
    let fill = |&place: &usize| {
        let mut scores = logits[place * vocabulary..][..vocabulary].to_vec();
        softmax(&mut scores);
        let best = likeliest(&scores, top);
        let filling = |id: usize| {
            let (score, token) = (scores[id], id as u32);
            let mut filled = ids.to_vec();
            filled[place] = token;
            filled.retain(|id| Some(*id) != tokenizer.padding());
            // Other masks are special tokens too, and are to be seen.
            let sequence = tokenizer.decode_tidy(&filled, masks.len() == 1)?;
            Ok(Filling { score, token, token_str: tokenizer.decode_tidy(&[token], false)?, sequence })
        };
        best.into_iter().map(filling).collect()
    };
    masks.iter().map(fill).collect()
}
