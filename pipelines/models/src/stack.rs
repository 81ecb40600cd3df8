//! The stack of layers under every text model: `embed`, then `layers` over any range.
//!
//! Tokens of all sequences lie flat, `[tokens, hidden]`; only attention looks at the rows that they belong to. A stage of
//! a model that is split between peers is a range of layers.

use std::ops::Range;
use std::sync::Arc;

use accel_backends::tensor::{Engine, QueryRow, Tensor, Weight};

use crate::ModelError;
use crate::cache::{Row, State};
use crate::layers::attention::{Attention, Pass};
use crate::layers::mlp::Mlp;
use crate::layers::norm::Norm;
use crate::layers::rope::Rope;
use crate::rules::Loader;
use crate::spec::{LayerSpec, StackSpec};

/// A stack with its weights.
#[derive(Debug)]
pub struct Stack {
    spec: StackSpec,
    embedding: Arc<Weight>,
    ropes: Vec<Rope>,
    layers: Vec<Layer>,
    final_norm: Norm,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    mlp: Mlp,
}

impl Stack {
    /// Reads a stack.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: StackSpec) -> Result<Self, ModelError> {
        let embedding = loader.matrix("embed", spec.vocabulary, spec.hidden)?;
        let ropes = spec.ropes.iter().map(|rope| Rope::load(loader, rope)).collect::<Result<_, _>>()?;
        let layers = spec.layers.iter().enumerate();
        let layers = layers.map(|(number, layer)| Layer::load(loader, number, layer, spec.hidden));
        let layers = layers.collect::<Result<_, _>>()?;
        let final_norm = Norm::load(loader, "final_norm", &spec.final_norm, spec.hidden)?;
        Ok(Self { spec, embedding, ropes, layers, final_norm })
    }

    /// The table of embeddings: `[vocabulary, hidden]`.
    pub fn embedding(&self) -> &Arc<Weight> {
        &self.embedding
    }

    /// What it is made of.
    pub fn spec(&self) -> &StackSpec {
        &self.spec
    }

    /// The embeddings of tokens: `[tokens, hidden]`.
    ///
    /// # Errors
    ///
    /// When a token is not in the vocabulary.
    pub fn embed(&self, engine: &Engine, ids: &[u32]) -> Result<Tensor, ModelError> {
        Tensor::embedding(engine, &self.embedding, ids).map_err(ModelError::at("embed"))
    }

    /// A range of layers. x: `[tokens, hidden]`, the tokens of all rows one after the other, to the same shape.
    ///
    /// # Errors
    ///
    /// When the rows do not fit `x` or the state.
    pub fn layers(
        &self,
        engine: &Engine,
        range: Range<usize>,
        x: Tensor,
        rows: &[Row],
        state: &mut State,
    ) -> Result<Tensor, ModelError> {
        let queries: Vec<QueryRow> = rows
            .iter()
            .enumerate()
            .flat_map(|(sequence, row)| {
                (0..row.len).map(move |place| QueryRow { sequence, position: row.past + place })
            })
            .collect();
        let styles = self.spec.ropes.iter().map(|rope| rope.style);
        let angles: Vec<_> = self.ropes.iter().map(|rope| rope.angles(rows)).zip(styles).collect();
        let absent: Vec<_> = rows.iter().map(|row| state.absent(row.slot).to_vec()).collect();
        let pass = Pass { rows, queries: &queries, absent: &absent, angles: &angles };
        let mut x = x;
        for number in range {
            let missing = || ModelError::State {
                place: "layers",
                expected: format!("a layer below {}", self.layers.len()),
                found: number.to_string(),
            };
            let layer = self.layers.get(number).ok_or_else(missing)?;
            let state = state.layer(number).ok_or_else(missing)?;
            let mixed = layer.attention.forward(engine, &layer.attention_norm.forward(engine, &x)?, &pass, state)?;
            x = x.add(engine, &mixed).map_err(ModelError::at("residual"))?;
            let fed = layer.mlp.forward(engine, &layer.mlp_norm.forward(engine, &x)?)?;
            x = x.add(engine, &fed).map_err(ModelError::at("residual"))?;
        }
        Ok(x)
    }

    /// The norm after the last layer.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn finish(&self, engine: &Engine, x: &Tensor) -> Result<Tensor, ModelError> {
        self.final_norm.forward(engine, x)
    }
}

impl Layer {
    fn load(loader: &Loader<'_>, number: usize, spec: &LayerSpec, hidden: usize) -> Result<Self, ModelError> {
        let name = |part: &str| format!("layers.{number}.{part}");
        Ok(Self {
            attention_norm: Norm::load(loader, &name("attn_norm"), &spec.attention_norm, hidden)?,
            attention: Attention::load(loader, &name("attn"), &spec.attention, hidden)?,
            mlp_norm: Norm::load(loader, &name("mlp_norm"), &spec.mlp_norm, hidden)?,
            mlp: Mlp::load(loader, &name("mlp"), &spec.mlp, hidden)?,
        })
    }
}
