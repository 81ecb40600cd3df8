//! Layers that mix channels, patches and elements of states, each by a feed-forward part of its own (TSMixer,
//! <https://arxiv.org/abs/2306.09364>).

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::attention::Attention;
use crate::layers::mlp::Mlp;
use crate::layers::series_layer::attended;
use crate::layers::series_norm::SeriesNorm;
use crate::rules::Loader;
use crate::spec::time_series::SeriesMixerSpec;
use crate::spec::{Activation, MlpSpec};

/// A layer with its weights.
#[derive(Debug)]
pub struct SeriesMixer {
    channels: Option<Part>,
    patches: Part,
    attention: Option<(Attention, SeriesNorm)>,
    elements: Part,
}

/// What mixes one dimension.
#[derive(Debug)]
struct Part {
    name: String,
    norm: SeriesNorm,
    mlp: Mlp,
    gate: Option<Linear>,
}

impl SeriesMixer {
    /// Reads the layer of that name, for series of so many channels and patches.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        name: &str,
        spec: &SeriesMixerSpec,
        [channels, patches, hidden]: [usize; 3],
    ) -> Result<Self, ModelError> {
        let part = |part: &str, size| Part::load(loader, &format!("{name}.{part}"), spec, size, hidden);
        let attention = spec.attention.as_ref().map(|attention| {
            let attention = Attention::load(loader, &format!("{name}.attn"), attention, hidden)?;
            Ok::<_, ModelError>((
                attention,
                SeriesNorm::load(loader, &format!("{name}.attn_norm"), &spec.norm, hidden)?,
            ))
        });
        Ok(Self {
            channels: spec.across_channels.then(|| part("channels", channels)).transpose()?,
            patches: part("patches", patches)?,
            attention: attention.transpose()?,
            elements: part("elements", hidden)?,
        })
    }

    /// x: `[batch, channels, patches, hidden]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let mut x = x.clone();
        if let Some(part) = &self.channels {
            let turned = |x: &Tensor| x.permute(&[0, 3, 2, 1]).map_err(ModelError::at(&part.name));
            let gated = part.gated(&turned(&part.norm.forward(&x)?)?)?;
            x = part.added(&x, &turned(&part.mlp.forward(&gated)?)?)?;
        }
        let part = &self.patches;
        let turned = |x: &Tensor| x.transpose(2, 3).map_err(ModelError::at(&part.name));
        let normed = part.norm.forward(&x)?;
        let mut mixed = turned(&part.gated(&part.mlp.forward(&turned(&normed)?)?)?)?;
        if let Some((attention, norm)) = &self.attention {
            mixed = norm.forward(&part.added(&mixed, &attended(attention, &normed)?)?)?;
        }
        let x = part.added(&x, &mixed)?;
        let part = &self.elements;
        part.added(&x, &part.gated(&part.mlp.forward(&part.norm.forward(&x)?)?)?)
    }
}

impl Part {
    fn load(
        loader: &Loader<'_>,
        name: &str,
        spec: &SeriesMixerSpec,
        size: usize,
        hidden: usize,
    ) -> Result<Self, ModelError> {
        let mlp = MlpSpec::plain(size * spec.growth, Activation::Gelu);
        Ok(Self {
            name: loader.name(name),
            norm: SeriesNorm::load(loader, &format!("{name}.norm"), &spec.norm, hidden)?,
            mlp: Mlp::load(loader, &format!("{name}.mlp"), &mlp, size)?,
            gate: spec.gated.then(|| loader.linear(&format!("{name}.gate"), size, size, true)).transpose()?,
        })
    }

    /// By how much each element of a line counts among them. x: `[.., size]` to the same shape.
    fn gated(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let Some(gate) = &self.gate else { return Ok(x.clone()) };
        let gated = || -> Result<Tensor, TensorError> { x.mul(&x.linear(gate)?.softmax(-1)?) };
        gated().map_err(ModelError::at(&self.name))
    }

    fn added(&self, x: &Tensor, new: &Tensor) -> Result<Tensor, ModelError> {
        x.add(new).map_err(ModelError::at(&self.name))
    }
}
