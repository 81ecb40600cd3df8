//! Rotary position embedding (<https://arxiv.org/abs/2104.09864>).
//!
//! Cosines and sines come from the caller, one row per token, so that every scaling of positions is the caller's.

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Element `i` with `i + half`: checkpoints of Hugging Face.
    Halves,
    /// Element `2i` with `2i + 1`: llama in GGUF files.
    Pairs,
}

/// Turns heads in place.
///
/// x: `[tokens, heads * head]`; cos, sin: `[tokens, rotated / 2]`, where the first `rotated` elements of a head turn.
pub fn rope(x: &mut [f32], head: usize, style: RopeStyle, cos: &[f32], sin: &[f32], tokens: usize) {
    if tokens == 0 {
        return;
    }
    let (row, half) = (x.len() / tokens, cos.len() / tokens);
    let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
    for (x, (cos, sin)) in x.chunks_exact_mut(row).zip(angles) {
        for x in x.chunks_exact_mut(head) {
            for (place, (&cos, &sin)) in cos.iter().zip(sin).enumerate() {
                let (a, b) = match style {
                    RopeStyle::Halves => (place, place + half),
                    RopeStyle::Pairs => (2 * place, 2 * place + 1),
                };
                (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin);
            }
        }
    }
}
