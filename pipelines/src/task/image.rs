//! Heads of models that see pictures.

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::model::{Inputs, Model};
use accel_models::spec::Spec;
use accel_models::spec::detection::ScoresSpec;
use accel_protocol::{Input, Task, TaskOptions, TaskResult};

use super::labels::Labels;
use super::{Head, numbers, objects};
use crate::error::PipelineError;
use crate::image_input::{self, ImageInput, ImagePreprocessor, RgbImage};

/// A head of a model that sees pictures.
pub struct ImageHead {
    engine: Engine,
    preprocessor: ImagePreprocessor,
    labels: Labels,
    /// What becomes of logits, where it finds objects.
    objects: Option<ScoresSpec>,
}

impl ImageHead {
    /// The head of a model.
    ///
    /// # Errors
    ///
    /// When its files do not say how pictures are prepared.
    pub fn read(files: &dyn ModelFiles, engine: Engine, spec: &Spec) -> Result<Self, PipelineError> {
        let (preprocessor, labels) = (ImagePreprocessor::read(files)?, Labels::read(files)?);
        Ok(Self { engine, preprocessor, labels, objects: objects::scores(spec) })
    }
}

/// The picture that a task is done on.
///
/// # Errors
///
/// When the input is none, or cannot be read.
pub fn picture(task: Task, input: &Input) -> Result<RgbImage, PipelineError> {
    match input {
        Input::File(file) => image_input::decode(&file.0),
        _ => Err(PipelineError::input("the input", format!("expected a file of a picture for {task}"))),
    }
}

/// What a model reads of pictures that were prepared together: `pixel_values`, `[pictures, channels, height, width]` with
/// `pixel_mask` where it knows one, or `[patches, elements]` with `image_grid_thw`. Nothing of none.
///
/// # Errors
///
/// When the pictures are of different shapes and no patches.
pub fn inputs(engine: &Engine, pictures: &[ImageInput]) -> Result<Inputs, PipelineError> {
    let mut inputs = Inputs::default();
    let Some(first) = pictures.first() else { return Ok(inputs) };
    let mut whole = |name: &str, values: Vec<i64>, dims: &[usize]| {
        let tensor = Tensor::whole(engine, values, dims);
        let tensor = tensor.map_err(|source| ModelError::Tensor { place: name.to_owned(), source })?;
        inputs.insert(name, tensor);
        Ok::<_, ModelError>(())
    };
    let grids: Option<Vec<[usize; 3]>> = pictures.iter().map(|picture| picture.grid).collect();
    let dims = match (grids, first.shape.as_slice()) {
        (Some(grids), &[_, elements]) => {
            let sizes = grids.iter().flatten().map(|&size| size as i64).collect();
            whole("image_grid_thw", sizes, &[grids.len(), 3])?;
            vec![grids.iter().map(|grid| grid.iter().product::<usize>()).sum(), elements]
        }
        (_, shape) => {
            if let Some(other) = pictures.iter().find(|picture| picture.shape != first.shape) {
                let words = format!("expected pictures that are prepared alike, found {shape:?} and {:?}", other.shape);
                return Err(PipelineError::input("the images", words));
            }
            let masks: Option<Vec<&Vec<u8>>> = pictures.iter().map(|picture| picture.pixel_mask.as_ref()).collect();
            if let (Some(masks), [_, area @ ..]) = (masks, shape) {
                let shown = masks.into_iter().flatten().map(|&shown| shown.into()).collect();
                whole("pixel_mask", shown, &[&[pictures.len()], area].concat())?;
            }
            [&[pictures.len()], shape].concat()
        }
    };
    let values = pictures.iter().flat_map(|picture| &picture.values).copied().collect();
    let pixels = Tensor::new(engine, values, &dims);
    let pixels = pixels.map_err(|source| ModelError::Tensor { place: "pixel_values".into(), source })?;
    inputs.insert("pixel_values", pixels);
    Ok(inputs)
}

impl Head for ImageHead {
    type Reading = ImageInput;

    fn tasks(&self) -> &'static [Task] {
        match self.objects {
            None => &[Task::ImageClassification],
            Some(_) => &[Task::ObjectDetection],
        }
    }

    fn prepare(&self, task: Task, input: &Input) -> Result<Vec<ImageInput>, PipelineError> {
        self.preprocessor.prepare(&[picture(task, input)?])
    }

    fn tokens(_: &ImageInput) -> usize {
        0
    }

    fn answer(
        &self,
        model: &Model,
        _: Task,
        options: &TaskOptions,
        reading: &ImageInput,
    ) -> Result<TaskResult, PipelineError> {
        let outputs = model.forward(&inputs(&self.engine, std::slice::from_ref(reading))?)?;
        let Some(scores) = self.objects else {
            let [logits] = numbers(&outputs, ["logits"])?;
            let top = options.top_k.map_or(5, |count| count as usize);
            return Ok(TaskResult::Labels(self.labels.ranked(logits, top)));
        };
        let [logits, boxes] = numbers(&outputs, ["logits", "pred_boxes"])?;
        let threshold = options.threshold.unwrap_or(objects::THRESHOLD);
        let found = objects::of((logits, &boxes), scores, &self.labels, reading.original, threshold);
        Ok(TaskResult::Things(found))
    }
}
