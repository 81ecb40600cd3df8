//! Attention within windows that move from block to block: Swin (<https://arxiv.org/abs/2103.14030>).

use accel_backends::tensor::{Linear, Tensor, TensorError};

use super::Seen;
use crate::ModelError;
use crate::layers::norm::Norm;
use crate::layers::patch::{Asked, Patches, Tokens};
use crate::layers::window_block::WindowBlock;
use crate::rules::Loader;
use crate::spec::vision::WindowsSpec;

/// The backbone with its weights.
#[derive(Debug)]
pub struct Windows {
    embed: Patches,
    stages: Vec<Stage>,
    window: usize,
    always_moved: bool,
    final_norm: Option<Norm>,
}

#[derive(Debug)]
struct Stage {
    blocks: Vec<WindowBlock>,
    merged: Option<(Norm, Linear)>,
}

impl Windows {
    /// Reads the backbone.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &WindowsSpec) -> Result<Self, ModelError> {
        let stage = |number: usize| {
            let (part, width) = (loader.part(&format!("stages.{number}")), spec.width(number));
            let stage = &spec.stages[number];
            let block = |number: usize| {
                let part = part.part(&format!("blocks.{number}"));
                WindowBlock::load(&part, &spec.attention(stage.heads), &stage.mlp, &spec.norm, width)
            };
            let blocks = (0..stage.blocks).map(block).collect::<Result<_, ModelError>>()?;
            let merged = (number + 1 < spec.stages.len()).then(|| {
                let norm = Norm::load(&part, "merged_norm", &spec.merge_norm, 4 * width)?;
                Ok::<_, ModelError>((norm, part.linear("merged", 2 * width, 4 * width, false)?))
            });
            Ok(Stage { blocks, merged: merged.transpose()? })
        };
        let last = spec.width(spec.stages.len().saturating_sub(1));
        Ok(Self {
            embed: Patches::load(loader, &spec.embed)?,
            stages: (0..spec.stages.len()).map(stage).collect::<Result<_, ModelError>>()?,
            window: spec.window,
            always_moved: spec.always_moved,
            final_norm: Norm::load_optional(loader, "final_norm", spec.final_norm.as_ref(), last)?,
        })
    }

    /// Sees an image; the map of a stage is that before four states become one.
    ///
    /// # Errors
    ///
    /// When the image is of another shape than the model takes.
    pub fn see(&self, asked: &Asked<'_>, stages: &[usize]) -> Result<Seen, ModelError> {
        let Tokens { states, mut grid, .. } = self.embed.forward(asked)?;
        let mut x = map(&states, grid).map_err(ModelError::at("tokens"))?;
        let mut maps = Vec::with_capacity(stages.len());
        let wanted = |number: usize, x: &Tensor| {
            let wanted = stages.contains(&number);
            wanted.then(|| x.permute(&[0, 3, 1, 2]).map_err(ModelError::at("map"))).transpose()
        };
        maps.extend(wanted(0, &x)?);
        for (number, stage) in self.stages.iter().enumerate() {
            for (block, layer) in stage.blocks.iter().enumerate() {
                x = layer.forward(&x, self.moved(block, grid)?)?;
            }
            maps.extend(wanted(number + 1, &x)?);
            if let Some((norm, merged)) = &stage.merged {
                let four = norm.forward(&four_in_one(&x).map_err(ModelError::at("merged"))?)?;
                x = four.linear(merged).map_err(ModelError::at("merged"))?;
                grid = grid.map(|size| size.div_ceil(2));
            }
        }
        if let Some(norm) = &self.final_norm {
            x = norm.forward(&x)?;
        }
        let dims = [x.dims()[0], grid[0] * grid[1], x.dims()[3]];
        let states = x.reshape(&dims).map_err(ModelError::at("tokens"))?;
        Ok(Seen { last: Tokens { states, prefix: 0, grid }, stages: maps })
    }

    /// How far the windows of a block lie from the map's corner: every other block's by half a window, unless one
    /// window holds the map.
    fn moved(&self, block: usize, grid: [usize; 2]) -> Result<usize, ModelError> {
        let smallest = grid[0].min(grid[1]);
        if !self.always_moved && smallest < self.window {
            return Err(ModelError::input("pixel_values", &format!("maps of at least {} places", self.window), &grid));
        }
        let still = block.is_multiple_of(2) || !self.always_moved && smallest == self.window;
        Ok(if still { 0 } else { self.window / 2 })
    }
}

/// `[batch, places, channels]` to `[batch, height, width, channels]`.
pub(super) fn map(x: &Tensor, [height, width]: [usize; 2]) -> Result<Tensor, TensorError> {
    let [batch, _, channels] = x.sizes()?;
    x.reshape(&[batch, height, width, channels])
}

/// Squares of four states, one after the other: `[batch, height / 2, width / 2, 4 * channels]`.
fn four_in_one(x: &Tensor) -> Result<Tensor, TensorError> {
    let [_, height, width, _] = x.sizes()?;
    let x = x.pad(1, 0, height % 2, 0.0)?.pad(2, 0, width % 2, 0.0)?;
    let part = |row: usize, column: usize| x.every(1, row, 2)?.every(2, column, 2);
    Tensor::concat(&[part(0, 0)?, part(1, 0)?, part(0, 1)?, part(1, 1)?], -1)
}
