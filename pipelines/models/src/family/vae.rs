//! Autoencoders of images: to a smaller image of other channels, whose mean and variance they tell, and back.

use accel_backends::tensor::Tensor;

use crate::ModelError;
use crate::layers::convolution::{Convolution, GroupNorm};
use crate::layers::image_block::{ImageBlock, Told};
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::Activation;
use crate::spec::vae::{VaeHalfSpec, VaeSpec};

/// An autoencoder with its weights.
#[derive(Debug)]
pub struct Vae {
    latents: usize,
    encoder: Half,
    after_encoder: Option<Convolution>,
    before_decoder: Option<Convolution>,
    decoder: Half,
}

#[derive(Debug)]
struct Half {
    name: String,
    first: Convolution,
    blocks: Vec<ImageBlock>,
    mid: ImageBlock,
    norm: GroupNorm,
    activation: Activation,
    last: Convolution,
}

impl Half {
    fn load(
        loader: &Loader<'_>,
        name: &str,
        spec: &VaeHalfSpec,
        [inputs, outputs]: [usize; 2],
    ) -> Result<Self, ModelError> {
        let loader = &loader.part(name);
        let blocks = spec.blocks.iter().enumerate();
        let blocks = blocks.map(|(number, block)| ImageBlock::load(loader, &format!("blocks.{number}"), block));
        Ok(Self {
            name: loader.name("norm"),
            first: Convolution::image(loader, "first", inputs, spec.first, 3)?,
            blocks: blocks.collect::<Result<_, _>>()?,
            mid: ImageBlock::load(loader, "mid", &spec.mid)?,
            norm: GroupNorm::load(loader, "norm", spec.last, spec.groups, spec.eps)?,
            activation: spec.activation,
            last: Convolution::image(loader, "last", spec.last, outputs, 3)?,
        })
    }

    fn finish(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let x = self.norm.forward(x)?.activate(self.activation).map_err(ModelError::at(&self.name))?;
        self.last.forward(&x)
    }
}

impl Vae {
    /// Reads an autoencoder.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &VaeSpec) -> Result<Self, ModelError> {
        let between = |name: &str, present: bool, channels| {
            present.then(|| Convolution::image(loader, name, channels, channels, 1)).transpose()
        };
        Ok(Self {
            latents: spec.latents,
            encoder: Half::load(loader, "encoder", &spec.encoder, [spec.inputs, 2 * spec.latents])?,
            after_encoder: between("after_encoder", spec.after_encoder, 2 * spec.latents)?,
            before_decoder: between("before_decoder", spec.before_decoder, spec.latents)?,
            decoder: Half::load(loader, "decoder", &spec.decoder, [spec.latents, spec.outputs])?,
        })
    }

    /// Means of an image `[batch, inputs, height, width]`: `[batch, latents, ..]`, as the encoder has them, unscaled.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn encode(&self, image: &Tensor) -> Result<Tensor, ModelError> {
        let mut x = self.encoder.first.forward(image)?;
        for block in &self.encoder.blocks {
            x = block.forward(x, Told::default())?;
        }
        x = self.encoder.finish(&self.encoder.mid.forward(x, Told::default())?)?;
        if let Some(convolution) = &self.after_encoder {
            x = convolution.forward(&x)?;
        }
        // The rest are logarithms of variances.
        x.narrow(1, 0, self.latents).map_err(ModelError::at("encoder"))
    }

    /// The image of latents `[batch, latents, height, width]`, unscaled: `[batch, outputs, ..]`.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        let before = self.before_decoder.as_ref();
        let x = before.map_or_else(|| Ok(latents.clone()), |convolution| convolution.forward(latents))?;
        let mut x = self.decoder.mid.forward(self.decoder.first.forward(&x)?, Told::default())?;
        for block in &self.decoder.blocks {
            x = block.forward(x, Told::default())?;
        }
        self.decoder.finish(&x)
    }

    /// Answers the image that is decoded of the means of `sample`.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        inputs.only(&["sample"])?;
        let means = self.encode(inputs.tensor("sample")?)?;
        Ok(vec![("sample".into(), self.decode(&means)?)])
    }
}
