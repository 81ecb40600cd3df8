//! Mixtures of experts: a router that chooses some feed-forward parts for each token, and the parts
//! (<https://arxiv.org/abs/1701.06538>).
//!
//! The parts answer one row for each token and choice, unweighted; the rows are weighed and summed here, in the order of
//! choices, so that who worked them out cannot show in the result.

use std::sync::Arc;

use accel_backends::tensor::{Experts as Op, Kind, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::cache::Row;
use crate::layers::mlp::Mlp;
use crate::layers::sparse_mixer::sparse_mixer;
use crate::rules::Loader;
use crate::spec::{MoeSpec, RouterScores, RouterSpec};
use crate::usage::Watched;

/// Who works out the parts of a layer.
pub trait Experts: std::fmt::Debug + Send + Sync {
    /// x: `[tokens, hidden]`; places: whole `[tokens, chosen]`, the experts of each token; the answer:
    /// `[tokens, chosen, hidden]`. Layers are counted through all stacks of the model.
    ///
    /// # Errors
    ///
    /// When an expert cannot be had.
    fn forward(&self, layer: usize, x: &Tensor, places: &Tensor) -> Result<Tensor, ModelError>;
}

/// A mixture with its weights.
#[derive(Debug)]
pub struct Moe {
    name: String,
    layer: usize,
    router: Router,
    experts: Arc<dyn Experts>,
    shared: Option<Shared>,
    watched: Option<Watched>,
}

#[derive(Debug)]
struct Shared {
    mlp: Mlp,
    gate: Option<Linear>,
}

/// The experts of one layer, all here.
#[derive(Debug)]
pub struct LocalExperts {
    name: String,
    op: Op,
    tensors: Vec<Tensor>,
}

impl LocalExperts {
    /// Reads all experts of a layer.
    ///
    /// # Errors
    ///
    /// When their weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &MoeSpec, hidden: usize) -> Result<Self, ModelError> {
        let mut tensors = Vec::new();
        for expert in 0..spec.experts {
            tensors.extend(Mlp::load(loader, &format!("{name}.experts.{expert}"), &spec.expert, hidden)?.tensors());
        }
        let op = Op {
            count: spec.experts,
            activation: spec.expert.activation,
            gated: spec.expert.gated,
            bias: spec.expert.bias,
            limit: spec.expert.limit,
        };
        Ok(Self { name: loader.name(name), op, tensors })
    }
}

impl Experts for LocalExperts {
    fn forward(&self, _layer: usize, x: &Tensor, places: &Tensor) -> Result<Tensor, ModelError> {
        x.experts(self.op, places, &self.tensors).map_err(ModelError::at(&self.name))
    }
}

/// In place of experts that are not all here, until it is said who works them out.
#[derive(Debug)]
struct Nobody;

impl Experts for Nobody {
    fn forward(&self, layer: usize, _x: &Tensor, _places: &Tensor) -> Result<Tensor, ModelError> {
        Err(ModelError::Elsewhere { part: format!("the experts of layer {layer}"), reason: "nobody has them".into() })
    }
}

impl Moe {
    /// Reads the mixture of that name, with its experts if all are to be here.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        name: &str,
        layer: usize,
        spec: &MoeSpec,
        hidden: usize,
    ) -> Result<Self, ModelError> {
        let shared = spec.shared.as_ref().map(|shared| {
            let mlp = Mlp::load(loader, &format!("{name}.shared"), &shared.mlp, hidden)?;
            let gate = shared.gated.then(|| loader.linear(&format!("{name}.shared_gate"), 1, hidden, false));
            Ok::<_, ModelError>(Shared { mlp, gate: gate.transpose()? })
        });
        // Before the experts: a count that is not the file's shows in one tensor.
        let router = Router::load(loader, &format!("{name}.router"), spec, hidden)?;
        let experts: Arc<dyn Experts> = if loader.has_experts(layer, spec.experts) {
            Arc::new(LocalExperts::load(loader, name, spec, hidden)?)
        } else {
            Arc::new(Nobody)
        };
        Ok(Self {
            name: loader.name(name),
            layer: loader.layer_number(layer),
            router,
            experts,
            shared: shared.transpose()?,
            watched: None,
        })
    }

    /// Has the router say what it chooses.
    pub fn watch(&mut self, watched: Option<Watched>) {
        self.watched = watched;
    }

    /// Has somebody else work out the experts.
    pub fn set_experts(&mut self, experts: Arc<dyn Experts>) {
        self.experts = experts;
    }

    /// x: `[tokens, hidden]` to the same shape; absent: of each row which positions are padding.
    ///
    /// # Errors
    ///
    /// When the shape does not fit, or an expert cannot be had.
    pub fn forward(&self, x: &Tensor, rows: &[Row], absent: &[Vec<bool>]) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let (mut weights, places) = self.router.choose(x, rows).map_err(at())?;
        if self.router.spec.skips_padding {
            weights = without_padding(&weights, rows, absent).map_err(at())?;
        }
        let parts = self.experts.forward(self.layer, x, &places)?;
        // While a pass is recorded, nothing is chosen yet.
        if let Some(Watched { routed, layer }) = self.watched.as_ref().filter(|_| !places.is_recorded()) {
            routed.chose(*layer, &places.to_whole().map_err(at())?);
        }
        let mut sum: Option<Tensor> = None;
        for choice in 0..weights.dims()[1] {
            let mut add = || {
                let part = parts.at(1, choice)?.mul(&weights.narrow(1, choice, 1)?)?;
                sum.take().map_or(Ok(part.clone()), |sum| sum.add(&part))
            };
            sum = Some(add().map_err(at())?);
        }
        let sum = sum.ok_or_else(|| ModelError::MissingInput { name: format!("{}: chosen experts", self.name) })?;
        let Some(shared) = &self.shared else { return Ok(sum) };
        let own = shared.mlp.forward(x)?;
        let add = || match &shared.gate {
            Some(gate) => sum.add(&own.mul(&x.linear(gate)?.sigmoid()?)?),
            None => sum.add(&own),
        };
        add().map_err(at())
    }
}

#[derive(Debug)]
struct Router {
    spec: RouterSpec,
    experts: usize,
    layer: Linear,
    correction: Option<Tensor>,
}

impl Router {
    fn load(loader: &Loader<'_>, name: &str, spec: &MoeSpec, hidden: usize) -> Result<Self, ModelError> {
        let correction = spec.router.correction;
        let correction = correction.then(|| loader.tensor(&format!("{name}.correction"), &[spec.experts]));
        let layer = loader.linear(name, spec.experts, hidden, spec.router.bias)?;
        Ok(Self { spec: spec.router.clone(), experts: spec.experts, layer, correction: correction.transpose()? })
    }

    /// Weights and whole places: `[tokens, chosen]` each.
    fn choose(&self, x: &Tensor, rows: &[Row]) -> Result<(Tensor, Tensor), TensorError> {
        let logits = x.linear(&self.layer)?;
        if let RouterScores::SparseMixer { jitter } = self.spec.scores {
            return sparse_mixer(&logits, self.spec.chosen, jitter);
        }
        let scores = match self.spec.scores {
            RouterScores::Softmax => logits.softmax(-1)?,
            RouterScores::Sigmoid => logits.sigmoid()?,
            RouterScores::SoftmaxOfChosen | RouterScores::SparseMixer { .. } => logits,
        };
        let mut choosing = scores.clone();
        if let Some(correction) = &self.correction {
            choosing = choosing.add(correction)?;
        }
        if let Some(groups) = self.spec.groups {
            choosing = self.of_best_groups(&choosing, groups.groups, groups.chosen, groups.best)?;
        }
        let (_, places) = choosing.top_k(self.spec.chosen)?;
        // A correction is for choosing alone; without one, groups that were left out weigh nothing.
        let weighing = if self.correction.is_some() { &scores } else { &choosing };
        let mut weights = weighing.take_along(-1, &places)?;
        if self.spec.scores == RouterScores::SoftmaxOfChosen {
            weights = weights.softmax(-1)?;
        }
        if self.spec.normalised {
            weights = weights.div(&weights.sum(&[-1])?.shift(1e-20)?)?;
        }
        if self.spec.scale != 1.0 {
            weights = weights.scale(self.spec.scale)?;
        }
        if let Some(capacity) = self.spec.capacity {
            weights = weights.mul(&self.within(&places, rows, capacity)?)?;
        }
        Ok((weights, places))
    }

    /// Scores with those outside the best groups put to 0.
    fn of_best_groups(
        &self,
        scores: &Tensor,
        groups: usize,
        chosen: usize,
        best: usize,
    ) -> Result<Tensor, TensorError> {
        let (tokens, each) = (scores.dims()[0], self.experts / groups);
        let apart = scores.reshape(&[tokens, groups, each])?;
        let worth = apart.top_k(best.min(each))?.0.sum(&[-1])?.squeeze(-1)?;
        let (_, places) = worth.top_k(chosen)?;
        let numbers = Tensor::whole(scores.engine(), (0..groups as i64).collect(), &[1, groups, 1])?;
        let hit = places.unsqueeze(1)?.equal(&numbers)?.to_kind(Kind::Float)?.sum(&[-1])?;
        apart.mul(&hit)?.reshape(scores.dims())
    }

    /// 1 where an expert still had room in the token's sequence, and 0: `[tokens, chosen]`.
    fn within(&self, places: &Tensor, rows: &[Row], capacity: usize) -> Result<Tensor, TensorError> {
        let numbers = Tensor::whole(places.engine(), (0..self.experts as i64).collect(), &[1, 1, self.experts])?;
        let chosen = places.unsqueeze(2)?.equal(&numbers)?.to_kind(Kind::Float)?;
        let (mut from, mut parts) = (0, Vec::with_capacity(rows.len()));
        let limit = Tensor::new(places.engine(), vec![capacity as f32], &[])?;
        for row in rows {
            let own = chosen.narrow(0, from, row.len)?;
            let within = own.cumulative_sum(0)?.less_equal(&limit)?.to_kind(Kind::Float)?;
            parts.push(within.mul(&own)?.sum(&[-1])?.squeeze(-1)?);
            from += row.len;
        }
        Tensor::concat(&parts, 0)
    }
}

/// Weights `[tokens, chosen]` with those of padding put to 0.
fn without_padding(weights: &Tensor, rows: &[Row], absent: &[Vec<bool>]) -> Result<Tensor, TensorError> {
    let is_token = |absent: &[bool], position: usize| f32::from(u8::from(absent.get(position) != Some(&true)));
    let of_row = |(row, absent): (&Row, &Vec<bool>)| {
        (row.past..row.past + row.len).map(|position| is_token(absent, position)).collect::<Vec<_>>()
    };
    let tokens: Vec<f32> = rows.iter().zip(absent).flat_map(of_row).collect();
    if !tokens.contains(&0.0) {
        return Ok(weights.clone());
    }
    let dims = [tokens.len(), 1];
    weights.mul(&Tensor::new(weights.engine(), tokens, &dims)?)
}
