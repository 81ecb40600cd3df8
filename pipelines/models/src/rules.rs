//! Where the weights of a model lie in its files: rules as data, and the loader that follows them.

use std::sync::Arc;

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Linear, Weight};
use accel_backends::weights::{TensorIndex, TensorInfo, read_tensor};

use crate::ModelError;

/// A part of a model and its name in the files; `{}` stands for the number of the layer.
///
/// A rule names a module: `.weight` and `.bias` follow in both.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The name in the model.
    pub to: &'static str,
    /// The name in the file.
    pub from: &'static str,
}

/// The rules of one class of one model type in one format.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// What the names of the stack begin with in the file.
    pub base: &'static str,
    /// The stack.
    pub stack: &'static [Rule],
    /// What is made of the stack's states.
    pub heads: &'static [Rule],
}

/// Reads weights by their names in the model.
pub struct Loader<'a> {
    /// The model's files.
    pub files: &'a dyn ModelFiles,
    /// Its tensors.
    pub index: &'a TensorIndex,
    /// Where they lie.
    pub rules: Rules,
    /// What unpacks vectors.
    pub engine: &'a Engine,
}

impl Loader<'_> {
    /// A matrix `[rows, columns]`, as it is stored.
    ///
    /// # Errors
    ///
    /// When it is missing, of another shape, or cannot be read.
    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Arc<Weight>, ModelError> {
        self.weight(name, "weight", &[rows, columns]).map(Arc::new)
    }

    /// A vector of `length`, unpacked.
    ///
    /// # Errors
    ///
    /// When it is missing, of another shape, or cannot be read.
    pub fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        self.unpacked(name, "weight", length)
    }

    /// A linear layer from `inputs` to `outputs`.
    ///
    /// # Errors
    ///
    /// When a tensor is missing, of another shape, or cannot be read.
    pub fn linear(&self, name: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Linear, ModelError> {
        let weight = self.matrix(name, outputs, inputs)?;
        let bias = if bias { Some(self.unpacked(name, "bias", outputs)?) } else { None };
        Ok(Linear { weight, bias })
    }

    fn unpacked(&self, name: &str, suffix: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        self.weight(name, suffix, &[length])?.to_vec(self.engine).map_err(ModelError::at(name))
    }

    fn weight(&self, name: &str, suffix: &str, dims: &[usize]) -> Result<Weight, ModelError> {
        let tensor = self.find(name, suffix)?;
        if tensor.dims != dims {
            let (name, found) = (full_name(name, suffix), tensor.dims.clone());
            return Err(ModelError::TensorShape { name, expected: dims.to_vec(), found });
        }
        let bytes = read_tensor(self.files, tensor)?;
        Weight::new(&tensor.name, tensor.dtype, dims, bytes).map_err(ModelError::at(name))
    }

    fn find(&self, name: &str, suffix: &str) -> Result<&TensorInfo, ModelError> {
        let stack =
            self.rules.stack.iter().find_map(|rule| rename(rule, name)).map(|from| self.rules.base.to_owned() + &from);
        let from = stack.or_else(|| self.rules.heads.iter().find_map(|rule| rename(rule, name)));
        let from = from.map_or_else(|| "(no rule)".to_owned(), |from| format!("{from}.{suffix}"));
        let missing = || ModelError::MissingTensor { name: full_name(name, suffix), from: from.clone() };
        self.index.get(&from).ok_or_else(missing)
    }
}

fn full_name(name: &str, suffix: &str) -> String {
    if suffix == "weight" { name.to_owned() } else { format!("{name}.{suffix}") }
}

fn rename(rule: &Rule, name: &str) -> Option<String> {
    let Some((before, after)) = rule.to.split_once("{}") else {
        return (rule.to == name).then(|| rule.from.to_owned());
    };
    let number = name.strip_prefix(before)?.strip_suffix(after)?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| rule.from.replace("{}", number))
}
