//! The angles by which positions turn queries and keys (<https://arxiv.org/abs/2104.09864>; `modeling_rope_utils.py`).
//!
//! Made on the host once per pass, from positions alone. Frequencies and angles are f32, as in the reference; sines and
//! cosines are libm's, so that they do not depend on the system's.

use accel_backends::tensor::Angles;

use crate::ModelError;
use crate::cache::Row;
use crate::rules::Loader;
use crate::spec::{RopeScaling, RopeSpec};

/// The frequencies of one way of turning.
#[derive(Debug)]
pub struct Rope {
    frequencies: Vec<f32>,
}

impl Rope {
    /// Works the frequencies out; reads factors where the file holds them.
    ///
    /// # Errors
    ///
    /// When the factors cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &RopeSpec) -> Result<Self, ModelError> {
        let half = spec.rotated / 2;
        let plain = (0..half).map(|place| {
            let exponent = (2 * place) as f32 / spec.rotated as f32;
            1.0 / libm::pow(spec.base, f64::from(exponent)) as f32
        });
        let frequencies = match spec.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor as f32).collect(),
            RopeScaling::Llama3 { .. } => plain.map(|frequency| llama3(frequency, &spec.scaling)).collect(),
            RopeScaling::Factors => {
                let factors = loader.vector("rope.factors", half)?;
                plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect()
            }
        };
        Ok(Self { frequencies })
    }

    /// The angles of every token of a pass.
    pub fn angles(&self, rows: &[Row]) -> Angles {
        let tokens = rows.iter().map(|row| row.len).sum::<usize>();
        let capacity = tokens * self.frequencies.len();
        let mut angles = Angles { cos: Vec::with_capacity(capacity), sin: Vec::with_capacity(capacity) };
        for position in rows.iter().flat_map(|row| row.past..row.past + row.len) {
            for frequency in &self.frequencies {
                let (sin, cos) = libm::sincos(f64::from(position as f32 * frequency));
                angles.cos.push(cos as f32);
                angles.sin.push(sin as f32);
            }
        }
        angles
    }
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
