//! Models of speech (<https://arxiv.org/abs/2006.11477>): convolutions make features of samples, and a stack of layers
//! states of features.

mod head;

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::cache::Row;
use crate::layers::layer_weights::LayerWeights;
use crate::layers::mlp::Mlp;
use crate::layers::norm::Norm;
use crate::layers::sound::{SoundAdapter, SoundConvolution, SoundPositions, SoundSqueeze};
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::speech::{SoundAdapterSpec, SoundConvolutionSpec, SpeechHead, SpeechSpec};
use crate::spec::{Activation, MlpSpec, NormSpec};
use crate::stack::{Reading, Stack};
use head::Head;

/// A model of speech with its weights.
#[derive(Debug)]
pub struct Speech {
    spec: SpeechSpec,
    convolutions: Vec<SoundConvolution>,
    feature_norm: Option<Norm>,
    projection: Option<Linear>,
    hidden_feature: Option<Tensor>,
    positions: SoundPositions,
    squeeze: Option<SoundSqueeze>,
    embed_norm: Option<Norm>,
    stack: Stack,
    layer_adapters: Vec<(Norm, Mlp)>,
    adapter: Option<SoundAdapter>,
    weights: Option<LayerWeights>,
    head: Head,
}

/// States of a batch of sounds.
struct States {
    /// `[batch, places, hidden]`
    x: Tensor,
    /// `[batch, features, channels]`
    features: Tensor,
    /// How many places of each are no padding, where a mask says so.
    lengths: Option<Vec<usize>>,
}

impl Speech {
    /// Reads a model.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: SpeechSpec) -> Result<Self, ModelError> {
        let hidden = spec.stack.hidden;
        let features = spec.convolutions.last().map_or(1, |last| last.outputs);
        let convolutions = spec.convolutions.iter().enumerate();
        let convolutions =
            convolutions.map(|(number, spec)| SoundConvolution::load(loader, &format!("features.{number}"), spec));
        let layers = spec.stack.layers.len();
        let adapters = spec.layer_adapter.map(|inner| layer_adapters(loader, layers, hidden, inner));
        // Checkpoints that were made to be asked lack it; those that are trained on have it.
        let hidden_feature = loader.has("hidden_feature").then(|| loader.tensor("hidden_feature", &[hidden]));
        let width = spec.adapter.map_or(hidden, |adapter| adapter.width);
        Ok(Self {
            convolutions: convolutions.collect::<Result<_, _>>()?,
            feature_norm: Norm::load_optional(loader, "feature_norm", spec.feature_norm.as_ref(), features)?,
            projection: spec.projected.then(|| loader.linear("projection", hidden, features, true)).transpose()?,
            hidden_feature: hidden_feature.transpose()?,
            positions: SoundPositions::load(loader, &spec.positions, hidden, spec.squeeze.unwrap_or(1))?,
            squeeze: spec.squeeze.map(|factor| SoundSqueeze::load(loader, factor, hidden)).transpose()?,
            embed_norm: Norm::load_optional(loader, "embed_norm", spec.embed_norm.as_ref(), hidden)?,
            stack: Stack::load(loader, spec.stack.clone())?,
            layer_adapters: adapters.transpose()?.unwrap_or_default(),
            adapter: spec.adapter.map(|adapter| SoundAdapter::load(loader, &adapter, hidden)).transpose()?,
            weights: spec.weighted.then(|| LayerWeights::load(loader, "head.weights", layers)).transpose()?,
            head: Head::load(loader, &spec.head, width, features)?,
            spec,
        })
    }

    /// The fewest samples of a sound: those that the convolutions see from one place.
    pub fn samples_min(&self) -> usize {
        let before = |places: usize, spec: &SoundConvolutionSpec| {
            (places - 1).saturating_mul(spec.stride).saturating_add(spec.taps.max(1))
        };
        self.spec.convolutions.iter().rev().fold(1, before)
    }

    /// Its layers.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Answers what the model's class answers of `input_values`, `[batch, samples]`.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        match self.spec.head {
            SpeechHead::States { .. } | SpeechHead::Quantised { back: false, .. } => {
                inputs.only(&["input_values", "attention_mask", "mask_time_indices"])?;
            }
            _ => inputs.only(&["input_values", "attention_mask"])?,
        }
        let features = self.features(inputs.tensor("input_values")?)?;
        let hidden = inputs.optional_mask("mask_time_indices")?;
        let hidden = hidden.map(|(hidden, dims)| match features.dims() {
            [batch, places, _] if dims == [*batch, *places] => Ok(hidden),
            _ => Err(ModelError::input("mask_time_indices", "of each feature whether it is hidden", dims)),
        });
        let hidden = hidden.transpose()?;
        let states = self.states(inputs, features, hidden.as_deref())?;
        self.head.answer(&states, hidden.as_deref())
    }

    /// sound: `[batch, samples]` to `[batch, places, channels]`.
    fn features(&self, sound: &Tensor) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("features");
        let mut x = sound.unsqueeze(1).map_err(ModelError::at("input_values"))?;
        for convolution in &self.convolutions {
            x = convolution.forward(&x)?.activate(self.spec.activation).map_err(at())?;
        }
        let x = x.transpose(1, 2).map_err(at())?;
        match &self.feature_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    fn states(&self, inputs: &Inputs, features: Tensor, hidden: Option<&[bool]>) -> Result<States, ModelError> {
        let [batch, places, _] = features.sizes().map_err(ModelError::at("features"))?;
        let projected =
            || self.projection.as_ref().map_or_else(|| Ok(features.clone()), |layer| features.linear(layer));
        let mut x = projected().map_err(ModelError::at("projection"))?;
        if let Some(hidden) = hidden.filter(|_| self.spec.hides) {
            let missing = || ModelError::Unsupported {
                what: "the input".into(),
                found: "mask_time_indices".into(),
                supported: "models that have a vector for features that are hidden".into(),
            };
            let vector = self.hidden_feature.as_ref().ok_or_else(missing)?;
            let asked = hidden.iter().map(|&hidden| i64::from(hidden)).collect();
            let replaced = || Tensor::whole(x.engine(), asked, &[batch, places, 1])?.select(vector, &x);
            x = replaced().map_err(ModelError::at("mask_time_indices"))?;
        }
        let samples = self.samples(inputs)?;
        let lengths = |adapter: Option<SoundAdapterSpec>, places: usize| {
            let lengths = samples.as_ref().map(|samples| {
                samples
                    .iter()
                    .map(|&samples| self.length(samples, adapter.as_ref(), places))
                    .collect::<Result<Vec<_>, _>>()
            });
            lengths.transpose()
        };
        let mut x = self.layers(x, lengths(None, places)?.as_deref())?;
        if let Some(adapter) = &self.adapter {
            x = adapter.forward(&x)?;
        }
        let places = x.dim(1).map_err(ModelError::at("adapter"))?;
        let lengths = lengths(self.spec.adapter, places)?;
        Ok(States { x, features, lengths })
    }

    /// Positions and layers. x: `[batch, places, hidden]` to the same shape, or to the places that layers see.
    fn layers(&self, x: Tensor, lengths: Option<&[usize]>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("layers");
        let places = x.dim(1).map_err(at())?;
        let x = self.positioned(x, lengths)?;
        let [batch, fewer, hidden] = x.sizes().map_err(at())?;
        let factor = self.squeeze.as_ref().map_or(1, SoundSqueeze::factor);
        let lengths = lengths.map(|lengths| lengths.iter().map(|length| length / factor).collect::<Vec<_>>());
        if lengths.iter().flatten().any(|&length| length == 0) {
            let expected = format!("a mask that leaves {factor} places of each sound");
            return Err(ModelError::input("attention_mask", &expected, &[batch, places]));
        }
        let absent = absent(lengths.as_deref(), fewer);
        let rows = Row::whole(vec![fewer; batch]);
        let reading = Reading { rows: &rows, absent: &absent, source: None };
        let mut x = x.flatten(0, 1).map_err(at())?;
        let mut all = vec![x.clone()];
        let layers = self.stack.spec().layers.len();
        for number in 0..layers {
            x = self.stack.layers(number..number + 1, x, &reading, None)?;
            if let Some((norm, mlp)) = self.layer_adapters.get(number) {
                x = x.add(&mlp.forward(&norm.forward(&x)?)?).map_err(at())?;
            }
            if number + 1 == layers {
                x = self.stack.finish(&x)?;
            }
            if self.weights.is_some() {
                all.push(x.clone());
            }
        }
        let told = || -> Result<Tensor, TensorError> {
            let apart = |x: &Tensor| x.reshape(&[batch, fewer, hidden]);
            match (&self.weights, &self.squeeze) {
                (Some(weights), _) => apart(&weights.sum(&all)?),
                (None, Some(squeeze)) => squeeze.spread(&apart(&x)?, self.spec.activation, places),
                (None, None) => apart(&x),
            }
        };
        told().map_err(at())
    }

    /// States with their positions, squeezed where layers see fewer: `[batch, places, hidden]`. Padding is silent.
    fn positioned(&self, mut x: Tensor, lengths: Option<&[usize]>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("positions");
        let [batch, places, _] = x.sizes().map_err(at())?;
        let absent = absent(lengths, places);
        if !absent.is_empty() {
            let seen = absent.iter().flatten().map(|&absent| if absent { 0.0 } else { 1.0 }).collect();
            let silent = || x.mul(&Tensor::new(x.engine(), seen, &[batch, places, 1])?);
            x = silent().map_err(at())?;
        }
        let mut positions = self.positions.forward(&x, self.spec.activation)?;
        if let Some(squeeze) = &self.squeeze {
            x = squeeze.squeezed(&x).map_err(at())?;
            positions = positions.narrow(1, 0, places / squeeze.factor()).map_err(at())?;
        }
        x = x.add(&positions).map_err(at())?;
        self.embed_norm.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(&x))
    }

    /// How many samples of each sound are no padding, where a mask says so.
    fn samples(&self, inputs: &Inputs) -> Result<Option<Vec<usize>>, ModelError> {
        let Some((mask, dims)) = inputs.optional_mask("attention_mask")? else { return Ok(None) };
        let sound = inputs.tensor("input_values")?.dims();
        if dims != sound {
            return Err(ModelError::input("attention_mask", &format!("{sound:?} as of input_values"), dims));
        }
        let length = dims.last().map_or(1, |&length| length.max(1));
        let samples = mask.chunks(length).map(|row| row.iter().filter(|&&seen| seen).count()).collect();
        Ok(Some(samples).filter(|_| self.spec.masked))
    }

    /// How many of `places` the samples of a sound give that are no padding.
    fn length(&self, samples: usize, adapter: Option<&SoundAdapterSpec>, places: usize) -> Result<usize, ModelError> {
        let step =
            |length: i64, spec: &SoundConvolutionSpec| (length - spec.taps as i64).div_euclid(spec.stride as i64) + 1;
        let mut length = self.spec.convolutions.iter().fold(samples as i64, step);
        if let Some(adapter) = adapter {
            (0..adapter.layers).for_each(|_| length = (length - 1).div_euclid(adapter.stride as i64) + 1);
        }
        // The reference marks the last place by its index, and those below zero count from the end.
        let counted = if length <= 0 { places as i64 + length } else { length };
        match usize::try_from(counted) {
            Ok(counted) if (1..=places).contains(&counted) => Ok(counted),
            _ => Err(ModelError::input("attention_mask", "a mask that leaves some of each sound", &[samples])),
        }
    }
}

/// Which of its places each sound lacks; empty where none does.
fn absent(lengths: Option<&[usize]>, places: usize) -> Vec<Vec<bool>> {
    let absent = |&length: &usize| (0..places).map(|place| place >= length).collect();
    lengths.unwrap_or_default().iter().map(absent).collect()
}

/// The narrow parts after the layers.
fn layer_adapters(
    loader: &Loader<'_>,
    layers: usize,
    hidden: usize,
    inner: usize,
) -> Result<Vec<(Norm, Mlp)>, ModelError> {
    let mlp = MlpSpec::plain(inner, Activation::Relu);
    let adapter = |number: usize| {
        let name = |part: &str| format!("layers.{number}.adapter.{part}");
        let norm = Norm::load(loader, &name("norm"), &NormSpec::layer(1e-5), hidden)?;
        Ok((norm, Mlp::load(loader, &name("mlp"), &mlp, hidden)?))
    };
    (0..layers).map(adapter).collect()
}
