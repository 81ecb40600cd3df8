//! Which experts of a model's mixtures are chosen, and which of them together, counted while it works.
//!
//! A router says what it chose once a layer and pass. That is all that is looked at, so that counting costs next to
//! nothing and cannot show in a result. Counts add up over passes, jobs and runs; shares, entropy and lift are worked out
//! of them when somebody asks. A choice counts also where it then weighs nothing, as where an expert had no room for the
//! token.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::share;
use crate::spec::Spec;

/// Layers with more experts than this have no pairs counted, for their number grows with the square.
pub const PAIRED_EXPERTS_MAX: usize = 256;
/// More tokens than any node reads; up to here numbers in JSON are exact everywhere.
const TOKENS_MAX: u64 = 1 << 53;

/// Counts that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// They contradict themselves.
    #[error("usage of layer {layer}: expected {expected}, found {found}")]
    Damaged {
        /// The layer.
        layer: usize,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// They are another model's.
    #[error("usage of layer {layer}: expected {expected}, found {found}; these are counts of another model")]
    Other {
        /// The layer.
        layer: usize,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
}

/// What the routers of a model have chosen. Threads may count and look at the same time.
#[derive(Debug)]
pub struct ExpertUsage {
    layers: BTreeMap<usize, Mutex<LayerUsage>>,
    counted: AtomicU64,
}

/// What the router of one layer has chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LayerFormat")]
pub struct LayerUsage {
    layer: usize,
    chosen: usize,
    tokens: u64,
    routed: Vec<u64>,
    /// For each pair of experts, the lower number first: (0, 1), (0, 2), .., (1, 2), ..; none where they are not counted.
    together: Option<Vec<u64>>,
}

/// Two experts that were chosen for the same tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpertPair {
    /// Their numbers, the lower first.
    pub experts: [usize; 2],
    /// The tokens that both were chosen for.
    pub tokens: u64,
    /// How many times as many these are as if each were chosen whatever the other.
    pub lift: f64,
}

/// Who hears what routers choose.
pub trait Routed: std::fmt::Debug + Send + Sync {
    /// places: `[tokens, chosen]`, one token after the other; layers are counted through all stacks of the model.
    fn chose(&self, layer: usize, places: &[i64]);
}

impl Routed for ExpertUsage {
    fn chose(&self, layer: usize, places: &[i64]) {
        self.count(layer, places);
    }
}

/// What routers chose, kept for somebody who counts it elsewhere.
#[derive(Debug, Default)]
pub struct Choices {
    of_layers: Mutex<Vec<(usize, Vec<i64>)>>,
}

impl Choices {
    /// Takes what was chosen since the last time: of each layer `[tokens, chosen]`.
    pub fn take(&self) -> Vec<(usize, Vec<i64>)> {
        std::mem::take(&mut *self.of_layers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Routed for Choices {
    fn chose(&self, layer: usize, places: &[i64]) {
        self.of_layers.lock().unwrap_or_else(PoisonError::into_inner).push((layer, places.to_vec()));
    }
}

/// Where a layer's router says what it chose.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Who hears it.
    pub routed: Arc<dyn Routed>,
    /// Among all layers of the model.
    pub layer: usize,
}

impl ExpertUsage {
    /// Nothing is counted yet; none for a model without mixtures.
    pub fn of(spec: &Spec) -> Option<Self> {
        let mixtures = share::mixtures(spec);
        let layers = mixtures.into_iter().map(|(layer, moe)| LayerUsage::new(layer, moe.experts, moe.router.chosen));
        let layers: Vec<_> = layers.collect();
        (!layers.is_empty()).then(|| Self::new(layers))
    }

    /// Goes on from these counts.
    pub fn new(layers: impl IntoIterator<Item = LayerUsage>) -> Self {
        let layers: BTreeMap<_, _> = layers.into_iter().map(|usage| (usage.layer, usage)).collect();
        let counted = layers.values().map(|usage| usage.tokens).sum();
        let layers = layers.into_iter().map(|(layer, usage)| (layer, Mutex::new(usage))).collect();
        Self { layers, counted: AtomicU64::new(counted) }
    }

    /// Counts what the router of a layer chose. places: `[tokens, chosen]`, one token after the other.
    pub fn count(&self, layer: usize, places: &[i64]) {
        if let Some(usage) = self.layers.get(&layer) {
            let tokens = locked(usage).count(places);
            self.counted.fetch_add(tokens, Ordering::Relaxed);
        }
    }

    /// Tokens, summed over layers; grows with each count.
    pub fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    /// What was chosen in each layer so far.
    pub fn layers(&self) -> Vec<LayerUsage> {
        self.layers.values().map(|usage| locked(usage).clone()).collect()
    }

    /// Adds what was chosen in another run; nothing is added where some of it does not fit.
    ///
    /// # Errors
    ///
    /// When these are counts of another model.
    pub fn add(&self, layers: &[LayerUsage]) -> Result<(), UsageError> {
        let mut sums = Vec::with_capacity(layers.len());
        for other in layers {
            let missing = || UsageError::Other {
                layer: other.layer,
                expected: format!("one of {:?}", self.layers.keys().collect::<Vec<_>>()),
                found: "a layer that has no experts".into(),
            };
            let own = self.layers.get(&other.layer).ok_or_else(missing)?;
            own_fits(&locked(own), other)?;
            sums.push((own, other));
        }
        for (own, other) in sums {
            locked(own).add(other)?;
            self.counted.fetch_add(other.tokens, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn locked(usage: &Mutex<LayerUsage>) -> MutexGuard<'_, LayerUsage> {
    // Counting cannot panic.
    usage.lock().unwrap_or_else(PoisonError::into_inner)
}

fn own_fits(own: &LayerUsage, other: &LayerUsage) -> Result<(), UsageError> {
    let kind = |usage: &LayerUsage| {
        let LayerUsage { layer, chosen, .. } = usage;
        format!("{chosen} of {} experts chosen in layer {layer}", usage.experts())
    };
    let fits = (own.layer, own.chosen, own.experts()) == (other.layer, other.chosen, other.experts());
    if fits { Ok(()) } else { Err(UsageError::Other { layer: own.layer, expected: kind(own), found: kind(other) }) }
}

impl LayerUsage {
    /// Nothing is counted yet, in a layer whose router chooses so many of its experts for each token.
    pub fn new(layer: usize, experts: usize, chosen: usize) -> Self {
        let together = pairs(experts, chosen).map(|pairs| vec![0; pairs]);
        Self { layer, chosen, tokens: 0, routed: vec![0; experts], together }
    }

    /// The number of tokens among these places.
    fn count(&mut self, places: &[i64]) -> u64 {
        let (experts, mut tokens) = (self.routed.len(), 0);
        let place = |&place: &i64| usize::try_from(place).ok().filter(|&place| place < experts);
        for chosen in places.chunks_exact(self.chosen.max(1)) {
            // A router chooses among its experts; who says something else has chosen nothing.
            if !chosen.iter().all(|chosen| place(chosen).is_some()) {
                continue;
            }
            tokens += 1;
            for (number, first) in chosen.iter().enumerate() {
                let Some(first) = place(first) else { continue };
                self.routed[first] += 1;
                let Some(together) = &mut self.together else { continue };
                for second in chosen[number + 1..].iter().filter_map(place).filter(|&second| second != first) {
                    together[index(experts, first, second)] += 1;
                }
            }
        }
        self.tokens += tokens;
        tokens
    }

    /// Adds what was chosen in another run.
    ///
    /// # Errors
    ///
    /// When these are counts of another layer.
    pub fn add(&mut self, other: &Self) -> Result<(), UsageError> {
        own_fits(self, other)?;
        let sum = |own: &mut u64, other: &u64| *own = own.saturating_add(*other);
        sum(&mut self.tokens, &other.tokens);
        self.routed.iter_mut().zip(&other.routed).for_each(|(own, other)| sum(own, other));
        if let (Some(own), Some(other)) = (&mut self.together, &other.together) {
            own.iter_mut().zip(other).for_each(|(own, other)| sum(own, other));
        }
        Ok(())
    }

    /// Its number among all layers of the model.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// How many experts it has.
    pub fn experts(&self) -> usize {
        self.routed.len()
    }

    /// How many are chosen for each token.
    pub fn chosen(&self) -> usize {
        self.chosen
    }

    /// How many tokens it has read.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The tokens of each expert: in all `chosen` times those of the layer.
    pub fn routed(&self) -> &[u64] {
        &self.routed
    }

    /// Whether it is counted which experts are chosen together: not where there is one for each token, and not among more
    /// than [`PAIRED_EXPERTS_MAX`].
    pub fn has_pairs(&self) -> bool {
        self.together.is_some()
    }

    /// The tokens that two experts were both chosen for; none where that is not counted, or there are no such two.
    pub fn together(&self, first: usize, second: usize) -> Option<u64> {
        let known = first != second && first.max(second) < self.experts();
        self.together.as_ref().filter(|_| known).map(|together| together[index(self.experts(), first, second)])
    }

    /// An expert's part of all choices; all parts make 1, once there is a token.
    pub fn share(&self, expert: usize) -> f64 {
        let routed = self.routed.get(expert).copied().unwrap_or(0);
        if self.tokens == 0 { 0.0 } else { routed as f64 / (self.tokens as f64 * self.chosen as f64) }
    }

    /// The entropy of the shares, in bits: 0 where all tokens go to one expert, `log2(experts)` where all get the same.
    pub fn entropy_bits(&self) -> f64 {
        let shares = (0..self.experts()).map(|expert| self.share(expert)).filter(|&share| share > 0.0);
        // Not -0 where there is one.
        shares.map(|share| share * -share.log2()).sum::<f64>().max(0.0)
    }

    /// The entropy as a part of the most that it can be; 1 where there is one expert.
    pub fn evenness(&self) -> f64 {
        let most = (self.experts() as f64).log2();
        if most > 0.0 { self.entropy_bits() / most } else { 1.0 }
    }

    /// The experts, most chosen first, and of those as much chosen the lowest number first.
    pub fn by_use(&self) -> Vec<usize> {
        let mut experts: Vec<usize> = (0..self.experts()).collect();
        experts.sort_by_key(|&expert| std::cmp::Reverse(self.routed[expert]));
        experts
    }

    /// `P(a, b) / (P(a) P(b))` over tokens. None where it is not known.
    pub fn lift(&self, first: usize, second: usize) -> Option<f64> {
        let together = self.together(first, second)? as f64;
        let apart = self.routed[first] as f64 * self.routed[second] as f64;
        (apart > 0.0).then(|| together * self.tokens as f64 / apart)
    }

    /// The lift of every pair where the router chooses evenly. It is below 1, for who is chosen leaves fewer places for
    /// others: with k of n experts, `(k - 1) n / (k (n - 1))`.
    pub fn even_lift(&self) -> Option<f64> {
        let (chosen, experts) = (self.chosen as f64, self.experts() as f64);
        self.has_pairs().then(|| (chosen - 1.0) * experts / (chosen * (experts - 1.0)))
    }

    /// The pairs that go together most beyond chance, those of the greatest lift first: so many, and only such as at least
    /// so many tokens went to, for the lift of a few tokens means nothing.
    pub fn top_pairs(&self, count: usize, tokens_min: u64) -> Vec<ExpertPair> {
        let pair = |first: usize, second: usize| {
            let tokens = self.together(first, second).filter(|&tokens| tokens >= tokens_min.max(1))?;
            Some(ExpertPair { experts: [first, second], tokens, lift: self.lift(first, second)? })
        };
        let all = (0..self.experts()).flat_map(|first| (first + 1..self.experts()).map(move |second| (first, second)));
        let mut found: Vec<_> = all.filter_map(|(first, second)| pair(first, second)).collect();
        found.sort_by(|a, b| b.lift.total_cmp(&a.lift).then(b.tokens.cmp(&a.tokens)));
        found.truncate(count);
        found
    }
}

/// How many pairs are counted.
fn pairs(experts: usize, chosen: usize) -> Option<usize> {
    (chosen > 1 && experts > 1 && experts <= PAIRED_EXPERTS_MAX).then(|| experts * (experts - 1) / 2)
}

/// Where a pair of different experts stands.
fn index(experts: usize, first: usize, second: usize) -> usize {
    let (low, high) = (first.min(second), first.max(second));
    low * (2 * experts - low - 1) / 2 + high - low - 1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerFormat {
    layer: usize,
    chosen: usize,
    tokens: u64,
    routed: Vec<u64>,
    together: Option<Vec<u64>>,
}

impl TryFrom<LayerFormat> for LayerUsage {
    type Error = UsageError;

    fn try_from(read: LayerFormat) -> Result<Self, UsageError> {
        let LayerFormat { layer, chosen, tokens, routed, together } = read;
        let damaged = |expected: String, found: String| Err(UsageError::Damaged { layer, expected, found });
        let experts = routed.len();
        if chosen == 0 || chosen > experts {
            return damaged(format!("1 to {experts} experts chosen of {experts}"), chosen.to_string());
        }
        if tokens > TOKENS_MAX {
            return damaged(format!("at most {TOKENS_MAX} tokens"), tokens.to_string());
        }
        let sum = routed.iter().try_fold(0_u64, |sum, routed| sum.checked_add(*routed));
        let all = tokens.checked_mul(chosen as u64);
        if sum.is_none() || sum != all {
            let found = sum.map_or("more than can be".to_owned(), |sum| format!("{sum} choices"));
            return damaged(format!("{chosen} choices for each of {tokens} tokens"), found);
        }
        let (found, expected) = (together.as_ref().map(Vec::len), pairs(experts, chosen));
        if found != expected {
            let counts = |pairs: Option<usize>| pairs.map_or("no pairs".to_owned(), |pairs| format!("{pairs} pairs"));
            return damaged(counts(expected), counts(found));
        }
        if let Some(more) = together.iter().flatten().find(|&&together| together > tokens) {
            return damaged(format!("at most {tokens} tokens of a pair"), more.to_string());
        }
        Ok(Self { layer, chosen, tokens, routed, together })
    }
}
