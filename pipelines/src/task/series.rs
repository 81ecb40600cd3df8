//! How series go on. There is no pipeline for it in transformers: answers are those of the model's class
//! (`PatchTSTForPrediction`, `PatchTSMixerForPrediction`).

use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::family::time_series::TimeSeries;
use accel_models::model::Model;
use accel_models::spec::time_series::TimeSeriesSpec;
use accel_protocol::{Input, Task, TaskOptions, TaskResult};

use super::Head;
use crate::error::PipelineError;

/// What is made of a series that is larger than this is no number where the series is scaled: its square is none in f32.
const MAGNITUDE_MAX: f32 = 1e18;

/// The head of a model that tells how series go on.
pub struct SeriesHead {
    engine: Engine,
    times: usize,
    channels: usize,
}

impl SeriesHead {
    /// The head of a model of that make.
    pub fn new(spec: &TimeSeriesSpec, engine: Engine) -> Self {
        Self { engine, times: spec.length, channels: spec.channels }
    }

    /// The numbers of a series, `[times, channels]`. The model reads one length: what is longer or shorter is refused, as
    /// by the reference, for whoever asks knows which part is to be read.
    fn read(&self, series: &[Vec<f32>]) -> Result<Vec<f32>, PipelineError> {
        let refused = |reason: String| Err(PipelineError::input("the series", reason));
        let found = series.first().map_or(0, Vec::len);
        if series.len() != self.times || series.iter().any(|values| values.len() != self.channels) {
            let (times, channels) = (self.times, self.channels);
            let expected = format!("expected {times} times of {channels} channels, as the model was made for");
            return refused(format!("{expected}, found {} times of {found} channels", series.len()));
        }
        for (time, values) in series.iter().enumerate() {
            if let Some(channel) = values.iter().position(|value| !value.is_finite()) {
                let found = values[channel];
                return refused(format!("expected finite numbers, found {found} at time {time} in channel {channel}"));
            }
        }
        Ok(series.concat())
    }
}

impl Head for SeriesHead {
    type Reading = Vec<f32>;

    fn tasks(&self) -> &'static [Task] {
        &[Task::TimeSeriesForecasting]
    }

    fn prepare(&self, task: Task, input: &Input) -> Result<Vec<Vec<f32>>, PipelineError> {
        match input {
            Input::Series(series) => Ok(vec![self.read(series)?]),
            _ => Err(PipelineError::input("the input", format!("expected a series of numbers for {task}"))),
        }
    }

    fn tokens(_: &Vec<f32>) -> usize {
        0
    }

    fn answer(&self, model: &Model, _: Task, _: &TaskOptions, reading: &Vec<f32>) -> Result<TaskResult, PipelineError> {
        let at = |source| ModelError::Tensor { place: "past_values".into(), source };
        let past = Tensor::new(&self.engine, reading.clone(), &[1, self.times, self.channels]).map_err(at)?;
        let forecast = series_model(model)?.forecast(past)?;
        let [_, times, channels] = forecast.sizes().map_err(at)?;
        let values = forecast.to_vec().map_err(at)?;
        if values.iter().any(|value| !value.is_finite()) {
            let largest = reading.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
            return Err(if largest > MAGNITUDE_MAX {
                let reason = format!("expected numbers within {MAGNITUDE_MAX:e}, found {largest:e}, which overflows");
                PipelineError::input("the series", reason)
            } else {
                PipelineError::NotNumbers { output: "prediction_outputs".into() }
            });
        }
        Ok(TaskResult::Features { shape: vec![times as u32, channels as u32], values })
    }
}

fn series_model(model: &Model) -> Result<&TimeSeries, ModelError> {
    match model {
        Model::TimeSeries(model) => Ok(model),
        _ => Err(ModelError::MissingInput { name: "past_values".into() }),
    }
}
