//! Layers in which prompts and places of an image see each other (`SamTwoWayTransformer`;
//! <https://arxiv.org/abs/2304.02643>).

use accel_backends::tensor::Tensor;

use crate::ModelError;
use crate::layers::attention::Attention;
use crate::layers::mlp::Mlp;
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::NormSpec;
use crate::spec::segmentation::SegmentationSpec;

/// The layers with their weights.
#[derive(Debug)]
pub struct TwoWay {
    layers: Vec<Layer>,
    last: Attention,
    last_norm: Norm,
}

/// Prompts see each other, then places; then places see prompts.
#[derive(Debug)]
struct Layer {
    attention: Attention,
    norm: Norm,
    cross: Attention,
    cross_norm: Norm,
    mlp: Mlp,
    mlp_norm: Norm,
    back: Attention,
    back_norm: Norm,
}

impl TwoWay {
    /// Reads the parts `layers`, `last` and `last_norm`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &SegmentationSpec) -> Result<Self, ModelError> {
        let (hidden, norm) = (spec.hidden, NormSpec::layer(spec.eps));
        let layer = |number: usize| {
            let part = loader.part(&format!("layers.{number}"));
            let norm = |name: &str| Norm::load(&part, name, &norm, hidden);
            let attention = |name: &str, spec| Attention::load(&part, name, spec, hidden);
            Ok::<_, ModelError>(Layer {
                attention: attention("attn", &spec.attention)?,
                norm: norm("attn_norm")?,
                cross: attention("cross", &spec.cross)?,
                cross_norm: norm("cross_norm")?,
                mlp: Mlp::load(&part, "mlp", &spec.mlp, hidden)?,
                mlp_norm: norm("mlp_norm")?,
                back: attention("back", &spec.cross)?,
                back_norm: norm("back_norm")?,
            })
        };
        Ok(Self {
            layers: (0..spec.layers).map(layer).collect::<Result<_, _>>()?,
            last: Attention::load(loader, "last", &spec.last, hidden)?,
            last_norm: Norm::load(loader, "last_norm", &NormSpec::layer(1e-5), hidden)?,
        })
    }

    /// prompts: `[batch, prompts, hidden]`; image: `[batch, places, hidden]`; places, which say where these are: `[1, places,
    /// hidden]`. To prompts and image of the same shapes.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, prompts: &Tensor, image: &Tensor, places: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
        let (mut x, mut image) = (prompts.clone(), image.clone());
        for (number, layer) in self.layers.iter().enumerate() {
            // The first layer's prompts are still themselves, and are not added once more.
            let own = (number > 0).then_some(prompts);
            (x, image) = layer.forward(&x, &image, own, prompts, places)?;
        }
        let seen = self.last.between(&sum(&x, prompts)?, &sum(&image, places)?, &image, &[])?;
        Ok((self.last_norm.forward(&sum(&x, &seen)?)?, image))
    }
}

impl Layer {
    fn forward(
        &self,
        x: &Tensor,
        image: &Tensor,
        own: Option<&Tensor>,
        prompts: &Tensor,
        places: &Tensor,
    ) -> Result<(Tensor, Tensor), ModelError> {
        let x = match own {
            None => self.attention.between(x, x, x, &[])?,
            Some(own) => {
                let placed = sum(x, own)?;
                sum(x, &self.attention.between(&placed, &placed, x, &[])?)?
            }
        };
        let x = self.norm.forward(&x)?;
        let placed = sum(image, places)?;
        let x = sum(&x, &self.cross.between(&sum(&x, prompts)?, &placed, image, &[])?)?;
        let x = self.cross_norm.forward(&x)?;
        let x = self.mlp_norm.forward(&sum(&x, &self.mlp.forward(&x)?)?)?;
        let image = sum(image, &self.back.between(&placed, &sum(&x, prompts)?, &x, &[])?)?;
        Ok((x, self.back_norm.forward(&image)?))
    }
}

fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor, ModelError> {
    a.add(b).map_err(ModelError::at("residual"))
}
