//! `EulerDiscreteScheduler` of Diffusers, without noise on the way (`s_churn` 0).

use accel_models::config::Config;

use super::{Run, Steps, mixed};
use crate::error::PipelineError;
use crate::painting::training::{Prediction, Spacing, Training, unsupported};

/// The sampler as declared.
#[derive(Clone, Debug)]
pub struct Euler {
    training: Training,
    prediction: Prediction,
    /// Whether some noise is left at the end: that of the first moment.
    leaves_noise: bool,
}

#[derive(Debug)]
struct EulerSteps {
    prediction: Prediction,
    /// Noise in shares of the picture at each moment, and at the end.
    shares: Vec<f32>,
}

impl Euler {
    /// Reads its keys.
    ///
    /// # Errors
    ///
    /// When one is wrong or asks for what is not known.
    pub fn read(config: &Config, training: Training) -> Result<Self, PipelineError> {
        for key in ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"] {
            if config.truth_or(key, false)? {
                return Err(unsupported(config, key, "true", "false"));
            }
        }
        for (key, known) in [("interpolation_type", "linear"), ("timestep_type", "discrete")] {
            match config.optional_text(key)? {
                Some(found) if found != known => return Err(unsupported(config, key, &found, known)),
                _ => {}
            }
        }
        let prediction = Prediction::read(config)?;
        if prediction == Prediction::Picture {
            return Err(unsupported(config, "prediction_type", "sample", "epsilon, v_prediction"));
        }
        let leaves_noise = match config.optional_text("final_sigmas_type")?.as_deref() {
            None | Some("zero") => false,
            Some("sigma_min") => true,
            Some(found) => return Err(unsupported(config, "final_sigmas_type", found, "zero, sigma_min")),
        };
        Ok(Self { training, prediction, leaves_noise })
    }

    /// Begins a painting.
    ///
    /// # Errors
    ///
    /// When there are more steps than moments.
    pub fn begin(&self, steps: usize) -> Result<Run, PipelineError> {
        let moments = self.training.spread(steps)?;
        let moments: Vec<f64> = moments.into_iter().rev().map(|moment| f64::from(moment as f32)).collect();
        let all = self.training.shares();
        let last = if self.leaves_noise { all.first().copied().unwrap_or(0.0) } else { 0.0 };
        let shares: Vec<f32> = moments.iter().map(|&moment| between(&all, moment)).chain([last]).collect();
        let most = shares.iter().copied().fold(0.0, f32::max);
        let noise = match self.training.spacing {
            Spacing::Linspace | Spacing::Trailing => most,
            Spacing::Leading => libm::sqrtf(most * most + 1.0),
        };
        Ok(Run { moments, noise, steps: Box::new(EulerSteps { prediction: self.prediction, shares }) })
    }
}

/// The value at a place between two of a list; beyond its ends, that of the end.
fn between(values: &[f32], place: f64) -> f32 {
    let last = values.len().saturating_sub(1);
    let low = (place.max(0.0) as usize).min(last);
    let (from, to) = (f64::from(values[low]), f64::from(values[(low + 1).min(last)]));
    (from + (to - from) * (place - low as f64).clamp(0.0, 1.0)) as f32
}

impl Steps for EulerSteps {
    fn shown(&self, at: usize, sample: &[f32]) -> Vec<f32> {
        let share = self.shares.get(at).copied().unwrap_or(0.0);
        let divisor = libm::sqrtf(share * share + 1.0);
        sample.iter().map(|value| value / divisor).collect()
    }

    fn step(&mut self, at: usize, told: &[f32], sample: &[f32]) -> Result<Vec<f32>, PipelineError> {
        let share = |at: usize| self.shares.get(at).copied().unwrap_or(0.0);
        let (here, way) = (share(at), share(at + 1) - share(at));
        Ok(match self.prediction {
            // The noise is the way from the picture itself.
            Prediction::Noise | Prediction::Picture => mixed([(1.0, sample), (way, told)]),
            Prediction::Velocity => {
                let square = here * here + 1.0;
                let picture = mixed([(-here / libm::sqrtf(square), told), (1.0 / square, sample)]);
                // In the reference's order: where nothing is left of the picture, the noise is thousands of times as large.
                let slope = |(sample, picture): (&f32, &f32)| sample + (sample - picture) / here * way;
                sample.iter().zip(&picture).map(slope).collect()
            }
        })
    }
}
