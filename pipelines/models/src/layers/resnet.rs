//! Residual parts of two convolutions (<https://arxiv.org/abs/1512.03385>), which a moment may steer.

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::convolution::{Convolution, GroupNorm};
use crate::layers::resample::{doubled, halved};
use crate::rules::Loader;
use crate::spec::unet::{ResnetSize, ResnetSpec};

/// A residual part with its weights.
#[derive(Debug)]
pub struct Resnet {
    name: String,
    spec: ResnetSpec,
    first_norm: GroupNorm,
    first: Convolution,
    time: Option<Linear>,
    second_norm: GroupNorm,
    second: Convolution,
    shortcut: Option<Convolution>,
}

impl Resnet {
    /// Reads the part of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &ResnetSpec) -> Result<Self, ModelError> {
        let at = |part: &str| format!("{name}.{part}");
        let &ResnetSpec { inputs, outputs, groups, eps, .. } = spec;
        let time = spec.time.map(|time| {
            let width = if time.scale_shift { 2 * outputs } else { outputs };
            loader.linear(&at("time"), width, time.width, true)
        });
        Ok(Self {
            name: loader.name(name),
            spec: *spec,
            first_norm: GroupNorm::load(loader, &at("first_norm"), inputs, groups, eps)?,
            first: Convolution::image(loader, &at("first"), inputs, outputs, 3)?,
            time: time.transpose()?,
            second_norm: GroupNorm::load(loader, &at("second_norm"), outputs, groups, eps)?,
            second: Convolution::image(loader, &at("second"), outputs, outputs, 3)?,
            shortcut: (inputs != outputs)
                .then(|| Convolution::image(loader, &at("shortcut"), inputs, outputs, 1))
                .transpose()?,
        })
    }

    /// x: `[batch, inputs, height, width]`, and the moment's embedding `[batch, time]`, to
    /// `[batch, outputs, height, width]`, or half or double that.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, moment: Option<&Tensor>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let activation = self.spec.activation;
        let resized = |x: &Tensor| match self.spec.size {
            ResnetSize::Same => Ok(x.clone()),
            ResnetSize::Half => halved(x),
            ResnetSize::Double => doubled(x),
        };
        let new = self.first_norm.forward(x)?.activate(activation).and_then(|new| resized(&new)).map_err(at())?;
        let new = self.first.forward(&new)?;
        let new = self.steered(new, moment)?.activate(activation).map_err(at())?;
        let new = self.second.forward(&new)?;
        let mut x = resized(x).map_err(at())?;
        if let Some(shortcut) = &self.shortcut {
            x = shortcut.forward(&x)?;
        }
        let sum = x.add(&new).map_err(at())?;
        if self.spec.divisor == 1.0 { Ok(sum) } else { sum.scale(1.0 / self.spec.divisor).map_err(at()) }
    }

    /// The second norm, with what the moment does before or after it.
    fn steered(&self, x: Tensor, moment: Option<&Tensor>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let (Some(layer), Some(spec)) = (&self.time, &self.spec.time) else { return self.second_norm.forward(&x) };
        let moment = moment.ok_or_else(|| ModelError::MissingInput { name: format!("{}: moment", self.name) })?;
        let told = || -> Result<Tensor, TensorError> {
            let moment = if spec.activated { moment.activate(self.spec.activation)? } else { moment.clone() };
            moment.linear(layer)?.unsqueeze(-1)?.unsqueeze(-1)
        };
        let told = told().map_err(at())?;
        if !spec.scale_shift {
            return self.second_norm.forward(&x.add(&told).map_err(at())?);
        }
        let x = self.second_norm.forward(&x)?;
        let shifted = || -> Result<Tensor, TensorError> {
            let [scale, shift] = told.chunks(1)?;
            x.mul(&scale.shift(1.0)?)?.add(&shift)
        };
        shifted().map_err(at())
    }
}
