//! Patches of an image as tokens of a stack (<https://arxiv.org/abs/2010.11929>).

use accel_backends::tensor::Tensor;

use super::Seen;
use crate::ModelError;
use crate::cache::Row;
use crate::layers::patch::{self, Asked, Tokens};
use crate::rules::Loader;
use crate::spec::vision::PatchesSpec;
use crate::stack::{Reading, Stack};

/// A stack that reads patches, with its weights.
#[derive(Debug)]
pub struct Patches {
    embed: patch::Patches,
    stack: Stack,
}

impl Patches {
    /// Reads the backbone.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &PatchesSpec) -> Result<Self, ModelError> {
        let embed = patch::Patches::load(loader, &spec.embed)?;
        Ok(Self { embed, stack: Stack::load(loader, spec.stack.clone())? })
    }

    /// Sees an image; a stage is a layer.
    ///
    /// # Errors
    ///
    /// When the image is of another shape than the model takes.
    pub fn see(&self, asked: &Asked<'_>, stages: &[usize]) -> Result<Seen, ModelError> {
        let Tokens { states, prefix, grid } = self.embed.forward(asked)?;
        let [batch, tokens, width] = states.sizes().map_err(ModelError::at("tokens"))?;
        let finished = |flat: &Tensor| -> Result<Tokens, ModelError> {
            let states = self.stack.finish(flat)?.reshape(&[batch, tokens, width]);
            Ok(Tokens { states: states.map_err(ModelError::at("tokens"))?, prefix, grid })
        };
        let rows = Row::whole(vec![tokens; batch]);
        let reading = Reading { rows: &rows, absent: &[], source: None };
        let mut x = states.reshape(&[batch * tokens, width]).map_err(ModelError::at("tokens"))?;
        let mut maps = Vec::with_capacity(stages.len());
        for stage in 0..=self.stack.spec().layers.len() {
            if let Some(layer) = stage.checked_sub(1) {
                x = self.stack.layers(layer..stage, x, &reading, None)?;
            }
            if stages.contains(&stage) {
                maps.push(finished(&x)?.map().map_err(ModelError::at("map"))?);
            }
        }
        Ok(Seen { last: finished(&x)?, stages: maps })
    }
}
