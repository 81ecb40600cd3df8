//! Heads of models that see pictures.

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::model::{Inputs, Model};
use accel_protocol::{Input, Task, TaskOptions, TaskResult};

use super::Head;
use super::labels::Labels;
use crate::error::PipelineError;
use crate::image_input::{self, ImageInput, ImagePreprocessor};

/// A head of a model that sees pictures.
pub struct ImageHead {
    engine: Engine,
    preprocessor: ImagePreprocessor,
    labels: Labels,
}

impl ImageHead {
    /// The head of a model.
    ///
    /// # Errors
    ///
    /// When its files do not say how pictures are prepared.
    pub fn read(files: &dyn ModelFiles, engine: Engine) -> Result<Self, PipelineError> {
        Ok(Self { engine, preprocessor: ImagePreprocessor::read(files)?, labels: Labels::read(files)? })
    }
}

impl Head for ImageHead {
    type Reading = ImageInput;

    fn tasks(&self) -> &'static [Task] {
        &[Task::ImageClassification]
    }

    fn prepare(&self, task: Task, input: &Input) -> Result<Vec<ImageInput>, PipelineError> {
        let Input::File(file) = input else {
            return Err(PipelineError::input("the input", format!("expected a file of a picture for {task}")));
        };
        self.preprocessor.prepare(&[image_input::decode(&file.0)?])
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
        let at = |source| ModelError::Tensor { place: "pixel_values".into(), source };
        let dims = [&[1], reading.shape.as_slice()].concat();
        let mut inputs = Inputs::default();
        inputs.insert("pixel_values", Tensor::new(&self.engine, reading.values.clone(), &dims).map_err(at)?);
        let outputs = model.forward(&inputs)?;
        let logits = outputs.into_iter().find(|(name, _)| name == "logits");
        let (_, logits) = logits.ok_or_else(|| ModelError::MissingInput { name: "logits".into() })?;
        let logits = logits.to_vec().map_err(at)?;
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(PipelineError::NotNumbers { output: "logits".into() });
        }
        let top = options.top_k.map_or(5, |count| count as usize);
        Ok(TaskResult::Labels(self.labels.ranked(logits, top)))
    }
}
