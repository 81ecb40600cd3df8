//! What a model's makers will not have painted (`diffusers/pipelines/stable_diffusion/safety_checker.py`): a picture is
//! held back when its vector is too near to one of some concepts.

use accel_backends::tensor::{Engine, Tensor};
use accel_backends::weights::read_tensor;
use accel_models::ModelError;
use accel_models::model::{Inputs, Model};
use accel_models::spec::Spec;

use super::parts::{Part, PartModel};
use crate::error::PipelineError;
use crate::image_input::{ImagePreprocessor, RgbImage};

/// How much nearer all concepts count to a picture that is near to one of special care.
const SPECIAL_CARE: f32 = 0.01;

/// A safety checker with its weights.
pub struct SafetyChecker {
    engine: Engine,
    preprocessor: ImagePreprocessor,
    model: Model,
    special: Concepts,
    concepts: Concepts,
}

/// A safety checker that is known but not loaded.
pub struct Unloaded {
    preprocessor: ImagePreprocessor,
    model: PartModel,
}

/// Vectors, and how near a picture may be to each.
struct Concepts {
    vectors: Vec<Vec<f32>>,
    thresholds: Vec<f32>,
}

impl Unloaded {
    /// Reads all but the weights of a checker and of the part that prepares pictures for it.
    ///
    /// # Errors
    ///
    /// When a file is missing or damaged.
    pub fn read(checker: Part, preparing: &Part) -> Result<Self, PipelineError> {
        let preprocessor =
            ImagePreprocessor::read(&*preparing.files).map_err(PipelineError::of_part(preparing.name))?;
        Ok(Self { preprocessor, model: checker.of_class(&["StableDiffusionSafetyChecker"])?.describe()? })
    }

    /// Bytes of its weights.
    pub fn bytes(&self) -> u64 {
        self.model.bytes()
    }

    /// Reads its weights.
    ///
    /// # Errors
    ///
    /// When that cannot be done.
    pub fn load(self, engine: &Engine) -> Result<SafetyChecker, PipelineError> {
        let width = match &self.model.described.spec {
            Spec::DualEncoder(spec) => spec.image.as_ref().and_then(|image| image.projection),
            _ => None,
        };
        let concepts = |vectors: &str| Concepts::read(&self.model, engine, vectors, width.unwrap_or(0));
        let (special, concepts) = (concepts("special_care_embeds")?, concepts("concept_embeds")?);
        let (engine, preprocessor) = (engine.clone(), self.preprocessor);
        Ok(SafetyChecker { model: self.model.load(&engine)?, engine, preprocessor, special, concepts })
    }
}

impl Concepts {
    /// vectors: `[concepts, width]`
    fn read(model: &PartModel, engine: &Engine, name: &str, width: usize) -> Result<Self, PipelineError> {
        let thresholds_name = format!("{name}_weights");
        let (thresholds, count) = values(model, engine, &thresholds_name)?;
        let (vectors, dims) = values(model, engine, name)?;
        if count != [thresholds.len()] {
            return Err(wrong_shape(model, &thresholds_name, vec![thresholds.len()], count));
        }
        if dims != [thresholds.len(), width] {
            return Err(wrong_shape(model, name, vec![thresholds.len(), width], dims));
        }
        // What is no number would hold nothing back.
        if vectors.iter().chain(&thresholds).any(|value| !value.is_finite()) {
            return Err(model.error(PipelineError::NotNumbers { output: name.to_owned() }));
        }
        Ok(Self { vectors: vectors.chunks_exact(width.max(1)).map(unit).collect(), thresholds })
    }

    /// Whether a vector of length 1 is nearer to one than it may be, where all count so much nearer.
    fn are_near(&self, vector: &[f32], adjustment: f32) -> bool {
        self.vectors.iter().zip(&self.thresholds).any(|(concept, threshold)| {
            let cosine: f32 = concept.iter().zip(vector).map(|(a, b)| a * b).sum();
            // To three decimals, as the reference has it.
            ((cosine - threshold + adjustment) * 1000.0).round_ties_even() > 0.0
        })
    }
}

impl SafetyChecker {
    /// Refuses a picture that is to be held back. The reference gives a black one, which would look like an answer.
    ///
    /// # Errors
    ///
    /// When it is to be held back, or the model cannot be run.
    pub fn check(&self, picture: &RgbImage) -> Result<(), PipelineError> {
        let prepared = self.preprocessor.prepare(std::slice::from_ref(picture))?;
        let at = |source| ModelError::Tensor { place: "safety_checker: pixel_values".into(), source };
        for prepared in prepared {
            let dims = [&[1], prepared.shape.as_slice()].concat();
            let mut inputs = Inputs::default();
            inputs.insert("pixel_values", Tensor::new(&self.engine, prepared.values, &dims).map_err(at)?);
            let outputs = self.model.forward(&inputs)?;
            let vector = outputs.iter().find(|(name, _)| name == "image_embeds");
            let (_, vector) = vector.ok_or_else(|| ModelError::MissingInput { name: "image_embeds".into() })?;
            let vector = unit(&vector.to_vec().map_err(at)?);
            if vector.iter().any(|value| value.is_nan()) {
                return Err(PipelineError::NotNumbers { output: "safety_checker: image_embeds".into() });
            }
            let adjustment = if self.special.are_near(&vector, 0.0) { SPECIAL_CARE } else { 0.0 };
            if self.concepts.are_near(&vector, adjustment) {
                let reason = "the model's safety checker holds it back; ask in other words, or with another seed";
                return Err(PipelineError::input("the picture", reason));
            }
        }
        Ok(())
    }
}

/// A vector at length 1.
fn unit(vector: &[f32]) -> Vec<f32> {
    let square: f64 = vector.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    let length = libm::sqrt(square).max(1e-12);
    vector.iter().map(|&value| (f64::from(value) / length) as f32).collect()
}

/// The values of a tensor of the checker's own, and its shape.
fn values(model: &PartModel, engine: &Engine, name: &str) -> Result<(Vec<f32>, Vec<usize>), PipelineError> {
    let (index, files) = model.weights();
    let missing = || model.error(ModelError::MissingTensor { name: name.to_owned(), from: name.to_owned() });
    let found = index.get(name).ok_or_else(missing)?;
    let bytes = read_tensor(files, found).map_err(|error| model.error(error))?;
    let read = || {
        let weight = accel_backends::tensor::Weight::new(&found.name, found.dtype, &found.dims, bytes)?;
        Tensor::stored(engine, std::sync::Arc::new(weight)).to_vec()
    };
    let values = read().map_err(|source| model.error(ModelError::Tensor { place: name.to_owned(), source }))?;
    Ok((values, found.dims.clone()))
}

fn wrong_shape(model: &PartModel, name: &str, expected: Vec<usize>, found: Vec<usize>) -> PipelineError {
    model.error(ModelError::TensorShape { name: name.to_owned(), expected, found })
}
