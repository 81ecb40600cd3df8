//! Chooses tokens from logits.
//!
//! A choice is a function of the logits, the tokens so far, the seed and the position: there is no generator whose state
//! could be lost when a job moves. Ties go to the lowest token.

use accel_protocol::Generation;

/// The token that follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// Its log probability before penalties, temperature and cuts, and the likeliest tokens with theirs.
    pub logprob: Option<(f32, Vec<(u32, f32)>)>,
}

/// Logits from which nothing can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the logits of position {position} are not numbers")]
pub struct NotNumbers {
    /// Position in the answer.
    pub position: usize,
}

/// Chooses the token at a position of the answer, after `rules` have taken tokens out.
///
/// logits: `[vocabulary]`; seen: the tokens of the prompt and the answer so far.
///
/// # Errors
///
/// When a logit is NaN or infinitely large, or all are infinitely small.
pub fn choose(
    mut logits: Vec<f32>,
    seen: &[u32],
    position: usize,
    generation: &Generation,
    rules: impl FnOnce(&mut [f32]),
) -> Result<Choice, NotNumbers> {
    check(&logits, position)?;
    let plain = generation.logprobs.map(|count| (logprobs(&logits), usize::from(count)));
    penalise(&mut logits, seen, generation.repetition_penalty);
    rules(&mut logits);
    // Rules that leave nothing leave nothing to choose from.
    check(&logits, position)?;
    let id = if generation.temperature > 0.0 { draw(&logits, position, generation) } else { greedy(&logits) };
    let logprob = plain.map(|(plain, count)| {
        let top = likeliest(&plain, count).into_iter().map(|id| (id, plain[id as usize])).collect();
        (plain[id as usize], top)
    });
    Ok(Choice { id, logprob })
}

/// The logarithms of the probabilities that logits stand for: `[vocabulary]`.
///
/// # Errors
///
/// As [`choose`].
pub fn logprobs_of(logits: &[f32], position: usize) -> Result<Vec<f32>, NotNumbers> {
    check(logits, position)?;
    Ok(logprobs(logits))
}

fn check(logits: &[f32], position: usize) -> Result<(), NotNumbers> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !largest.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
        return Err(NotNumbers { position });
    }
    Ok(())
}

fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// As Hugging Face's `RepetitionPenaltyLogitsProcessor`: each token seen counts once.
pub fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = seen.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

fn logprobs(logits: &[f32]) -> Vec<f32> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| libm::exp(f64::from(logit) - largest)).sum();
    let shift = largest + libm::log(sum);
    logits.iter().map(|&logit| (f64::from(logit) - shift) as f32).collect()
}

/// Places of the largest values, largest first, ties by the lower place.
pub fn likeliest(values: &[f32], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    let count = count.min(order.len());
    let compare = |a: &u32, b: &u32| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b));
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count - 1, compare);
    }
    order.truncate(count);
    order.sort_unstable_by(compare);
    order
}

/// Cuts in the order of Hugging Face: temperature, then `top_k`, `top_p`, `min_p`; then one draw.
fn draw(logits: &[f32], position: usize, generation: &Generation) -> u32 {
    let keep = if generation.top_k == 0 { logits.len() } else { generation.top_k as usize };
    let mut ids = likeliest(logits, keep);
    let temperature = f64::from(generation.temperature);
    let largest = f64::from(logits[ids[0] as usize]);
    let weights: Vec<f64> =
        ids.iter().map(|&id| libm::exp((f64::from(logits[id as usize]) - largest) / temperature)).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = weights.len();
    if generation.top_p < 1.0 {
        let mut sum = 0.0;
        let enough = weights.iter().position(|weight| {
            sum += weight / total;
            sum >= f64::from(generation.top_p)
        });
        kept = enough.map_or(kept, |place| place + 1);
    }
    // The likeliest token has the weight 1.
    let likely = weights.iter().position(|&weight| weight < f64::from(generation.min_p)).unwrap_or(weights.len());
    kept = kept.min(likely).max(1);
    ids.truncate(kept);
    let total: f64 = weights[..kept].iter().sum();
    let mut rest = uniform(generation.seed, position as u64) * total;
    for (&id, weight) in ids.iter().zip(&weights) {
        rest -= weight;
        if rest < 0.0 {
            return id;
        }
    }
    ids[kept - 1]
}

/// A number in `[0, 1)` that depends on the seed and the position alone (SplitMix64, twice).
fn uniform(seed: u64, position: u64) -> f64 {
    let mix = |value: u64| {
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    };
    let start = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let bits = mix(start ^ position.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
