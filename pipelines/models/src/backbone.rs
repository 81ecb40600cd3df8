//! What makes states of an image: the part of a model that its heads have in common.

pub mod depthwise;
pub mod grid;
pub mod patches;
pub mod plain;
pub mod residual;
pub mod windows;

use accel_backends::tensor::Tensor;

use crate::ModelError;
use crate::layers::patch::{Asked, Tokens};
use crate::rules::Loader;
use crate::spec::vision::BackboneSpec;
use crate::stack::Stack;

/// A backbone with its weights.
#[derive(Debug)]
pub enum Backbone {
    /// Patches as tokens of a stack.
    Patches(Box<patches::Patches>),
    /// Convolutions of each channel by itself.
    Depthwise(Box<depthwise::Depthwise>),
    /// Patches that see each other within windows, in some layers all of them.
    Plain(Box<plain::Plain>),
    /// Attention within windows that move.
    Windows(Box<windows::Windows>),
    /// Convolutions whose results are added to what came in.
    Residual(Box<residual::Residual>),
}

/// What a backbone sees.
#[derive(Debug)]
pub struct Seen {
    /// The states after the last stage.
    pub last: Tokens,
    /// Maps `[batch, width, height, width]` of the stages that were wanted, in their order.
    pub stages: Vec<Tensor>,
}

impl Backbone {
    /// Reads a backbone.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &BackboneSpec) -> Result<Self, ModelError> {
        Ok(match spec {
            BackboneSpec::Patches(spec) => Self::Patches(Box::new(patches::Patches::load(loader, spec)?)),
            BackboneSpec::Depthwise(spec) => Self::Depthwise(Box::new(depthwise::Depthwise::load(loader, spec)?)),
            BackboneSpec::Plain(spec) => Self::Plain(Box::new(plain::Plain::load(loader, spec)?)),
            BackboneSpec::Residual(spec) => Self::Residual(Box::new(residual::Residual::load(loader, spec)?)),
            BackboneSpec::Windows(spec) => Self::Windows(Box::new(windows::Windows::load(loader, spec)?)),
        })
    }

    /// The stack of layers in it, where it is one.
    pub fn stack(&self) -> Option<&Stack> {
        match self {
            Self::Patches(backbone) => Some(backbone.stack()),
            _ => None,
        }
    }

    /// Sees an image; `stages` are those whose maps are wanted, 0 what the first is given.
    ///
    /// # Errors
    ///
    /// When the image is of another shape than the model takes.
    pub fn see(&self, asked: &Asked<'_>, stages: &[usize]) -> Result<Seen, ModelError> {
        match self {
            Self::Patches(backbone) => backbone.see(asked, stages),
            Self::Depthwise(backbone) => backbone.see(asked, stages),
            Self::Plain(backbone) => backbone.see(asked, stages),
            Self::Residual(backbone) => backbone.see(asked, stages),
            Self::Windows(backbone) => backbone.see(asked, stages),
        }
    }
}
