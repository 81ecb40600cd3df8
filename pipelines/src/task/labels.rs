//! Labels and how likely each is (`pipelines/text_classification.py`, `pipelines/image_classification.py`).

use accel_backends::files::ModelFiles;
use accel_models::config::Config;
use accel_protocol::result::Label;

use crate::error::PipelineError;

/// The labels of a model.
#[derive(Debug)]
pub struct Labels {
    names: Option<Config>,
    scores: Scores,
}

/// What becomes of logits.
#[derive(Debug, PartialEq, Eq)]
enum Scores {
    /// What the number of labels calls for.
    ByCount,
    /// Each label for itself.
    Each,
    /// The logits are measures.
    Measures,
}

impl Labels {
    /// Reads `id2label` and `problem_type` of a model's `config.json`.
    ///
    /// # Errors
    ///
    /// When a key is mistyped.
    pub fn read(files: &dyn ModelFiles) -> Result<Self, PipelineError> {
        let config = Config::read(files).map_err(accel_models::ModelError::from)?;
        let read = || Ok((config.section("id2label")?, config.optional_text("problem_type")?));
        let (names, problem) = read().map_err(accel_models::ModelError::Config)?;
        let scores = match problem.as_deref() {
            Some("regression") => Scores::Measures,
            Some("multi_label_classification") => Scores::Each,
            _ => Scores::ByCount,
        };
        Ok(Self { names, scores })
    }

    /// The name of a label.
    pub fn name(&self, number: usize) -> String {
        let given = self.names.as_ref().and_then(|names| names.optional_text(&number.to_string()).ok().flatten());
        given.unwrap_or_else(|| format!("LABEL_{number}"))
    }

    /// The likeliest labels, likeliest first.
    pub fn ranked(&self, mut logits: Vec<f32>, top: usize) -> Vec<Label> {
        match self.scores {
            Scores::Measures => {}
            Scores::ByCount if logits.len() > 1 => softmax(&mut logits),
            Scores::ByCount | Scores::Each => sigmoid(&mut logits),
        }
        let best = likeliest(&logits, top);
        best.into_iter().map(|at| Label { label: self.name(at), score: logits[at] }).collect()
    }
}

/// Logits to probabilities, each for itself.
pub fn sigmoid(logits: &mut [f32]) {
    logits.iter_mut().for_each(|logit| *logit = 1.0 / (1.0 + libm::expf(-*logit)));
}

/// Logits to probabilities of which one is true.
pub fn softmax(logits: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter_mut().for_each(|logit| *logit = libm::expf(*logit - largest));
    let sum: f64 = logits.iter().map(|&part| f64::from(part)).sum();
    logits.iter_mut().for_each(|part| *part = (f64::from(*part) / sum) as f32);
}

/// Where the largest are, largest first; of equals the first comes first.
pub fn likeliest(scores: &[f32], top: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    let order = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if top < places.len() {
        places.select_nth_unstable_by(top, order);
        places.truncate(top);
    }
    places.sort_unstable_by(order);
    places
}
