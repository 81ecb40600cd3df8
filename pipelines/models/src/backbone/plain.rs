//! Patches that see each other within windows, in some layers all of them, and convolutions after the last: a plain
//! backbone (<https://arxiv.org/abs/2203.16527>).

use accel_backends::tensor::Convolution as Op;

use super::Seen;
use super::windows::map;
use crate::ModelError;
use crate::layers::convolution::Convolution;
use crate::layers::norm::Norm;
use crate::layers::patch::{Asked, Patches, Tokens};
use crate::layers::window_block::WindowBlock;
use crate::rules::Loader;
use crate::spec::NormSpec;
use crate::spec::vision::PlainSpec;

/// The backbone with its weights.
#[derive(Debug)]
pub struct Plain {
    embed: Patches,
    layers: Vec<WindowBlock>,
    neck: [(Convolution, Norm); 2],
}

impl Plain {
    /// Reads the backbone.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &PlainSpec) -> Result<Self, ModelError> {
        let width = spec.embed.width;
        let layer = |(number, attention)| {
            WindowBlock::load(&loader.part(&format!("layers.{number}")), attention, &spec.mlp, &spec.norm, width)
        };
        let neck = |number: usize, inputs: usize, taps: usize| {
            let (op, dims) = (Op::new(2).padding(taps / 2), [spec.neck, inputs, taps, taps]);
            let convolution = Convolution::load(loader, &format!("neck.{number}.conv"), op, &dims, false)?;
            let norm = Norm::load(loader, &format!("neck.{number}.norm"), &NormSpec::layer(1e-6), spec.neck)?;
            Ok::<_, ModelError>((convolution, norm))
        };
        Ok(Self {
            embed: Patches::load(loader, &spec.embed)?,
            layers: spec.layers.iter().enumerate().map(layer).collect::<Result<_, _>>()?,
            neck: [neck(0, width, 1)?, neck(1, spec.neck, 3)?],
        })
    }

    /// Sees an image; the map of a stage is that of a layer, before the convolutions.
    ///
    /// # Errors
    ///
    /// When the image is of another shape than the model takes.
    pub fn see(&self, asked: &Asked<'_>, stages: &[usize]) -> Result<Seen, ModelError> {
        if asked.stretched {
            let (what, found) = ("the input".into(), "interpolate_pos_encoding".into());
            return Err(ModelError::Unsupported { what, found, supported: "images of the model's size".into() });
        }
        let at = || ModelError::at("map");
        let Tokens { states, grid, .. } = self.embed.forward(asked)?;
        let (mut x, mut maps) = (map(&states, grid).map_err(at())?, Vec::with_capacity(stages.len()));
        for stage in 0..=self.layers.len() {
            if let Some(layer) = stage.checked_sub(1) {
                x = self.layers[layer].forward(&x, 0)?;
            }
            if stages.contains(&stage) {
                maps.push(x.permute(&[0, 3, 1, 2]).map_err(at())?);
            }
        }
        let mut x = x.permute(&[0, 3, 1, 2]).map_err(at())?;
        for (convolution, norm) in &self.neck {
            x = norm.of_map(&convolution.forward(&x)?)?;
        }
        Ok(Seen { last: Tokens::of_map(&x).map_err(at())?, stages: maps })
    }
}
