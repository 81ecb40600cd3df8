//! `StableDiffusionPipeline` of Diffusers (<https://arxiv.org/abs/2112.10752>): a network in the shape of a U that sees the
//! states of a text, asked once with the text and once without.

use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::config::Config;
use accel_models::family::unet::Unet;
use accel_models::model::{Inputs, Model};
use accel_models::spec::unet::{AdditionSpec, ClassSpec, SourceSpec, UnetSpec};
use accel_models::spec::{PositionSpec, Spec};
use accel_protocol::Painting;

use super::latents::{self, ALIVE, Autoencoder, Sizes};
use super::parts::{PartModel, Parts};
use super::prompts::Prompts;
use super::safety::{self, SafetyChecker};
use super::sampler::{Overrides, Run, Sampler};
use super::{Asked, Loaded, Painter, States, not_supported, output};
use crate::error::PipelineError;
use crate::image_input::RgbImage;

/// Steps by default.
const STEPS: usize = 50;
/// How closely a picture keeps to its text by default.
const GUIDANCE: f32 = 7.5;
/// What sides of pictures are multiples of, in pixels.
const SIDE_STEP: usize = 8;

/// What this pipeline paints with.
pub struct StableDiffusion {
    engine: Engine,
    prompts: Prompts,
    text: Model,
    unet: Unet,
    vae: Autoencoder,
    sampler: Sampler,
    safety: Option<SafetyChecker>,
    sizes: Sizes,
}

/// Its parts, known but not loaded.
pub struct Unloaded {
    prompts: Prompts,
    text: PartModel,
    unet: PartModel,
    vae: latents::Unloaded,
    sampler: Sampler,
    safety: Option<safety::Unloaded>,
    sizes: Sizes,
}

impl Unloaded {
    /// Reads all but the weights.
    ///
    /// # Errors
    ///
    /// When a part is missing, damaged or not known.
    pub fn read(parts: &Parts) -> Result<Self, PipelineError> {
        let text = parts.part("text_encoder")?.of_class(&["CLIPTextModel"])?.describe()?;
        let unet = parts.part("unet")?.of_class(&["UNet2DConditionModel"])?.describe()?;
        let vae = latents::Unloaded::read(parts.part("vae")?.of_class(&["AutoencoderKL"])?.describe()?)?;
        let sizes = sizes(&unet, &vae).map_err(|error| unet.error(error))?;
        let scheduler = parts.part("scheduler")?;
        // The pipeline takes these two as slips of older files, and mends them.
        let overrides = Overrides { offset: Some(1), unclipped: true };
        let sampler = Config::read_named(&*scheduler.files, "scheduler_config.json").map_err(PipelineError::from);
        let sampler = sampler.and_then(|config| Sampler::read(&config, overrides));
        let sampler = sampler.map_err(PipelineError::of_part(scheduler.name))?;
        let prompts = clip_prompts(parts, &text)?;
        let safety = match parts.optional("safety_checker")? {
            Some(checker) => Some(safety::Unloaded::read(checker, &parts.part("feature_extractor")?)?),
            None => None,
        };
        Ok(Self { prompts, text, unet, vae, sampler, safety, sizes })
    }
}

impl Loaded for Unloaded {
    type Painter = StableDiffusion;

    fn bytes(&self) -> u64 {
        let safety = self.safety.as_ref().map_or(0, safety::Unloaded::bytes);
        self.text.bytes() + self.unet.bytes() + self.vae.bytes() + safety
    }

    fn load(self, engine: &Engine) -> Result<StableDiffusion, PipelineError> {
        let Model::Unet(unet) = self.unet.load(engine)? else {
            return Err(not_supported("unet", "a model of another kind", "UNet2DConditionModel").into());
        };
        Ok(StableDiffusion {
            prompts: self.prompts,
            text: self.text.load(engine)?,
            unet: *unet,
            vae: self.vae.load(engine)?,
            sampler: self.sampler,
            safety: self.safety.map(|safety| safety.load(engine)).transpose()?,
            sizes: self.sizes,
            engine: engine.clone(),
        })
    }
}

/// What makes tokens for the text encoder of CLIP.
///
/// # Errors
///
/// When its files are wrong, or the encoder reads other than whole texts.
pub fn clip_prompts(parts: &Parts, text: &PartModel) -> Result<Prompts, PipelineError> {
    if text.config.truth_or("use_attention_mask", false).map_err(|error| text.error(error))? {
        return Err(text.error(not_supported(&text.config.path("use_attention_mask"), "true", "false")));
    }
    let positions = match &text.described.spec {
        Spec::DualEncoder(spec) => match spec.text.as_ref().map(|text| &text.stack.embed.positions) {
            Some(PositionSpec::Learned { rows, .. }) => *rows,
            _ => usize::MAX,
        },
        _ => return Err(text.error(not_supported("config.json", "a model of another kind", "CLIPTextModel"))),
    };
    let tokenizer = parts.part("tokenizer")?.of_class(&["CLIPTokenizer", "CLIPTokenizerFast"])?;
    Prompts::read(&tokenizer.files, positions).map_err(PipelineError::of_part(tokenizer.name))
}

fn sizes(unet: &PartModel, vae: &latents::Unloaded) -> Result<Sizes, ModelError> {
    let Spec::Unet(network) = &unet.described.spec else {
        return Err(not_supported("config.json", "a model of another kind", "UNet2DConditionModel"));
    };
    check_network(network, vae.channels)?;
    let channels = unet.config.optional_sizes("block_out_channels")?.unwrap_or_else(|| vec![320, 640, 1280, 1280]);
    let widest = channels.iter().max().map_or(0, |&channels| channels as u64);
    Ok(Sizes {
        default: default_size(&unet.config)?.map(|size| size.map(|side| side * vae.scale)),
        scale: vae.scale,
        side_step: SIDE_STEP.max(vae.scale),
        channels: network.inputs,
        network_least: 0,
        // With and without the text. What is seen on the way down is kept, each size a quarter of the one before.
        network_width: 2 * (channels.len() as u64 + ALIVE) * widest,
        decoder_width: vae.width,
    })
}

/// Refuses networks that are told more than this pipeline tells them.
fn check_network(network: &UnetSpec, latents: usize) -> Result<(), ModelError> {
    let refused =
        |key: &str, found: &str, supported: &str| Err(not_supported(&format!("config.json: {key}"), found, supported));
    if network.time.condition.is_some() {
        return refused("time_cond_proj_dim", "a size", "null");
    }
    if network.addition != AdditionSpec::None {
        return refused("addition_embed_type", "an embedding", "null");
    }
    if network.class != ClassSpec::None {
        return refused("class_embed_type", "an embedding", "null");
    }
    if !matches!(network.source, SourceSpec::AsIs | SourceSpec::Text { .. }) {
        return refused("encoder_hid_dim_type", "images", "null, text_proj");
    }
    if network.inputs != latents || network.outputs != latents {
        let found = format!("{} and {}", network.inputs, network.outputs);
        return refused("in_channels and out_channels", &found, &format!("the VAE's {latents}"));
    }
    Ok(())
}

/// Height and width of a network's latent images, where it says so.
fn default_size(config: &Config) -> Result<Option<[usize; 2]>, ModelError> {
    /// What Stable Diffusion was made for. Files of before 0.9 said 32 in error, and the pipeline mends it.
    const SIDE: usize = 64;
    let Some(size) = config.optional_area("sample_size")? else { return Ok(None) };
    let version = config.optional_text("_diffusers_version")?;
    let old = version.is_some_and(|version| {
        let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
        (numbers.next(), numbers.next()) < (Some(0), Some(9))
    });
    let mended = old && !config.is_list("sample_size") && size[0] < SIDE;
    Ok(Some(if mended { [SIDE; 2] } else { size }))
}

impl Painter for StableDiffusion {
    fn steps(&self) -> usize {
        STEPS
    }

    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn asked(&self, text: &str, painting: &Painting) -> Result<Asked, PipelineError> {
        let guidance = painting.guidance.unwrap_or(GUIDANCE);
        let guided = guidance > 1.0;
        if !guided && painting.negative.as_ref().is_some_and(|text| !text.is_empty()) {
            let reason = format!("expected over 1 where something is not to be shown, found {guidance}");
            return Err(PipelineError::input("the guidance", reason));
        }
        let mut prompts = vec![self.prompts.prompt(text)?];
        if guided {
            prompts.insert(0, self.prompts.prompt(painting.negative.as_deref().unwrap_or_default())?);
        }
        Ok(Asked { prompts, guidance })
    }

    fn run(&self, steps: usize, _: [usize; 2]) -> Result<Run, PipelineError> {
        self.sampler.begin(steps)
    }

    fn encode(&self, asked: &Asked, _: [usize; 2]) -> Result<States, PipelineError> {
        let prompts: Vec<Vec<i64>> = asked.prompts.iter().map(|prompt| prompt.ids.clone()).collect();
        let dims = [prompts.len(), prompts.first().map_or(0, Vec::len)];
        let ids = Tensor::whole(&self.engine, prompts.concat(), &dims);
        let mut inputs = Inputs::default();
        inputs.insert("input_ids", ids.map_err(|source| ModelError::Tensor { place: "input_ids".into(), source })?);
        let mut states = Inputs::default();
        states.insert("encoder_hidden_states", output(self.text.forward(&inputs)?, "last_hidden_state")?);
        Ok(states)
    }

    fn told(
        &self,
        states: &States,
        asked: &Asked,
        [height, width]: [usize; 2],
        moment: f64,
        shown: &[f32],
    ) -> Result<Vec<f32>, PipelineError> {
        let at = |source| ModelError::Tensor { place: "sample".into(), source };
        let count = asked.prompts.len();
        let mut inputs = states.clone();
        let sample = Tensor::new(&self.engine, shown.repeat(count), &[count, self.sizes.channels, height, width]);
        inputs.insert("sample", sample.map_err(at)?);
        inputs.insert_number("timestep", moment);
        let told = output(self.unet.answer(&inputs)?, "sample")?.to_vec().map_err(at)?;
        Ok(match told.split_at_checked(shown.len()) {
            // Away from what it is not to show, or from what it shows without words.
            Some((without, with)) if count > 1 => {
                let both = without.iter().zip(with);
                both.map(|(without, with)| without + asked.guidance * (with - without)).collect()
            }
            _ => told,
        })
    }

    fn picture(&self, sample: &[f32], places: [usize; 2]) -> Result<RgbImage, PipelineError> {
        let picture = self.vae.picture(sample, places, self.sizes.picture(places), false)?;
        if let Some(safety) = &self.safety {
            safety.check(&picture)?;
        }
        Ok(picture)
    }
}
