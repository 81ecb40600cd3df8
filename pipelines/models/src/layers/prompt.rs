//! Prompts that point at something in an image: points, boxes and masks (`SamPromptEncoder`;
//! <https://arxiv.org/abs/2304.02643>).

use accel_backends::tensor::{Convolution as Op, Kind, Tensor, TensorError};

use crate::ModelError;
use crate::layers::convolution::Convolution;
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::NormSpec;
use crate::spec::segmentation::PromptSpec;

/// A point that stands for none: what the reference fills up with.
const NO_POINT: f32 = -1.0;
/// A point that is left out.
const LEFT_OUT: f32 = -10.0;

/// What sees prompts, with its weights.
#[derive(Debug)]
pub struct Prompt {
    spec: PromptSpec,
    /// Directions of waves: `[2, hidden / 2]`.
    waves: Tensor,
    /// Of a point beside the object, one of it, and the two corners of a box: `[1, hidden]` each.
    points: [Tensor; 4],
    no_point: Tensor,
    no_mask: Tensor,
    mask: [Convolution; 3],
    mask_norms: [Norm; 2],
}

impl Prompt {
    /// Reads the part `prompt`, and `waves`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: PromptSpec, hidden: usize) -> Result<Self, ModelError> {
        let part = loader.part("prompt");
        let one = |name: &str| part.weight(name, &[1, hidden]);
        let (narrow, wide) = (spec.mask / 4, spec.mask);
        let mask = |number: usize, inputs: usize, outputs: usize, taps: usize| {
            let name = format!("mask.{number}");
            Convolution::load(&part, &name, Op::new(2).stride(taps), &[outputs, inputs, taps, taps], true)
        };
        let norm = |number: usize, width: usize| {
            Norm::load(&part, &format!("mask_norms.{number}"), &NormSpec::layer(spec.eps), width)
        };
        Ok(Self {
            spec,
            waves: loader.tensor("waves", &[2, hidden / 2])?,
            points: [one("points.0")?, one("points.1")?, one("points.2")?, one("points.3")?],
            no_point: one("no_point")?,
            no_mask: one("no_mask")?,
            mask: [mask(0, 1, narrow, 2)?, mask(1, narrow, wide, 2)?, mask(2, wide, hidden, 1)?],
            mask_norms: [norm(0, narrow)?, norm(1, wide)?],
        })
    }

    /// Where all places of the image's map are: `[1, grid * grid, hidden]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn places(&self) -> Result<Tensor, TensorError> {
        let grid = self.spec.grid;
        let at = |place: usize| (place as f32 + 0.5) / grid as f32;
        let places = (0..grid * grid).flat_map(|place| [at(place % grid), at(place / grid)]).collect();
        self.wave(&Tensor::new(self.waves.engine(), places, &[1, grid * grid, 2])?)
    }

    /// Points `[batch, prompts, points, 2]` with labels `[batch, prompts, points]`: 1 of the object, 0 beside it; one more
    /// that stands for none where no box follows. To `[batch, prompts, points, hidden]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn points(&self, points: &Tensor, labels: &Tensor, boxed: bool) -> Result<Tensor, TensorError> {
        let (mut points, mut labels) = (points.shift(0.5)?, labels.to_kind(Kind::Float)?);
        if !boxed {
            (points, labels) = (points.pad(2, 0, 1, 0.0)?, labels.pad(2, 0, 1, NO_POINT)?);
        }
        let labels = labels.unsqueeze(-1)?;
        let is = |label: f32| labels.equal(&labels.like(label)?);
        let x = self.wave(&self.parts(&points)?)?;
        let x = is(NO_POINT)?.select(&self.no_point, &x)?;
        let x = is(LEFT_OUT)?.select(&x.like(0.0)?, &x)?;
        let x = is(0.0)?.select(&x.add(&self.points[0])?, &x)?;
        is(1.0)?.select(&x.add(&self.points[1])?, &x)
    }

    /// Boxes `[batch, prompts, 4]`, from corner to corner, to `[batch, prompts, 2, hidden]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn boxes(&self, boxes: &Tensor) -> Result<Tensor, TensorError> {
        let [batch, prompts, _] = boxes.sizes()?;
        let corners = boxes.shift(0.5)?.reshape(&[batch, prompts, 2, 2])?;
        let x = self.wave(&self.parts(&corners)?)?;
        x.add(&Tensor::concat(&self.points[2..], 0)?)
    }

    /// What is added to the image's map: of masks `[batch, 1, 4 * grid, 4 * grid]`, `[batch, hidden, grid, grid]`; of none
    /// `[1, hidden, 1, 1]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn masks(&self, masks: Option<&Tensor>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("masks");
        let Some(masks) = masks else {
            return self.no_mask.unsqueeze(-1).and_then(|x| x.unsqueeze(-1)).map_err(at());
        };
        let mut x = masks.clone();
        for (convolution, norm) in self.mask.iter().zip(&self.mask_norms) {
            x = norm.of_map(&convolution.forward(&x)?)?;
            x = x.activate(self.spec.activation).map_err(at())?;
        }
        self.mask[2].forward(&x)
    }

    /// Places in pixels as parts of the image.
    fn parts(&self, places: &Tensor) -> Result<Tensor, TensorError> {
        places.div(&places.like(self.spec.image as f32)?)
    }

    /// Sines and cosines of places between 0 and 1, along random directions: `[.., 2]` to `[.., hidden]`.
    fn wave(&self, places: &Tensor) -> Result<Tensor, TensorError> {
        let turns = places.affine(2.0, -1.0)?.matmul(&self.waves)?.scale(std::f32::consts::TAU)?;
        Tensor::concat(&[turns.sin()?, turns.cos()?], -1)
    }
}
