//! The shapes of all that is in a picture (`pipelines/mask_generation.py` and `models/sam/image_processing_sam.py` in
//! `transformers`; <https://arxiv.org/abs/2304.02643>).
//!
//! The model sees the picture once. A grid of points is laid over it, and the model draws what each point may be part of.
//! What it is sure of, and what stays nearly the same when it is drawn a little larger or smaller, is kept; of those that
//! cover nearly the same part, the best.

mod shape;

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::family::segmentation::Segmentation;
use accel_models::model::{Inputs, Model};
use accel_protocol::result::Mask;
use accel_protocol::{Input, Task, TaskOptions, TaskResult};

use super::{Head, image, numbers};
use crate::error::PipelineError;
use crate::image_input::{ImageInput, ImagePreprocessor};
use shape::{Canvas, Shape};

/// Points along a side of the grid.
const POINTS: usize = 32;
/// Points that the model is asked about at once.
const POINTS_AT_ONCE: usize = 64;
/// How good the model has to think that a mask is, where nothing is said.
const QUALITY: f32 = 0.88;
/// The least part of a mask that has to stay when it is drawn a little larger or smaller.
const STABILITY: f32 = 0.95;
/// The most of two boxes' joint area that both may cover.
const OVERLAP: f32 = 0.7;
/// Runs of all masks that are kept until the best are known; as numbers they take 64 MiB.
const RUNS_MAX: usize = 1 << 24;

/// The head of a model that cuts out what points are part of.
pub struct MaskHead {
    engine: Engine,
    preprocessor: ImagePreprocessor,
}

/// What the model draws for some points.
struct Drawn {
    /// `[points * masks, height, width]`
    masks: Vec<f32>,
    /// How good each is: `[points * masks]`.
    scores: Vec<f32>,
    /// Height and width.
    size: [usize; 2],
}

impl MaskHead {
    /// The head of a model.
    ///
    /// # Errors
    ///
    /// When its files do not say how pictures are prepared.
    pub fn read(files: &dyn ModelFiles, engine: Engine) -> Result<Self, PipelineError> {
        Ok(Self { engine, preprocessor: ImagePreprocessor::read(files)? })
    }

    /// Asks the model about points.
    fn drawn(&self, model: &Segmentation, map: &Tensor, points: &[[f32; 2]]) -> Result<Drawn, PipelineError> {
        let at = |place: &str| {
            let place = place.to_owned();
            move |source| ModelError::Tensor { place, source }
        };
        let count = points.len();
        let places = Tensor::new(&self.engine, points.concat(), &[1, count, 1, 2]).map_err(at("input_points"))?;
        let labels = Tensor::whole(&self.engine, vec![1; count], &[1, count, 1]).map_err(at("input_labels"))?;
        let mut inputs = Inputs::default();
        inputs.insert("image_embeddings", map.clone());
        inputs.insert("input_points", places);
        inputs.insert("input_labels", labels);
        let outputs = model.answer(&inputs)?;
        let [masks, scores] = numbers(&outputs, ["pred_masks", "iou_scores"])?;
        let dims = outputs.iter().find(|(name, _)| name == "pred_masks").map(|(_, masks)| masks.dims());
        match dims {
            Some(&[1, _, _, height, width]) => Ok(Drawn { masks, scores, size: [height, width] }),
            found => {
                Err(ModelError::input("pred_masks", "[1, points, masks, height, width]", found.unwrap_or(&[])).into())
            }
        }
    }
}

/// The middles of the grid's squares, in pixels of the picture as the model is given it.
fn grid(picture: &ImageInput) -> Vec<[f32; 2]> {
    let at = |number: usize, original: usize, resized: usize| {
        let part = (number as f64 + 0.5) / POINTS as f64;
        (part * original as f64 * (resized as f64 / original as f64)) as f32
    };
    let (original, resized) = (picture.original, picture.resized);
    let point = |place: usize| {
        let (row, column) = (place / POINTS, place % POINTS);
        [at(column, original.width, resized.width), at(row, original.height, resized.height)]
    };
    (0..POINTS * POINTS).map(point).collect()
}

/// The best of shapes that cover nearly the same part, best first (`torchvision.ops.nms`).
fn best(mut shapes: Vec<(f32, Shape)>) -> Vec<(f32, Shape)> {
    // Of equals the first comes first.
    shapes.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut kept: Vec<(f32, Shape)> = Vec::new();
    for (score, shape) in shapes {
        if !kept.iter().any(|(_, other)| other.overlap(&shape) > OVERLAP) {
            kept.push((score, shape));
        }
    }
    kept
}

impl Head for MaskHead {
    type Reading = ImageInput;

    fn tasks(&self) -> &'static [Task] {
        &[Task::MaskGeneration]
    }

    fn prepare(&self, task: Task, input: &Input) -> Result<Vec<ImageInput>, PipelineError> {
        self.preprocessor.prepare(&[image::picture(task, input)?])
    }

    fn tokens(_: &ImageInput) -> usize {
        0
    }

    fn answer(
        &self,
        model: &Model,
        task: Task,
        options: &TaskOptions,
        reading: &ImageInput,
    ) -> Result<TaskResult, PipelineError> {
        let Model::Segmentation(model) = model else {
            let (what, found) = ("the model of masks".into(), task.name().into());
            return Err(ModelError::Unsupported { what, found, supported: "segmentation".into() }.into());
        };
        let &[_, height, width] = reading.shape.as_slice() else {
            return Err(ModelError::input("pixel_values", "[channels, height, width]", &reading.shape).into());
        };
        let map = model.see(&image::inputs(&self.engine, std::slice::from_ref(reading))?)?;
        let quality = options.threshold.unwrap_or(QUALITY);
        let mut canvas = Canvas::new([height, width], reading.resized, reading.original);
        let (mut shapes, mut runs) = (Vec::new(), 0);
        for points in grid(reading).chunks(POINTS_AT_ONCE) {
            let Drawn { masks, scores, size } = self.drawn(model, &map, points)?;
            let masks = masks.chunks_exact(size.iter().product::<usize>().max(1));
            for (mask, score) in masks.zip(scores) {
                if quality > 0.0 && score <= quality {
                    continue;
                }
                let shape = canvas.draw(mask, size);
                let Some(shape) = shape.filter(|shape| shape.stability > STABILITY) else { continue };
                runs += shape.counts.len();
                if runs > RUNS_MAX {
                    return Err(PipelineError::too_large("the masks of a picture", runs, RUNS_MAX, "runs"));
                }
                shapes.push((score, shape));
            }
        }
        let size = [reading.original.height as u32, reading.original.width as u32];
        let mask = |(score, shape): (f32, Shape)| Mask { score, size, counts: shape.counts };
        Ok(TaskResult::Masks(best(shapes).into_iter().map(mask).collect()))
    }
}
