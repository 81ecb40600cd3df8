//! What distance adds to the scores of attention, for all layers of a stack.

use accel_backends::tensor::{Engine, Tensor, TensorError};

use crate::ModelError;
use crate::cache::Row;
use crate::rules::Loader;
use crate::spec::BiasSpec;

/// A bias with its weights.
#[derive(Debug)]
pub enum Bias {
    /// Nothing.
    None,
    /// A slope of each head (<https://arxiv.org/abs/2108.12409>).
    Alibi(Vec<f32>),
    /// A learned number of each bucket of distances and head: `[buckets, heads]` (<https://arxiv.org/abs/1910.10683>).
    Buckets {
        /// The numbers.
        table: Tensor,
        /// How distances fall into them.
        buckets: usize,
        /// From here on they share the last.
        largest: usize,
    },
}

impl Bias {
    /// Reads the bias of a stack.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &BiasSpec) -> Result<Self, ModelError> {
        Ok(match *spec {
            // Vectors are multiplied with each layer's queries and keys.
            BiasSpec::None | BiasSpec::Vectors(_) => Self::None,
            BiasSpec::Alibi { heads, scale } => Self::Alibi(slopes(heads).into_iter().map(|s| s * scale).collect()),
            BiasSpec::Buckets { heads, buckets, largest } => {
                Self::Buckets { table: loader.weight("distance", &[buckets, heads])?, buckets, largest }
            }
        })
    }

    /// Of each row `[heads, len, past + len]`; none where nothing is added. absent: which positions of each row's sequence
    /// no token sees.
    ///
    /// # Errors
    ///
    /// When a tensor cannot be made.
    pub fn of(
        &self,
        engine: &Engine,
        rows: &[Row],
        absent: &[Vec<bool>],
        causal: bool,
    ) -> Result<Vec<Tensor>, ModelError> {
        let each = |(number, row): (usize, &Row)| -> Result<Tensor, TensorError> {
            let (queries, keys) = (row.len, row.past + row.len);
            let pairs = || (0..queries).flat_map(move |query| (0..keys).map(move |key| (row.past + query, key)));
            match self {
                Self::None => Tensor::new(engine, vec![0.0; queries * keys], &[1, queries, keys]),
                Self::Alibi(slopes) => {
                    let counted = counted(keys, absent.get(number).map_or(&[], Vec::as_slice));
                    let values = slopes.iter().flat_map(|slope| (0..queries).map(move |_| slope));
                    let values = values.flat_map(|slope| counted.iter().map(move |&place| slope * place));
                    Tensor::new(engine, values.collect(), &[slopes.len(), queries, keys])
                }
                Self::Buckets { table, buckets, largest } => {
                    let places = pairs().map(|(query, key)| {
                        bucket(key as i64 - query as i64, *buckets as i64, *largest as i64, !causal)
                    });
                    let places = Tensor::whole(engine, places.collect(), &[queries, keys])?;
                    table.gather(0, &places)?.permute(&[2, 0, 1])
                }
            }
        };
        match self {
            Self::None => Ok(Vec::new()),
            _ => rows.iter().enumerate().map(each).collect::<Result<_, _>>().map_err(ModelError::at("distance")),
        }
    }
}

/// The place of each key among those that are seen, which is what ALiBi counts (`build_alibi_tensor`).
fn counted(keys: usize, absent: &[bool]) -> Vec<f32> {
    let seen = (0..keys).map(|key| absent.get(key) != Some(&true));
    let counts = seen.scan(0_usize, |count, seen| {
        *count += usize::from(seen);
        Some(*count)
    });
    counts.map(|count| count.saturating_sub(1) as f32).collect()
}

/// The slopes of ALiBi (`build_alibi_tensor`): powers of one ratio, and of every second step of the next for the heads
/// beyond a power of two.
fn slopes(heads: usize) -> Vec<f32> {
    let whole = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    let ratio = |of: usize| libm::exp2(-8.0 / of as f64);
    let powers = |ratio: f64, power: usize| libm::pow(ratio, power as f64) as f32;
    let first = (1..=whole).map(|power| powers(ratio(whole), power));
    let rest = (0..heads - whole).map(|place| powers(ratio(2 * whole), 2 * place + 1));
    first.chain(rest).collect()
}

/// The bucket of a distance (`_relative_position_bucket`): half of them one distance each, then growing ones.
fn bucket(distance: i64, buckets: i64, largest: i64, both_ways: bool) -> i64 {
    let (mut first, mut buckets, mut distance) = (0, buckets, distance);
    if both_ways {
        buckets /= 2;
        first = if distance > 0 { buckets } else { 0 };
        distance = distance.abs();
    } else {
        distance = (-distance).max(0);
    }
    let exact = buckets / 2;
    if distance < exact {
        return first + distance;
    }
    // In f32, as the reference has it: the last bits decide where a bucket ends.
    let ratio = libm::logf(distance as f32 / exact as f32) / libm::log(largest as f64 / exact as f64) as f32;
    first + (exact + (ratio * (buckets - exact) as f32) as i64).min(buckets - 1)
}
