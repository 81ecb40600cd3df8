//! Paints what a text says (<https://arxiv.org/abs/2112.10752>): a network takes noise off a small image, step by step, and
//! an autoencoder makes a picture of it.
//!
//! Pictures are those of Diffusers' `StableDiffusionPipeline` with its defaults, of the same seed on the CPU. A step of a
//! job is a step of its sampler, and the last one decodes, so that a job can be left at any of them.

pub mod noise;
mod parts;
mod picture;
mod prompts;
mod safety;
pub mod sampler;
mod training;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Tensor, TensorError};
use accel_models::ModelError;
use accel_models::config::Config;
use accel_models::family::unet::Unet;
use accel_models::family::vae::Vae;
use accel_models::model::{Inputs, Model};
use accel_models::spec::unet::{AdditionSpec, ClassSpec, SourceSpec, UnetSpec};
use accel_models::spec::vae::VaeSpec;
use accel_models::spec::{PositionSpec, Spec};
use accel_protocol::{Arithmetic, ErrorCode, FinishReason, Input, JobError, JobEvent, JobId, JobSpec, Task, Usage};

use crate::error::PipelineError;
use crate::image_input::ImageSize;
use crate::pipeline::{Cost, LoadOptions, Pipeline, StepPlan};
use parts::PartModel;
pub use parts::Parts;
use prompts::Prompts;
use safety::SafetyChecker;
use sampler::{Overrides, Run, Sampler};

/// The pipelines that are known, by their classes in Diffusers.
const CLASSES: &[&str] = &["StableDiffusionPipeline"];
const TASKS: &[Task] = &[Task::TextToImage];
/// Steps by default.
const STEPS: usize = 50;
/// How closely a picture keeps to its text by default.
const GUIDANCE: f32 = 7.5;
/// What sides of pictures are multiples of, in pixels.
const SIDE_STEP: usize = 8;
/// How many images of the widest layer are alive at once, with room.
const ALIVE: u64 = 6;
/// How many samples a sampler keeps of a job, with room.
const KEPT: u64 = 8;
const VALUE_BYTES: u64 = size_of::<f32>() as u64;

/// A painter that works on jobs.
pub(crate) struct PaintingPipeline {
    engine: Engine,
    prompts: Prompts,
    text: Model,
    unet: Unet,
    vae: Vae,
    sampler: Sampler,
    safety: Option<SafetyChecker>,
    sizes: Sizes,
    weight_bytes: u64,
    memory_bytes: Option<u64>,
    jobs: BTreeMap<JobId, Job>,
}

/// The sizes of pictures, and what painting them takes.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Height and width by default, in pixels; none where the files do not say.
    default: Option<[usize; 2]>,
    /// Pixels of a side for each place of a latent image.
    scale: usize,
    /// Channels of a latent image.
    channels: usize,
    /// What latent images are divided by before they are decoded.
    factor: f32,
    /// Values of the network's widest layer, for each place.
    network_width: u64,
    /// Values of the decoder's widest layer, for each pixel.
    decoder_width: u64,
}

struct Job {
    /// What it is not to show, where that guides, and what it is to show.
    prompts: Vec<Vec<i64>>,
    /// Tokens of these.
    tokens: u32,
    guidance: f32,
    /// Height and width of its latent image.
    places: [usize; 2],
    run: Run,
    /// The step that comes next.
    at: usize,
    sample: Vec<f32>,
    /// What the text encoder made of the prompts: `[prompts, tokens, hidden]`.
    states: Option<Tensor>,
    bytes: u64,
    started: Option<Instant>,
}

/// Whether a model has several parts.
pub(crate) fn has_parts(files: &dyn ModelFiles) -> bool {
    Parts::are_in(files)
}

/// Loads a model of several parts.
///
/// # Errors
///
/// When the files hold no painter that can be run, or it needs more than `options` allow.
pub(crate) fn load(files: Arc<dyn ModelFiles>, options: &LoadOptions) -> Result<PaintingPipeline, PipelineError> {
    let parts = Parts::read(files)?;
    parts.class(CLASSES)?;
    let text = parts.part("text_encoder")?.of_class(&["CLIPTextModel"])?.describe()?;
    let unet = parts.part("unet")?.of_class(&["UNet2DConditionModel"])?.describe()?;
    let vae = parts.part("vae")?.of_class(&["AutoencoderKL"])?.describe()?;
    let sizes = Sizes::read(&unet, &vae)?;
    let scheduler = parts.part("scheduler")?;
    // The pipeline takes these two as slips of older files, and mends them.
    let overrides = Overrides { offset: Some(1), unclipped: true };
    let sampler = Config::read_named(&*scheduler.files, "scheduler_config.json").map_err(PipelineError::from);
    let sampler = sampler.and_then(|config| Sampler::read(&config, overrides));
    let sampler = sampler.map_err(PipelineError::of_part(scheduler.name))?;
    let tokenizer = parts.part("tokenizer")?.of_class(&["CLIPTokenizer", "CLIPTokenizerFast"])?;
    let prompts = Prompts::read(&tokenizer.files, positions(&text)?).map_err(PipelineError::of_part(tokenizer.name))?;
    let safety = match parts.optional("safety_checker")? {
        Some(checker) => Some(safety::Unloaded::read(checker, &parts.part("feature_extractor")?)?),
        None => None,
    };
    let checker_bytes = safety.as_ref().map_or(0, safety::Unloaded::bytes);
    let weight_bytes = text.bytes() + unet.bytes() + vae.bytes() + checker_bytes;
    if let Some(allowed_bytes) = options.memory_bytes.filter(|&allowed| allowed < weight_bytes) {
        return Err(ModelError::OutOfMemory { needed_bytes: weight_bytes, allowed_bytes }.into());
    }
    let engine = Engine::cpu(options.threads).map_err(PipelineError::Engine)?;
    let other = |what: &str| ModelError::Unsupported {
        what: what.to_owned(),
        found: "a model of another family".into(),
        supported: "models of this class".into(),
    };
    let (unet, vae) = match (unet.load(&engine)?, vae.load(&engine)?) {
        (Model::Unet(unet), Model::Vae(vae)) => (*unet, *vae),
        _ => return Err(other("model_index.json: unet and vae").into()),
    };
    Ok(PaintingPipeline {
        prompts,
        text: text.load(&engine)?,
        unet,
        vae,
        sampler,
        safety: safety.map(|safety| safety.load(&engine)).transpose()?,
        sizes,
        weight_bytes,
        memory_bytes: options.memory_bytes,
        jobs: BTreeMap::new(),
        engine,
    })
}

/// How many positions a text encoder has.
fn positions(text: &PartModel) -> Result<usize, PipelineError> {
    if text.config.truth_or("use_attention_mask", false).map_err(|error| text.error(error))? {
        let key = text.config.path("use_attention_mask");
        return Err(text.error(not_supported(key, "true", "false")));
    }
    match &text.described.spec {
        Spec::DualEncoder(spec) => match spec.text.as_ref().map(|text| &text.stack.embed.positions) {
            Some(PositionSpec::Learned { rows, .. }) => Ok(*rows),
            _ => Ok(usize::MAX),
        },
        _ => Err(text.error(not_supported("the text encoder".into(), "a model of another kind", "CLIPTextModel"))),
    }
}

fn not_supported(what: String, found: &str, supported: &str) -> ModelError {
    ModelError::Unsupported { what, found: found.to_owned(), supported: supported.to_owned() }
}

impl Sizes {
    fn read(unet: &PartModel, vae: &PartModel) -> Result<Self, PipelineError> {
        let (Spec::Unet(network), Spec::Vae(autoencoder)) = (&unet.described.spec, &vae.described.spec) else {
            return Err(unet.error(not_supported(
                "the network".into(),
                "a model of another kind",
                "a U-Net and a VAE",
            )));
        };
        check_network(network, autoencoder).map_err(|error| unet.error(error))?;
        let blocks = vae.config.optional_sizes("block_out_channels").map_err(|error| vae.error(error))?;
        let blocks = blocks.unwrap_or_else(|| vec![64]);
        let scale = 1 << (blocks.len() - 1);
        let factor = vae.config.optional_number("scaling_factor").map_err(|error| vae.error(error))?;
        let factor = factor.unwrap_or(0.18215) as f32;
        if !factor.is_finite() || factor == 0.0 {
            return Err(vae.error(vae.config.wrong("scaling_factor", "a number other than 0")));
        }
        let channels = unet.config.optional_sizes("block_out_channels").map_err(|error| unet.error(error))?;
        let channels = channels.unwrap_or_else(|| vec![320, 640, 1280, 1280]);
        let width = |channels: Option<&usize>| channels.copied().unwrap_or(0) as u64;
        Ok(Self {
            default: default_size(&unet.config)
                .map_err(|error| unet.error(error))?
                .map(|size| size.map(|side| side * scale)),
            scale,
            channels: network.inputs,
            factor,
            // What is seen on the way down is kept, each size a quarter of the one before, and is as wide again beside it.
            network_width: 2 * (channels.len() as u64 + ALIVE) * width(channels.iter().max()),
            // The last but one block's images are made as large as the last's.
            decoder_width: ALIVE * width(blocks.iter().take(2).max()),
        })
    }

    /// The height and width of a job's latent image.
    fn places(&self, asked: [Option<u32>; 2]) -> Result<[usize; 2], PipelineError> {
        let mut places = [0; 2];
        for (at, name) in ["the height", "the width"].into_iter().enumerate() {
            let side = asked[at].map(|side| side as usize).or(self.default.map(|size| size[at]));
            let missing = || PipelineError::input(name, "the model's files say none; ask for one");
            let side = side.ok_or_else(missing)?;
            if side == 0 || !side.is_multiple_of(SIDE_STEP) || side / self.scale == 0 {
                let reason = format!("expected a multiple of {} pixels, found {side}", SIDE_STEP.max(self.scale));
                return Err(PipelineError::input(name, reason));
            }
            places[at] = side / self.scale;
        }
        Ok(places)
    }

    /// What one step of a job takes at most beside its samples: the network or the decoder at its widest.
    fn working_bytes(&self, [height, width]: [usize; 2]) -> u64 {
        let area = (height as u64).saturating_mul(width as u64);
        let scale = self.scale as u64;
        let pixels = area.saturating_mul(scale * scale);
        area.saturating_mul(self.network_width)
            .max(pixels.saturating_mul(self.decoder_width))
            .saturating_mul(VALUE_BYTES)
    }

    /// What is kept of a job between steps.
    fn kept_bytes(&self, [height, width]: [usize; 2]) -> u64 {
        (self.channels as u64 * KEPT * VALUE_BYTES).saturating_mul(height as u64).saturating_mul(width as u64)
    }
}

/// Refuses networks that are told more than this pipeline tells them.
fn check_network(network: &UnetSpec, autoencoder: &VaeSpec) -> Result<(), ModelError> {
    let refused =
        |key: &str, found: &str, supported: &str| Err(not_supported(format!("config.json: {key}"), found, supported));
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
    let latents = autoencoder.latents;
    if network.inputs != latents || network.outputs != latents {
        let found = format!("{} and {}", network.inputs, network.outputs);
        return refused("in_channels and out_channels", &found, &format!("the VAE's {latents}"));
    }
    if autoencoder.outputs != 3 {
        return refused("out_channels of the VAE", &autoencoder.outputs.to_string(), "3");
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

impl PaintingPipeline {
    fn take_on(&self, spec: &JobSpec) -> Result<Job, PipelineError> {
        let Input::Text(text) = &spec.input else {
            return Err(PipelineError::input("the input", format!("expected one text for {}", spec.task)));
        };
        let painting = &spec.options.painting;
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
        let places = self.sizes.places([painting.height, painting.width])?;
        let run = self.sampler.begin(painting.steps.map_or(STEPS, |steps| steps as usize))?;
        let bytes = self.reserve(places)?;
        let values = self.sizes.channels * places[0] * places[1];
        let noise = noise::normal(values, spec.generation.seed);
        let tokens = prompts.iter().map(|prompt| prompt.tokens).sum::<usize>() as u32;
        Ok(Job {
            prompts: prompts.into_iter().map(|prompt| prompt.ids).collect(),
            tokens,
            guidance,
            places,
            sample: noise.into_iter().map(|value| value * run.noise).collect(),
            run,
            at: 0,
            states: None,
            bytes,
            started: None,
        })
    }

    /// What a job of that size takes between steps, where there is room for it and for a step of it.
    fn reserve(&self, places: [usize; 2]) -> Result<u64, PipelineError> {
        let (kept, working) = (self.sizes.kept_bytes(places), self.sizes.working_bytes(places));
        let used = self.jobs.values().map(|job| job.bytes).sum::<u64>().saturating_add(self.weight_bytes);
        let needed_bytes = used.saturating_add(kept).saturating_add(working);
        match self.memory_bytes {
            Some(allowed) if needed_bytes > allowed => {
                let left = allowed.saturating_sub(used);
                let [height, width] = places.map(|side| side * self.sizes.scale);
                let size = ImageSize { height, width };
                Err(PipelineError::NoRoom {
                    what: format!("a picture of {size} pixels"),
                    needed_bytes: kept.saturating_add(working),
                    left_bytes: left,
                })
            }
            _ => Ok(kept),
        }
    }

    /// Carries a job on by a step.
    fn work(&mut self, id: JobId, out: &mut dyn FnMut(JobId, JobEvent)) -> Result<(), PipelineError> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let started = *job.started.get_or_insert_with(|| {
            out(id, JobEvent::Started { prompt_tokens: job.tokens, arithmetic: crate::pipeline::arithmetic() });
            Instant::now()
        });
        if job.at < job.run.moments.len() {
            job.step(&self.engine, &self.text, &self.unet, self.sizes.channels)?;
            let (done_tokens, total_tokens) = (job.at as u32, job.run.moments.len() as u32);
            out(id, JobEvent::Reading { done_tokens, total_tokens });
            return Ok(());
        }
        let Some(Job { sample, places, .. }) = self.jobs.get(&id) else { return Ok(()) };
        let picture = self.decode(sample, *places)?;
        if let Some(safety) = &self.safety {
            safety.check(&picture)?;
        }
        let results = vec![picture::png(&picture)?];
        if let Some(job) = self.jobs.remove(&id) {
            let prefill_ms = started.elapsed().as_secs_f64() * 1e3;
            let usage = Usage { prompt_tokens: job.tokens, prefill_ms, ..Usage::default() };
            out(id, JobEvent::Done { text: String::new(), results, reason: FinishReason::Complete, usage });
        }
        Ok(())
    }

    /// The picture of a latent image.
    fn decode(
        &self,
        sample: &[f32],
        [height, width]: [usize; 2],
    ) -> Result<crate::image_input::RgbImage, PipelineError> {
        let Sizes { channels, factor, scale, .. } = self.sizes;
        let latents = sample.iter().map(|value| value / factor).collect();
        let at = |source| ModelError::Tensor { place: "vae: latents".into(), source };
        let latents = Tensor::new(&self.engine, latents, &[1, channels, height, width]).map_err(at)?;
        let values = self.vae.decode(&latents)?.to_vec().map_err(at)?;
        picture::of_values(&values, ImageSize { height: height * scale, width: width * scale })
    }
}

impl Job {
    /// Asks the network at the next moment, and takes off what it tells.
    fn step(&mut self, engine: &Engine, text: &Model, unet: &Unet, channels: usize) -> Result<(), PipelineError> {
        let at = |place: &'static str| move |source: TensorError| ModelError::Tensor { place: place.into(), source };
        let states = match &self.states {
            Some(states) => states.clone(),
            None => {
                let states = encode(engine, text, &self.prompts)?;
                self.states.insert(states).clone()
            }
        };
        let shown = self.run.shown(self.at, &self.sample);
        let count = self.prompts.len();
        let dims = [count, channels, self.places[0], self.places[1]];
        let mut inputs = Inputs::default();
        inputs.insert("sample", Tensor::new(engine, shown.repeat(count), &dims).map_err(at("sample"))?);
        inputs.insert_number("timestep", self.run.moments.get(self.at).copied().unwrap_or(0.0));
        inputs.insert("encoder_hidden_states", states);
        let told = output(unet.answer(&inputs)?, "sample")?.to_vec().map_err(at("sample"))?;
        let told = match told.split_at_checked(shown.len()) {
            // Away from what it is not to show, or from what it shows without words.
            Some((without, with)) if count > 1 => {
                let both = without.iter().zip(with);
                both.map(|(without, with)| without + self.guidance * (with - without)).collect()
            }
            _ => told,
        };
        self.sample = self.run.step(self.at, &told, &self.sample)?;
        if self.sample.len() != shown.len() || self.sample.iter().any(|value| !value.is_finite()) {
            return Err(PipelineError::NotNumbers { output: format!("the picture after step {}", self.at + 1) });
        }
        self.at += 1;
        Ok(())
    }
}

/// What the text encoder makes of prompts of one length: `[prompts, tokens, hidden]`.
fn encode(engine: &Engine, text: &Model, prompts: &[Vec<i64>]) -> Result<Tensor, PipelineError> {
    let dims = [prompts.len(), prompts.first().map_or(0, Vec::len)];
    let ids = Tensor::whole(engine, prompts.concat(), &dims);
    let mut inputs = Inputs::default();
    inputs.insert("input_ids", ids.map_err(|source| ModelError::Tensor { place: "input_ids".into(), source })?);
    output(text.forward(&inputs)?, "last_hidden_state")
}

fn output(outputs: Vec<(String, Tensor)>, name: &str) -> Result<Tensor, PipelineError> {
    let found = outputs.into_iter().find(|(found, _)| found == name);
    Ok(found.ok_or_else(|| ModelError::MissingInput { name: name.to_owned() })?.1)
}

impl Pipeline for PaintingPipeline {
    fn arithmetic(&self) -> Arithmetic {
        crate::pipeline::arithmetic()
    }

    fn memory_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn admit(&mut self, spec: &JobSpec) -> Result<Cost, JobError> {
        if !TASKS.contains(&spec.task) {
            return Err(crate::task::wrong_task(spec.task, TASKS));
        }
        if self.jobs.contains_key(&spec.id) {
            return Err(JobError::new(ErrorCode::InvalidRequest, format!("the job {} is here already", spec.id)));
        }
        let job = self.take_on(spec)?;
        let cost = Cost { prompt_tokens: job.tokens, memory_bytes: job.bytes };
        self.jobs.insert(spec.id, job);
        Ok(cost)
    }

    fn step(&mut self, plan: &StepPlan, out: &mut dyn FnMut(JobId, JobEvent)) {
        for &(id, _) in &plan.work {
            if let Err(error) = self.work(id, out) {
                self.jobs.remove(&id);
                out(id, JobEvent::Failed { error: error.into() });
            }
        }
    }

    fn evict(&mut self, job: JobId) {
        self.jobs.remove(&job);
    }
}
