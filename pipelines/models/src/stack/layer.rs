//! One layer: what mixes tokens, what each goes through, and the norms around them.

use accel_backends::tensor::{Tensor, TensorError};

use crate::ModelError;
use crate::cache::LayerState;
use crate::layers::attention::{Attention, Pass};
use crate::layers::latent::Latent;
use crate::layers::mamba::Mamba;
use crate::layers::mamba2::Mamba2;
use crate::layers::mlp::Mlp;
use crate::layers::moe::Moe;
use crate::layers::norm::Norm;
use crate::layers::rwkv::{ChannelMix, TimeMix};
use crate::rules::Loader;
use crate::spec::{FfnSpec, LayerSpec, MixerSpec, ResidualSpec};

#[derive(Debug)]
pub(super) struct Layer {
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

impl Layer {
    pub(super) fn load(
        loader: &Loader<'_>,
        number: usize,
        spec: &LayerSpec,
        hidden: usize,
    ) -> Result<Self, ModelError> {
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

    pub(super) fn forward(
        &self,
        x: Tensor,
        pass: &Pass<'_>,
        mut state: Option<&mut LayerState>,
    ) -> Result<Tensor, ModelError> {
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

    /// The same, to have somebody else work out its experts, or look at what is chosen.
    pub(super) fn mixture_mut(&mut self) -> Option<&mut Moe> {
        match &mut self.ffn {
            Ffn::Experts(moe) => Some(moe),
            _ => None,
        }
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

pub(super) fn normed(norm: Option<&Norm>, x: &Tensor) -> Result<Tensor, ModelError> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}
