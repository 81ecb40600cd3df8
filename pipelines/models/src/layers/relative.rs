//! Vectors of distances, whose products with queries and keys are added to the scores of attention.
//!
//! They are a table of the layer's own, with one vector for all heads (<https://arxiv.org/abs/1803.02155>), or the stack's,
//! of which the layer makes keys and queries as it does of tokens: disentangled attention
//! (<https://arxiv.org/abs/2006.03654>; `DisentangledSelfAttention`).

use accel_backends::tensor::{AttentionShape, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::cache::Row;
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::{AttentionSpec, DistancesSpec, ProjectedSpec, RelativeSpec};

/// The vectors of distances of a stack.
#[derive(Debug)]
pub struct Distances {
    spec: DistancesSpec,
    /// `[2 * reach, hidden]`
    table: Tensor,
}

/// What a layer adds to its scores for distances.
#[derive(Debug)]
pub enum Relative {
    /// By a table of its own: `[2 * reach - 1, head]`.
    Own {
        /// The vectors.
        table: Tensor,
        /// Distances are below it, either way.
        reach: usize,
        /// Whether the product with the key is added too.
        of_keys: bool,
    },
    /// By the stack's.
    Shared {
        /// What makes keys of them, which queries are multiplied with.
        keys: Option<Linear>,
        /// What makes queries of them, which keys are multiplied with.
        queries: Option<Linear>,
    },
}

/// Vectors as they are multiplied: `[heads or 1, places, head]`.
type Vectors = Option<Tensor>;

impl Distances {
    /// Reads the vectors of a stack.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &DistancesSpec, hidden: usize) -> Result<Self, ModelError> {
        let table = loader.weight("distances", &[2 * spec.reach, hidden])?;
        let table = match Norm::load_optional(loader, "distances_norm", spec.norm.as_ref(), hidden)? {
            Some(norm) => norm.forward(&table)?,
            None => table,
        };
        Ok(Self { spec: *spec, table })
    }

    /// The row of a distance.
    fn place(&self, distance: i64) -> usize {
        let reach = self.spec.reach as i64;
        let distance = match self.spec.largest {
            Some(largest) => logarithmic(distance, reach, largest as i64),
            None => distance,
        };
        distance.saturating_add(reach).clamp(0, 2 * reach - 1) as usize
    }
}

impl Relative {
    /// Reads what a layer has; `q` and `k` are its own layers for queries and keys.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        name: &str,
        spec: &AttentionSpec,
        relative: RelativeSpec,
        [q, k]: [&Linear; 2],
    ) -> Result<Self, ModelError> {
        match relative {
            RelativeSpec::Own { reach, of_keys } => {
                let table = loader.weight(&format!("{name}.distance"), &[2 * reach - 1, spec.head])?;
                Ok(Self::Own { table, reach, of_keys })
            }
            RelativeSpec::Shared { keys, queries } => {
                let wide = spec.heads * spec.head;
                let layer = |part: &str, made: ProjectedSpec, own: &Linear| match made {
                    ProjectedSpec::No => Ok(None),
                    ProjectedSpec::AsTokens => Ok(Some(own.clone())),
                    ProjectedSpec::Apart { hidden } => {
                        loader.linear(&format!("{name}.{part}"), wide, hidden, true).map(Some)
                    }
                };
                Ok(Self::Shared { keys: layer("distance_k", keys, k)?, queries: layer("distance_q", queries, q)? })
            }
        }
    }

    /// Whether keys are multiplied with vectors, those of earlier tokens too.
    pub fn wants_keys(&self) -> bool {
        matches!(self, Self::Own { of_keys: true, .. } | Self::Shared { queries: Some(_), .. })
    }

    /// What is added to the scores of each row: `[heads, len, past + len]`. q: `[tokens, heads * head]`; keys, where they
    /// are wanted: of each row `[past + len, kv_heads * head]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn bias(
        &self,
        q: &Tensor,
        keys: &[Tensor],
        shape: &AttentionShape,
        rows: &[Row],
        distances: Option<&Distances>,
    ) -> Result<Vec<Tensor>, TensorError> {
        let (of_queries, of_keys) = self.vectors(shape, distances)?;
        let mut first = 0;
        let mut biases = Vec::with_capacity(rows.len());
        for (number, row) in rows.iter().enumerate() {
            let (queries, length) = (row.len, row.past + row.len);
            let place = |query: usize, key: usize| {
                let distance = (row.past + query) as i64 - key as i64;
                match (self, distances) {
                    (Self::Own { reach, .. }, _) => distance.saturating_add(*reach as i64 - 1).max(0) as usize,
                    (Self::Shared { .. }, Some(distances)) => distances.place(distance),
                    (Self::Shared { .. }, None) => 0,
                }
            };
            let pairs = (0..queries).flat_map(|query| (0..length).map(move |key| (query, key)));
            let places: Vec<usize> = pairs.map(|(query, key)| place(query, key)).collect();
            let places = Places::new(q, &places, [queries, length])?;
            let mut sum: Option<Tensor> = None;
            if let Some(vectors) = &of_queries {
                sum = Some(places.products(&heads_of(q, first, queries, shape)?, vectors, false)?);
            }
            if let (Some(vectors), Some(keys)) = (&of_keys, keys.get(number)) {
                let products = places.products(&heads_of(keys, 0, length, shape)?, vectors, true)?;
                sum = Some(match sum {
                    Some(sum) => sum.add(&products)?,
                    None => products,
                });
            }
            biases.push(match sum {
                Some(sum) => sum.scale(shape.scale)?,
                None => Tensor::new(q.engine(), vec![0.0; queries * length], &[1, queries, length])?,
            });
            first += row.len;
        }
        Ok(biases)
    }

    /// What queries and what keys are multiplied with.
    fn vectors(
        &self,
        shape: &AttentionShape,
        distances: Option<&Distances>,
    ) -> Result<(Vectors, Vectors), TensorError> {
        match (self, distances) {
            (Self::Own { table, of_keys, .. }, _) => {
                let one = table.unsqueeze(0)?;
                Ok((Some(one.clone()), of_keys.then_some(one)))
            }
            (Self::Shared { keys, queries }, Some(Distances { table, .. })) => {
                let made = |layer: &Option<Linear>| {
                    let made = layer.as_ref().map(|layer| heads_of(&table.linear(layer)?, 0, table.dim(0)?, shape));
                    made.transpose()
                };
                Ok((made(keys)?, made(queries)?))
            }
            (Self::Shared { .. }, None) => Ok((None, None)),
        }
    }
}

/// Some tokens of `[tokens, heads * head]`, as `[heads, tokens, head]`.
fn heads_of(x: &Tensor, first: usize, tokens: usize, shape: &AttentionShape) -> Result<Tensor, TensorError> {
    let width = x.dim(1)?;
    x.narrow(0, first, tokens)?.reshape(&[tokens, width / shape.head, shape.head])?.permute(&[1, 0, 2])
}

/// The row of each pair of a query and a key, among those that a sequence needs of a table.
struct Places {
    /// The first row that is needed.
    first: usize,
    /// How many are.
    count: usize,
    /// Whole `[queries, keys]`, counted from the first.
    of_pairs: Tensor,
}

impl Places {
    fn new(like: &Tensor, places: &[usize], dims: [usize; 2]) -> Result<Self, TensorError> {
        let first = places.iter().copied().min().unwrap_or(0);
        let count = places.iter().copied().max().map_or(0, |last| last + 1 - first);
        let of_pairs = places.iter().map(|place| (place - first) as i64).collect();
        Ok(Self { first, count, of_pairs: Tensor::whole(like.engine(), of_pairs, &dims)? })
    }

    /// Of each pair the product of its query, or else its key, with the vector of its row. x: `[heads, tokens, head]`;
    /// vectors: `[heads or 1, places, head]`; the result: `[heads, queries, keys]`.
    fn products(&self, x: &Tensor, vectors: &Tensor, of_keys: bool) -> Result<Tensor, TensorError> {
        let all = x.matmul(&vectors.narrow(1, self.first, self.count)?.transpose(1, 2)?)?;
        let places = if of_keys { self.of_pairs.transpose(0, 1)? } else { self.of_pairs.clone() };
        let [tokens, others] = places.sizes()?;
        let picked = all.take_along(2, &places.unsqueeze(0)?.broadcast(&[x.dim(0)?, tokens, others])?)?;
        if of_keys { picked.transpose(1, 2) } else { Ok(picked) }
    }
}

/// A distance among `buckets` to either side: half of them one distance each, then growing ones, up to `largest`
/// (`make_log_bucket_position`).
fn logarithmic(distance: i64, buckets: i64, largest: i64) -> i64 {
    let exact = buckets / 2;
    if distance.abs() <= exact {
        return distance;
    }
    // In f32, as the reference has it: the last bits decide where a bucket ends.
    let whole = libm::logf((largest - 1) as f32 / exact as f32);
    let ratio = libm::logf(distance.abs() as f32 / exact as f32) / whole;
    let bucket = libm::ceilf(ratio * (exact - 1) as f32) as i64 + exact;
    bucket * distance.signum()
}
