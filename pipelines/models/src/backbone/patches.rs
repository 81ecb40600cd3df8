//! Patches of an image as tokens of a stack (<https://arxiv.org/abs/2010.11929>).

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
        let depth = self.depth();
        let mut states =
            self.states(asked, &[stages, &[depth]].concat())?.into_iter().map(|tokens| self.finished(tokens));
        let maps = states.by_ref().take(stages.len());
        let maps = maps.map(|tokens| tokens?.map().map_err(ModelError::at("map"))).collect::<Result<_, _>>()?;
        let last = states.next().transpose()?;
        let no_layer = || ModelError::State { place: "layers", expected: "states".into(), found: "none".into() };
        Ok(Seen { last: last.ok_or_else(no_layer)?, stages: maps })
    }

    /// The states after some layers, 0 for what the first is given, in their order; without the norm after the last.
    ///
    /// # Errors
    ///
    /// When the image is of another shape than the model takes, or there is no such layer.
    pub fn states(&self, asked: &Asked<'_>, layers: &[usize]) -> Result<Vec<Tokens>, ModelError> {
        let Tokens { states, prefix, grid } = self.embed.forward(asked)?;
        let [batch, tokens, width] = states.sizes().map_err(ModelError::at("tokens"))?;
        let rows = Row::whole(vec![tokens; batch]);
        let reading = Reading { rows: &rows, absent: &[], source: None };
        let mut x = states.reshape(&[batch * tokens, width]).map_err(ModelError::at("tokens"))?;
        let mut all = vec![None; layers.len()];
        for depth in 0..=layers.iter().copied().max().unwrap_or(0) {
            if let Some(layer) = depth.checked_sub(1) {
                x = self.stack.layers(layer..depth, x, &reading, None)?;
            }
            for (kept, _) in all.iter_mut().zip(layers).filter(|(_, layer)| **layer == depth) {
                let states = x.reshape(&[batch, tokens, width]).map_err(ModelError::at("tokens"))?;
                *kept = Some(Tokens { states, prefix, grid });
            }
        }
        Ok(all.into_iter().flatten().collect())
    }

    /// Its layers.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// How many layers there are.
    pub fn depth(&self) -> usize {
        self.stack.spec().layers.len()
    }

    fn finished(&self, tokens: Tokens) -> Result<Tokens, ModelError> {
        Ok(Tokens { states: self.stack.finish(&tokens.states)?, ..tokens })
    }
}
