//! Models of images: a backbone that sees one, and what is made of what it sees.

use accel_backends::tensor::{Convolution, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::backbone::Backbone;
use crate::layers::norm::Norm;
use crate::layers::patch::{Asked, Tokens};
use crate::layers::pool::Pool;
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::vision::{StatesShape, VisionHead, VisionSpec};
use crate::stack::Stack;

/// A model of images with its weights.
#[derive(Debug)]
pub struct Vision {
    backbone: Backbone,
    head: Head,
}

#[derive(Debug)]
enum Head {
    States { shape: StatesShape, pool: Option<Pool> },
    Labels { pool: Pool, matrix: Linear },
    Pixels { conv: Linear, side: usize },
    Maps { stages: Vec<usize>, norms: Vec<Option<Norm>> },
}

/// What of an image a model is asked: `pixel_values` `[batch, channels, height, width]`, perhaps `bool_masked_pos`
/// `[batch, patches]`, and whether to stretch the embeddings of places to the image, `interpolate_pos_encoding`.
///
/// # Errors
///
/// When there is no image.
pub fn asked(inputs: &Inputs) -> Result<Asked<'_>, ModelError> {
    Ok(Asked {
        pixels: inputs.tensor("pixel_values")?,
        hidden: inputs.optional("bool_masked_pos"),
        stretched: inputs.number("interpolate_pos_encoding").is_some_and(|number| number != 0.0),
    })
}

impl Vision {
    /// Reads a model.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: VisionSpec) -> Result<Self, ModelError> {
        let width = spec.backbone.width();
        let own = spec.part.map_or_else(|| loader.clone(), |part| loader.part(part));
        let pool = |pool| Pool::load(&own, pool, width);
        let head = match &spec.head {
            VisionHead::States { shape, pool: of } => {
                Head::States { shape: *shape, pool: of.as_ref().map(pool).transpose()? }
            }
            VisionHead::Labels { pool: of, labels } => {
                Head::Labels { pool: pool(of)?, matrix: loader.linear("head.labels", *labels, width, true)? }
            }
            VisionHead::Pixels { side, channels } => {
                let dims = [side * side * channels, width, 1, 1];
                Head::Pixels { conv: loader.layer("head.pixels", &dims, true)?, side: *side }
            }
            VisionHead::Maps { stages, norm } => {
                let norm = |&stage: &usize| {
                    let width = spec.backbone.stage_width(stage);
                    Norm::load_optional(&own, &format!("stage_norms.{stage}"), norm.as_ref(), width)
                };
                Head::Maps { norms: stages.iter().map(norm).collect::<Result<_, _>>()?, stages: stages.clone() }
            }
        };
        Ok(Self { backbone: Backbone::load(&own, &spec.backbone)?, head })
    }

    /// Its layers, where they are one stack.
    pub fn stack(&self) -> Option<&Stack> {
        self.backbone.stack()
    }

    /// Answers all that the model's class answers; [`asked`] says of what.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        inputs.only(&["pixel_values", "bool_masked_pos", "interpolate_pos_encoding"])?;
        let wanted = match &self.head {
            Head::Maps { stages, .. } => stages.as_slice(),
            _ => &[],
        };
        let seen = self.backbone.see(&asked(inputs)?, wanted)?;
        let at = || ModelError::at("head");
        Ok(match &self.head {
            Head::States { shape, pool } => {
                let states = match shape {
                    StatesShape::Sequence => seen.last.states.clone(),
                    StatesShape::Map | StatesShape::Maps => seen.last.map().map_err(at())?,
                };
                let mut outputs = vec![("last_hidden_state".into(), states)];
                if let Some(pool) = pool {
                    let pooled = pool.forward(&seen.last.states, seen.last.prefix)?;
                    let one = [pooled.dims(), &[1, 1]].concat();
                    let maps = *shape == StatesShape::Maps;
                    let pooled = if maps { pooled.reshape(&one).map_err(at())? } else { pooled };
                    outputs.push(("pooler_output".into(), pooled));
                }
                outputs
            }
            Head::Labels { pool, matrix } => {
                let pooled = pool.forward(&seen.last.states, seen.last.prefix)?;
                vec![("logits".into(), pooled.linear(matrix).map_err(at())?)]
            }
            Head::Pixels { conv, side } => {
                vec![("reconstruction".into(), pixels(&seen.last, conv, *side).map_err(at())?)]
            }
            Head::Maps { norms, .. } => {
                let normed = |(map, norm): (Tensor, &Option<Norm>)| {
                    norm.as_ref().map_or(Ok(map.clone()), |norm| norm.of_map(&map))
                };
                let maps = seen.stages.into_iter().zip(norms).map(normed).enumerate();
                maps.map(|(number, map)| Ok((format!("feature_maps.{number}"), map?)))
                    .collect::<Result<_, ModelError>>()?
            }
        })
    }
}

/// Each state becomes a square of pixels: `[batch, channels, height * side, width * side]`.
fn pixels(seen: &Tokens, conv: &Linear, side: usize) -> Result<Tensor, TensorError> {
    let map = seen.map()?.convolution(&Convolution::new(2), conv)?;
    let [batch, deep, height, width] = map.sizes()?;
    let channels = deep / (side * side).max(1);
    let apart = map.reshape(&[batch, channels, side, side, height, width])?.permute(&[0, 1, 4, 2, 5, 3])?;
    apart.reshape(&[batch, channels, height * side, width * side])
}
