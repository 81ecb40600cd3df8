//! Models that cut out what prompts point at: an image is seen once, prompts look at its places, and each becomes masks
//! (<https://arxiv.org/abs/2304.02643>).

use accel_backends::tensor::{Activation, Convolution as Op, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::backbone::Backbone;
use crate::layers::convolution::Convolution;
use crate::layers::norm::Norm;
use crate::layers::patch::Asked;
use crate::layers::perceptron::Perceptron;
use crate::layers::prompt::Prompt;
use crate::layers::two_way::TwoWay;
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::NormSpec;
use crate::spec::segmentation::{PerceptronSpec, SegmentationSpec};

/// A model with its weights.
#[derive(Debug)]
pub struct Segmentation {
    hidden: usize,
    grid: usize,
    image: Backbone,
    prompt: Prompt,
    layers: TwoWay,
    /// The state that becomes what is said of masks, and those that become masks: `[1 + masks, hidden]`.
    tokens: Tensor,
    finer: [Convolution; 2],
    finer_norm: Norm,
    draws: Vec<Perceptron>,
    quality: Perceptron,
}

/// The prompts of a batch.
#[derive(Debug)]
struct Prompts {
    /// `[batch, prompts, states, hidden]`
    states: Option<Tensor>,
    /// What is added to the image's map.
    masks: Tensor,
}

impl Segmentation {
    /// Reads a model.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &SegmentationSpec) -> Result<Self, ModelError> {
        let hidden = spec.hidden;
        let finer = |number: usize, inputs: usize, outputs: usize| {
            let name = format!("finer.{number}");
            let weight = loader.weight(&name, &[inputs, outputs, 2, 2])?;
            let bias = Some(loader.tensor(&format!("{name}.bias"), &[outputs])?);
            let layer = Linear { weight, bias };
            Ok::<_, ModelError>(Convolution::transposed(loader.name(&name), Op::new(2).stride(2), layer))
        };
        let draw = PerceptronSpec { inputs: hidden, inner: hidden, outputs: hidden / 8, layers: 3 };
        let draw = |number: usize| Perceptron::with_ends(loader, &format!("draws.{number}"), &draw);
        let tokens =
            [loader.weight("tokens.quality", &[1, hidden])?, loader.weight("tokens.masks", &[spec.masks, hidden])?];
        Ok(Self {
            hidden,
            grid: spec.prompt.grid,
            image: Backbone::load(&loader.part("image"), &spec.image)?,
            prompt: Prompt::load(loader, spec.prompt, hidden)?,
            layers: TwoWay::load(loader, spec)?,
            tokens: Tensor::concat(&tokens, 0).map_err(ModelError::at("tokens"))?,
            finer: [finer(0, hidden, hidden / 4)?, finer(1, hidden / 4, hidden / 8)?],
            finer_norm: Norm::load(loader, "finer_norm", &NormSpec::layer(1e-6), hidden / 4)?,
            draws: (0..spec.masks).map(draw).collect::<Result<_, _>>()?,
            quality: Perceptron::with_ends(loader, "quality", &spec.quality)?,
        })
    }

    /// Answers all that the model's class answers: of `pixel_values` or `image_embeddings`, perhaps `input_points` with
    /// `input_labels`, `input_boxes` and `input_masks`, and whether several masks are wanted, `multimask_output`.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        inputs.only(&[
            "pixel_values",
            "image_embeddings",
            "input_points",
            "input_labels",
            "input_boxes",
            "input_masks",
            "multimask_output",
        ])?;
        let map = self.see(inputs)?;
        let prompts = self.prompts(inputs, map.dims()[0])?;
        let (masks, quality) = self.drawn(&map, &prompts)?;
        let several = inputs.number("multimask_output").is_none_or(|number| number != 0.0);
        let (first, count) = if several { (1, self.draws.len().saturating_sub(1)) } else { (0, 1) };
        let wanted = |x: &Tensor| x.narrow(2, first, count).map_err(ModelError::at("masks"));
        Ok(vec![("iou_scores".into(), wanted(&quality)?), ("pred_masks".into(), wanted(&masks)?)])
    }

    /// The image's map `[batch, hidden, grid, grid]`: of `pixel_values`, or `image_embeddings` as they are.
    ///
    /// # Errors
    ///
    /// When there are neither or both, or they are of another shape.
    pub fn see(&self, inputs: &Inputs) -> Result<Tensor, ModelError> {
        let Some(map) = inputs.optional("image_embeddings") else {
            let asked = Asked { pixels: inputs.tensor("pixel_values")?, hidden: None, stretched: false };
            return self.image.see(&asked, &[])?.last.map().map_err(ModelError::at("image"));
        };
        if inputs.optional("pixel_values").is_some() {
            let (what, found) = ("both".into(), "pixel_values and image_embeddings".into());
            return Err(ModelError::Unsupported { what, found, supported: "one of them".into() });
        }
        match *map.dims() {
            [_, hidden, height, width] if hidden == self.hidden && [height, width] == [self.grid; 2] => Ok(map.clone()),
            _ => {
                let expected = format!("[batch, {}, {}, {}]", self.hidden, self.grid, self.grid);
                Err(ModelError::input("image_embeddings", &expected, map.dims()))
            }
        }
    }

    fn prompts(&self, inputs: &Inputs, batch: usize) -> Result<Prompts, ModelError> {
        let at = || ModelError::at("prompts");
        let points = inputs.optional("input_points");
        let boxes = inputs.optional("input_boxes");
        let mut states = Vec::new();
        let mut count = None;
        if let Some(points) = points {
            let &[found, prompts, places, 2] = points.dims() else {
                return Err(ModelError::input("input_points", "[batch, prompts, points, 2]", points.dims()));
            };
            let labels = match inputs.optional("input_labels") {
                Some(labels) => labels.clone(),
                None => Tensor::new(points.engine(), vec![1.0; found * prompts * places], &[found, prompts, places])
                    .map_err(at())?,
            };
            if labels.dims() != [batch, prompts, places] || found != batch {
                let expected = format!("points of {batch} images, and a label of each");
                return Err(ModelError::input("input_labels", &expected, labels.dims()));
            }
            count = Some(prompts);
            states.push(self.prompt.points(points, &labels, boxes.is_some()).map_err(at())?);
        }
        if let Some(boxes) = boxes {
            match *boxes.dims() {
                [found, prompts, 4] if found == batch && count.is_none_or(|count| count == prompts) => {}
                _ => {
                    return Err(ModelError::input(
                        "input_boxes",
                        "[batch, prompts, 4], as many as points",
                        boxes.dims(),
                    ));
                }
            }
            states.push(self.prompt.boxes(boxes).map_err(at())?);
        }
        let states = (!states.is_empty()).then(|| Tensor::concat(&states, 2)).transpose().map_err(at())?;
        let masks = inputs.optional("input_masks");
        let side = 4 * self.grid;
        if let Some(masks) = masks.filter(|masks| {
            !matches!(*masks.dims(), [found, 1, height, width]
            if (found == batch || found == 1) && [height, width] == [side; 2])
        }) {
            return Err(ModelError::input("input_masks", &format!("[{batch}, 1, {side}, {side}]"), masks.dims()));
        }
        Ok(Prompts { states, masks: self.prompt.masks(masks)? })
    }

    /// All masks `[batch, prompts, masks, height, width]`, and how good each is: `[batch, prompts, masks]`.
    fn drawn(&self, map: &Tensor, prompts: &Prompts) -> Result<(Tensor, Tensor), ModelError> {
        let at = || ModelError::at("masks");
        let [batch, hidden, height, width] = map.sizes().map_err(at())?;
        let (count, own) = match &prompts.states {
            Some(states) => (states.dim(1).map_err(at())?, states.dim(2).map_err(at())?),
            None => (1, 0),
        };
        let (masks, all) = (self.draws.len(), self.tokens.dims()[0] + own);
        let begun = || -> Result<(Tensor, Tensor), TensorError> {
            let tokens = self.tokens.broadcast(&[batch, count, all - own, hidden])?;
            let tokens = match &prompts.states {
                Some(states) => Tensor::concat(&[tokens, states.clone()], 2)?,
                None => tokens,
            };
            let image = map.add(&prompts.masks)?.flatten(2, 3)?.transpose(1, 2)?.unsqueeze(1)?;
            let image = image.broadcast(&[batch, count, height * width, hidden])?;
            Ok((tokens.flatten(0, 1)?, image.flatten(0, 1)?))
        };
        let (tokens, image) = begun().map_err(at())?;
        let (tokens, image) = self.layers.forward(&tokens, &image, &self.prompt.places().map_err(at())?)?;
        let image =
            image.transpose(1, 2).and_then(|x| x.reshape(&[batch * count, hidden, height, width])).map_err(at())?;
        let gelu = |x: Tensor| x.activate(Activation::Gelu).map_err(at());
        let image = gelu(self.finer_norm.of_map(&self.finer[0].forward(&image)?)?)?;
        let image = gelu(self.finer[1].forward(&image)?)?;
        let [_, channels, height, width] = image.sizes().map_err(at())?;
        let draw = |(number, draw): (usize, &Perceptron)| draw.forward(&tokens.at(1, number + 1).map_err(at())?);
        let draws = self.draws.iter().enumerate().map(draw).collect::<Result<Vec<_>, _>>()?;
        let drawn = || -> Result<Tensor, TensorError> {
            let image = image.reshape(&[batch * count, channels, height * width])?;
            Tensor::stack(&draws, 1)?.matmul(&image)?.reshape(&[batch, count, masks, height, width])
        };
        let quality = self.quality.forward(&tokens.at(1, 0).map_err(at())?)?;
        Ok((drawn().map_err(at())?, quality.reshape(&[batch, count, masks]).map_err(at())?))
    }
}
