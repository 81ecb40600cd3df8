//! Models that compare images and texts: both become vectors of one space (<https://arxiv.org/abs/2103.00020>).

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::backbone::Backbone;
use crate::family::decoder::Batch;
use crate::family::vision::asked;
use crate::layers::pool::Pool;
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::Activation;
use crate::spec::dual_encoder::{DualEncoderSpec, ImageSpec, TextPoolOf, TextSpec};
use crate::stack::Stack;

/// A model with its weights.
#[derive(Debug)]
pub struct DualEncoder {
    text: Option<TextHalf>,
    image: Option<ImageHalf>,
    similarity: Option<Similarity>,
}

#[derive(Debug)]
struct TextHalf {
    stack: Stack,
    of: TextPoolOf,
    dense: Option<(Linear, Activation)>,
    projection: Option<Linear>,
}

#[derive(Debug)]
struct ImageHalf {
    backbone: Backbone,
    pool: Pool,
    projection: Option<Linear>,
}

#[derive(Debug)]
struct Similarity {
    /// The logarithm of what similarities are multiplied by.
    scale: Tensor,
    bias: Option<Tensor>,
}

/// What a half makes of its input.
struct Encoded {
    /// `[batch, tokens, hidden]`
    states: Tensor,
    /// `[batch, hidden]`
    pooled: Tensor,
    /// `[batch, space]`; the pooled state itself where it is not projected.
    vector: Tensor,
}

impl DualEncoder {
    /// Reads a model.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &DualEncoderSpec) -> Result<Self, ModelError> {
        let similarity = || {
            let bias = spec.bias.then(|| loader.any_tensor("similarity.bias")).transpose()?;
            Ok::<_, ModelError>(Similarity { scale: loader.any_tensor("similarity.scale")?, bias })
        };
        let whole = spec.text.is_some() && spec.image.is_some();
        Ok(Self {
            text: spec.text.as_ref().map(|spec| TextHalf::load(&loader.part("text"), spec)).transpose()?,
            image: spec.image.as_ref().map(|spec| ImageHalf::load(&loader.part("image"), spec)).transpose()?,
            similarity: whole.then(similarity).transpose()?,
        })
    }

    /// The stacks of layers in it.
    pub fn stacks(&self) -> impl Iterator<Item = &Stack> {
        self.text.iter().map(|text| &text.stack).chain(self.image.iter().filter_map(|image| image.backbone.stack()))
    }

    /// Answers all that the model's class answers: of `input_ids` and perhaps `attention_mask`, and of an image as
    /// [`asked`] says.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        inputs.only(&["input_ids", "attention_mask", "pixel_values", "interpolate_pos_encoding"])?;
        let text = self.text.as_ref().map(|half| half.encode(inputs)).transpose()?;
        let image = self.image.as_ref().map(|half| half.encode(inputs)).transpose()?;
        let Some(similarity) = &self.similarity else {
            let text =
                text.zip(self.text.as_ref()).map(|(text, half)| (text, half.projection.is_some(), "text_embeds"));
            let image =
                image.zip(self.image.as_ref()).map(|(image, half)| (image, half.projection.is_some(), "image_embeds"));
            return Ok(text
                .into_iter()
                .chain(image)
                .flat_map(|(one, projected, name)| one.alone(projected, name))
                .collect());
        };
        let (Some(text), Some(image)) = (text, image) else { return Ok(Vec::new()) };
        let compare = || -> Result<Outputs, TensorError> {
            let (of_text, of_image) = (unit(&text.vector)?, unit(&image.vector)?);
            let per_text = similarity.of(&of_text, &of_image)?;
            Ok(vec![
                ("logits_per_image".into(), per_text.transpose(0, 1)?),
                ("logits_per_text".into(), per_text),
                ("text_embeds".into(), of_text),
                ("image_embeds".into(), of_image),
            ])
        };
        let mut outputs = compare().map_err(ModelError::at("similarity"))?;
        for (name, half) in [("text", text), ("vision", image)] {
            outputs.push((format!("{name}_model_output.last_hidden_state"), half.states));
            outputs.push((format!("{name}_model_output.pooler_output"), half.pooled));
        }
        Ok(outputs)
    }
}

impl Encoded {
    /// What a half by itself answers.
    fn alone(self, projected: bool, name: &str) -> Outputs {
        let states = ("last_hidden_state".to_owned(), self.states);
        if projected {
            vec![(name.to_owned(), self.vector), states]
        } else {
            vec![states, ("pooler_output".to_owned(), self.pooled)]
        }
    }
}

impl Similarity {
    /// `[texts, space]` and `[images, space]`, of length 1 each, to `[texts, images]`.
    fn of(&self, texts: &Tensor, images: &Tensor) -> Result<Tensor, TensorError> {
        let scaled = texts.matmul(&images.transpose(0, 1)?)?.mul(&self.scale.exp()?.reshape(&[1])?)?;
        match &self.bias {
            Some(bias) => scaled.add(&bias.reshape(&[1])?),
            None => Ok(scaled),
        }
    }
}

/// Each line divided by its length.
pub(super) fn unit(x: &Tensor) -> Result<Tensor, TensorError> {
    x.div(&x.square()?.sum(&[-1])?.sqrt()?)
}

impl TextHalf {
    fn load(loader: &Loader<'_>, spec: &TextSpec) -> Result<Self, ModelError> {
        let hidden = spec.stack.hidden;
        let dense =
            |(outputs, activation)| Ok::<_, ModelError>((loader.linear("pool", outputs, hidden, true)?, activation));
        let pooled = spec.pool.dense.map_or(hidden, |(outputs, _)| outputs);
        let projection = |space| loader.linear("projection", space, pooled, false);
        Ok(Self {
            stack: Stack::load(loader, spec.stack.clone())?,
            of: spec.pool.of,
            dense: spec.pool.dense.map(dense).transpose()?,
            projection: spec.projection.map(projection).transpose()?,
        })
    }

    fn encode(&self, inputs: &Inputs) -> Result<Encoded, ModelError> {
        let batch = Batch::of(inputs, "input_ids", "attention_mask")?;
        let rows = batch.rows();
        let flat = self.stack.states(batch.tokens(), &batch.reading(&rows), None)?;
        let run = || {
            let mut pooled = flat.pick(0, &self.places(&batch))?;
            if let Some((dense, activation)) = &self.dense {
                pooled = pooled.linear(dense)?.activate(*activation)?;
            }
            let vector = self.projection.as_ref().map_or(Ok(pooled.clone()), |matrix| pooled.linear(matrix))?;
            Ok::<_, TensorError>(Encoded { states: batch.apart(&flat)?, pooled, vector })
        };
        run().map_err(ModelError::at("text"))
    }

    /// The place of the state that stands for each text.
    fn places(&self, batch: &Batch) -> Vec<usize> {
        let place = |ids: &[i64]| match self.of {
            TextPoolOf::First => 0,
            TextPoolOf::Last => ids.len().saturating_sub(1),
            TextPoolOf::Token(token) => ids.iter().position(|&id| id == token).unwrap_or(0),
            TextPoolOf::LargestToken => {
                let largest = ids.iter().max();
                ids.iter().position(|id| Some(id) == largest).unwrap_or(0)
            }
        };
        let texts = batch.known.chunks(batch.length.max(1)).enumerate();
        texts.map(|(text, ids)| text * batch.length + place(ids)).collect()
    }
}

impl ImageHalf {
    fn load(loader: &Loader<'_>, spec: &ImageSpec) -> Result<Self, ModelError> {
        let width = spec.backbone.width();
        let pooled = spec.pool.dense.map_or(width, |(outputs, _)| outputs);
        let projection = |space| loader.linear("projection", space, pooled, false);
        Ok(Self {
            backbone: Backbone::load(loader, &spec.backbone)?,
            pool: Pool::load(loader, &spec.pool, width)?,
            projection: spec.projection.map(projection).transpose()?,
        })
    }

    fn encode(&self, inputs: &Inputs) -> Result<Encoded, ModelError> {
        let seen = self.backbone.see(&asked(inputs)?, &[])?.last;
        let pooled = self.pool.forward(&seen.states, seen.prefix)?;
        let vector = self.projection.as_ref().map_or(Ok(pooled.clone()), |matrix| pooled.linear(matrix));
        Ok(Encoded { states: seen.states, pooled, vector: vector.map_err(ModelError::at("image"))? })
    }
}
