//! The stack of layers under every text model: `embed`, then `layers` over any range, then `finish`.
//!
//! Tokens of all sequences lie flat, `[tokens, hidden]`; only what mixes tokens looks at the rows that they belong to. A
//! stage of a model that is split between peers is a range of layers.

use std::ops::Range;
use std::sync::Arc;

use accel_backends::tensor::{Tensor, TensorError};

use crate::ModelError;
use crate::cache::{LayerState, Row, State};
use crate::layers::attention::{Attention, Pass, Source};
use crate::layers::bias::Bias;
use crate::layers::carry::without_padding;
use crate::layers::embed::{Embed, Spliced, Tokens};
use crate::layers::latent::Latent;
use crate::layers::mamba::Mamba;
use crate::layers::mamba2::Mamba2;
use crate::layers::mlp::Mlp;
use crate::layers::moe::{Experts, Moe};
use crate::layers::ngrams::Ngrams;
use crate::layers::norm::Norm;
use crate::layers::relative::Distances;
use crate::layers::rope::{Place, Rope};
use crate::layers::rwkv::{ChannelMix, TimeMix};
use crate::rules::Loader;
use crate::spec::{BiasSpec, FfnSpec, LayerSpec, MixerSpec, ResidualSpec, StackSpec};
use crate::usage::{ExpertUsage, Watched};

/// A stack with its weights.
#[derive(Debug)]
pub struct Stack {
    spec: StackSpec,
    embed: Embed,
    ropes: Vec<Rope>,
    bias: Bias,
    distances: Option<Distances>,
    ngrams: Option<Ngrams>,
    layers: Vec<Layer>,
    final_norm: Option<Norm>,
}

#[derive(Debug)]
struct Layer {
    mixer: Mixer,
    cross: Option<Attention>,
    ffn: Ffn,
    norms: Norms,
    residual: ResidualSpec,
    residual_scale: f32,
}

#[derive(Debug)]
enum Mixer {
    Attention(Attention),
    Latent(Box<Latent>),
    Across(Attention),
    Mamba(Box<Mamba>),
    Mamba2(Box<Mamba2>),
    TimeMix(Box<TimeMix>),
}

#[derive(Debug)]
enum Ffn {
    None,
    Dense(Mlp),
    Experts(Box<Moe>),
    ChannelMix(Box<ChannelMix>),
}

#[derive(Debug)]
struct Norms {
    mixer: Option<Norm>,
    mixer_out: Option<Norm>,
    mixer_sum: Option<Norm>,
    cross: Option<Norm>,
    cross_sum: Option<Norm>,
    ffn: Option<Norm>,
    ffn_out: Option<Norm>,
    ffn_sum: Option<Norm>,
}

/// Sequences as a stack reads them.
#[derive(Debug)]
pub struct Reading<'a> {
    /// The rows, one after the other.
    pub rows: &'a [Row],
    /// Which positions of each row's sequence no token sees, where there is no state that knows.
    pub absent: &'a [Vec<bool>],
    /// What the sequences are made from.
    pub source: Option<&'a Source>,
}

impl Stack {
    /// Reads a stack.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: StackSpec) -> Result<Self, ModelError> {
        Self::load_shared(loader, spec, None)
    }

    /// Reads a stack whose table of tokens is another part's.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load_shared(loader: &Loader<'_>, spec: StackSpec, shared: Option<&Tensor>) -> Result<Self, ModelError> {
        let embed = Embed::load(loader, &spec.embed, spec.hidden, shared)?;
        let ropes = spec.ropes.iter().map(|rope| Rope::load(loader, rope)).collect::<Result<_, _>>()?;
        let bias = Bias::load(loader, &spec.bias)?;
        let distances = match &spec.bias {
            BiasSpec::Vectors(distances) => Some(Distances::load(loader, distances, spec.hidden)?),
            _ => None,
        };
        let ngrams = spec.embed.ngrams.as_ref().map(|ngrams| Ngrams::load(loader, ngrams, spec.hidden)).transpose()?;
        let layers = spec.layers.iter().enumerate();
        let layers = layers.map(|(number, layer)| Layer::load(loader, number, layer, spec.hidden));
        let layers = layers.collect::<Result<_, _>>()?;
        let final_norm = Norm::load_optional(loader, "final_norm", spec.final_norm.as_ref(), spec.hidden)?;
        Ok(Self { spec, embed, ropes, bias, distances, ngrams, layers, final_norm })
    }

    /// What makes states of tokens.
    pub fn embedding(&self) -> &Embed {
        &self.embed
    }

    /// What it is made of.
    pub fn spec(&self) -> &StackSpec {
        &self.spec
    }

    /// The states of tokens: `[tokens, hidden]`.
    ///
    /// # Errors
    ///
    /// When a token is not in the vocabulary.
    pub fn embed(&self, tokens: Tokens<'_>, rows: &[Row]) -> Result<Tensor, ModelError> {
        self.embed.forward(tokens, rows, None)
    }

    /// The same with other states in place of some tokens'.
    ///
    /// # Errors
    ///
    /// When a token or a position is in no table.
    pub fn embed_spliced(
        &self,
        tokens: Tokens<'_>,
        rows: &[Row],
        spliced: Option<&Spliced>,
    ) -> Result<Tensor, ModelError> {
        self.embed.forward(tokens, rows, spliced)
    }

    /// A range of layers. x: `[tokens, hidden]`, the tokens of all rows one after the other, to the same shape. With a
    /// state, what came before is seen, and what was read is kept.
    ///
    /// # Errors
    ///
    /// When the rows do not fit `x` or the state.
    pub fn layers(
        &self,
        range: Range<usize>,
        x: Tensor,
        reading: &Reading<'_>,
        state: Option<&mut State>,
    ) -> Result<Tensor, ModelError> {
        let places = state.as_ref().and_then(|state| state.places(reading.rows));
        self.placed_layers(range, x, reading, places.as_deref(), state)
    }

    /// The same for tokens that are at these places, one row after the other.
    ///
    /// # Errors
    ///
    /// When the rows do not fit `x` or the state.
    pub fn placed_layers(
        &self,
        range: Range<usize>,
        x: Tensor,
        reading: &Reading<'_>,
        places: Option<&[Place]>,
        mut state: Option<&mut State>,
    ) -> Result<Tensor, ModelError> {
        let engine = x.engine().clone();
        let rows = reading.rows;
        let styles = self.spec.ropes.iter().map(|rope| rope.style);
        let angles =
            self.ropes.iter().zip(styles).map(|(rope, style)| Ok((rope.angles(&engine, rows, places)?, style)));
        let angles = angles.collect::<Result<Vec<_>, ModelError>>()?;
        let absent: Vec<_> = match &state {
            Some(state) => rows.iter().map(|row| state.absent(row.slot).to_vec()).collect(),
            None => (0..rows.len()).map(|row| reading.absent.get(row).cloned().unwrap_or_default()).collect(),
        };
        let bias = self.bias.of(&engine, rows, &absent, self.spec.causal)?;
        let pass = Pass {
            rows,
            causal: self.spec.causal,
            absent: &absent,
            angles: &angles,
            bias: &bias,
            distances: self.distances.as_ref(),
            source: reading.source,
        };
        let mut x = x;
        if self.spec.embed.blank_padding && range.start == 0 {
            x = without_padding(&x, &pass).map_err(ModelError::at("embed"))?;
        }
        for number in range {
            let missing = || ModelError::State {
                place: "layers",
                expected: format!("a layer below {}", self.layers.len()),
                found: number.to_string(),
            };
            let layer = self.layers.get(number).ok_or_else(missing)?;
            let state = match &mut state {
                Some(state) => Some(state.layer(number).ok_or_else(missing)?),
                None => None,
            };
            let made = layer.forward(x.clone(), &pass, state)?;
            x = match self.ngrams.as_ref().filter(|_| number == 0) {
                Some(ngrams) => ngrams.forward(&x, &made, &pass)?,
                None => made,
            };
        }
        Ok(x)
    }

    /// Has somebody else work out the experts of all layers that have any.
    pub fn set_experts(&mut self, experts: &Arc<dyn Experts>) {
        for layer in &mut self.layers {
            if let Ffn::Experts(moe) = &mut layer.ffn {
                moe.set_experts(experts.clone());
            }
        }
    }

    /// Has the routers of all layers say what they choose; `first` is the number of this stack's first layer in the model.
    pub fn watch_experts(&mut self, first: usize, usage: &Arc<ExpertUsage>) {
        for (number, layer) in self.layers.iter_mut().enumerate() {
            if let Ffn::Experts(moe) = &mut layer.ffn {
                moe.watch(Watched { usage: usage.clone(), layer: first + number });
            }
        }
    }

    /// Where the routers say what they choose.
    pub fn expert_usage(&self) -> Option<&Arc<ExpertUsage>> {
        self.layers.iter().find_map(|layer| match &layer.ffn {
            Ffn::Experts(moe) => moe.watched().map(|watched| &watched.usage),
            _ => None,
        })
    }

    /// All layers and the norm after them.
    ///
    /// # Errors
    ///
    /// When the rows do not fit `x` or the state.
    pub fn states(
        &self,
        tokens: Tokens<'_>,
        reading: &Reading<'_>,
        mut state: Option<&mut State>,
    ) -> Result<Tensor, ModelError> {
        let x = self.embed(tokens, reading.rows)?;
        let x = self.layers(0..self.layers.len(), x, reading, state.as_deref_mut())?;
        if let Some(state) = state {
            state.advance(reading.rows);
        }
        self.finish(&x)
    }

    /// The norm after the last layer.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn finish(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        normed(self.final_norm.as_ref(), x)
    }

    /// Bytes of keys and values that one position takes.
    pub fn position_bytes(&self) -> u64 {
        let width = |layer: &LayerSpec| match &layer.mixer {
            MixerSpec::Attention(attention) => 2 * 4 * (attention.kv_heads * attention.head) as u64,
            MixerSpec::Latent(latent) => 4 * (latent.heads * (latent.plain + latent.turned + latent.value_head)) as u64,
            MixerSpec::Across(_) => 0,
            MixerSpec::Mamba(_) | MixerSpec::Mamba2(_) | MixerSpec::TimeMix(_) => 0,
        };
        self.spec.layers.iter().map(width).sum()
    }

    /// Bytes that a sequence takes however long it is: what its layers carry.
    pub fn sequence_bytes(&self) -> u64 {
        let hidden = self.spec.hidden;
        let carried = |layer: &LayerSpec| {
            let mixer = match &layer.mixer {
                MixerSpec::Attention(_) | MixerSpec::Latent(_) | MixerSpec::Across(_) => 0,
                MixerSpec::Mamba(mamba) => mamba.inner * (mamba.taps - 1 + mamba.places),
                MixerSpec::Mamba2(mamba) => {
                    let inner = mamba.heads * mamba.head;
                    (inner + 2 * mamba.groups * mamba.places) * (mamba.taps - 1) + inner * mamba.places
                }
                MixerSpec::TimeMix(mix) => hidden + 3 * mix.inner,
            };
            let ffn = if matches!(layer.ffn, FfnSpec::ChannelMix(_)) { hidden } else { 0 };
            4 * (mixer + ffn) as u64
        };
        self.spec.layers.iter().map(carried).sum()
    }
}

impl Layer {
    fn load(loader: &Loader<'_>, number: usize, spec: &LayerSpec, hidden: usize) -> Result<Self, ModelError> {
        let name = |part: &str| format!("layers.{number}.{part}");
        let norm = |part: &str, norm| Norm::load_optional(loader, &name(part), norm, hidden);
        let norms = &spec.norms;
        Ok(Self {
            mixer: match &spec.mixer {
                MixerSpec::Attention(spec) => Mixer::Attention(Attention::load(loader, &name("attn"), spec, hidden)?),
                MixerSpec::Latent(spec) => Mixer::Latent(Box::new(Latent::load(loader, &name("attn"), spec, hidden)?)),
                MixerSpec::Across(spec) => Mixer::Across(Attention::load(loader, &name("attn"), spec, hidden)?),
                MixerSpec::Mamba(spec) => Mixer::Mamba(Box::new(Mamba::load(loader, &name("mamba"), spec, hidden)?)),
                MixerSpec::Mamba2(spec) => Mixer::Mamba2(Box::new(Mamba2::load(loader, &name("mamba"), spec, hidden)?)),
                MixerSpec::TimeMix(spec) => {
                    Mixer::TimeMix(Box::new(TimeMix::load(loader, &name("time_mix"), *spec, hidden)?))
                }
            },
            cross: spec.cross.as_ref().map(|spec| Attention::load(loader, &name("cross"), spec, hidden)).transpose()?,
            ffn: match &spec.ffn {
                FfnSpec::None => Ffn::None,
                FfnSpec::Dense(spec) => Ffn::Dense(Mlp::load(loader, &name("mlp"), spec, hidden)?),
                FfnSpec::Experts(spec) => {
                    Ffn::Experts(Box::new(Moe::load(loader, &name("moe"), number, spec, hidden)?))
                }
                FfnSpec::ChannelMix(spec) => {
                    Ffn::ChannelMix(Box::new(ChannelMix::load(loader, &name("channel_mix"), *spec, hidden)?))
                }
            },
            norms: Norms {
                mixer: norm("attn_norm", norms.mixer.as_ref())?,
                mixer_out: norm("attn_out_norm", norms.mixer_out.as_ref())?,
                mixer_sum: norm("attn_sum_norm", norms.mixer_sum.as_ref())?,
                cross: norm("cross_norm", norms.cross.as_ref())?,
                cross_sum: norm("cross_sum_norm", norms.cross_sum.as_ref())?,
                ffn: norm("mlp_norm", norms.ffn.as_ref())?,
                ffn_out: norm("mlp_out_norm", norms.ffn_out.as_ref())?,
                ffn_sum: norm("mlp_sum_norm", norms.ffn_sum.as_ref())?,
            },
            residual: spec.residual,
            residual_scale: spec.residual_scale,
        })
    }

    fn forward(&self, x: Tensor, pass: &Pass<'_>, mut state: Option<&mut LayerState>) -> Result<Tensor, ModelError> {
        let norms = &self.norms;
        let before = normed(norms.mixer.as_ref(), &x)?;
        let mixed = match &self.mixer {
            Mixer::Attention(attention) => attention.forward(&before, pass, state.as_deref_mut())?,
            Mixer::Latent(attention) => attention.forward(&before, pass, state.as_deref_mut())?,
            // What the state keeps of the source belongs to the attention across that follows.
            Mixer::Across(attention) => attention.across(&before, pass, None)?,
            Mixer::Mamba(mamba) => mamba.forward(&before, pass, state.as_deref_mut())?,
            Mixer::Mamba2(mamba) => mamba.forward(&before, pass, state.as_deref_mut())?,
            Mixer::TimeMix(mix) => mix.forward(&before, pass.rows, state.as_deref_mut())?,
        };
        let mixed = normed(norms.mixer_out.as_ref(), &mixed)?;
        if self.residual == ResidualSpec::Parallel {
            let input = match &norms.ffn {
                Some(norm) => norm.forward(&x)?,
                None => before,
            };
            let fed = normed(norms.ffn_out.as_ref(), &self.feed(&input, pass, state)?)?;
            return self.sum(&self.sum(&x, &mixed)?, &fed);
        }
        let from_norm = self.residual == ResidualSpec::FromNorm;
        let mut x = self.sum(if from_norm { &before } else { &x }, &mixed)?;
        x = normed(norms.mixer_sum.as_ref(), &x)?;
        // A decoder may be asked without anything to look at.
        let kept = |state: &LayerState| pass.rows.iter().all(|row| state.across(row.slot).is_some());
        let source = pass.source.is_some() || state.as_deref().is_some_and(kept);
        if let Some(cross) = self.cross.as_ref().filter(|_| source) {
            let seen = cross.across(&normed(norms.cross.as_ref(), &x)?, pass, state.as_deref_mut())?;
            x = normed(norms.cross_sum.as_ref(), &self.sum(&x, &seen)?)?;
        }
        if matches!(self.ffn, Ffn::None) {
            return Ok(x);
        }
        let before = normed(norms.ffn.as_ref(), &x)?;
        let fed = normed(norms.ffn_out.as_ref(), &self.feed(&before, pass, state)?)?;
        let x = self.sum(if from_norm { &before } else { &x }, &fed)?;
        normed(norms.ffn_sum.as_ref(), &x)
    }

    fn feed(&self, x: &Tensor, pass: &Pass<'_>, state: Option<&mut LayerState>) -> Result<Tensor, ModelError> {
        match &self.ffn {
            Ffn::None => Ok(x.clone()),
            Ffn::Dense(mlp) => mlp.forward(x),
            Ffn::Experts(moe) => moe.forward(x, pass.rows, pass.absent),
            Ffn::ChannelMix(mix) => mix.forward(x, pass.rows, state),
        }
    }

    /// `x + part * residual_scale`
    fn sum(&self, x: &Tensor, part: &Tensor) -> Result<Tensor, ModelError> {
        let add = || -> Result<Tensor, TensorError> {
            if self.residual_scale == 1.0 { x.add(part) } else { x.add(&part.scale(self.residual_scale)?) }
        };
        add().map_err(ModelError::at("residual"))
    }
}

fn normed(norm: Option<&Norm>, x: &Tensor) -> Result<Tensor, ModelError> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}
