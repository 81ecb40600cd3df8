//! How much noise a picture had at each moment of training, and which of these moments a painting goes through: what the
//! schedulers of Diffusers have in common (`diffusers/schedulers/scheduling_*.py`).

use accel_models::config::Config;

use crate::error::PipelineError;

/// The most moments of training; models in use have 1000.
pub const MOMENTS_MAX: usize = 1 << 16;
/// What counts as left of the picture at the last moment where nothing is: the least that f16 tells from 0.
const NOTHING: f32 = 1.0 / (1 << 24) as f32;

/// The moments of training.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// What is left of the picture at each moment, in squares: Diffusers' `alphas_cumprod`.
    pub kept: Vec<f32>,
    /// How a painting's moments are spread over these.
    pub spacing: Spacing,
    /// By how much later they are, where they are spread from the first on.
    pub offset: usize,
}

/// How moments are spread (<https://arxiv.org/abs/2305.08891>, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// From the first to the last.
    Linspace,
    /// From the first on.
    Leading,
    /// From the last on.
    Trailing,
}

/// What a network tells of a noisy picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// Its noise.
    Noise,
    /// The picture.
    Picture,
    /// The way from one to the other (<https://arxiv.org/abs/2202.00512>).
    Velocity,
}

impl Prediction {
    /// Reads `prediction_type`.
    ///
    /// # Errors
    ///
    /// When it is none of them.
    pub fn read(config: &Config) -> Result<Self, PipelineError> {
        match config.optional_text("prediction_type")?.as_deref() {
            None | Some("epsilon") => Ok(Self::Noise),
            Some("sample") => Ok(Self::Picture),
            Some("v_prediction") => Ok(Self::Velocity),
            Some(found) => Err(unsupported(config, "prediction_type", found, "epsilon, sample, v_prediction")),
        }
    }
}

impl Training {
    /// Reads the keys that schedulers share. `spacing`, how moments are spread by default; `rescales`, whether the scheduler
    /// knows `rescale_betas_zero_snr`.
    ///
    /// # Errors
    ///
    /// When one is mistyped, or asks for what is not known.
    pub fn read(config: &Config, spacing: Spacing, rescales: bool) -> Result<Self, PipelineError> {
        let moments = config.optional_size("num_train_timesteps")?.unwrap_or(1000);
        if !(2..=MOMENTS_MAX).contains(&moments) {
            return Err(config.wrong("num_train_timesteps", format!("2 to {MOMENTS_MAX}")).into());
        }
        let mut added = noises(config, moments)?;
        if rescales && config.truth_or("rescale_betas_zero_snr", false)? {
            added = rescaled(&added);
        }
        let kept = products(&added);
        if kept.iter().any(|kept| !(0.0..=1.0).contains(kept)) || kept[0] == 0.0 {
            return Err(config
                .wrong("beta_schedule", "noises that leave something of the picture, but less each time")
                .into());
        }
        let spacing = match config.optional_text("timestep_spacing")?.as_deref() {
            None => spacing,
            Some("linspace") => Spacing::Linspace,
            Some("leading") => Spacing::Leading,
            Some("trailing") => Spacing::Trailing,
            Some(found) => return Err(unsupported(config, "timestep_spacing", found, "linspace, leading, trailing")),
        };
        let offset = config.optional_integer("steps_offset")?.unwrap_or(0);
        let offset = usize::try_from(offset).ok().filter(|offset| *offset < MOMENTS_MAX);
        let offset = offset.ok_or_else(|| config.wrong("steps_offset", "a small number that is not negative"))?;
        Ok(Self { kept, spacing, offset })
    }

    /// How many moments there are.
    pub fn moments(&self) -> usize {
        self.kept.len()
    }

    /// The moments of a painting of so many steps, in ascending order and not yet whole.
    ///
    /// # Errors
    ///
    /// When there are more steps than moments.
    pub fn spread(&self, steps: usize) -> Result<Vec<f64>, PipelineError> {
        let moments = self.moments();
        if steps == 0 || steps > moments {
            let reason = format!("expected 1 to {moments}, as many as the model was trained with, found {steps}");
            return Err(PipelineError::input("the steps", reason));
        }
        Ok(match self.spacing {
            Spacing::Linspace => {
                let last = (moments - 1) as f64;
                let step = last / (steps - 1).max(1) as f64;
                (0..steps).map(|at| if at > 0 && at + 1 == steps { last } else { at as f64 * step }).collect()
            }
            Spacing::Leading => (0..steps).map(|at| (at * (moments / steps) + self.offset) as f64).collect(),
            Spacing::Trailing => {
                let (all, step) = (moments as f64, moments as f64 / steps as f64);
                // As NumPy counts and adds, which may give one more.
                let (count, step) = ((all / step).ceil() as usize, (all - step) - all);
                (0..count).rev().map(|at| (all + at as f64 * step).round_ties_even() - 1.0).collect()
            }
        })
    }

    /// The same as whole numbers.
    ///
    /// # Errors
    ///
    /// As [`Training::spread`].
    pub fn spread_whole(&self, steps: usize) -> Result<Vec<i64>, PipelineError> {
        Ok(self.spread(steps)?.into_iter().map(|moment| moment.round_ties_even() as i64).collect())
    }

    /// What is left of the picture at a moment.
    ///
    /// # Errors
    ///
    /// When training had no such moment.
    pub fn kept_at(&self, moment: i64) -> Result<f32, PipelineError> {
        let kept = usize::try_from(moment).ok().and_then(|moment| self.kept.get(moment).copied());
        kept.ok_or_else(|| {
            let reason = format!("moment {moment} is outside the {} of training; ask for fewer steps", self.moments());
            PipelineError::input("the steps", reason)
        })
    }

    /// Noise in shares of the picture at each moment.
    pub fn shares(&self) -> Vec<f32> {
        let share = |kept: &f32| {
            // Of no picture, noise would be no share.
            let kept = if *kept == 0.0 { NOTHING } else { *kept };
            libm::sqrtf((1.0 - kept) / kept)
        };
        self.kept.iter().map(share).collect()
    }
}

/// An error of a value that is not known.
pub fn unsupported(config: &Config, key: &str, found: &str, supported: &str) -> PipelineError {
    PipelineError::Model(accel_models::ModelError::Unsupported {
        what: config.path(key),
        found: found.to_owned(),
        supported: supported.to_owned(),
    })
}

/// The noise that each moment adds, Diffusers' `betas`.
fn noises(config: &Config, moments: usize) -> Result<Vec<f32>, PipelineError> {
    if let Some(trained) = config.optional_numbers("trained_betas")? {
        if trained.len() != moments {
            return Err(config.wrong("trained_betas", format!("{moments} numbers")).into());
        }
        return Ok(trained.into_iter().map(|noise| noise as f32).collect());
    }
    let first = config.optional_number("beta_start")?.unwrap_or(0.0001);
    let last = config.optional_number("beta_end")?.unwrap_or(0.02);
    let valid = |noise: f64| (0.0..1.0).contains(&noise);
    if !valid(first) || !valid(last) {
        return Err(config.wrong("beta_end", "with beta_start, numbers from 0 to below 1").into());
    }
    match config.optional_text("beta_schedule")?.as_deref() {
        None | Some("linear") => Ok(line(first, last, moments)),
        Some("scaled_linear") => {
            let roots = line(libm::sqrt(first), libm::sqrt(last), moments);
            Ok(roots.into_iter().map(|root| root * root).collect())
        }
        Some("squaredcos_cap_v2") => {
            let kept = |place: usize| {
                let angle = (place as f64 / moments as f64 + 0.008) / 1.008 * std::f64::consts::PI / 2.0;
                libm::cos(angle).powi(2)
            };
            Ok((0..moments).map(|place| (1.0 - kept(place + 1) / kept(place)).min(0.999) as f32).collect())
        }
        Some(found) => Err(unsupported(config, "beta_schedule", found, "linear, scaled_linear, squaredcos_cap_v2")),
    }
}

/// Numbers at one distance, as torch has them in f32.
fn line(first: f64, last: f64, count: usize) -> Vec<f32> {
    let (first, last) = (first as f32, last as f32);
    let step = (last - first) / (count - 1) as f32;
    let number = |at: usize| {
        if at < count / 2 { first + step * at as f32 } else { last - step * (count - 1 - at) as f32 }
    };
    (0..count).map(number).collect()
}

/// What is left after each moment, of the noise that each adds.
fn products(added: &[f32]) -> Vec<f32> {
    let mut product = 1.0_f64;
    let left = |added: &f32| {
        product *= f64::from(1.0 - added);
        product as f32
    };
    added.iter().map(left).collect()
}

/// Noises that leave nothing at the last moment, and as much as before at the first (<https://arxiv.org/abs/2305.08891>,
/// algorithm 1).
fn rescaled(added: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = products(added).into_iter().map(libm::sqrtf).collect();
    let (first, last) = (roots.first().copied().unwrap_or(1.0), roots.last().copied().unwrap_or(0.0));
    let scale = first / (first - last);
    let kept: Vec<f32> = roots.into_iter().map(|root| ((root - last) * scale).powi(2)).collect();
    let before = std::iter::once(1.0).chain(kept.iter().copied());
    kept.iter().zip(before).map(|(kept, before)| 1.0 - kept / before).collect()
}
