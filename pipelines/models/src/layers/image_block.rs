//! Blocks of layers over images: down to smaller ones, up to larger ones, and in the middle.

use accel_backends::tensor::{Convolution as Op, Tensor};

use crate::ModelError;
use crate::layers::convolution::Convolution;
use crate::layers::image_mixer::{ImageMixer, ImageSource};
use crate::layers::resample::nearest;
use crate::layers::resnet::Resnet;
use crate::rules::Loader;
use crate::spec::unet::{BlockSpec, ResampleSpec};

/// A block with its weights.
#[derive(Debug)]
pub struct ImageBlock {
    name: String,
    layers: Vec<(Resnet, Option<ImageMixer>)>,
    resample: Option<Resample>,
}

#[derive(Debug)]
enum Resample {
    Down(Convolution),
    Up(Convolution),
    Resnet(Box<Resnet>),
}

/// What a block is told beside the image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told<'a> {
    /// The moment's embedding: `[batch, width]`.
    pub moment: Option<&'a Tensor>,
    /// What the image is made from.
    pub source: Option<&'a ImageSource>,
}

impl ImageBlock {
    /// Reads the block of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &BlockSpec) -> Result<Self, ModelError> {
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (number, layer) in spec.layers.iter().enumerate() {
            let mixer = layer.mixer.as_ref();
            let mixer = mixer.map(|mixer| ImageMixer::load(loader, &format!("{name}.mixers.{number}"), mixer));
            let resnet = Resnet::load(loader, &format!("{name}.resnets.{number}"), &layer.resnet)?;
            layers.push((resnet, mixer.transpose()?));
        }
        let (down, up) = (format!("{name}.downsample"), format!("{name}.upsample"));
        let resample = match &spec.resample {
            None => None,
            Some(ResampleSpec::Down { channels, padding }) => {
                let op = Op { padding: vec![*padding; 2], ..Op::new(2).stride(2) };
                let dims = [*channels, *channels, 3, 3];
                Some(Resample::Down(Convolution::load(loader, &format!("{down}.convolution"), op, &dims, true)?))
            }
            Some(ResampleSpec::Up { channels }) => {
                let name = format!("{up}.convolution");
                Some(Resample::Up(Convolution::image(loader, &name, *channels, *channels, 3)?))
            }
            Some(ResampleSpec::Resnet(spec)) => {
                let name = if spec.size == crate::spec::unet::ResnetSize::Half { down } else { up };
                Some(Resample::Resnet(Box::new(Resnet::load(loader, &name, spec)?)))
            }
        };
        Ok(Self { name: loader.name(name), layers, resample })
    }

    /// How many layers it has.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether it has no layers.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// x: `[batch, channels, height, width]` down to the next size; what each layer and the way there gave is added to
    /// `seen`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn down(&self, x: Tensor, told: Told<'_>, seen: &mut Vec<Tensor>) -> Result<Tensor, ModelError> {
        let mut x = x;
        for layer in &self.layers {
            x = self.layer(layer, &x, told)?;
            seen.push(x.clone());
        }
        if self.resample.is_some() {
            x = self.resampled(x, told, None)?;
            seen.push(x.clone());
        }
        Ok(x)
    }

    /// x: `[batch, channels, height, width]` up to the next size, which is double or that of `size`; each layer takes
    /// what was seen last on the way down beside it.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn up(
        &self,
        x: Tensor,
        told: Told<'_>,
        seen: &mut Vec<Tensor>,
        size: Option<[usize; 2]>,
    ) -> Result<Tensor, ModelError> {
        let mut x = x;
        for layer in &self.layers {
            if let Some(seen) = seen.pop() {
                x = Tensor::concat(&[x, seen], 1).map_err(ModelError::at(&self.name))?;
            }
            x = self.layer(layer, &x, told)?;
        }
        self.resampled(x, told, size)
    }

    /// The same, beside nothing.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, x: Tensor, told: Told<'_>) -> Result<Tensor, ModelError> {
        self.up(x, told, &mut Vec::new(), None)
    }

    fn layer(
        &self,
        (resnet, mixer): &(Resnet, Option<ImageMixer>),
        x: &Tensor,
        told: Told<'_>,
    ) -> Result<Tensor, ModelError> {
        let x = resnet.forward(x, told.moment)?;
        mixer.as_ref().map_or(Ok(x.clone()), |mixer| mixer.forward(&x, told.source))
    }

    fn resampled(&self, x: Tensor, told: Told<'_>, size: Option<[usize; 2]>) -> Result<Tensor, ModelError> {
        match &self.resample {
            None => Ok(x),
            Some(Resample::Down(convolution)) => convolution.forward(&x),
            Some(Resample::Up(convolution)) => {
                let up = || {
                    let [_, _, height, width] = x.sizes()?;
                    nearest(&x, size.unwrap_or([2 * height, 2 * width]))
                };
                convolution.forward(&up().map_err(ModelError::at(&self.name))?)
            }
            Some(Resample::Resnet(resnet)) => resnet.forward(&x, told.moment),
        }
    }
}
