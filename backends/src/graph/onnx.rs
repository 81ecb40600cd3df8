//! Graphs as ONNX models, for whatever reads those.
//!
//! Primitives, and the fused operations that ONNX has with the same meaning ([`native`] names them), become its
//! operators; the rest has to be lowered before. Weights can stay where they are: a model refers to ranges of other
//! files, so that a `.onnx` beside a `model.safetensors` is some ten kilobytes.
//!
//! What ONNX leaves to its reader: places of [`Op::Gather`] and [`Op::TakeAlong`] are not checked here, and one below
//! zero, an error in the interpreter, counts from the end. Equal elements of [`Op::TopK`] come with the first first, as
//! ONNX itself demands, and as ONNX Runtime does it for sorted results, which are always asked for. No file is written or read here.

mod model;
mod nodes;
mod proto;

use prost::Message;

use super::Graph;
use crate::tensor::op::{NormKind, Op};
use crate::tensor::{Activation, Tensor, TensorError};
use crate::weights::Dtype;
use model::Model;

/// The version of ONNX's operators: the first with [`Activation::Gelu`], and old enough for every reader of today.
const OPSET: i64 = 20;
/// The version of the file format that came with it.
const IR_VERSION: i64 = 9;
/// What a protocol buffer can hold; readers refuse more.
pub const MODEL_BYTES_MAX: u64 = i32::MAX as u64;

/// Where the numbers of a constant lie: 32-bit floats, little-endian, without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The file, relative to the model's.
    pub file: String,
    /// Where they begin.
    pub offset: u64,
    /// How many bytes they are.
    pub bytes: u64,
}

/// A graph cannot be an ONNX model.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// A fused operation that ONNX does not have.
    #[error("{0} is no operator of ONNX: lower the graph first, and keep no more than onnx::native")]
    Fused(&'static str),
    /// An operation on whole numbers that only floats have.
    #[error("{0}: expected floats, found whole numbers")]
    Whole(&'static str),
    /// An affine operation that takes whole numbers to fractions.
    #[error("affine: expected a whole factor and offset for whole numbers, found {factor} and {offset}")]
    Fraction {
        /// The factor.
        factor: f32,
        /// The offset.
        offset: f32,
    },
    /// A name that an input or output cannot have.
    #[error("{0:?}: expected names of inputs and outputs that are not empty and differ")]
    Name(String),
    /// Numbers in another file that are not those of the constant.
    #[error("{file} at {offset}: expected {expected} bytes of f32 for {dims:?}, found {found}")]
    External {
        /// The file.
        file: String,
        /// Where.
        offset: u64,
        /// The shape of the constant.
        dims: Vec<usize>,
        /// What it needs.
        expected: u64,
        /// What lies there.
        found: String,
    },
    /// A model over the bound of protocol buffers.
    #[error("expected a model of at most {MODEL_BYTES_MAX} bytes, found {0}: leave weights in files of their own")]
    TooLarge(u64),
    /// A value that no step before gave.
    #[error("value {0} is used before it is there")]
    Missing(super::ValueId),
    /// A constant cannot be read.
    #[error(transparent)]
    Constant(#[from] TensorError),
}

/// Whether ONNX has this fused operation with exactly its meaning: what [`Graph::lower`] is to keep.
pub fn native(op: &Op) -> bool {
    match op {
        Op::Linear { .. } | Op::Softmax { .. } => true,
        Op::Norm { kind, .. } => *kind == NormKind::Layer,
        Op::Convolution(conv) | Op::ConvolutionTransposed(conv) => (1..=3).contains(&conv.stride.len()),
        Op::Activate(activation) => match activation {
            Activation::Identity
            | Activation::Gelu
            | Activation::GeluTanh
            | Activation::Relu
            | Activation::Relu6
            | Activation::Tanh
            | Activation::Sigmoid
            | Activation::HardSigmoid
            | Activation::HardSwish
            | Activation::Softplus
            | Activation::Elu
            | Activation::LeakyRelu { .. } => true,
            Activation::Silu
            | Activation::GeluClipped
            | Activation::GeluQuick
            | Activation::Laplace
            | Activation::Relu2
            | Activation::Mish => false,
        },
        _ => false,
    }
}

/// What an output of a graph is called in its ONNX model: an output that is called as an input is gets `out_` before it,
/// as Diffusers' exporter calls them.
pub fn output_name(graph: &Graph, name: &str) -> String {
    let doubled = graph.inputs.iter().any(|(input, _)| input == name);
    if doubled { format!("out_{name}") } else { name.to_owned() }
}

impl Graph {
    /// The bytes of an ONNX model that does the same, with inputs of the same names, and outputs as [`output_name`] has
    /// them.
    ///
    /// `external` says of a constant where its numbers lie, if it is to be left there; others are in the model, weights
    /// unpacked to 32-bit floats.
    ///
    /// # Errors
    ///
    /// When an operation has no operator, names are doubled, or the model is over [`MODEL_BYTES_MAX`].
    pub fn to_onnx(&self, external: impl Fn(&Tensor) -> Option<External>) -> Result<Vec<u8>, OnnxError> {
        let model = Model::of(self, external)?.finish();
        let bytes = model.encoded_len() as u64;
        if bytes > MODEL_BYTES_MAX {
            return Err(OnnxError::TooLarge(bytes));
        }
        Ok(model.encode_to_vec())
    }
}

impl External {
    /// Refuses what cannot be the numbers of a tensor.
    fn check(&self, tensor: &Tensor) -> Result<(), OnnxError> {
        let expected = 4 * tensor.count() as u64;
        let wrong = |found: String| OnnxError::External {
            file: self.file.clone(),
            offset: self.offset,
            dims: tensor.dims().to_vec(),
            expected,
            found,
        };
        match tensor.as_stored().map(|weight| weight.dtype()) {
            Some(dtype) if dtype != Dtype::F32 => Err(wrong(format!("{dtype}"))),
            _ if tensor.kind() != crate::tensor::Kind::Float => Err(wrong("whole numbers".into())),
            _ if self.bytes != expected => Err(wrong(format!("{} bytes", self.bytes))),
            _ => Ok(()),
        }
    }
}
