//! Convolutions over samples that make up for what they lack at the ends (SEANet, <https://arxiv.org/abs/2009.02095>).

use accel_backends::tensor::{Convolution as Op, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::convolution::{Convolution, GroupNorm, weight_of_length};
use crate::rules::Loader;
use crate::spec::codec::{ConvolutionNormSpec, PaddedConvolutionSpec, PaddingSpec};

/// A convolution with its weights.
#[derive(Debug)]
pub struct PaddedConvolution {
    name: String,
    spec: PaddedConvolutionSpec,
    convolution: Convolution,
    norm: Option<GroupNorm>,
    transposed: bool,
}

impl PaddedConvolution {
    /// Reads the convolution of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        name: &str,
        spec: &PaddedConvolutionSpec,
        transposed: bool,
    ) -> Result<Self, ModelError> {
        let op = Op::new(1).stride(spec.stride).dilation(spec.dilation);
        let [first, second] = if transposed { [spec.inputs, spec.outputs] } else { [spec.outputs, spec.inputs] };
        let dims = [first, second, spec.taps];
        let weight = match spec.norm {
            ConvolutionNormSpec::OfLength => weight_of_length(loader, name, &dims, 0)?,
            ConvolutionNormSpec::Everything => loader.weight(name, &dims)?,
        };
        let layer = Linear { weight, bias: Some(loader.tensor(&format!("{name}.bias"), &[spec.outputs])?) };
        let whole = spec.norm == ConvolutionNormSpec::Everything;
        let norm = || GroupNorm::load(loader, &format!("{name}.norm"), spec.outputs, 1, 1e-5);
        let full = loader.name(name);
        Ok(Self {
            name: full.clone(),
            spec: *spec,
            convolution: if transposed {
                Convolution::transposed(full, op, layer)
            } else {
                Convolution::of(full, op, layer)
            },
            norm: whole.then(norm).transpose()?,
            transposed,
        })
    }

    /// x: `[batch, inputs, samples]` to `[batch, outputs, samples / stride]`, or times the stride.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let x = if self.transposed { x.clone() } else { self.padded(x).map_err(at())? };
        let mut x = self.convolution.forward(&x)?;
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        if self.transposed { self.trimmed(&x).map_err(at()) } else { Ok(x) }
    }

    /// With as much around it that each stride of samples gives one.
    fn padded(&self, x: &Tensor) -> Result<Tensor, TensorError> {
        let (spec, length) = (&self.spec, x.dim(2)?);
        let total = ((spec.taps - 1) * spec.dilation + 1).saturating_sub(spec.stride);
        let extra = length.div_ceil(spec.stride) * spec.stride - length;
        let after = if spec.causal { 0 } else { total / 2 };
        let (before, after) = (total - after, after + extra);
        match spec.padding {
            PaddingSpec::Zeros => x.pad(2, before, after, 0.0),
            PaddingSpec::Repeated => {
                let place = |at: usize| at.saturating_sub(before).min(length - 1);
                x.pick(2, &(0..before + length + after).map(place).collect::<Vec<_>>())
            }
            PaddingSpec::Mirrored => {
                // What is too short to be mirrored is followed by zeros first.
                let room = (before.max(after) + 1).max(length);
                let place = |at: usize| {
                    let at = at.abs_diff(before);
                    if at < room { at } else { 2 * (room - 1) - at }
                };
                let places = (0..before + length + after).map(place).collect::<Vec<_>>();
                x.pad(2, 0, room - length, 0.0)?.pick(2, &places)
            }
        }
    }

    /// Without what a transposed convolution gives beyond a stride of each sample.
    fn trimmed(&self, x: &Tensor) -> Result<Tensor, TensorError> {
        let total = self.spec.taps.saturating_sub(self.spec.stride);
        let after =
            if self.spec.causal { (total as f64 * self.spec.trimmed_at_end).ceil() as usize } else { total / 2 };
        x.narrow(2, total.saturating_sub(after), x.dim(2)?.saturating_sub(total))
    }
}
