//! Layers over the patches of several channels (PatchTST, <https://arxiv.org/abs/2211.14730>).

use accel_backends::tensor::{Tensor, TensorError};

use crate::ModelError;
use crate::cache::Row;
use crate::layers::attention::{Attention, Pass};
use crate::layers::mlp::Mlp;
use crate::layers::series_norm::SeriesNorm;
use crate::rules::Loader;
use crate::spec::time_series::SeriesAttentionSpec;

/// A layer with its weights.
#[derive(Debug)]
pub struct SeriesLayer {
    name: String,
    attention: Attention,
    attention_norm: SeriesNorm,
    channels_norm: Option<SeriesNorm>,
    mlp: Mlp,
    mlp_norm: SeriesNorm,
    norm_before: bool,
}

impl SeriesLayer {
    /// Reads the layer of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        name: &str,
        spec: &SeriesAttentionSpec,
        hidden: usize,
    ) -> Result<Self, ModelError> {
        let at = |part: &str| format!("{name}.{part}");
        let norm = |part: &str| SeriesNorm::load(loader, &at(part), &spec.norm, hidden);
        Ok(Self {
            name: loader.name(name),
            attention: Attention::load(loader, &at("attn"), &spec.attention, hidden)?,
            attention_norm: norm("attn_norm")?,
            channels_norm: spec.across_channels.then(|| norm("channels_norm")).transpose()?,
            mlp: Mlp::load(loader, &at("mlp"), &spec.mlp, hidden)?,
            mlp_norm: norm("mlp_norm")?,
            norm_before: spec.norm_before,
        })
    }

    /// x: `[batch, channels, patches, hidden]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let attended = |x: &Tensor| attended(&self.attention, x);
        let mut x = self.added(x, &self.attention_norm, attended)?;
        if let Some(norm) = &self.channels_norm {
            let turned = x.transpose(1, 2).map_err(at())?;
            x = self.added(&turned, norm, attended)?.transpose(1, 2).map_err(at())?;
        }
        self.added(&x, &self.mlp_norm, |x| self.mlp.forward(x))
    }

    /// What a part of the layer adds, with its norm.
    fn added(
        &self,
        x: &Tensor,
        norm: &SeriesNorm,
        part: impl Fn(&Tensor) -> Result<Tensor, ModelError>,
    ) -> Result<Tensor, ModelError> {
        let sum = |part: Tensor| -> Result<Tensor, TensorError> { x.add(&part) };
        if self.norm_before {
            sum(part(&norm.forward(x)?)?).map_err(ModelError::at(&self.name))
        } else {
            norm.forward(&sum(part(x)?).map_err(ModelError::at(&self.name))?)
        }
    }
}

/// Attention along the last dimension but one. x: `[batch, lines, places, hidden]` to the same shape.
///
/// # Errors
///
/// When the shape does not fit.
pub fn attended(attention: &Attention, x: &Tensor) -> Result<Tensor, ModelError> {
    let at = || ModelError::at("attention");
    let [batch, lines, places, hidden] = x.sizes().map_err(at())?;
    let rows = Row::whole(vec![places; batch * lines]);
    let absent = vec![Vec::new(); rows.len()];
    let pass =
        Pass { rows: &rows, causal: false, absent: &absent, angles: &[], bias: &[], distances: None, source: None };
    let flat = x.reshape(&[batch * lines * places, hidden]).map_err(at())?;
    attention.forward(&flat, &pass, None)?.reshape(x.dims()).map_err(at())
}
