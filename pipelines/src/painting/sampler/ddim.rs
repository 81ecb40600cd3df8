//! `DDIMScheduler` of Diffusers, without noise on the way (`eta` 0).

use std::sync::Arc;

use accel_models::config::Config;

use super::{Run, Steps, mixed};
use crate::error::PipelineError;
use crate::painting::training::{Prediction, Training, unsupported};

/// The sampler as declared.
#[derive(Clone, Debug)]
pub struct Ddim {
    training: Arc<Training>,
    prediction: Prediction,
    /// What is left of the picture before the first moment.
    first: f32,
    /// What the values of the picture that is told are kept within.
    clip: Option<f32>,
}

#[derive(Debug)]
struct DdimSteps {
    ddim: Ddim,
    moments: Vec<i64>,
    stride: i64,
}

impl Ddim {
    /// Reads its keys.
    ///
    /// # Errors
    ///
    /// When one is wrong.
    pub fn read(config: &Config, training: Training, unclipped: bool) -> Result<Self, PipelineError> {
        if config.truth_or("thresholding", false)? {
            return Err(unsupported(config, "thresholding", "true", "false"));
        }
        let range = config.optional_number("clip_sample_range")?.unwrap_or(1.0) as f32;
        if range.is_nan() || range <= 0.0 {
            return Err(config.wrong("clip_sample_range", "a number over 0").into());
        }
        let clips = config.truth_or("clip_sample", true)? && !unclipped;
        Ok(Self {
            first: if config.truth_or("set_alpha_to_one", true)? { 1.0 } else { training.kept_at(0)? },
            prediction: Prediction::read(config)?,
            clip: clips.then_some(range),
            training: Arc::new(training),
        })
    }

    /// Begins a painting.
    ///
    /// # Errors
    ///
    /// When there are more steps than moments.
    pub fn begin(&self, steps: usize) -> Result<Run, PipelineError> {
        let moments: Vec<i64> = self.training.spread_whole(steps)?.into_iter().rev().collect();
        let stride = (self.training.moments() / steps) as i64;
        Ok(Run {
            moments: moments.iter().map(|&moment| moment as f64).collect(),
            noise: 1.0,
            steps: Box::new(DdimSteps { ddim: self.clone(), moments, stride }),
        })
    }
}

impl Steps for DdimSteps {
    fn shown(&self, _: usize, sample: &[f32]) -> Vec<f32> {
        sample.to_vec()
    }

    fn step(&mut self, at: usize, told: &[f32], sample: &[f32]) -> Result<Vec<f32>, PipelineError> {
        let Ddim { training, prediction, first, clip } = &self.ddim;
        let moment = self.moments.get(at).copied().unwrap_or(-1);
        let (kept, before) = (training.kept_at(moment)?, moment - self.stride);
        let kept_before = if before < 0 { *first } else { training.kept_at(before)? };
        let (of_picture, of_noise) = (libm::sqrtf(kept), libm::sqrtf(1.0 - kept));
        // The picture and the noise that the sample is mixed of.
        let (mut picture, noise) = match prediction {
            Prediction::Noise => (mixed([(1.0 / of_picture, sample), (-of_noise / of_picture, told)]), told.to_vec()),
            Prediction::Picture => (told.to_vec(), mixed([(1.0 / of_noise, sample), (-of_picture / of_noise, told)])),
            Prediction::Velocity => {
                (mixed([(of_picture, sample), (-of_noise, told)]), mixed([(of_picture, told), (of_noise, sample)]))
            }
        };
        if let Some(range) = clip {
            picture.iter_mut().for_each(|value| *value = value.clamp(-range, *range));
        }
        Ok(mixed([(libm::sqrtf(kept_before), &picture), (libm::sqrtf(1.0 - kept_before), &noise)]))
    }
}
