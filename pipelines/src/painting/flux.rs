//! `FluxPipeline` of Diffusers (<https://huggingface.co/black-forest-labs/FLUX.1-dev>): a transformer in which the tokens of
//! a text and those of an image see each other. It is asked once a step, for how closely it keeps to the text is told to it.

use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::config::Config;
use accel_models::family::dit::Dit;
use accel_models::model::{Inputs, Model};
use accel_models::spec::Spec;
use accel_models::spec::dit::{DitSpec, ImageTokensSpec};
use accel_protocol::Painting;

use super::latents::{self, ALIVE, Autoencoder, Sizes};
use super::parts::{PartModel, Parts};
use super::prompts::Prompts;
use super::sampler::{Flow, Run};
use super::stable_diffusion::clip_prompts;
use super::{Asked, Loaded, Painter, States, not_supported, output};
use crate::error::PipelineError;
use crate::image_input::RgbImage;

/// Steps by default.
const STEPS: usize = 28;
/// How closely a picture keeps to its text by default.
const GUIDANCE: f32 = 3.5;
/// Places of a side of a latent image by default.
const PLACES: usize = 128;
/// Tokens of a text.
const TEXT_TOKENS: usize = 512;
/// Places of a side of what is one token.
const PATCH: usize = 2;
/// Axes of positions.
const AXES: usize = 3;
/// The network counts moments from 0 to 1.
const MOMENTS: f64 = 1000.0;

/// What this pipeline paints with.
pub struct Flux {
    engine: Engine,
    summary_prompts: Prompts,
    prompts: Prompts,
    summary: Model,
    text: Model,
    transformer: Dit,
    takes_guidance: bool,
    vae: Autoencoder,
    sampler: Flow,
    sizes: Sizes,
}

/// Its parts, known but not loaded.
pub struct Unloaded {
    summary_prompts: Prompts,
    prompts: Prompts,
    summary: PartModel,
    text: PartModel,
    transformer: PartModel,
    takes_guidance: bool,
    vae: latents::Unloaded,
    sampler: Flow,
    sizes: Sizes,
}

impl Unloaded {
    /// Reads all but the weights.
    ///
    /// # Errors
    ///
    /// When a part is missing, damaged or not known.
    pub fn read(parts: &Parts) -> Result<Self, PipelineError> {
        let summary = parts.part("text_encoder")?.of_class(&["CLIPTextModel"])?.describe()?;
        let text = parts.part("text_encoder_2")?.of_class(&["T5EncoderModel"])?.describe()?;
        let transformer = parts.part("transformer")?.of_class(&["FluxTransformer2DModel"])?.describe()?;
        let vae = latents::Unloaded::read(parts.part("vae")?.of_class(&["AutoencoderKL"])?.describe()?)?;
        let Spec::Dit(network) = &transformer.described.spec else {
            let error = not_supported("config.json", "a model of another kind", "FluxTransformer2DModel");
            return Err(transformer.error(error));
        };
        let takes_guidance = network.guidance;
        let sizes = sizes(network, &vae).map_err(|error| transformer.error(error))?;
        let scheduler = parts.part("scheduler")?;
        let sampler = Config::read_named(&*scheduler.files, "scheduler_config.json").map_err(PipelineError::from);
        let sampler = sampler.and_then(|config| Flow::read(&config)).map_err(PipelineError::of_part(scheduler.name))?;
        let summary_prompts = clip_prompts(parts, &summary)?;
        let tokenizer = parts.part("tokenizer_2")?.of_class(&["T5TokenizerFast", "T5Tokenizer"])?;
        let prompts = Prompts::of_length(&tokenizer.files, TEXT_TOKENS);
        let prompts = prompts.map_err(PipelineError::of_part(tokenizer.name))?;
        Ok(Self { summary_prompts, prompts, summary, text, transformer, takes_guidance, vae, sampler, sizes })
    }
}

impl Loaded for Unloaded {
    type Painter = Flux;

    fn bytes(&self) -> u64 {
        self.summary.bytes() + self.text.bytes() + self.transformer.bytes() + self.vae.bytes()
    }

    fn load(self, engine: &Engine) -> Result<Flux, PipelineError> {
        let Model::Dit(transformer) = self.transformer.load(engine)? else {
            return Err(not_supported("transformer", "a model of another kind", "FluxTransformer2DModel").into());
        };
        Ok(Flux {
            summary_prompts: self.summary_prompts,
            prompts: self.prompts,
            summary: self.summary.load(engine)?,
            text: self.text.load(engine)?,
            transformer: *transformer,
            takes_guidance: self.takes_guidance,
            vae: self.vae.load(engine)?,
            sampler: self.sampler,
            sizes: self.sizes,
            engine: engine.clone(),
        })
    }
}

fn sizes(network: &DitSpec, vae: &latents::Unloaded) -> Result<Sizes, ModelError> {
    if network.image != ImageTokensSpec::Given || network.axes.len() != AXES {
        let supported = format!("{AXES} axes of positions");
        return Err(not_supported("config.json: axes_dims_rope", &network.axes.len().to_string(), &supported));
    }
    let channels = PATCH * PATCH * vae.channels;
    if network.inputs != channels || network.outputs != channels {
        let found = format!("{} and {}", network.inputs, network.outputs);
        let supported = format!("the VAE's {channels}");
        return Err(not_supported("config.json: in_channels and out_channels", &found, &supported));
    }
    // Its widest layer makes queries, keys, values and four times as much of a token.
    let token = (ALIVE + 7) * network.hidden as u64;
    Ok(Sizes {
        default: Some([PLACES * vae.scale; 2]),
        scale: vae.scale,
        side_step: PATCH * vae.scale,
        channels: vae.channels,
        network_least: TEXT_TOKENS as u64 * token,
        network_width: token.div_ceil((PATCH * PATCH) as u64),
        decoder_width: vae.width,
    })
}

impl Flux {
    /// A text as an encoder reads it: `[1, tokens]`.
    fn ids(&self, ids: &[i64]) -> Result<Inputs, PipelineError> {
        let ids = Tensor::whole(&self.engine, ids.to_vec(), &[1, ids.len()]);
        let mut inputs = Inputs::default();
        inputs.insert("input_ids", ids.map_err(|source| ModelError::Tensor { place: "input_ids".into(), source })?);
        Ok(inputs)
    }
}

impl Painter for Flux {
    fn steps(&self) -> usize {
        STEPS
    }

    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn asked(&self, text: &str, painting: &Painting) -> Result<Asked, PipelineError> {
        let refused = |what, reason: &str| Err(PipelineError::input(what, reason));
        if painting.negative.as_ref().is_some_and(|text| !text.is_empty()) {
            return refused("what is not to be shown", "expected none, as this model paints without it");
        }
        if painting.guidance.is_some() && !self.takes_guidance {
            return refused("the guidance", "expected none, as this model was made for one");
        }
        let prompts = vec![self.summary_prompts.prompt(text)?, self.prompts.prompt(text)?];
        Ok(Asked { prompts, guidance: painting.guidance.unwrap_or(GUIDANCE) })
    }

    fn run(&self, steps: usize, [height, width]: [usize; 2]) -> Result<Run, PipelineError> {
        self.sampler.begin(steps, (height / PATCH) * (width / PATCH))
    }

    fn encode(&self, asked: &Asked, [height, width]: [usize; 2]) -> Result<States, PipelineError> {
        let [summary, text] = asked.prompts.as_slice() else { return Ok(States::default()) };
        let at = |source| ModelError::Tensor { place: "img_ids".into(), source };
        let mut states = States::default();
        let summary = self.summary.forward(&self.ids(&summary.ids)?)?;
        states.insert("pooled_projections", output(summary, "pooler_output")?);
        let text_states = self.text.forward(&self.ids(&text.ids)?)?;
        states.insert("encoder_hidden_states", output(text_states, "last_hidden_state")?);
        let (rows, columns) = (height / PATCH, width / PATCH);
        let places = (0..rows).flat_map(|row| (0..columns).flat_map(move |column| [0.0, row as f32, column as f32]));
        let of_image = Tensor::new(&self.engine, places.collect(), &[rows * columns, AXES]).map_err(at)?;
        let count = text.ids.len();
        let of_text = Tensor::new(&self.engine, vec![0.0; count * AXES], &[count, AXES]).map_err(at)?;
        states.insert("img_ids", of_image);
        states.insert("txt_ids", of_text);
        if self.takes_guidance {
            states.insert_number("guidance", f64::from(asked.guidance));
        }
        Ok(states)
    }

    fn told(
        &self,
        states: &States,
        _: &Asked,
        [height, width]: [usize; 2],
        moment: f64,
        shown: &[f32],
    ) -> Result<Vec<f32>, PipelineError> {
        let at = |source| ModelError::Tensor { place: "hidden_states".into(), source };
        let channels = self.sizes.channels;
        let (rows, columns) = (height / PATCH, width / PATCH);
        let image = Tensor::new(&self.engine, shown.to_vec(), &[channels, rows, PATCH, columns, PATCH]).map_err(at)?;
        let tokens = || image.permute(&[1, 3, 0, 2, 4])?.reshape(&[1, rows * columns, channels * PATCH * PATCH]);
        let mut inputs = states.clone();
        inputs.insert("hidden_states", tokens().map_err(at)?);
        inputs.insert_number("timestep", moment / MOMENTS);
        let told = output(self.transformer.answer(&inputs)?, "sample")?;
        let back = || {
            let apart = told.reshape(&[rows, columns, channels, PATCH, PATCH])?;
            apart.permute(&[2, 0, 3, 1, 4])?.to_vec()
        };
        Ok(back().map_err(at)?)
    }

    fn picture(&self, sample: &[f32], places: [usize; 2]) -> Result<RgbImage, PipelineError> {
        self.vae.picture(sample, places, self.sizes.picture(places), true)
    }
}
