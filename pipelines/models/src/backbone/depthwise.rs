//! Convolutions of each channel by itself, between layers of each place by itself: `ConvNeXt`
//! (<https://arxiv.org/abs/2201.03545>, <https://arxiv.org/abs/2301.00808>).

use accel_backends::tensor::{Convolution, Linear, Tensor, TensorError};

use super::Seen;
use crate::ModelError;
use crate::layers::norm::Norm;
use crate::layers::patch::{Asked, Patches, Tokens};
use crate::rules::Loader;
use crate::spec::Activation;
use crate::spec::vision::{DepthwiseSpec, StageSpec};

/// The backbone with its weights.
#[derive(Debug)]
pub struct Depthwise {
    embed: Patches,
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    halved: Option<(Norm, Linear)>,
    blocks: Vec<Block>,
}

/// Across places, then across channels; the result is added to what came in.
#[derive(Debug)]
struct Block {
    name: String,
    conv: Linear,
    norm: Norm,
    up: Linear,
    activation: Activation,
    response: Option<(Tensor, Tensor)>,
    down: Linear,
    scale: Option<Tensor>,
}

/// Taps along a side of the convolutions.
const TAPS: usize = 7;

impl Depthwise {
    /// Reads the backbone.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &DepthwiseSpec) -> Result<Self, ModelError> {
        let mut width = spec.embed.width;
        let mut stages = Vec::with_capacity(spec.stages.len());
        for (number, stage) in spec.stages.iter().enumerate() {
            stages.push(Stage::load(&loader.part(&format!("stages.{number}")), spec, stage, number, width)?);
            width = stage.width;
        }
        Ok(Self { embed: Patches::load(loader, &spec.embed)?, stages })
    }

    /// Sees an image.
    ///
    /// # Errors
    ///
    /// When the image is of another shape than the model takes.
    pub fn see(&self, asked: &Asked<'_>, stages: &[usize]) -> Result<Seen, ModelError> {
        let mut x = self.embed.forward(asked)?.map().map_err(ModelError::at("map"))?;
        let mut maps = Vec::with_capacity(stages.len());
        for number in 0..=self.stages.len() {
            if let Some(stage) = number.checked_sub(1) {
                x = self.stages[stage].forward(x)?;
            }
            if stages.contains(&number) {
                maps.push(x.clone());
            }
        }
        Ok(Seen { last: Tokens::of_map(&x).map_err(ModelError::at("map"))?, stages: maps })
    }
}

impl Stage {
    fn load(
        loader: &Loader<'_>,
        spec: &DepthwiseSpec,
        stage: &StageSpec,
        number: usize,
        before: usize,
    ) -> Result<Self, ModelError> {
        let halved = (number > 0 || before != stage.width).then(|| {
            let norm = Norm::load(loader, "halved_norm", &spec.between, before)?;
            Ok::<_, ModelError>((norm, loader.layer("halved", &[stage.width, before, 2, 2], true)?))
        });
        let block = |number: usize| Block::load(&loader.part(&format!("blocks.{number}")), spec, stage.width);
        Ok(Self { halved: halved.transpose()?, blocks: (0..stage.blocks).map(block).collect::<Result<_, _>>()? })
    }

    /// x: `[batch, width, height, width]`
    fn forward(&self, mut x: Tensor) -> Result<Tensor, ModelError> {
        if let Some((norm, conv)) = &self.halved {
            x = norm.of_map(&x)?;
            x = x.convolution(&Convolution::new(2).stride(2), conv).map_err(ModelError::at("halved"))?;
        }
        self.blocks.iter().try_fold(x, |x, block| block.forward(&x))
    }
}

impl Block {
    fn load(loader: &Loader<'_>, spec: &DepthwiseSpec, width: usize) -> Result<Self, ModelError> {
        let wide = 4 * width;
        let response =
            || Ok::<_, ModelError>((loader.any_tensor("response.weight")?, loader.any_tensor("response.bias")?));
        Ok(Self {
            name: loader.name("block"),
            conv: loader.layer("conv", &[width, 1, TAPS, TAPS], true)?,
            norm: Norm::load(loader, "norm", &spec.norm, width)?,
            up: loader.linear("up", wide, width, true)?,
            activation: spec.activation,
            response: spec.response_norm.then(response).transpose()?,
            down: loader.linear("down", width, wide, true)?,
            scale: spec.scaled.then(|| loader.tensor("scale", &[width])).transpose()?,
        })
    }

    /// x: `[batch, width, height, width]` to the same shape.
    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let width = self.conv.weight.dims()[0];
        let conv = Convolution::new(2).padding(TAPS / 2).groups(width);
        let across = || x.convolution(&conv, &self.conv)?.permute(&[0, 2, 3, 1]);
        let seen = self.norm.forward(&across().map_err(ModelError::at(&self.name))?)?;
        let add = || x.add(&self.wide(&seen)?.permute(&[0, 3, 1, 2])?);
        add().map_err(ModelError::at(&self.name))
    }

    /// x: `[batch, height, width, channels]` to the same shape.
    fn wide(&self, x: &Tensor) -> Result<Tensor, TensorError> {
        let mut x = x.linear(&self.up)?.activate(self.activation)?;
        if let Some((weight, bias)) = &self.response {
            let sizes = x.square()?.sum(&[1, 2])?.sqrt()?;
            let sizes = sizes.div(&sizes.mean(&[-1])?.shift(1e-6)?)?;
            x = x.mul(&sizes)?.mul(weight)?.add(bias)?.add(&x)?;
        }
        let x = x.linear(&self.down)?;
        match &self.scale {
            Some(scale) => x.mul(scale),
            None => Ok(x),
        }
    }
}
