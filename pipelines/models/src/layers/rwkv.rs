//! Means of what was said so far that need no attention: the time mix and the channel mix of RWKV-4
//! (<https://arxiv.org/abs/2305.13048>; `transformers/models/rwkv`).
//!
//! Padding is read like any token, as Hugging Face does.

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::cache::{LayerState, Part, Row};
use crate::layers::carry::Carries;
use crate::layers::mamba::{rates, zeros};
use crate::rules::Loader;
use crate::spec::{Activation, ChannelMixSpec, TimeMixSpec};

/// The exponent of sums that are nothing yet: below any that a key can have.
const NOTHING: f32 = -1e38;

/// A time mix with its weights. A sequence carries its last token, `[1, hidden]`, and the sums, `[3, inner]`.
#[derive(Debug)]
pub struct TimeMix {
    name: String,
    hidden: usize,
    inner: usize,
    mixes: [Mix; 3],
    key: Linear,
    value: Linear,
    receptance: Linear,
    decay: Tensor,
    first: Tensor,
    out: Linear,
}

/// A channel mix with its weights. A sequence carries its last token, `[1, hidden]`.
#[derive(Debug)]
pub struct ChannelMix {
    name: String,
    hidden: usize,
    mixes: [Mix; 2],
    key: Linear,
    receptance: Linear,
    value: Linear,
}

/// How much of each element is the token's own, and how much the one's before.
#[derive(Debug)]
struct Mix {
    own: Tensor,
    before: Tensor,
}

impl Mix {
    fn load(loader: &Loader<'_>, name: &str, hidden: usize) -> Result<Self, ModelError> {
        let stored = loader.tensor(name, &[1, 1, hidden])?;
        let load = || {
            let own = Tensor::new(loader.engine, stored.to_vec()?, &[hidden])?;
            Ok(Self { before: own.affine(-1.0, 1.0)?, own })
        };
        load().map_err(ModelError::at(loader.name(name)))
    }

    fn of(&self, x: &Tensor, before: &Tensor) -> Result<Tensor, TensorError> {
        x.mul(&self.own)?.add(&before.mul(&self.before)?)
    }
}

impl TimeMix {
    /// Reads the mixer of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: TimeMixSpec, hidden: usize) -> Result<Self, ModelError> {
        let at = |part: &str| format!("{name}.{part}");
        let mix = |part: &str| Mix::load(loader, &at(part), hidden);
        let inner = spec.inner;
        Ok(Self {
            name: loader.name(name),
            hidden,
            inner,
            mixes: [mix("key_mix")?, mix("value_mix")?, mix("receptance_mix")?],
            key: loader.linear(&at("key"), inner, hidden, false)?,
            value: loader.linear(&at("value"), inner, hidden, false)?,
            receptance: loader.linear(&at("receptance"), inner, hidden, false)?,
            decay: rates(loader, &at("decay"), &[inner])?,
            first: loader.tensor(&at("first"), &[inner])?,
            out: loader.linear(&at("out"), hidden, inner, false)?,
        })
    }

    /// x: `[tokens, hidden]` to the same shape; what sequences carry goes into the state.
    ///
    /// # Errors
    ///
    /// When the shape or the state does not fit.
    pub fn forward(&self, x: &Tensor, rows: &[Row], state: Option<&mut LayerState>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let engine = x.engine().clone();
        let mut carries = Carries::of(&self.name, rows, state.as_deref(), Part::Mixer, || {
            let mut sums = vec![0.0; 3 * self.inner];
            sums[2 * self.inner..].fill(NOTHING);
            Ok(vec![zeros(&engine, &[1, self.hidden])?, Tensor::new(&engine, sums, &[3, self.inner])?])
        })?;
        let before = carries.shifted(0, x)?;
        let made = |layer: &Linear, mix: &Mix| mix.of(x, &before)?.linear(layer);
        let [key_mix, value_mix, receptance_mix] = &self.mixes;
        let key = made(&self.key, key_mix).map_err(at())?;
        let value = made(&self.value, value_mix).map_err(at())?;
        let receptance = made(&self.receptance, receptance_mix).map_err(at())?;
        let means = carries.each(1, |tokens, sums| {
            let own = |all: &Tensor| all.narrow(0, tokens.start, tokens.len());
            own(&key)?.wkv(&own(&value)?, &self.decay, &self.first, sums)
        })?;
        carries.keep(state, Part::Mixer);
        receptance.gated(Activation::Sigmoid, &means).and_then(|out| out.linear(&self.out)).map_err(at())
    }
}

impl ChannelMix {
    /// Reads the part of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: ChannelMixSpec, hidden: usize) -> Result<Self, ModelError> {
        let at = |part: &str| format!("{name}.{part}");
        let mix = |part: &str| Mix::load(loader, &at(part), hidden);
        Ok(Self {
            name: loader.name(name),
            hidden,
            mixes: [mix("key_mix")?, mix("receptance_mix")?],
            key: loader.linear(&at("key"), spec.inner, hidden, false)?,
            receptance: loader.linear(&at("receptance"), hidden, hidden, false)?,
            value: loader.linear(&at("value"), hidden, spec.inner, false)?,
        })
    }

    /// x: `[tokens, hidden]` to the same shape; what sequences carry goes into the state.
    ///
    /// # Errors
    ///
    /// When the shape or the state does not fit.
    pub fn forward(&self, x: &Tensor, rows: &[Row], state: Option<&mut LayerState>) -> Result<Tensor, ModelError> {
        let engine = x.engine().clone();
        let first = || Ok(vec![zeros(&engine, &[1, self.hidden])?]);
        let mut carries = Carries::of(&self.name, rows, state.as_deref(), Part::Ffn, first)?;
        let before = carries.shifted(0, x)?;
        carries.keep(state, Part::Ffn);
        let [key_mix, receptance_mix] = &self.mixes;
        let run = || {
            let key = key_mix.of(x, &before)?.linear(&self.key)?.activate(Activation::Relu2)?;
            let receptance = receptance_mix.of(x, &before)?.linear(&self.receptance)?;
            receptance.gated(Activation::Sigmoid, &key.linear(&self.value)?)
        };
        run().map_err(ModelError::at(&self.name))
    }
}
