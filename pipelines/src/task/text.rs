//! Heads of models that read texts.

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::model::{Inputs, Model};
use accel_protocol::{Input, Task, TaskOptions, TaskResult};
use tokenizers::Encoding;

use super::features::Pooling;
use super::labels::Labels;
use super::{Head, answers, entities, fillings, numbers};
use crate::error::PipelineError;
use crate::tokenizer::{Cut, Tokenizer};

/// A head of a model that reads texts.
pub struct TextHead {
    engine: Engine,
    tokenizer: Tokenizer,
    tasks: &'static [Task],
    labels: Labels,
    pooling: Option<Pooling>,
    context: usize,
}

/// A text as the model reads it.
pub struct Reading {
    /// What answers are parts of.
    pub text: String,
    /// Its tokens, in several windows where it is longer than one.
    pub windows: Vec<Encoding>,
}

impl TextHead {
    /// The head of a model that does `tasks`.
    ///
    /// # Errors
    ///
    /// When its files do not say what the tasks need.
    pub fn read(
        files: &dyn ModelFiles,
        engine: Engine,
        mut tokenizer: Tokenizer,
        tasks: &'static [Task],
        context: usize,
    ) -> Result<Self, PipelineError> {
        let most = tokenizer.length_max().unwrap_or(usize::MAX);
        match tasks.first() {
            Some(Task::QuestionAnswering) => {
                let length = most.min(answers::WINDOW);
                tokenizer.cut(Cut::Windows { length, overlap: answers::OVERLAP.min(length / 2) })?;
            }
            Some(Task::TokenClassification) if most < usize::MAX => tokenizer.cut(Cut::Rest { length: most })?,
            _ => {}
        }
        let pooling = tasks.contains(&Task::Embedding).then(|| Pooling::read(files)).transpose()?;
        if let Some(length) = pooling.as_ref().and_then(|pooling| pooling.length) {
            tokenizer.cut(Cut::Rest { length })?;
        }
        Ok(Self { engine, tokenizer, tasks, labels: Labels::read(files)?, pooling, context })
    }

    fn read_text(&self, text: &str, second: Option<&str>) -> Result<Reading, PipelineError> {
        let windows = self.tokenizer.encode(text, second)?;
        for window in &windows {
            let found = window.get_ids().len();
            if found > self.context {
                return Err(PipelineError::TooLong { found, context: self.context });
            }
            if found == 0 {
                return Err(PipelineError::input("the text", "expected at least one token, found none"));
            }
        }
        Ok(Reading { text: second.unwrap_or(text).to_owned(), windows })
    }

    /// Runs the model on one window: the values of the outputs of these names, of one sequence.
    fn run<const N: usize>(
        &self,
        model: &Model,
        window: &Encoding,
        names: [&str; N],
    ) -> Result<[Vec<f32>; N], PipelineError> {
        let whole = |values: &[u32]| {
            let values: Vec<i64> = values.iter().map(|&value| value.into()).collect();
            let dims = [1, values.len()];
            Tensor::whole(&self.engine, values, &dims)
        };
        let at = |place: &str| {
            let place = place.to_owned();
            move |source| ModelError::Tensor { place, source }
        };
        let mut inputs = Inputs::default();
        inputs.insert("input_ids", whole(window.get_ids()).map_err(at("input_ids"))?);
        if window.get_type_ids().iter().any(|&of| of != 0) {
            inputs.insert("token_type_ids", whole(window.get_type_ids()).map_err(at("token_type_ids"))?);
        }
        numbers(&model.forward(&inputs)?, names)
    }
}

impl Head for TextHead {
    type Reading = Reading;

    fn tasks(&self) -> &'static [Task] {
        self.tasks
    }

    fn prepare(&self, task: Task, input: &Input) -> Result<Vec<Reading>, PipelineError> {
        let pair = matches!(task, Task::QuestionAnswering);
        let readings: Vec<Reading> = match input {
            Input::Text(text) if !pair => vec![self.read_text(text, None)?],
            Input::Texts(texts) if !pair => {
                texts.iter().map(|text| self.read_text(text, None)).collect::<Result<_, _>>()?
            }
            Input::Pair(first, second) if pair || task == Task::TextClassification => {
                vec![self.read_text(first, Some(second))?]
            }
            _ => {
                let expected = match task {
                    Task::QuestionAnswering => "a question with a text to find its answer in",
                    Task::TextClassification => "a text, several, or a pair of them",
                    _ => "a text, or several",
                };
                return Err(PipelineError::input("the input", format!("expected {expected} for {task}")));
            }
        };
        if task == Task::FillMask {
            readings.iter().try_for_each(|reading| fillings::check(&self.tokenizer, reading))?;
        }
        Ok(readings)
    }

    fn tokens(reading: &Reading) -> usize {
        reading.windows.iter().map(|window| window.get_ids().len()).sum()
    }

    fn answer(
        &self,
        model: &Model,
        task: Task,
        options: &TaskOptions,
        reading: &Reading,
    ) -> Result<TaskResult, PipelineError> {
        let top = options.top_k.map(|count| count as usize);
        let Some(window) = reading.windows.first() else {
            return Err(PipelineError::input("the text", "expected at least one token, found none"));
        };
        let length = window.get_ids().len();
        Ok(match task {
            Task::FillMask => {
                let [logits] = self.run(model, window, ["logits"])?;
                TaskResult::Fillings(fillings::of(&self.tokenizer, window, &logits, top.unwrap_or(5))?)
            }
            Task::TextClassification => {
                let [logits] = self.run(model, window, ["logits"])?;
                TaskResult::Labels(self.labels.ranked(logits, top.unwrap_or(1)))
            }
            Task::TokenClassification => {
                let [logits] = self.run(model, window, ["logits"])?;
                let tokens = entities::tokens(&self.tokenizer, &reading.text, window, &logits);
                TaskResult::Entities(entities::of(&self.tokenizer, &self.labels, tokens, options.aggregation)?)
            }
            Task::QuestionAnswering => {
                let mut found = answers::Answers::new(top.unwrap_or(1));
                for window in &reading.windows {
                    let [start, end] = self.run(model, window, ["start_logits", "end_logits"])?;
                    found.add(&self.tokenizer, &reading.text, window, start, end);
                }
                TaskResult::Answers(found.best())
            }
            _ => {
                let [states] = self.run(model, window, ["last_hidden_state"])?;
                let width = states.len() / length.max(1);
                match (&self.pooling, task) {
                    (Some(pooling), Task::Embedding) => {
                        TaskResult::Features { shape: vec![width as u32], values: pooling.pool(&states, width) }
                    }
                    _ => TaskResult::Features { shape: vec![length as u32, width as u32], values: states },
                }
            }
        })
    }
}
