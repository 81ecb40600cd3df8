//! What is made of the states of a sound.

use accel_backends::tensor::{Convolution as Op, Kind, Linear, Tensor, TensorError};

use super::States;
use crate::ModelError;
use crate::model::Outputs;
use crate::rules::Loader;
use crate::spec::Activation;
use crate::spec::speech::{SoundConvolutionSpec, SpeechHead};

/// A head with its weights.
#[derive(Debug)]
pub struct Head(Kinds);

#[derive(Debug)]
enum Kinds {
    States { features: bool },
    Transcript(Linear),
    Labels(Linear, Linear),
    PlaceLabels(Linear),
    Speaker(Speaker),
    Quantised(Quantiser),
    Compared,
}

/// Who speaks (<https://www.danielpovey.com/files/2018_icassp_xvectors.pdf>).
#[derive(Debug)]
struct Speaker {
    projection: Linear,
    layers: Vec<(Op, Linear)>,
    lost: usize,
    vector: Linear,
    logits: Linear,
}

/// Which of some vectors a feature is nearest to.
#[derive(Debug)]
struct Quantiser {
    groups: usize,
    back: bool,
    hidden: Linear,
    scores: Linear,
    vectors: Tensor,
    projection: Linear,
}

impl Head {
    /// Reads the part `head`, over states of `hidden` elements and features of `features`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &SpeechHead, hidden: usize, features: usize) -> Result<Self, ModelError> {
        let layer = |name: &str, outputs, inputs| loader.linear(name, outputs, inputs, true);
        Ok(Self(match spec {
            SpeechHead::States { features } => Kinds::States { features: *features },
            SpeechHead::Transcript { vocabulary } => Kinds::Transcript(layer("head.transcript", *vocabulary, hidden)?),
            SpeechHead::Labels { labels, width } => {
                Kinds::Labels(layer("head.projection", *width, hidden)?, layer("head.labels", *labels, *width)?)
            }
            SpeechHead::PlaceLabels { labels } => Kinds::PlaceLabels(layer("head.labels", *labels, hidden)?),
            SpeechHead::Speaker { layers, width } => {
                let (first, last) =
                    layers.first().zip(layers.last()).map_or((0, 0), |(a, b)| (a.0.inputs, b.0.outputs));
                let convolution = |(number, (spec, dilation)): (usize, &(SoundConvolutionSpec, usize))| {
                    let layer = speaker_convolution(loader, &format!("head.layers.{number}"), spec)?;
                    Ok((Op::new(1).dilation(*dilation), layer))
                };
                Kinds::Speaker(Speaker {
                    projection: layer("head.projection", first, hidden)?,
                    layers: layers.iter().enumerate().map(convolution).collect::<Result<_, ModelError>>()?,
                    // The reference takes dilations for 1 here.
                    lost: layers.iter().map(|(layer, _)| layer.taps - 1).sum(),
                    vector: layer("head.vector", *width, 2 * last)?,
                    logits: layer("head.labels", *width, *width)?,
                })
            }
            SpeechHead::Quantised { groups, vectors, vector, width, back } => Kinds::Quantised(Quantiser {
                groups: *groups,
                back: *back,
                hidden: if *back {
                    layer("head.hidden", hidden, *width)?
                } else {
                    layer("head.hidden", *width, hidden)?
                },
                scores: layer("head.scores", groups * vectors, features)?,
                vectors: loader.tensor("head.vectors", &[1, groups * vectors, vector / groups])?,
                projection: layer("head.projection", *width, *vector)?,
            }),
            SpeechHead::Compared => Kinds::Compared,
        }))
    }

    /// What the head answers. `hidden`, of each feature whether it was asked to be hidden, where that was asked.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit, or a sound is too short.
    pub fn answer(&self, states: &States, hidden: Option<&[bool]>) -> Result<Outputs, ModelError> {
        let x = &states.x;
        let answer = || -> Result<Outputs, TensorError> {
            Ok(match &self.0 {
                Kinds::States { features } => {
                    let mut all = vec![("last_hidden_state".into(), x.clone())];
                    if *features {
                        all.push(("extract_features".into(), states.features.clone()));
                    }
                    all
                }
                Kinds::Transcript(layer) | Kinds::PlaceLabels(layer) => vec![("logits".into(), x.linear(layer)?)],
                Kinds::Labels(projection, labels) => {
                    let pooled = mean(&x.linear(projection)?, states.lengths.as_deref())?;
                    vec![("logits".into(), pooled.linear(labels)?)]
                }
                Kinds::Speaker(speaker) => {
                    let embeddings = speaker.pooled(x, states.lengths.as_deref())?.linear(&speaker.vector)?;
                    let logits = embeddings.linear(&speaker.logits)?;
                    vec![("logits".into(), logits), ("embeddings".into(), embeddings)]
                }
                Kinds::Quantised(quantiser) => {
                    let (found, perplexity) = quantiser.nearest(&states.features, hidden)?;
                    let (mut states, mut found) = (x.clone(), found.linear(&quantiser.projection)?);
                    let turned = if quantiser.back { &mut found } else { &mut states };
                    *turned = turned.linear(&quantiser.hidden)?;
                    vec![
                        ("projected_states".into(), states),
                        ("projected_quantized_states".into(), found),
                        ("codevector_perplexity".into(), perplexity),
                    ]
                }
                Kinds::Compared => {
                    vec![("logits".into(), states.features.clone()), ("projected_states".into(), x.clone())]
                }
            })
        };
        answer().map_err(ModelError::at("head"))
    }
}

/// A convolution that is stored as a linear layer over its taps.
fn speaker_convolution(loader: &Loader<'_>, name: &str, spec: &SoundConvolutionSpec) -> Result<Linear, ModelError> {
    let stored = loader.linear(name, spec.outputs, spec.taps * spec.inputs, spec.bias)?;
    let turned = || {
        let apart = stored.weight.reshape(&[spec.outputs, spec.taps, spec.inputs])?;
        let weight = apart.transpose(1, 2)?;
        Tensor::new(loader.engine, weight.to_vec()?, weight.dims())
    };
    let weight = turned().map_err(ModelError::at(loader.name(name)))?;
    Ok(Linear { weight, bias: stored.bias })
}

impl Speaker {
    /// Means and deviations over the places of each sound: `[batch, places, hidden]` to `[batch, 2 * width]`.
    fn pooled(&self, x: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor, TensorError> {
        let mut x = x.linear(&self.projection)?.transpose(1, 2)?;
        for (op, layer) in &self.layers {
            x = x.convolution(op, layer)?.activate(Activation::Relu)?;
        }
        let places = x.dim(2)?;
        let rows = (0..x.dim(0)?).map(|row| {
            let length = lengths.and_then(|lengths| lengths.get(row));
            let length = length.map_or(places, |length| length.saturating_sub(self.lost).min(places));
            if length < 2 {
                let (expected, found) = ("a sound of two places or more".into(), length.to_string());
                return Err(TensorError::Shape { operation: "deviation", expected, found });
            }
            let x = x.narrow(0, row, 1)?.narrow(2, 0, length)?;
            let mean = x.mean(&[2])?;
            let variance = x.sub(&mean)?.square()?.sum(&[2])?.scale(1.0 / (length as f32 - 1.0))?;
            Tensor::concat(&[mean.squeeze(2)?, variance.sqrt()?.squeeze(2)?], 1)
        });
        Tensor::concat(&rows.collect::<Result<Vec<_>, _>>()?, 0)
    }
}

impl Quantiser {
    /// Of each place the best vector of each group, `[batch, places, vector]`, and how evenly they are used. x: features.
    fn nearest(&self, x: &Tensor, hidden: Option<&[bool]>) -> Result<(Tensor, Tensor), TensorError> {
        let scores = x.linear(&self.scores)?;
        let ([batch, places, all], engine) = (scores.sizes()?, scores.engine());
        let (count, each) = (batch * places, all / self.groups);
        let best = scores.reshape(&[count, self.groups, each])?.argmax()?;
        let firsts = (0..self.groups).map(|group| (group * each) as i64).collect();
        let firsts = Tensor::whole(engine, firsts, &[1, self.groups])?;
        let vector = self.vectors.dim(-1)?;
        let table = self.vectors.reshape(&[all, vector])?;
        let found = table.gather(0, &best.add(&firsts)?)?.reshape(&[batch, places, self.groups * vector])?;
        let names = Tensor::whole(engine, (0..each as i64).collect(), &[1, 1, each])?;
        let chosen = best.unsqueeze(2)?.equal(&names)?.to_kind(Kind::Float)?;
        let used = match hidden {
            Some(hidden) => {
                let total = hidden.iter().filter(|&&hidden| hidden).count() as f32;
                let shares = hidden.iter().map(|&hidden| if hidden { 1.0 / total } else { 0.0 }).collect();
                chosen.mul(&Tensor::new(engine, shares, &[count, 1, 1])?)?.sum(&[0])?
            }
            None => chosen.mean(&[0])?,
        };
        let spread = used.mul(&used.shift(1e-7)?.log()?)?.sum(&[-1])?.neg()?.exp()?;
        Ok((found, spread.sum(&[0, 1, 2])?.reshape(&[])?))
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
