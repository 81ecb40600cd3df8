//! How places of an image see each other, and what the image is made from.

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::cache::Row;
use crate::layers::attend::{attend, plain_heads};
use crate::layers::attention::Source;
use crate::layers::convolution::{Convolution, GroupNorm};
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::NormSpec;
use crate::spec::unet::{ImageAttentionSpec, ImageMixerSpec, ImageStackSpec, SourceNormSpec};
use crate::stack::{Reading, Stack};

/// What an image is made from.
#[derive(Debug)]
pub struct ImageSource {
    /// `[batch, states, width]`
    pub states: Tensor,
    /// Which states of each no place sees; empty where all are seen.
    pub absent: Vec<Vec<bool>>,
}

/// How places see each other, with its weights.
#[derive(Debug)]
pub enum ImageMixer {
    /// By one attention.
    Attention(Box<ImageAttention>),
    /// By a stack of layers.
    Stack(Box<ImageStack>),
}

impl ImageMixer {
    /// Reads the part of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &ImageMixerSpec) -> Result<Self, ModelError> {
        let loader = loader.part(name);
        Ok(match spec {
            ImageMixerSpec::Attention(spec) => Self::Attention(Box::new(ImageAttention::load(&loader, spec)?)),
            ImageMixerSpec::Stack(spec) => Self::Stack(Box::new(ImageStack::load(&loader, spec)?)),
        })
    }

    /// x: `[batch, channels, height, width]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, source: Option<&ImageSource>) -> Result<Tensor, ModelError> {
        match self {
            Self::Attention(attention) => attention.forward(x, source),
            Self::Stack(stack) => stack.forward(x, source),
        }
    }
}

/// One attention with its weights.
#[derive(Debug)]
pub struct ImageAttention {
    name: String,
    spec: ImageAttentionSpec,
    norm: GroupNorm,
    q: Linear,
    own: Option<(Linear, Linear)>,
    source: Option<(Linear, Linear)>,
    source_norm: SourceNorm,
    out: Linear,
}

#[derive(Debug)]
enum SourceNorm {
    None,
    Layer(Norm),
    Groups(GroupNorm),
}

impl ImageAttention {
    fn load(loader: &Loader<'_>, spec: &ImageAttentionSpec) -> Result<Self, ModelError> {
        let channels = spec.channels;
        let layer = |name: &str, inputs| loader.linear(name, channels, inputs, true);
        let source = |width| Ok::<_, ModelError>((layer("source_k", width)?, layer("source_v", width)?));
        let own = || Ok::<_, ModelError>((layer("k", channels)?, layer("v", channels)?));
        Ok(Self {
            name: loader.name("attention"),
            spec: *spec,
            norm: GroupNorm::load(loader, "norm", channels, spec.groups, spec.eps)?,
            q: layer("q", channels)?,
            own: (!spec.source_only).then(own).transpose()?,
            source: spec.source.map(source).transpose()?,
            source_norm: match (spec.source_norm, spec.source) {
                (SourceNormSpec::Layer, Some(_)) => {
                    SourceNorm::Layer(Norm::load(loader, "source_norm", &NormSpec::layer(1e-5), channels)?)
                }
                (SourceNormSpec::Groups(groups), Some(width)) => {
                    SourceNorm::Groups(GroupNorm::load(loader, "source_norm", width, groups, 1e-5)?)
                }
                _ => SourceNorm::None,
            },
            out: layer("out", channels)?,
        })
    }

    fn forward(&self, x: &Tensor, source: Option<&ImageSource>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let places = places(&self.norm.forward(x)?).map_err(at())?;
        let (mut keys, mut values, mut absent) = (Vec::new(), Vec::new(), Vec::new());
        if let Some((k, v)) = &self.source {
            let source = source.ok_or_else(|| ModelError::MissingInput { name: format!("{}: source", self.name) })?;
            let states = self.normed(&source.states)?;
            let [k, v] = states.linears([k, v]).map_err(at())?;
            keys.push(k);
            values.push(v);
            absent.clone_from(&source.absent);
        }
        if let Some((k, v)) = &self.own {
            let [k, v] = places.linears([k, v]).map_err(at())?;
            keys.push(k);
            values.push(v);
        }
        let attended = || -> Result<Tensor, TensorError> {
            let shape = plain_heads(self.spec.heads, self.spec.channels / self.spec.heads);
            let (k, v) = (Tensor::concat(&keys, 1)?, Tensor::concat(&values, 1)?);
            let out = attend(&shape, &places.linear(&self.q)?, &k, &v, &absent)?.linear(&self.out)?;
            let sum = image(&out, x.dims())?.add(x)?;
            if self.spec.divisor == 1.0 { Ok(sum) } else { sum.scale(1.0 / self.spec.divisor) }
        };
        attended().map_err(at())
    }

    fn normed(&self, states: &Tensor) -> Result<Tensor, ModelError> {
        let turned = |x: &Tensor| x.transpose(1, 2).map_err(ModelError::at(&self.name));
        match &self.source_norm {
            SourceNorm::None => Ok(states.clone()),
            SourceNorm::Layer(norm) => norm.forward(states),
            SourceNorm::Groups(norm) => turned(&norm.forward(&turned(states)?)?),
        }
    }
}

/// A stack of layers with its weights, and the ways in and out.
#[derive(Debug)]
pub struct ImageStack {
    name: String,
    norm: GroupNorm,
    ways: Ways,
    stack: Stack,
}

#[derive(Debug)]
enum Ways {
    Convolutions(Convolution, Convolution),
    Linear(Linear, Linear),
}

impl ImageStack {
    fn load(loader: &Loader<'_>, spec: &ImageStackSpec) -> Result<Self, ModelError> {
        let (channels, hidden) = (spec.channels, spec.stack.hidden);
        let ways = if spec.convolutions {
            let convolution = |name: &str, inputs, outputs| Convolution::image(loader, name, inputs, outputs, 1);
            Ways::Convolutions(convolution("in", channels, hidden)?, convolution("out", hidden, channels)?)
        } else {
            let layer = |name: &str, inputs, outputs| loader.linear(name, outputs, inputs, true);
            Ways::Linear(layer("in", channels, hidden)?, layer("out", hidden, channels)?)
        };
        let norm = GroupNorm::load(loader, "norm", channels, spec.groups, 1e-6)?;
        Ok(Self { name: loader.name("stack"), norm, ways, stack: Stack::load(loader, spec.stack.clone())? })
    }

    fn forward(&self, x: &Tensor, source: Option<&ImageSource>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let [batch, _, height, width] = x.sizes().map_err(at())?;
        let normed = self.norm.forward(x)?;
        let tokens = match &self.ways {
            Ways::Convolutions(way, _) => places(&way.forward(&normed)?).map_err(at())?,
            Ways::Linear(way, _) => places(&normed).and_then(|places| places.linear(way)).map_err(at())?,
        };
        let rows = Row::whole(vec![height * width; batch]);
        let source = source.map(|source| -> Result<Source, TensorError> {
            let [sources, length, _] = source.states.sizes()?;
            let states = source.states.flatten(0, 1)?;
            Ok(Source { states, lengths: vec![length; sources], absent: source.absent.clone() })
        });
        let source = source.transpose().map_err(at())?;
        let reading = Reading { rows: &rows, absent: &[], source: source.as_ref() };
        let layers = 0..self.stack.spec().layers.len();
        let tokens = self.stack.layers(layers, tokens.flatten(0, 1).map_err(at())?, &reading, None)?;
        let tokens = self.stack.finish(&tokens)?;
        let back = |tokens: Tensor| -> Result<Tensor, TensorError> {
            let tokens = tokens.reshape(&[batch, height * width, tokens.dim(-1)?])?;
            let dims = [batch, tokens.dim(-1)?, height, width];
            image(&tokens, &dims)
        };
        let out = match &self.ways {
            Ways::Convolutions(_, way) => way.forward(&back(tokens).map_err(at())?)?,
            Ways::Linear(_, way) => tokens.linear(way).and_then(back).map_err(at())?,
        };
        out.add(x).map_err(at())
    }
}

/// `[batch, channels, height, width]` as places: `[batch, height * width, channels]`.
///
/// # Errors
///
/// When it is of another shape.
pub fn places(x: &Tensor) -> Result<Tensor, TensorError> {
    x.flatten(2, 3)?.transpose(1, 2)
}

/// Places `[batch, height * width, channels]` as an image of these dims.
fn image(x: &Tensor, dims: &[usize]) -> Result<Tensor, TensorError> {
    x.transpose(1, 2)?.reshape(dims)
}
