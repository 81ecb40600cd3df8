//! Models of speech (<https://arxiv.org/abs/2006.11477>): convolutions make features of samples, and a stack of layers
//! states of features.

use accel_backends::tensor::{Convolution as Op, Kind, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::cache::Row;
use crate::layers::batch_norm::BatchNorm;
use crate::layers::convolution::{Convolution, GroupNorm, weight_of_length};
use crate::layers::mlp::Mlp;
use crate::layers::norm::Norm;
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::speech::{
    SoundAdapterSpec, SoundConvolutionSpec, SoundNormSpec, SoundPositionsKind, SoundPositionsSpec, SpeechHead,
    SpeechSpec,
};
use crate::spec::{Activation, MlpSpec, NormKind, NormSpec};
use crate::stack::{Reading, Stack};

/// A model of speech with its weights.
#[derive(Debug)]
pub struct Speech {
    spec: SpeechSpec,
    convolutions: Vec<(Convolution, SoundNorm)>,
    feature_norm: Option<Norm>,
    projection: Linear,
    hidden_feature: Option<Tensor>,
    positions: Positions,
    embed_norm: Option<Norm>,
    stack: Stack,
    layer_adapters: Vec<(Norm, Mlp)>,
    adapter: Option<Adapter>,
    weights: Option<Tensor>,
    head: Head,
}

#[derive(Debug)]
enum SoundNorm {
    None,
    Channels(GroupNorm),
    Places(Norm),
}

#[derive(Debug)]
struct Positions {
    before: Option<BatchNorm>,
    convolutions: Vec<Convolution>,
    after: Option<Norm>,
}

#[derive(Debug)]
struct Adapter {
    spec: SoundAdapterSpec,
    projection: Option<(Linear, Norm)>,
    convolutions: Vec<Convolution>,
}

#[derive(Debug)]
enum Head {
    States,
    Transcript(Linear),
    Labels(Linear, Linear),
    PlaceLabels(Linear),
    Speaker { projection: Linear, layers: Vec<Convolution>, vector: Linear, logits: Linear },
    Quantised { hidden: Linear, scores: Linear, vectors: Tensor, projection: Linear },
}

/// States of a batch of sounds, and how long each is of its padded places.
struct States {
    /// `[batch, places, hidden]`
    x: Tensor,
    /// `[batch, places, channels]`
    features: Tensor,
    /// Samples of each that are no padding, where a mask says so.
    samples: Option<Vec<usize>>,
}

/// The norm of convolutions, whose epsilon is in no configuration.
const EPS: f32 = 1e-5;

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
            convolutions.map(|(number, spec)| sound_convolution(loader, &format!("features.{number}"), spec));
        let layers = spec.stack.layers.len();
        let adapters = spec.layer_adapter.map(|inner| {
            let name = |number: usize, part: &str| format!("layers.{number}.adapter.{part}");
            let mlp = MlpSpec::plain(inner, Activation::Relu);
            let adapter = |number: usize| {
                let norm = Norm::load(loader, &name(number, "norm"), &NormSpec::layer(1e-5), hidden)?;
                Ok((norm, Mlp::load(loader, &name(number, "mlp"), &mlp, hidden)?))
            };
            (0..layers).map(adapter).collect::<Result<Vec<_>, ModelError>>()
        });
        Ok(Self {
            convolutions: convolutions.collect::<Result<_, _>>()?,
            feature_norm: Norm::load_optional(loader, "feature_norm", spec.feature_norm.as_ref(), features)?,
            projection: loader.linear("projection", hidden, features, true)?,
            hidden_feature: loader
                .has("hidden_feature")
                .then(|| loader.tensor("hidden_feature", &[hidden]))
                .transpose()?,
            positions: Positions::load(loader, &spec.positions, hidden)?,
            embed_norm: Norm::load_optional(loader, "embed_norm", spec.embed_norm.as_ref(), hidden)?,
            stack: Stack::load(loader, spec.stack.clone())?,
            layer_adapters: adapters.transpose()?.unwrap_or_default(),
            adapter: spec.adapter.map(|adapter| Adapter::load(loader, adapter, hidden)).transpose()?,
            weights: spec.weighted.then(|| loader.tensor("head.weights", &[layers + 1])).transpose()?,
            head: Head::load(loader, &spec.head, spec.adapter.map_or(hidden, |adapter| adapter.width), features)?,
            spec,
        })
    }

    /// Answers what the model's class answers of `input_values`, `[batch, samples]`.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        inputs.only(&["input_values", "attention_mask", "mask_time_indices"])?;
        let at = || ModelError::at("head");
        let states = self.states(inputs)?;
        let x = &states.x;
        Ok(match &self.head {
            Head::States => {
                vec![("last_hidden_state".into(), x.clone()), ("extract_features".into(), states.features.clone())]
            }
            Head::Transcript(layer) | Head::PlaceLabels(layer) => {
                vec![("logits".into(), x.linear(layer).map_err(at())?)]
            }
            Head::Labels(projection, labels) => {
                let lengths = self.lengths(&states, true);
                let logits = || mean(&x.linear(projection)?, lengths.as_deref())?.linear(labels);
                vec![("logits".into(), logits().map_err(at())?)]
            }
            Head::Speaker { projection, layers, vector, logits } => {
                let mut x = x.linear(projection).and_then(|x| x.transpose(1, 2)).map_err(at())?;
                for layer in layers {
                    x = layer.forward(&x)?.activate(Activation::Relu).map_err(at())?;
                }
                let lengths = self.speaker_lengths(&states);
                let pooled = x.transpose(1, 2).and_then(|x| mean_and_deviation(&x, lengths.as_deref()));
                let embeddings = pooled.and_then(|pooled| pooled.linear(vector)).map_err(at())?;
                let logits = embeddings.linear(logits).map_err(at())?;
                vec![("logits".into(), logits), ("embeddings".into(), embeddings)]
            }
            Head::Quantised { hidden, scores, vectors, projection } => {
                let SpeechHead::Quantised { groups, .. } = self.spec.head else { return Ok(Vec::new()) };
                let asked = inputs.optional_whole("mask_time_indices")?.map(|(asked, _)| asked);
                let quantised = || -> Result<Outputs, TensorError> {
                    let scores = states.features.linear(scores)?;
                    let (found, perplexity) = quantised(&scores, vectors, groups, asked.as_deref())?;
                    Ok(vec![
                        ("projected_states".into(), x.linear(hidden)?),
                        ("projected_quantized_states".into(), found.linear(projection)?),
                        ("codevector_perplexity".into(), perplexity),
                    ])
                };
                quantised().map_err(at())?
            }
        })
    }

    fn states(&self, inputs: &Inputs) -> Result<States, ModelError> {
        let sound = inputs.tensor("input_values")?;
        let mut x = sound.unsqueeze(1).map_err(ModelError::at("input_values"))?;
        for (convolution, norm) in &self.convolutions {
            x = norm
                .forward(&convolution.forward(&x)?)?
                .activate(self.spec.activation)
                .map_err(ModelError::at("features"))?;
        }
        let mut features = x.transpose(1, 2).map_err(ModelError::at("features"))?;
        let [batch, places, _] = features.sizes().map_err(ModelError::at("features"))?;
        let mut x = features.clone();
        if let Some(norm) = &self.feature_norm {
            x = norm.forward(&features)?;
            if self.spec.features_normed {
                features = x.clone();
            }
        }
        let mut x = x.linear(&self.projection).map_err(ModelError::at("projection"))?;
        if let (Some((asked, _)), Some(hidden)) = (inputs.optional_whole("mask_time_indices")?, &self.hidden_feature) {
            let replaced = || Tensor::whole(x.engine(), asked, &[batch, places, 1])?.select(hidden, &x);
            x = replaced().map_err(ModelError::at("mask_time_indices"))?;
        }
        let samples = inputs.optional_whole("attention_mask")?.filter(|_| self.spec.masked).map(|(mask, dims)| {
            let length = dims.last().copied().unwrap_or(1).max(1);
            mask.chunks(length).map(|row| row.iter().filter(|&&seen| seen != 0).count()).collect::<Vec<_>>()
        });
        let mut states = States { x, features, samples };
        states.x = self.layers(&states, [batch, places])?;
        if let Some(adapter) = &self.adapter {
            states.x = adapter.forward(&states.x)?;
        }
        Ok(states)
    }

    /// Positions and layers: `[batch, places, hidden]`.
    fn layers(&self, states: &States, [batch, places]: [usize; 2]) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("layers");
        let lengths = self.lengths(states, false);
        let absent: Vec<Vec<bool>> = match &lengths {
            Some(lengths) => lengths.iter().map(|&length| (0..places).map(|place| place >= length).collect()).collect(),
            None => Vec::new(),
        };
        let mut x = states.x.clone();
        if !absent.is_empty() {
            let seen = absent.iter().flatten().map(|&absent| if absent { 0.0 } else { 1.0 }).collect();
            let silent = || x.mul(&Tensor::new(x.engine(), seen, &[batch, places, 1])?);
            x = silent().map_err(at())?;
        }
        let positions = self.positions.forward(&x, self.spec.activation)?;
        x = x.add(&positions).map_err(at())?;
        if let Some(norm) = &self.embed_norm {
            x = norm.forward(&x)?;
        }
        let rows = Row::whole(vec![places; batch]);
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
        let weighed = || -> Result<Tensor, TensorError> {
            let x = match &self.weights {
                Some(weights) => {
                    let weights = weights.softmax(0)?.reshape(&[layers + 1, 1, 1])?;
                    Tensor::stack(&all, 0)?.mul(&weights)?.sum(&[0])?.squeeze(0)?
                }
                None => x,
            };
            x.reshape(&[batch, places, x.dim(-1)?])
        };
        weighed().map_err(at())
    }

    /// How many places of each sound are no padding, after the convolutions or after the adapter too.
    fn lengths(&self, states: &States, adapted: bool) -> Option<Vec<usize>> {
        let places = if adapted { states.x.dims()[1] } else { states.features.dims()[1] };
        let length = |&samples: &usize| {
            let mut length = self.features_of(samples as i64);
            if let Some(adapter) = self.adapter.as_ref().filter(|_| adapted) {
                (0..adapter.spec.layers).for_each(|_| length = (length - 1).div_euclid(adapter.spec.stride as i64) + 1);
            }
            // The reference marks the last place by its index, and those below zero count from the end.
            if length <= 0 { (places as i64 + length).max(0) as usize } else { length as usize }
        };
        states.samples.as_ref().map(|samples| samples.iter().map(length).collect())
    }

    fn features_of(&self, samples: i64) -> i64 {
        let step =
            |length: i64, spec: &SoundConvolutionSpec| (length - spec.taps as i64).div_euclid(spec.stride as i64) + 1;
        self.spec.convolutions.iter().fold(samples, step)
    }

    fn speaker_lengths(&self, states: &States) -> Option<Vec<usize>> {
        let SpeechHead::Speaker { layers, .. } = &self.spec.head else { return None };
        // The reference takes dilations for 1 here.
        let after =
            |length: usize| layers.iter().fold(length as i64, |length, (layer, _)| length - layer.taps as i64 + 1);
        let lengths = self.lengths(states, true)?;
        Some(lengths.into_iter().map(|length| after(length).max(0) as usize).collect())
    }
}

fn sound_convolution(
    loader: &Loader<'_>,
    name: &str,
    spec: &SoundConvolutionSpec,
) -> Result<(Convolution, SoundNorm), ModelError> {
    let op = Op::new(1).stride(spec.stride);
    let dims = [spec.outputs, spec.inputs, spec.taps];
    let convolution = Convolution::load(loader, &format!("{name}.convolution"), op, &dims, spec.bias)?;
    let norm = format!("{name}.norm");
    let norm = match spec.norm {
        SoundNormSpec::None => SoundNorm::None,
        SoundNormSpec::Channels => {
            SoundNorm::Channels(GroupNorm::load(loader, &norm, spec.outputs, spec.outputs, EPS)?)
        }
        SoundNormSpec::Places => {
            SoundNorm::Places(Norm::load(loader, &norm, &NormSpec::layer(f64::from(EPS)), spec.outputs)?)
        }
    };
    Ok((convolution, norm))
}

impl SoundNorm {
    /// x: `[batch, channels, places]` to the same shape.
    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let turned = |x: &Tensor| x.transpose(1, 2).map_err(ModelError::at("features"));
        match self {
            Self::None => Ok(x.clone()),
            Self::Channels(norm) => norm.forward(x),
            Self::Places(norm) => turned(&norm.forward(&turned(x)?)?),
        }
    }
}

impl Positions {
    fn load(loader: &Loader<'_>, spec: &SoundPositionsSpec, hidden: usize) -> Result<Self, ModelError> {
        // An even number of taps gives one place too many, and the last goes.
        let after = (spec.taps / 2 + spec.taps % 2).saturating_sub(1);
        let op = Op { padding: vec![(spec.taps / 2, after)], ..Op::new(1).groups(spec.groups) };
        let dims = [hidden, hidden / spec.groups, spec.taps];
        let name = "positions";
        Ok(match spec.kind {
            SoundPositionsKind::OfLength => {
                let weight = weight_of_length(loader, name, &dims, 2)?;
                let layer = Linear { weight, bias: Some(loader.tensor("positions.bias", &[hidden])?) };
                let convolutions = vec![Convolution::of(loader.name(name), op, layer)];
                Self { before: None, convolutions, after: None }
            }
            SoundPositionsKind::BatchNorm => Self {
                before: Some(BatchNorm::load(loader, "positions.norm", hidden, EPS)?),
                convolutions: vec![Convolution::load(loader, name, op, &dims, true)?],
                after: None,
            },
            SoundPositionsKind::Several(count) => {
                let convolution =
                    |number| Convolution::load(loader, &format!("{name}.{number}"), op.clone(), &dims, true);
                let norm = NormSpec { kind: NormKind::Layer, eps: EPS, weight: false, bias: false };
                Self {
                    before: None,
                    convolutions: (0..count).map(convolution).collect::<Result<_, _>>()?,
                    after: Some(Norm::load(loader, "positions.norm", &norm, hidden)?),
                }
            }
        })
    }

    /// x: `[batch, places, hidden]` to the same shape.
    fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor, ModelError> {
        let turned = |x: &Tensor| x.transpose(1, 2).map_err(ModelError::at("positions"));
        let mut x = match &self.before {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        for convolution in &self.convolutions {
            x = turned(&convolution.forward(&turned(&x)?)?)?;
            if let Some(norm) = &self.after {
                x = norm.forward(&x)?;
            }
            x = x.activate(activation).map_err(ModelError::at("positions"))?;
        }
        Ok(x)
    }
}

impl Adapter {
    fn load(loader: &Loader<'_>, spec: SoundAdapterSpec, hidden: usize) -> Result<Self, ModelError> {
        let projection = || {
            let norm = Norm::load(loader, "adapter.norm", &NormSpec::layer(1e-5), spec.width)?;
            Ok::<_, ModelError>((loader.linear("adapter.projection", spec.width, hidden, true)?, norm))
        };
        let op = Op::new(1).stride(spec.stride).padding(1);
        let dims = [2 * spec.width, spec.width, spec.taps];
        let convolution =
            |number| Convolution::load(loader, &format!("adapter.layers.{number}"), op.clone(), &dims, true);
        Ok(Self {
            spec,
            projection: (spec.width != hidden).then(projection).transpose()?,
            convolutions: (0..spec.layers).map(convolution).collect::<Result<_, _>>()?,
        })
    }

    /// x: `[batch, places, hidden]` to `[batch, fewer places, width]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("adapter");
        let mut x = x.clone();
        if let Some((projection, norm)) = &self.projection {
            x = norm.forward(&x.linear(projection).map_err(at())?)?;
        }
        x = x.transpose(1, 2).map_err(at())?;
        for convolution in &self.convolutions {
            let both = convolution.forward(&x)?;
            let gated = || {
                let [value, gate] = both.chunks(1)?;
                value.mul(&gate.sigmoid()?)
            };
            x = gated().map_err(at())?;
        }
        x.transpose(1, 2).map_err(at())
    }
}

impl Head {
    fn load(loader: &Loader<'_>, spec: &SpeechHead, hidden: usize, features: usize) -> Result<Self, ModelError> {
        let layer = |name: &str, outputs, inputs| loader.linear(name, outputs, inputs, true);
        Ok(match spec {
            SpeechHead::States => Self::States,
            SpeechHead::Transcript { vocabulary } => Self::Transcript(layer("head.transcript", *vocabulary, hidden)?),
            SpeechHead::Labels { labels, width } => {
                Self::Labels(layer("head.projection", *width, hidden)?, layer("head.labels", *labels, *width)?)
            }
            SpeechHead::PlaceLabels { labels } => Self::PlaceLabels(layer("head.labels", *labels, hidden)?),
            SpeechHead::Speaker { layers, width } => {
                let convolution = |(number, (spec, dilation)): (usize, &(SoundConvolutionSpec, usize))| {
                    // It is stored as a linear layer over its taps.
                    let name = format!("head.layers.{number}");
                    let stored = layer(&name, spec.outputs, spec.taps * spec.inputs)?;
                    let turned = || {
                        let apart = stored.weight.reshape(&[spec.outputs, spec.taps, spec.inputs])?;
                        let weight = apart.transpose(1, 2)?;
                        Tensor::new(loader.engine, weight.to_vec()?, weight.dims())
                    };
                    let weight = turned().map_err(ModelError::at(&name))?;
                    let op = Op::new(1).dilation(*dilation);
                    Ok(Convolution::of(name, op, Linear { weight, bias: stored.bias }))
                };
                let (first, last) =
                    layers.first().zip(layers.last()).map_or((0, 0), |(a, b)| (a.0.inputs, b.0.outputs));
                Self::Speaker {
                    projection: layer("head.projection", first, hidden)?,
                    layers: layers.iter().enumerate().map(convolution).collect::<Result<_, ModelError>>()?,
                    vector: layer("head.vector", *width, 2 * last)?,
                    logits: layer("head.labels", *width, *width)?,
                }
            }
            SpeechHead::Quantised { groups, vectors, vector, width } => {
                let table = loader.tensor("head.vectors", &[1, groups * vectors, vector / groups])?;
                Self::Quantised {
                    hidden: layer("head.hidden", *width, hidden)?,
                    scores: layer("head.scores", groups * vectors, features)?,
                    vectors: table,
                    projection: layer("head.projection", *width, *vector)?,
                }
            }
        })
    }
}

/// The mean of the places of each sound that are no padding: `[batch, places, width]` to `[batch, width]`.
fn mean(x: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor, TensorError> {
    let [batch, places, _] = x.sizes()?;
    let Some(lengths) = lengths else { return x.mean(&[1])?.squeeze(1) };
    let share = |&length: &usize| (0..places).map(move |place| if place < length { 1.0 / length as f32 } else { 0.0 });
    let shares = Tensor::new(x.engine(), lengths.iter().flat_map(share).collect(), &[batch, 1, places])?;
    shares.matmul(x)?.squeeze(1)
}

/// Means and deviations over the places of each sound: `[batch, places, width]` to `[batch, 2 * width]`.
fn mean_and_deviation(x: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor, TensorError> {
    let [batch, places, _] = x.sizes()?;
    let mut rows = Vec::with_capacity(batch);
    for row in 0..batch {
        let length = lengths.and_then(|lengths| lengths.get(row)).map_or(places, |&length| length.min(places));
        let x = x.narrow(0, row, 1)?.narrow(1, 0, length)?;
        let mean = x.mean(&[1])?;
        let squares = x.sub(&mean)?.square()?.sum(&[1])?;
        let deviation = squares.scale(1.0 / (length as f32 - 1.0))?.sqrt()?;
        rows.push(Tensor::concat(&[mean.squeeze(1)?, deviation.squeeze(1)?], 1)?);
    }
    Tensor::concat(&rows, 0)
}

/// Of each place the best vector of each group, `[batch, places, vector]`, and how evenly they are used.
fn quantised(
    scores: &Tensor,
    vectors: &Tensor,
    groups: usize,
    asked: Option<&[i64]>,
) -> Result<(Tensor, Tensor), TensorError> {
    let ([batch, places, all], engine) = (scores.sizes()?, scores.engine());
    let (count, each) = (batch * places, all / groups);
    let best = scores.reshape(&[count, groups, each])?.argmax()?;
    let firsts = Tensor::whole(engine, (0..groups).map(|group| (group * each) as i64).collect(), &[1, groups])?;
    let vector = vectors.dim(-1)?;
    let table = vectors.reshape(&[all, vector])?;
    let found = table.gather(0, &best.add(&firsts)?)?.reshape(&[batch, places, groups * vector])?;
    let names = Tensor::whole(engine, (0..each as i64).collect(), &[1, 1, each])?;
    let chosen = best.unsqueeze(2)?.equal(&names)?.to_kind(Kind::Float)?;
    let used = match asked {
        Some(asked) => {
            let total = asked.iter().filter(|&&asked| asked != 0).count() as f32;
            let shares = asked.iter().map(|&asked| if asked != 0 { 1.0 / total } else { 0.0 }).collect();
            chosen.mul(&Tensor::new(engine, shares, &[count, 1, 1])?)?.sum(&[0])?
        }
        None => chosen.mean(&[0])?,
    };
    let spread = used.mul(&used.shift(1e-7)?.log()?)?.sum(&[-1])?.neg()?.exp()?;
    Ok((found, spread.sum(&[0, 1, 2])?.reshape(&[])?))
}
