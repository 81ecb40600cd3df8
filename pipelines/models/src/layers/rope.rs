//! The angles by which positions turn queries and keys (<https://arxiv.org/abs/2104.09864>; `modeling_rope_utils.py`).
//!
//! Made on the host once per pass, from positions alone. Frequencies and angles are f32, as in the reference; sines and
//! cosines are libm's, so that they do not depend on the system's.
//!
//! Three scalings depend on a length. Hugging Face takes the longest position of the pass, of all sequences in the batch:
//! a whole prompt turns by the frequencies of its length, then each new token by those of the length with it, while the
//! keys that are kept stay as they are; and its dynamic frequencies stay at the longest that the model has seen until a
//! pass is short again. Here the length is the sequence's own, the longer of its prompt and the positions up to the
//! token. That is the same for one sequence read at once, and does not change with chunks, neighbours, or a change of
//! peers.

use std::borrow::Cow;

use accel_backends::tensor::{Angles, Engine, Tensor};

use crate::ModelError;
use crate::cache::Row;
use crate::rules::Loader;
use crate::spec::{RopeAxes, RopeScaling, RopeSpec};

/// Where a token is on several axes: in time, from above and from the left, for what is seen in an image or a video.
pub type Place = [i64; 3];

/// The frequencies of one way of turning.
#[derive(Debug)]
pub struct Rope {
    frequencies: Vec<f32>,
    longer: Longer,
    amplitude: f32,
    /// What sines and cosines of sequences beyond a length are multiplied by instead.
    longer_amplitude: Option<(usize, f32)>,
    /// Of each frequency, the axis that it belongs to.
    axes: Vec<usize>,
}

/// What sequences beyond a length turn by instead.
#[derive(Debug)]
enum Longer {
    Same,
    Base { base: f64, rotated: usize, factor: f64, context: f64 },
    Other { original_context: usize, frequencies: Vec<f32> },
}

impl Rope {
    /// Works the frequencies out; reads factors where the file holds them.
    ///
    /// # Errors
    ///
    /// When the factors cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &RopeSpec) -> Result<Self, ModelError> {
        let half = spec.rotated / 2;
        if let RopeAxes::Each(count) = spec.axes {
            let own = wavelengths(spec.base, spec.rotated / count.max(1)).map(|length| 1.0 / length);
            let own: Vec<f32> = own.collect();
            let axes = (0..count).flat_map(|axis| std::iter::repeat_n(axis, own.len())).collect();
            return Ok(Self {
                frequencies: own.repeat(count),
                longer: Longer::Same,
                amplitude: 1.0,
                longer_amplitude: None,
                axes,
            });
        }
        let plain = || wavelengths(spec.base, spec.rotated).map(|length| 1.0 / length);
        let divided = |factors: &[f64]| {
            let lengths = wavelengths(spec.base, spec.rotated).zip(factors);
            lengths.map(|(length, &factor)| 1.0 / (factor as f32 * length)).collect()
        };
        let (mut longer, mut amplitude) = (Longer::Same, 1.0);
        let frequencies = match spec.scaling.of_frequencies() {
            RopeScaling::None | RopeScaling::Amplified { .. } => plain().collect(),
            RopeScaling::Linear { factor } => plain().map(|frequency| frequency / *factor as f32).collect(),
            scaling @ RopeScaling::Llama3 { .. } => plain().map(|frequency| llama3(frequency, scaling)).collect(),
            RopeScaling::Factors => {
                let factors = loader.vector("rope.factors", half)?.to_vec().map_err(ModelError::at("rope.factors"))?;
                plain().zip(factors).map(|(frequency, factor)| frequency / factor).collect()
            }
            &RopeScaling::Dynamic { factor, context } => {
                longer = Longer::Base { base: spec.base, rotated: spec.rotated, factor, context };
                plain().collect()
            }
            &RopeScaling::Yarn { factor, ramp, amplitude: all } => {
                amplitude = all;
                yarn(wavelengths(spec.base, spec.rotated), factor as f32, ramp)
            }
            RopeScaling::Long { short, long, original_context, amplitude: all } => {
                longer = Longer::Other { original_context: *original_context, frequencies: divided(long) };
                amplitude = *all;
                divided(short)
            }
        };
        let mut longer_amplitude = None;
        if let RopeScaling::Amplified { original_context, amplitudes: [short, long], .. } = spec.scaling {
            amplitude = short;
            longer_amplitude = Some((original_context, long as f32));
        }
        let axes = match &spec.axes {
            RopeAxes::Split(counts) => {
                counts.iter().enumerate().flat_map(|(axis, &count)| std::iter::repeat_n(axis, count)).collect()
            }
            _ => Vec::new(),
        };
        Ok(Self { frequencies, longer, amplitude: amplitude as f32, longer_amplitude, axes })
    }

    /// The angles of every token of a pass, `[tokens, rotated / 2]`; `places` are theirs where they have some.
    ///
    /// # Errors
    ///
    /// When a tensor cannot be made.
    pub fn angles(&self, engine: &Engine, rows: &[Row], places: Option<&[Place]>) -> Result<Angles, ModelError> {
        let tokens = rows.iter().map(|row| row.len).sum::<usize>();
        let capacity = tokens * self.frequencies.len();
        let (mut cosines, mut sines) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        let mut token = 0;
        for row in rows {
            let mut stretched = None;
            for position in row.past..row.past + row.len {
                let length = row.horizon.max(position + 1);
                if stretched.as_ref().is_none_or(|&(last, _)| last != length) {
                    stretched = Some((length, self.stretched(length)));
                }
                let amplitude = match self.longer_amplitude {
                    Some((original_context, longer)) if length > original_context => longer,
                    _ => self.amplitude,
                };
                let other = stretched.as_ref().and_then(|(_, frequencies)| frequencies.as_deref());
                let place = places.and_then(|places| places.get(token)).filter(|_| !self.axes.is_empty());
                for (number, frequency) in other.unwrap_or(&self.frequencies).iter().enumerate() {
                    let axis = self.axes.get(number).copied().unwrap_or(0);
                    let position = place.and_then(|place| place.get(axis)).map_or(position as f32, |&at| at as f32);
                    let (sin, cos) = libm::sincos(f64::from(position * frequency));
                    cosines.push(cos as f32 * amplitude);
                    sines.push(sin as f32 * amplitude);
                }
                token += 1;
            }
        }
        let tensor = |values| Tensor::new(engine, values, &[tokens, self.frequencies.len()]);
        let both = || Ok(Angles { cos: tensor(cosines)?, sin: tensor(sines)? });
        both().map_err(ModelError::at("rope"))
    }

    /// The frequencies of a sequence of that length, where they are others.
    fn stretched(&self, length: usize) -> Option<Cow<'_, [f32]>> {
        match &self.longer {
            &Longer::Base { base, rotated, factor, context } if length as f64 > context => {
                let growth = factor * length as f64 / context - (factor - 1.0);
                let base = base * libm::pow(growth, rotated as f64 / (rotated as f64 - 2.0));
                Some(Cow::Owned(wavelengths(base, rotated).map(|length| 1.0 / length).collect()))
            }
            Longer::Other { original_context, frequencies } if length > *original_context => {
                Some(Cow::Borrowed(frequencies))
            }
            _ => None,
        }
    }
}

/// The inverses of the plain frequencies, from the fastest on.
fn wavelengths(base: f64, rotated: usize) -> impl Iterator<Item = f32> {
    (0..rotated / 2).map(move |place| {
        let exponent = (2 * place) as f32 / rotated as f32;
        libm::pow(base, f64::from(exponent)) as f32
    })
}

/// YaRN's stretching (`_compute_yarn_parameters`).
fn yarn(wavelengths: impl Iterator<Item = f32>, factor: f32, ramp: (f64, f64)) -> Vec<f32> {
    let (first, last) = (ramp.0 as f32, if ramp.0 == ramp.1 { ramp.1 + 0.001 } else { ramp.1 } as f32);
    let stretched = |(place, length): (usize, f32)| {
        let kept = 1.0 - ((place as f32 - first) / (last - first)).clamp(0.0, 1.0);
        1.0 / (factor * length) * (1.0 - kept) + 1.0 / length * kept
    };
    wavelengths.enumerate().map(stretched).collect()
}

/// Llama 3.1's stretching of one frequency (`_compute_llama3_parameters`).
fn llama3(frequency: f32, scaling: &RopeScaling) -> f32 {
    let &RopeScaling::Llama3 { factor, low_turns, high_turns, original_context } = scaling else { return frequency };
    let wavelength = std::f64::consts::TAU / f64::from(frequency);
    if wavelength < original_context / high_turns {
        frequency
    } else if wavelength > original_context / low_turns {
        (f64::from(frequency) / factor) as f32
    } else {
        let smooth = (original_context / wavelength - low_turns) / (high_turns - low_turns);
        let frequency = f64::from(frequency);
        ((1.0 - smooth) * frequency / factor + smooth * frequency) as f32
    }
}
