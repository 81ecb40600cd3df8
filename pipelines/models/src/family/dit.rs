//! Transformers of diffusion (<https://arxiv.org/abs/2403.03206>): tokens of a text and of a noisy image see each other, and
//! each state is normalised by what moment it is.

use accel_backends::tensor::{Angles, Convolution as Op, Linear, RopeStyle, Tensor, TensorError};

use crate::ModelError;
use crate::family::unet::moments;
use crate::layers::attend::{attend, plain_heads};
use crate::layers::convolution::Convolution;
use crate::layers::mlp::Mlp;
use crate::layers::modulated::{Modulation, gated_sum, modulated};
use crate::layers::norm::Norm;
use crate::layers::time_embed::{TimeEmbed, waves};
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::dit::{DitSpec, ImageTokensSpec, JointLayerSpec};
use crate::spec::unet::{TimeEmbedSpec, WavesSpec};
use crate::spec::{Activation, MlpSpec};

/// Waves that a moment and a guidance are embedded as.
const WAVES: WavesSpec = WavesSpec { width: 256, cosines_first: true, shift: 0.0 };
const SUPPORTED: &[&str] =
    &["hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance", "img_ids", "txt_ids"];

/// A transformer with its weights.
#[derive(Debug)]
pub struct Dit {
    spec: DitSpec,
    image: ImageTokens,
    text: Linear,
    moment: TimeEmbed,
    guidance: Option<TimeEmbed>,
    summary: TimeEmbed,
    joint: Vec<JointLayer>,
    single: Vec<SingleLayer>,
    last_modulation: Modulation,
    last: Linear,
}

#[derive(Debug)]
enum ImageTokens {
    Given(Linear),
    Patches { convolution: Convolution, table: Tensor, patch: usize },
}

/// Queries, keys and values of one kind of tokens.
#[derive(Debug)]
struct Projections {
    name: String,
    q: Linear,
    k: Linear,
    v: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
}

#[derive(Debug)]
struct JointLayer {
    name: String,
    modulation: Modulation,
    text_modulation: Modulation,
    image: Projections,
    text: Projections,
    out: Linear,
    text_out: Option<Linear>,
    again: Option<(Projections, Linear)>,
    mlp: Mlp,
    text_mlp: Option<Mlp>,
}

#[derive(Debug)]
struct SingleLayer {
    name: String,
    modulation: Modulation,
    projections: Projections,
    up: Linear,
    out: Linear,
}

/// What all layers are told.
struct Told<'a> {
    condition: &'a Tensor,
    angles: Option<&'a Angles>,
    heads: usize,
    head: usize,
}

impl Dit {
    /// Reads a transformer.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: DitSpec) -> Result<Self, ModelError> {
        let hidden = spec.hidden;
        let waved = TimeEmbedSpec::plain(WAVES.width, hidden);
        let joint = spec.joint.iter().enumerate();
        let joint =
            joint.map(|(number, layer)| JointLayer::load(&loader.part(&format!("joint.{number}")), &spec, *layer));
        let single = (0..spec.single).map(|number| SingleLayer::load(&loader.part(&format!("single.{number}")), &spec));
        let (image, places) = match spec.image {
            ImageTokensSpec::Given => (ImageTokens::Given(loader.linear("image", hidden, spec.inputs, true)?), 1),
            ImageTokensSpec::Patches { patch, table } => {
                let op = Op::new(2).stride(patch);
                let convolution = Convolution::load(loader, "image", op, &[hidden, spec.inputs, patch, patch], true)?;
                let table = loader.tensor("positions", &[1, table * table, hidden])?;
                let table = table.to_vec().and_then(|values| Tensor::new(loader.engine, values, table.dims()));
                let table = table.map_err(ModelError::at("positions"))?;
                (ImageTokens::Patches { convolution, table, patch }, patch * patch)
            }
        };
        Ok(Self {
            image,
            text: loader.linear("text", hidden, spec.text, true)?,
            moment: TimeEmbed::load(loader, "moment", &waved)?,
            guidance: spec.guidance.then(|| TimeEmbed::load(loader, "guidance", &waved)).transpose()?,
            summary: TimeEmbed::load(loader, "summary", &TimeEmbedSpec::plain(spec.summary, hidden))?,
            joint: joint.collect::<Result<_, _>>()?,
            single: single.collect::<Result<_, _>>()?,
            last_modulation: Modulation::load(loader, "last_modulation", hidden, 2)?,
            last: loader.linear("last", places * spec.outputs, hidden, true)?,
            spec,
        })
    }

    /// Answers what to take off `hidden_states` at the moment `timestep`, of what `encoder_hidden_states` says.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        inputs.only(SUPPORTED)?;
        let given = inputs.tensor("hidden_states")?;
        let batch = given.dim(0).map_err(ModelError::at("hidden_states"))?;
        let condition = self.condition(inputs, given, batch)?;
        let mut x = self.tokens(given)?;
        let mut text = inputs
            .tensor("encoder_hidden_states")?
            .linear(&self.text)
            .map_err(ModelError::at("encoder_hidden_states"))?;
        let count = x.dims()[1] + text.dims()[1];
        let angles = self.angles(inputs, batch, count)?;
        let (heads, head) = (self.spec.heads, self.spec.head);
        let told = Told { condition: &condition, angles: angles.as_ref(), heads, head };
        for layer in &self.joint {
            (text, x) = layer.forward(&text, &x, &told)?;
        }
        if !self.single.is_empty() {
            let split = [text.dims()[1], x.dims()[1]];
            let mut all = Tensor::concat(&[text, x], 1).map_err(ModelError::at("single"))?;
            for layer in &self.single {
                all = layer.forward(&all, &told)?;
            }
            x = all.narrow(1, split[0], split[1]).map_err(ModelError::at("single"))?;
        }
        let [scale, shift] = pair(self.last_modulation.vectors(&condition)?)?;
        let out = modulated(&x, &scale, &shift).and_then(|x| x.linear(&self.last)).map_err(ModelError::at("last"))?;
        Ok(vec![("sample".into(), self.untokened(out, given)?)])
    }

    /// What is known beside the tokens: `[batch, hidden]`.
    fn condition(&self, inputs: &Inputs, like: &Tensor, batch: usize) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("condition");
        let waved = |name: &str| {
            let given = moments(inputs, name, like, batch)?;
            let scaled = if self.spec.moment_scale == 1.0 { Ok(given) } else { given.scale(self.spec.moment_scale) };
            scaled.and_then(|given| waves(&given, &WAVES)).map_err(at())
        };
        let mut condition = self.moment.forward(&waved("timestep")?, None)?;
        if let Some(guidance) = &self.guidance {
            condition = condition.add(&guidance.forward(&waved("guidance")?, None)?).map_err(at())?;
        }
        let summary = self.summary.forward(inputs.tensor("pooled_projections")?, None)?;
        condition.add(&summary).map_err(at())
    }

    /// Tokens of the image: `[batch, tokens, hidden]`.
    fn tokens(&self, given: &Tensor) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("image");
        match &self.image {
            ImageTokens::Given(layer) => given.linear(layer).map_err(at()),
            ImageTokens::Patches { convolution, table, .. } => {
                let made = convolution.forward(given)?;
                let placed = || -> Result<Tensor, TensorError> {
                    let [_, hidden, height, width] = made.sizes()?;
                    let side = table.dim(1)?.isqrt();
                    let outside = || TensorError::Shape {
                        operation: "patches",
                        expected: format!("at most {side} rows and columns"),
                        found: format!("{:?}", made.dims()),
                    };
                    let (top, left) = side.checked_sub(height).zip(side.checked_sub(width)).ok_or_else(outside)?;
                    let table = table.reshape(&[side, side, hidden])?;
                    let middle = table.narrow(0, top / 2, height)?.narrow(1, left / 2, width)?;
                    made.flatten(2, 3)?.transpose(1, 2)?.add(&middle.reshape(&[1, height * width, hidden])?)
                };
                placed().map_err(at())
            }
        }
    }

    /// Tokens `[batch, tokens, places * outputs]` as what came in.
    fn untokened(&self, x: Tensor, given: &Tensor) -> Result<Tensor, ModelError> {
        let ImageTokens::Patches { patch, .. } = &self.image else { return Ok(x) };
        let image = || -> Result<Tensor, TensorError> {
            let [batch, _, height, width] = given.sizes()?;
            let (rows, columns, outputs) = (height / patch, width / patch, self.spec.outputs);
            let apart = x.reshape(&[batch, rows, columns, *patch, *patch, outputs])?;
            apart.permute(&[0, 5, 1, 3, 2, 4])?.reshape(&[batch, outputs, rows * patch, columns * patch])
        };
        image().map_err(ModelError::at("last"))
    }

    /// How positions of the text's and the image's tokens turn: `[batch * tokens, head / 2]`.
    fn angles(&self, inputs: &Inputs, batch: usize, count: usize) -> Result<Option<Angles>, ModelError> {
        if self.spec.axes.is_empty() {
            return Ok(None);
        }
        let (text, image) = (inputs.tensor("txt_ids")?, inputs.tensor("img_ids")?);
        let turned = || -> Result<Angles, TensorError> {
            // Older callers give positions of each sequence; they are all the same.
            let one = |ids: &Tensor| if ids.dims().len() == 3 { ids.at(0, 0) } else { Ok(ids.clone()) };
            let ids = Tensor::concat(&[one(text)?, one(image)?], 0)?;
            let ids = ids.to_kind(accel_backends::tensor::Kind::Float)?;
            let mut angles = Vec::with_capacity(self.spec.axes.len());
            for (axis, &width) in self.spec.axes.iter().enumerate() {
                let power = |place: usize| libm::pow(10_000.0, -(2.0 * place as f64) / width as f64) as f32;
                let frequencies = Tensor::new(ids.engine(), (0..width / 2).map(power).collect(), &[1, width / 2])?;
                angles.push(ids.narrow(1, axis, 1)?.mul(&frequencies)?);
            }
            let angles = Tensor::concat(&angles, 1)?;
            let half = angles.dim(1)?;
            let of_all = |x: Tensor| x.unsqueeze(0)?.broadcast(&[batch, count, half])?.reshape(&[batch * count, half]);
            Ok(Angles { cos: of_all(angles.cos()?)?, sin: of_all(angles.sin()?)? })
        };
        turned().map(Some).map_err(ModelError::at("positions"))
    }
}

fn pair(vectors: Vec<Tensor>) -> Result<[Tensor; 2], ModelError> {
    vectors.try_into().map_err(|_| ModelError::MissingInput { name: "two vectors of a modulation".into() })
}

impl Projections {
    fn load(loader: &Loader<'_>, name: &str, spec: &DitSpec) -> Result<Self, ModelError> {
        let at = |part: &str| format!("{name}.{part}");
        let layer = |part: &str| loader.linear(&at(part), spec.heads * spec.head, spec.hidden, true);
        let norm = |part: &str| Norm::load_optional(loader, &at(part), spec.qk_norm.as_ref(), spec.head);
        Ok(Self {
            name: loader.name(name),
            q: layer("q")?,
            k: layer("k")?,
            v: layer("v")?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
        })
    }

    /// x: `[batch, tokens, hidden]` as queries, keys and values, `[batch, tokens, heads * head]` each.
    fn forward(&self, x: &Tensor, told: &Told<'_>) -> Result<[Tensor; 3], ModelError> {
        let at = || ModelError::at(&self.name);
        let [q, k, v] = x.linears([&self.q, &self.k, &self.v]).map_err(at())?;
        let normed = |x: Tensor, norm: Option<&Norm>| {
            let Some(norm) = norm else { return Ok(x) };
            let dims = x.dims().to_vec();
            let apart = x.reshape(&[dims[0], dims[1], told.heads, told.head]).map_err(at())?;
            norm.forward(&apart)?.reshape(&dims).map_err(at())
        };
        Ok([normed(q, self.q_norm.as_ref())?, normed(k, self.k_norm.as_ref())?, v])
    }
}

impl Told<'_> {
    /// All tokens attend to all: `[batch, tokens, heads * head]` each.
    fn attended(&self, [q, k, v]: &[Tensor; 3], turned: bool) -> Result<Tensor, TensorError> {
        let turn = |x: &Tensor| match self.angles.filter(|_| turned) {
            Some(angles) => x.flatten(0, 1)?.rope(angles, self.head, RopeStyle::Pairs)?.reshape(x.dims()),
            None => Ok(x.clone()),
        };
        attend(&plain_heads(self.heads, self.head), &turn(q)?, &turn(k)?, v, &[])
    }
}

impl JointLayer {
    fn load(loader: &Loader<'_>, spec: &DitSpec, layer: JointLayerSpec) -> Result<Self, ModelError> {
        let (hidden, width) = (spec.hidden, spec.heads * spec.head);
        let mlp = MlpSpec::plain(4 * hidden, Activation::GeluTanh);
        let out = |name: &str| loader.linear(name, hidden, width, true);
        let again = || Ok::<_, ModelError>((Projections::load(loader, "again", spec)?, out("again.out")?));
        Ok(Self {
            name: loader.name("attn"),
            modulation: Modulation::load(loader, "modulation", hidden, if layer.twice { 9 } else { 6 })?,
            text_modulation: Modulation::load(loader, "text_modulation", hidden, if layer.last { 2 } else { 6 })?,
            image: Projections::load(loader, "attn", spec)?,
            text: Projections::load(loader, "text_attn", spec)?,
            out: out("attn.out")?,
            text_out: (!layer.last).then(|| out("text_attn.out")).transpose()?,
            again: layer.twice.then(again).transpose()?,
            mlp: Mlp::load(loader, "mlp", &mlp, hidden)?,
            text_mlp: (!layer.last).then(|| Mlp::load(loader, "text_mlp", &mlp, hidden)).transpose()?,
        })
    }

    fn forward(&self, text: &Tensor, x: &Tensor, told: &Told<'_>) -> Result<(Tensor, Tensor), ModelError> {
        let at = || ModelError::at(&self.name);
        // Shift, scale and gate of attention, of the feed-forward part, and of attention once more.
        let image = self.modulation.vectors(told.condition)?;
        let texts = self.text_modulation.vectors(told.condition)?;
        let normed = modulated(x, &image[1], &image[0]).map_err(at())?;
        // Where the text ends, its scale comes first.
        let (scale, shift) = if self.text_out.is_some() { (1, 0) } else { (0, 1) };
        let normed_text = modulated(text, &texts[scale], &texts[shift]).map_err(at())?;
        let (ours, theirs) = (self.image.forward(&normed, told)?, self.text.forward(&normed_text, told)?);
        let lengths = [text.dims()[1], x.dims()[1]];
        let attended = || -> Result<Vec<Tensor>, TensorError> {
            let joined = |place: usize| Tensor::concat(&[theirs[place].clone(), ours[place].clone()], 1);
            told.attended(&[joined(0)?, joined(1)?, joined(2)?], true)?.split(1, &lengths)
        };
        let attended = attended().map_err(at())?;
        let mut new = attended[1].linear(&self.out).and_then(|out| gated_sum(x, &image[2], &out)).map_err(at())?;
        if let Some((projections, out)) = &self.again {
            let normed = modulated(x, &image[7], &image[6]).map_err(at())?;
            let parts = projections.forward(&normed, told)?;
            let seen = told.attended(&parts, false).and_then(|seen| seen.linear(out)).map_err(at())?;
            new = gated_sum(&new, &image[8], &seen).map_err(at())?;
        }
        let fed = |x: &Tensor, vectors: &[Tensor], mlp: &Mlp| {
            let fed = mlp.forward(&modulated(x, &vectors[4], &vectors[3]).map_err(at())?)?;
            gated_sum(x, &vectors[5], &fed).map_err(at())
        };
        let x = fed(&new, &image, &self.mlp)?;
        let text = match (&self.text_out, &self.text_mlp) {
            (Some(out), Some(mlp)) => {
                let out = attended[0].linear(out).and_then(|out| gated_sum(text, &texts[2], &out)).map_err(at())?;
                fed(&out, &texts, mlp)?
            }
            _ => text.clone(),
        };
        Ok((text, x))
    }
}

impl SingleLayer {
    fn load(loader: &Loader<'_>, spec: &DitSpec) -> Result<Self, ModelError> {
        let (hidden, width) = (spec.hidden, spec.heads * spec.head);
        Ok(Self {
            name: loader.name("layer"),
            modulation: Modulation::load(loader, "modulation", hidden, 3)?,
            projections: Projections::load(loader, "attn", spec)?,
            up: loader.linear("up", 4 * hidden, hidden, true)?,
            out: loader.linear("out", hidden, width + 4 * hidden, true)?,
        })
    }

    fn forward(&self, x: &Tensor, told: &Told<'_>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let vectors = self.modulation.vectors(told.condition)?;
        let normed = modulated(x, &vectors[1], &vectors[0]).map_err(at())?;
        let parts = self.projections.forward(&normed, told)?;
        let run = || -> Result<Tensor, TensorError> {
            let fed = normed.linear(&self.up)?.activate(Activation::GeluTanh)?;
            let both = Tensor::concat(&[told.attended(&parts, true)?, fed], 2)?;
            gated_sum(x, &vectors[2], &both.linear(&self.out)?)
        };
        run().map_err(at())
    }
}
