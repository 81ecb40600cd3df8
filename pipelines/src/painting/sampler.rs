//! Samplers: from what a network tells of a noisy picture to one with less noise, step by step. They are the schedulers
//! that Stable Diffusion's directories declare (`diffusers/schedulers/`), and are compared with Diffusers' own numbers.
//!
//! A sampler knows no tensors: pictures are vectors. None of them draws noise on the way, so that a painting is a function
//! of its first noise.

mod ddim;
mod euler;
mod flow;
mod pndm;

use accel_models::config::Config;

use super::training::{Spacing, Training, unsupported};
use crate::error::PipelineError;
use ddim::Ddim;
use euler::Euler;
pub use flow::Flow;
use pndm::Pndm;

/// A sampler as a model's files declare it.
#[derive(Debug)]
pub enum Sampler {
    /// Pseudo numerical methods (<https://arxiv.org/abs/2202.09778>).
    Pndm(Pndm),
    /// Denoising diffusion implicit models (<https://arxiv.org/abs/2010.02502>).
    Ddim(Ddim),
    /// Euler's method (<https://arxiv.org/abs/2206.00364>, algorithm 2, without its noise).
    Euler(Euler),
}

/// What a pipeline sets, whatever its sampler's file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Moments that are spread from the first on are so much later.
    pub offset: Option<usize>,
    /// The picture that is told is taken as it is, whatever its values.
    pub unclipped: bool,
}

/// One painting's way through a sampler.
#[derive(Debug)]
pub struct Run {
    /// The moments at which the network is asked, in order.
    pub moments: Vec<f64>,
    /// By how much the first noise is multiplied.
    pub noise: f32,
    steps: Box<dyn Steps>,
}

/// What a sampler does at each of its moments, which are asked in order.
trait Steps: std::fmt::Debug + Send {
    /// What the network is shown of the sample at a moment.
    fn shown(&self, at: usize, sample: &[f32]) -> Vec<f32>;

    /// The sample after a moment, at which the network has told `told` of it.
    fn step(&mut self, at: usize, told: &[f32], sample: &[f32]) -> Result<Vec<f32>, PipelineError>;
}

impl Sampler {
    /// Reads `scheduler_config.json`.
    ///
    /// # Errors
    ///
    /// When it is of a class that is not known, or a key is wrong or asks for what is not known.
    pub fn read(config: &Config, overrides: Overrides) -> Result<Self, PipelineError> {
        let class = config.text("_class_name")?;
        let training = |spacing, rescales| {
            let training = Training::read(config, spacing, rescales)?;
            Ok::<_, PipelineError>(Training { offset: overrides.offset.unwrap_or(training.offset), ..training })
        };
        Ok(match class.as_str() {
            "PNDMScheduler" => Self::Pndm(Pndm::read(config, training(Spacing::Leading, false)?)?),
            "DDIMScheduler" => Self::Ddim(Ddim::read(config, training(Spacing::Leading, true)?, overrides.unclipped)?),
            "EulerDiscreteScheduler" => Self::Euler(Euler::read(config, training(Spacing::Linspace, true)?)?),
            _ => {
                let supported = "PNDMScheduler, DDIMScheduler, EulerDiscreteScheduler";
                return Err(unsupported(config, "_class_name", &class, supported));
            }
        })
    }

    /// Begins a painting of so many steps.
    ///
    /// # Errors
    ///
    /// When the sampler cannot do that many.
    pub fn begin(&self, steps: usize) -> Result<Run, PipelineError> {
        match self {
            Self::Pndm(pndm) => pndm.begin(steps),
            Self::Ddim(ddim) => ddim.begin(steps),
            Self::Euler(euler) => euler.begin(steps),
        }
    }
}

impl Run {
    /// What the network is shown of the sample at a moment.
    pub fn shown(&self, at: usize, sample: &[f32]) -> Vec<f32> {
        self.steps.shown(at, sample)
    }

    /// The sample after a moment, at which the network has told `told` of it. Moments are to be asked in order.
    ///
    /// # Errors
    ///
    /// When training had no such moment.
    pub fn step(&mut self, at: usize, told: &[f32], sample: &[f32]) -> Result<Vec<f32>, PipelineError> {
        self.steps.step(at, told, sample)
    }
}

/// Sums of products of several samples.
fn mixed<const N: usize>(parts: [(f32, &[f32]); N]) -> Vec<f32> {
    let length = parts.iter().map(|(_, part)| part.len()).min().unwrap_or(0);
    (0..length).map(|at| parts.iter().map(|(factor, part)| factor * part[at]).sum()).collect()
}
