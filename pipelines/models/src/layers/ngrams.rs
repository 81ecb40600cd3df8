//! A convolution beside the first layer, which tells it of neighbours (<https://arxiv.org/abs/2006.03654>; `ConvLayer`).

use accel_backends::tensor::{Convolution, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::attention::Pass;
use crate::layers::carry::without_padding;
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::NgramSpec;

/// The convolution with its weights.
#[derive(Debug)]
pub struct Ngrams {
    spec: NgramSpec,
    conv: Linear,
    norm: Norm,
}

impl Ngrams {
    /// Reads the part `ngrams`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &NgramSpec, hidden: usize) -> Result<Self, ModelError> {
        let dims = [hidden, hidden / spec.groups.max(1), spec.taps];
        Ok(Self {
            spec: *spec,
            conv: loader.layer("ngrams.conv", &dims, true)?,
            norm: Norm::load(loader, "ngrams.norm", &spec.norm, hidden)?,
        })
    }

    /// Adds to what the first layer made of `input` what its neighbours make of each token. Both: `[tokens, hidden]`.
    ///
    /// # Errors
    ///
    /// When the rows are no whole sequences: a token sees later ones too.
    pub fn forward(&self, input: &Tensor, made: &Tensor, pass: &Pass<'_>) -> Result<Tensor, ModelError> {
        if let Some(row) = pass.rows.iter().find(|row| row.past > 0) {
            let found = format!("{} positions before", row.past);
            return Err(ModelError::State { place: "ngrams", expected: "whole sequences".into(), found });
        }
        let sum = self.seen(input, pass).and_then(|seen| made.add(&seen)).map_err(ModelError::at("ngrams"))?;
        without_padding(&self.norm.forward(&sum)?, pass).map_err(ModelError::at("ngrams"))
    }

    fn seen(&self, input: &Tensor, pass: &Pass<'_>) -> Result<Tensor, TensorError> {
        let conv = Convolution::new(1).padding((self.spec.taps - 1) / 2).groups(self.spec.groups);
        let mut first = 0;
        let mut outs = Vec::with_capacity(pass.rows.len());
        for row in pass.rows {
            let own = input.narrow(0, first, row.len)?.transpose(0, 1)?.unsqueeze(0)?;
            outs.push(own.convolution(&conv, &self.conv)?.squeeze(0)?.transpose(0, 1)?);
            first += row.len;
        }
        without_padding(&Tensor::concat(&outs, 0)?, pass)?.activate(self.spec.activation)
    }
}
