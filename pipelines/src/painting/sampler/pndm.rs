//! `PNDMScheduler` of Diffusers: each step counts what the network told at the steps before. The first steps are either
//! Runge and Kutta's, or of fewer counts (`skip_prk_steps`, as Stable Diffusion has it).

use std::collections::VecDeque;
use std::sync::Arc;

use accel_models::config::Config;

use super::{Run, Steps, mixed};
use crate::error::PipelineError;
use crate::painting::training::{Prediction, Training, unsupported};

/// How many told noises a step counts.
const ORDER: usize = 4;

/// The sampler as declared.
#[derive(Clone, Debug)]
pub struct Pndm {
    training: Arc<Training>,
    prediction: Prediction,
    /// What is left of the picture before the first moment.
    first: f32,
    skips_runge_kutta: bool,
}

#[derive(Debug)]
struct PndmSteps {
    pndm: Pndm,
    /// The moments of Runge and Kutta's steps, then those of the others.
    moments: Vec<i64>,
    runge_kutta: usize,
    /// Moments of training from one step to the next.
    stride: i64,
    /// What was told, latest last; at most [`ORDER`].
    told: VecDeque<Vec<f32>>,
    /// What is counted of Runge and Kutta's four.
    sum: Vec<f32>,
    /// Where a step of several questions began.
    begun: Vec<f32>,
}

impl Pndm {
    /// Reads its keys.
    ///
    /// # Errors
    ///
    /// When one is wrong or asks for what is not known.
    pub fn read(config: &Config, training: Training) -> Result<Self, PipelineError> {
        let prediction = Prediction::read(config)?;
        if prediction == Prediction::Picture {
            return Err(unsupported(config, "prediction_type", "sample", "epsilon, v_prediction"));
        }
        Ok(Self {
            first: if config.truth_or("set_alpha_to_one", false)? { 1.0 } else { training.kept_at(0)? },
            prediction,
            skips_runge_kutta: config.truth_or("skip_prk_steps", false)?,
            training: Arc::new(training),
        })
    }

    /// Begins a painting.
    ///
    /// # Errors
    ///
    /// When there are more steps than moments, or fewer than Runge and Kutta's.
    pub fn begin(&self, steps: usize) -> Result<Run, PipelineError> {
        let ascending = self.training.spread_whole(steps)?;
        let stride = (self.training.moments() / steps) as i64;
        let count = ascending.len();
        let (runge_kutta, rest) = if self.skips_runge_kutta {
            // The last but one moment is asked twice.
            let twice = count.checked_sub(2).map(|place| ascending[place]);
            let mut rest = ascending[..count - 1].to_vec();
            rest.extend(twice);
            rest.push(ascending[count - 1]);
            (Vec::new(), rest)
        } else {
            if steps < ORDER {
                let reason = format!("expected at least {ORDER} for the model's scheduler, found {steps}");
                return Err(PipelineError::input("the steps", reason));
            }
            let halves = ascending[count - ORDER..].iter().flat_map(|&moment| [moment, moment + stride / 2]);
            let halves: Vec<i64> = halves.collect();
            let twice: Vec<i64> = halves[..2 * ORDER - 1].iter().flat_map(|&moment| [moment; 2]).collect();
            (twice[1..twice.len() - 1].iter().rev().copied().collect(), ascending[..count - 3].to_vec())
        };
        let questions = runge_kutta.len();
        let moments: Vec<i64> = runge_kutta.into_iter().chain(rest.into_iter().rev()).collect();
        let (told, sum, begun) = (VecDeque::with_capacity(ORDER), Vec::new(), Vec::new());
        Ok(Run {
            moments: moments.iter().map(|&moment| moment as f64).collect(),
            noise: 1.0,
            steps: Box::new(PndmSteps {
                pndm: self.clone(),
                moments,
                runge_kutta: questions,
                stride,
                told,
                sum,
                begun,
            }),
        })
    }

    /// The sample at an earlier moment (formula 9 of the paper).
    fn moved(&self, sample: &[f32], moment: i64, before: i64, told: &[f32]) -> Result<Vec<f32>, PipelineError> {
        let kept = self.training.kept_at(moment)?;
        let kept_before = if before < 0 { self.first } else { self.training.kept_at(before)? };
        let (noise, noise_before) = (1.0 - kept, 1.0 - kept_before);
        let divisor = kept * libm::sqrtf(noise_before) + libm::sqrtf(kept * noise * kept_before);
        let (of_sample, of_noise) = (libm::sqrtf(kept_before / kept), -(kept_before - kept) / divisor);
        Ok(match self.prediction {
            Prediction::Velocity => {
                let told = mixed([(libm::sqrtf(kept), told), (libm::sqrtf(noise), sample)]);
                mixed([(of_sample, sample), (of_noise, &told)])
            }
            _ => mixed([(of_sample, sample), (of_noise, told)]),
        })
    }
}

impl PndmSteps {
    /// A question of Runge and Kutta's steps, of which each has four.
    fn runge_kutta(&mut self, at: usize, told: &[f32], sample: &[f32]) -> Result<Vec<f32>, PipelineError> {
        let moment = |at: usize| self.moments.get(at).copied().unwrap_or(-1);
        let back = if at.is_multiple_of(2) { self.stride / 2 } else { 0 };
        let (moment, before) = (moment(at / 4 * 4), moment(at) - back);
        let told = match at % 4 {
            0 => {
                self.sum = mixed([(1.0 / 6.0, told)]);
                self.remember(told);
                self.begun = sample.to_vec();
                told.to_vec()
            }
            1 | 2 => {
                self.sum = mixed([(1.0, &self.sum), (1.0 / 3.0, told)]);
                told.to_vec()
            }
            _ => mixed([(1.0, &self.sum), (1.0 / 6.0, told)]),
        };
        self.pndm.moved(&self.begun, moment, before, &told)
    }

    /// A question of the other steps: linear in what was told before.
    fn linear(&mut self, at: usize, told: &[f32], sample: &[f32]) -> Result<Vec<f32>, PipelineError> {
        let moment = self.moments.get(at).copied().unwrap_or(-1);
        // The second question without Runge and Kutta's mends the first, from where that began.
        if at == 1 {
            let told = self.told.back().map_or_else(Vec::new, |first| mixed([(0.5, told), (0.5, first)]));
            let begun = std::mem::take(&mut self.begun);
            return self.pndm.moved(&begun, moment + self.stride, moment, &told);
        }
        if at == 0 {
            self.begun = sample.to_vec();
        }
        self.remember(told);
        let told: Vec<&[f32]> = self.told.iter().rev().map(Vec::as_slice).collect();
        let told = match told[..] {
            [a, b, c, d, ..] => mixed([(55.0 / 24.0, a), (-59.0 / 24.0, b), (37.0 / 24.0, c), (-9.0 / 24.0, d)]),
            [a, b, c] => mixed([(23.0 / 12.0, a), (-16.0 / 12.0, b), (5.0 / 12.0, c)]),
            [a, b] => mixed([(1.5, a), (-0.5, b)]),
            _ => told.concat(),
        };
        self.pndm.moved(sample, moment, moment - self.stride, &told)
    }

    fn remember(&mut self, told: &[f32]) {
        if self.told.len() == ORDER {
            self.told.pop_front();
        }
        self.told.push_back(told.to_vec());
    }
}

impl Steps for PndmSteps {
    fn shown(&self, _: usize, sample: &[f32]) -> Vec<f32> {
        sample.to_vec()
    }

    fn step(&mut self, at: usize, told: &[f32], sample: &[f32]) -> Result<Vec<f32>, PipelineError> {
        if at < self.runge_kutta { self.runge_kutta(at, told, sample) } else { self.linear(at, told, sample) }
    }
}
