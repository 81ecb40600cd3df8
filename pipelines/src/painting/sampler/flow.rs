//! `FlowMatchEulerDiscreteScheduler` of Diffusers (<https://arxiv.org/abs/2403.03206>): the network tells the way from the
//! picture to the noise, and a sample goes back along it.

use accel_models::config::Config;

use super::{Run, Steps, mixed};
use crate::error::PipelineError;
use crate::painting::training::{MOMENTS_MAX, unsupported};

/// The sampler as declared.
#[derive(Clone, Debug)]
pub struct Flow {
    moments: f32,
    shift: Shift,
}

/// How moments lean towards noise.
#[derive(Clone, Copy, Debug)]
enum Shift {
    /// Whatever the size of the picture.
    Fixed(f32),
    /// More for larger pictures: a line through two points, each of so many tokens and the shift for them.
    BySize {
        /// Tokens.
        tokens: [f64; 2],
        /// Shifts.
        shifts: [f64; 2],
        /// Whether the shift is an exponent.
        exponential: bool,
    },
}

#[derive(Debug)]
struct FlowSteps {
    /// The share of noise at each moment, and at the end.
    shares: Vec<f32>,
}

impl Flow {
    /// Reads `scheduler_config.json`.
    ///
    /// # Errors
    ///
    /// When it is of another class, or a key is wrong or asks for what is not known.
    pub fn read(config: &Config) -> Result<Self, PipelineError> {
        const CLASS: &str = "FlowMatchEulerDiscreteScheduler";
        let class = config.text("_class_name")?;
        if class != CLASS {
            return Err(unsupported(config, "_class_name", &class, CLASS));
        }
        let others = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas"];
        for key in others.into_iter().chain(["invert_sigmas", "stochastic_sampling"]) {
            if config.truth_or(key, false)? {
                return Err(unsupported(config, key, "true", "false"));
            }
        }
        if config.optional_number("shift_terminal")?.is_some_and(|last| last != 0.0) {
            return Err(unsupported(config, "shift_terminal", "a number", "null"));
        }
        let moments = config.optional_size("num_train_timesteps")?.unwrap_or(1000);
        if moments > MOMENTS_MAX {
            return Err(config.wrong("num_train_timesteps", format!("1 to {MOMENTS_MAX}")).into());
        }
        let number = |key: &str, default: f64| Ok::<_, PipelineError>(config.optional_number(key)?.unwrap_or(default));
        let shift = if config.truth_or("use_dynamic_shifting", false)? {
            let tokens = [number("base_image_seq_len", 256.0)?, number("max_image_seq_len", 4096.0)?];
            if tokens[0] == tokens[1] {
                return Err(config.wrong("max_image_seq_len", "another number than base_image_seq_len").into());
            }
            let exponential = match config.optional_text("time_shift_type")?.as_deref() {
                None | Some("exponential") => true,
                Some("linear") => false,
                Some(found) => return Err(unsupported(config, "time_shift_type", found, "exponential, linear")),
            };
            Shift::BySize { tokens, shifts: [number("base_shift", 0.5)?, number("max_shift", 1.15)?], exponential }
        } else {
            Shift::Fixed(number("shift", 1.0)? as f32)
        };
        Ok(Self { moments: moments as f32, shift })
    }

    /// Begins a painting whose image has so many tokens.
    ///
    /// # Errors
    ///
    /// When there are no steps, or more than moments of training.
    pub fn begin(&self, steps: usize, tokens: usize) -> Result<Run, PipelineError> {
        if steps == 0 || steps as f32 > self.moments {
            let reason =
                format!("expected 1 to {}, as many as the model was trained with, found {steps}", self.moments);
            return Err(PipelineError::input("the steps", reason));
        }
        let last = 1.0 / steps as f64;
        let step = (last - 1.0) / (steps - 1).max(1) as f64;
        let share = |at: usize| (if at > 0 && at + 1 == steps { last } else { 1.0 + at as f64 * step }) as f32;
        let shares: Vec<f32> = (0..steps).map(|at| self.shift.of(share(at), tokens)).chain([0.0]).collect();
        let moments = shares[..steps].iter().map(|share| f64::from(share * self.moments)).collect();
        Ok(Run { moments, noise: 1.0, steps: Box::new(FlowSteps { shares }) })
    }
}

impl Shift {
    fn of(self, share: f32, count: usize) -> f32 {
        match self {
            Self::Fixed(shift) => shift * share / (1.0 + (shift - 1.0) * share),
            Self::BySize { tokens, shifts, exponential } => {
                let slope = (shifts[1] - shifts[0]) / (tokens[1] - tokens[0]);
                let shift = count as f64 * slope + shifts[0] - slope * tokens[0];
                let shift = if exponential { libm::exp(shift) } else { shift } as f32;
                shift / (shift + (1.0 / share - 1.0))
            }
        }
    }
}

impl Steps for FlowSteps {
    fn shown(&self, _: usize, sample: &[f32]) -> Vec<f32> {
        sample.to_vec()
    }

    fn step(&mut self, at: usize, told: &[f32], sample: &[f32]) -> Result<Vec<f32>, PipelineError> {
        let share = |at: usize| self.shares.get(at).copied().unwrap_or(0.0);
        Ok(mixed([(1.0, sample), (share(at + 1) - share(at), told)]))
    }
}
