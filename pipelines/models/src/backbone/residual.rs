//! Convolutions whose results are added to what came in: `ResNet` (<https://arxiv.org/abs/1512.03385>).

use accel_backends::tensor::{Activation, Convolution as Op, Tensor};

use super::Seen;
use crate::ModelError;
use crate::layers::normed_convolution::NormedConvolution;
use crate::layers::patch::{Asked, Tokens};
use crate::layers::pool::largest;
use crate::rules::Loader;
use crate::spec::vision::{ResidualBlock, ResidualNetSpec};

/// The backbone with its weights.
#[derive(Debug)]
pub struct Residual {
    channels: usize,
    stem: NormedConvolution,
    stages: Vec<Vec<Block>>,
    activation: Activation,
}

#[derive(Debug)]
struct Block {
    convs: Vec<NormedConvolution>,
    shortcut: Option<NormedConvolution>,
}

impl Residual {
    /// Reads the backbone.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &ResidualNetSpec) -> Result<Self, ModelError> {
        let stem = Op::new(2).stride(2).padding(3);
        let stem = NormedConvolution::load(loader, "stem", stem, &[spec.stem, spec.channels, 7, 7], spec.activation)?;
        let mut before = spec.stem;
        let mut stages = Vec::with_capacity(spec.stages.len());
        // The stem and the pooling after it make an image four times smaller.
        let (mut smaller, mut dilation) = (4, 1);
        for (number, stage) in spec.stages.iter().enumerate() {
            let halved = number > 0 || spec.halved_first;
            let bounded = halved && spec.stride_max.is_some_and(|most| smaller >= most);
            let first_stride = if halved && !bounded { 2 } else { 1 };
            // The first block of a stage sees its neighbours as the stage before does.
            let first_dilation = dilation;
            (smaller, dilation) = (smaller * first_stride, if bounded { 2 * dilation } else { dilation });
            let mut blocks = Vec::new();
            for block in 0..stage.blocks {
                let (stride, first) = if block == 0 { (first_stride, first_dilation) } else { (1, dilation) };
                let part = loader.part(&format!("stages.{number}.blocks.{block}"));
                blocks.push(Block::load(&part, spec.block, [before, stage.width], stride, [first, dilation])?);
                before = stage.width;
            }
            stages.push(blocks);
        }
        Ok(Self { channels: spec.channels, stem, stages, activation: spec.activation })
    }

    /// Sees an image.
    ///
    /// # Errors
    ///
    /// When the image is of another shape than the model takes.
    pub fn see(&self, asked: &Asked<'_>, stages: &[usize]) -> Result<Seen, ModelError> {
        if !matches!(*asked.pixels.dims(), [_, channels, _, _] if channels == self.channels) {
            let expected = format!("[batch, {}, height, width]", self.channels);
            return Err(ModelError::input("pixel_values", &expected, asked.pixels.dims()));
        }
        let mut x = largest(&self.stem.forward(asked.pixels)?, 3, 2, 1).map_err(ModelError::at("stem"))?;
        let mut maps = Vec::with_capacity(stages.len());
        for number in 0..=self.stages.len() {
            if let Some(stage) = number.checked_sub(1) {
                for block in &self.stages[stage] {
                    x = block.forward(&x, self.activation)?;
                }
            }
            if stages.contains(&number) {
                maps.push(x.clone());
            }
        }
        Ok(Seen { last: Tokens::of_map(&x).map_err(ModelError::at("map"))?, stages: maps })
    }
}

impl Block {
    /// dilations: of the first convolution of nine taps, and of a second.
    fn load(
        loader: &Loader<'_>,
        kind: ResidualBlock,
        [inputs, outputs]: [usize; 2],
        stride: usize,
        dilations: [usize; 2],
    ) -> Result<Self, ModelError> {
        let load = |number: usize, op: Op, dims: &[usize; 4], act: Activation| {
            NormedConvolution::load(loader, &format!("convs.{number}"), op, dims, act)
        };
        let narrowed = |number: usize, [outputs, inputs]: [usize; 2], stride: usize, act: Activation| {
            load(number, Op::new(2).stride(stride), &[outputs, inputs, 1, 1], act)
        };
        let seen = |number: usize, [outputs, inputs]: [usize; 2], [stride, dilation]: [usize; 2], act: Activation| {
            let op = Op::new(2).stride(stride).padding(dilation).dilation(dilation);
            load(number, op, &[outputs, inputs, 3, 3], act)
        };
        // Within a block the activation is always this one.
        let (inner, last) = (Activation::Relu, Activation::Identity);
        let convs = match kind {
            ResidualBlock::Basic => {
                let [first, second] = dilations;
                vec![seen(0, [outputs, inputs], [stride, first], inner)?, seen(1, [outputs; 2], [1, second], last)?]
            }
            ResidualBlock::Bottleneck { halved_early } => {
                let narrow = outputs / 4;
                let (early, late) = if halved_early { (stride, 1) } else { (1, stride) };
                vec![
                    narrowed(0, [narrow, inputs], early, inner)?,
                    seen(1, [narrow; 2], [late, dilations[0]], inner)?,
                    narrowed(2, [outputs, narrow], 1, last)?,
                ]
            }
        };
        let shortcut = (inputs != outputs || stride != 1).then(|| {
            NormedConvolution::load(loader, "shortcut", Op::new(2).stride(stride), &[outputs, inputs, 1, 1], last)
        });
        Ok(Self { convs, shortcut: shortcut.transpose()? })
    }

    /// x: `[batch, channels, height, width]`
    fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor, ModelError> {
        let seen = self.convs.iter().try_fold(x.clone(), |x, conv| conv.forward(&x))?;
        let kept = self.shortcut.as_ref().map_or_else(|| Ok(x.clone()), |shortcut| shortcut.forward(x))?;
        seen.add(&kept).and_then(|x| x.activate(activation)).map_err(ModelError::at("residual"))
    }
}
