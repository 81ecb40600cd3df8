//! Models that find objects: queries look at the places of an image, and each becomes an object or none
//! (<https://arxiv.org/abs/2005.12872>).

use accel_backends::tensor::{Linear, Tensor};

use crate::ModelError;
use crate::backbone::Backbone;
use crate::layers::convolution::Convolution;
use crate::layers::finder::{Finder, Looked};
use crate::layers::masks::Masks;
use crate::layers::norm::Norm;
use crate::layers::patch::Asked;
use crate::layers::perceptron::Perceptron;
use crate::layers::place::{Places, Shown};
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::detection::{DetectionHead, DetectionSpec, FinderSpec};

/// A model with its weights.
#[derive(Debug)]
pub struct Detection {
    backbone: Backbone,
    stages: Vec<usize>,
    projection: Convolution,
    places: Places,
    encoder: Vec<Finder>,
    decoder: Vec<Finder>,
    queries: Tensor,
    norm: Norm,
    normed_between: bool,
    head: Option<Head>,
}

#[derive(Debug)]
struct Head {
    labels: Linear,
    boxes: Perceptron,
    masks: Option<Masks>,
}

/// Which pixels are no padding: `pixel_mask` `[batch, height, width]`, or all of them.
///
/// # Errors
///
/// When the mask is of another shape than the image.
pub fn shown(inputs: &Inputs) -> Result<Shown, ModelError> {
    let pixels = inputs.tensor("pixel_values")?.dims();
    let &[batch, _, height, width] = pixels else {
        return Err(ModelError::input("pixel_values", "[batch, channels, height, width]", pixels));
    };
    let images = match inputs.optional_mask("pixel_mask")? {
        None => vec![vec![true; height * width]; batch],
        Some((mask, dims)) if dims == [batch, height, width] => {
            mask.chunks((height * width).max(1)).map(<[bool]>::to_vec).collect()
        }
        Some((_, dims)) => return Err(ModelError::input("pixel_mask", &format!("[{batch}, {height}, {width}]"), dims)),
    };
    Ok(Shown { images, size: [height, width] })
}

impl Detection {
    /// Reads a model.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &DetectionSpec) -> Result<Self, ModelError> {
        let hidden = spec.hidden;
        let layers = |part: &str, of: &FinderSpec, objects: bool| {
            let layer = |number: usize| {
                Finder::load(&loader.part(&format!("{part}.{number}")), of, &spec.norm, hidden, objects)
            };
            (0..of.layers).map(layer).collect::<Result<Vec<_>, _>>()
        };
        let widths: Vec<usize> = spec.stages.iter().map(|&stage| spec.backbone.stage_width(stage)).collect();
        // Places are those of the last map that is used, which need not be the last of all.
        let width = widths.last().copied().unwrap_or_else(|| spec.backbone.width());
        let head = |labels: usize, part: &str, masks: Option<Masks>| {
            let part = loader.part(part);
            let boxes = Perceptron::load(&part, "boxes", &[hidden, hidden, hidden, 4])?;
            Ok::<_, ModelError>(Head { labels: part.linear("labels", labels, hidden, true)?, boxes, masks })
        };
        Ok(Self {
            backbone: Backbone::load(&loader.part("backbone"), &spec.backbone)?,
            stages: spec.stages.clone(),
            projection: Convolution::image(loader, "projection", width, hidden, 1)?,
            places: Places::load(&loader.part("places"), spec.places, hidden)?,
            encoder: layers("encoder", &spec.encoder, false)?,
            decoder: layers("decoder", &spec.decoder, true)?,
            queries: loader.weight("queries", &[spec.queries, hidden])?,
            norm: Norm::load(loader, "final_norm", &spec.norm, hidden)?,
            normed_between: spec.normed_between,
            head: match spec.head {
                DetectionHead::States => None,
                DetectionHead::Objects { labels, .. } => Some(head(labels, "objects", None)?),
                DetectionHead::Masks { labels } => {
                    let masks = Masks::load(loader, hidden, spec.encoder.attention.heads, &widths)?;
                    Some(head(labels, "masked_objects", Some(masks))?)
                }
            },
        })
    }

    /// Answers all that the model's class answers: of `pixel_values` and perhaps `pixel_mask`, see [`shown`].
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        inputs.only(&["pixel_values", "pixel_mask"])?;
        let asked = Asked { pixels: inputs.tensor("pixel_values")?, hidden: None, stretched: false };
        let maps = self.backbone.see(&asked, &self.stages)?.stages;
        let at = || ModelError::at("places");
        let last = maps.last().ok_or_else(|| ModelError::input("pixel_values", "an image", &[]))?;
        let projected = self.projection.forward(last)?;
        let [batch, hidden, height, width] = projected.sizes().map_err(at())?;
        let shown = shown(inputs)?.of_map([height, width]);
        let absent = shown.absent();
        let places = self.places.of(projected.engine(), &shown).map_err(at())?;
        let mut x = projected.reshape(&[batch, hidden, height * width]).and_then(|x| x.transpose(1, 2)).map_err(at())?;
        for layer in &self.encoder {
            x = layer.of_places(&x, &places, &absent, None)?;
        }
        let placed = x.add(&places).map_err(at())?;
        let looked = Looked { states: &x, placed: &placed, absent: &absent, points: None };
        let dims = [batch, self.queries.dims()[0], hidden];
        let queries = self.queries.unsqueeze(0).and_then(|queries| queries.broadcast(&dims)).map_err(at())?;
        let mut found = queries.scale(0.0).map_err(at())?;
        for layer in &self.decoder {
            found = layer.of_objects(&found, &queries, &looked)?;
            found = if self.normed_between { self.norm.forward(&found)? } else { found };
        }
        let found = self.norm.forward(&found)?;
        let mut outputs = Vec::new();
        if let Some(head) = &self.head {
            outputs.push(("logits".into(), found.linear(&head.labels).map_err(ModelError::at("labels"))?));
            outputs
                .push(("pred_boxes".into(), head.boxes.forward(&found)?.sigmoid().map_err(ModelError::at("boxes"))?));
            if let Some(masks) = &head.masks {
                outputs.push(("pred_masks".into(), masks.forward(&found, &x, &projected, &maps, &absent)?));
            }
        }
        outputs.push(("last_hidden_state".into(), found));
        outputs.push(("encoder_last_hidden_state".into(), x));
        Ok(outputs)
    }
}
