//! The seam that the node runs a model through: admit jobs, step some of them, evict them.
//!
//! Who steps when, and how many tokens each job may have, is the caller's plan; a pipeline only does as planned. It is
//! owned by one thread.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use accel_backends::files::ModelFiles;
use accel_backends::tensor::Engine;
use accel_models::ModelError;
use accel_models::arch::{self, HeadKind};
use accel_models::layers::moe::Experts;
use accel_models::model::Model;
use accel_models::share::{Parts, Share};
use accel_models::spec::Spec;
use accel_models::spec::encoder::EncoderHead;
use accel_models::spec::encoder_decoder::SourceSpec;
use accel_models::stage::Stage;
use accel_models::usage::ExpertUsage;
use accel_protocol::{Arithmetic, JobError, JobEvent, JobId, JobSpec, Task};

use crate::error::PipelineError;
use crate::painting;
use crate::sequence::{Reader, SequencePipeline, beams_of};
use crate::task::TaskPipeline;
use crate::task::image::ImageHead;
use crate::task::masks::MaskHead;
use crate::task::series::SeriesHead;
use crate::task::text::TextHead;
use crate::text::TextPipeline;
use crate::tokenizer::Tokenizer;
use crate::transcript::{TranscriptPipeline, TranscriptReader};

/// What a pipeline may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Threads that compute, the caller's included.
    pub threads: usize,
    /// The most positions of a sequence, where that is to be less than the model's own.
    pub context_tokens: Option<usize>,
    /// The most memory for weights and sequences together; none for no bound.
    pub memory_bytes: Option<u64>,
}

/// Losses of stages after which a job is given up.
pub(crate) const LOSSES: usize = 32;

/// What a job will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Memory of its sequence when it is longest.
    pub memory_bytes: u64,
}

/// Which jobs go on in a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// A job, and how many tokens it may read in this step. A job that has read all it has produces one more; jobs that
    /// are not known are passed over.
    pub work: Vec<(JobId, usize)>,
}

/// A model that works on jobs.
pub trait Pipeline: Send {
    /// The arithmetic of its results.
    fn arithmetic(&self) -> Arithmetic;

    /// Memory that its weights occupy.
    fn memory_bytes(&self) -> u64;

    /// Takes a job on; its first event comes with its first step.
    ///
    /// # Errors
    ///
    /// When the job is wrong, too long, or too large for the memory that is left.
    fn admit(&mut self, spec: &JobSpec) -> Result<Cost, JobError>;

    /// Carries the planned jobs on. A job that has ended with `Done` or `Failed` is gone.
    fn step(&mut self, plan: &StepPlan, out: &mut dyn FnMut(JobId, JobEvent));

    /// Forgets a job.
    fn evict(&mut self, job: JobId);

    /// What its routers choose, counted from its loading on; none for a model without mixtures of experts.
    fn expert_usage(&self) -> Option<Arc<ExpertUsage>> {
        None
    }
}

/// The arithmetic of every pipeline that this program can load.
pub fn arithmetic() -> Arithmetic {
    Arithmetic(accel_backends::cpu::ARITHMETIC.to_owned())
}

/// What works out the parts of a model that are not here.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    /// The parts that are here.
    pub share: Share,
    /// Who works out the experts of the layers that are here; none where they are here too.
    pub experts: Option<Arc<dyn Experts>>,
    /// Who works out which layers, counted through all stacks.
    pub stages: Vec<(Range<usize>, Arc<dyn Stage>)>,
}

/// Loads a model.
///
/// # Errors
///
/// When the files hold no model that can be run, or it needs more than `options` allow.
pub fn load(files: Arc<dyn ModelFiles>, options: &LoadOptions) -> Result<Box<dyn Pipeline>, PipelineError> {
    if painting::has_parts(&*files) {
        return painting::load(files, options);
    }
    load_parts(&open(files, options.threads)?, None, options)
}

/// Finds out what a model is and what it consists of, to load parts of it for that many threads.
///
/// # Errors
///
/// When the files hold no model that is supported.
pub fn open(files: Arc<dyn ModelFiles>, threads: usize) -> Result<Parts, PipelineError> {
    let engine = Engine::cpu(threads).map_err(PipelineError::Engine)?;
    Ok(Parts::open(files, engine)?)
}

/// What a model is, as people want to know it before they ask it.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Its class, or its architecture in a GGUF file.
    pub class: &'static str,
    /// What it can be asked.
    pub tasks: &'static [Task],
    /// Numbers in its weights.
    pub parameters: u64,
    /// How most of them are stored.
    pub dtype: &'static str,
}

/// Says what a model is.
///
/// # Errors
///
/// When the files hold no model that is supported.
pub fn summary(files: Arc<dyn ModelFiles>) -> Result<Summary, PipelineError> {
    let parts = open(files, 1)?;
    let described = parts.description();
    let mut of_type: BTreeMap<&'static str, u64> = BTreeMap::new();
    for tensor in parts.index().iter() {
        *of_type.entry(tensor.dtype.name()).or_default() += tensor.dims.iter().map(|&dim| dim as u64).product::<u64>();
    }
    let dtype = of_type.iter().max_by_key(|(_, numbers)| **numbers).map_or("", |(name, _)| *name);
    let tasks = tasks(&described.spec, described.head);
    Ok(Summary { class: described.class, tasks, parameters: of_type.values().sum(), dtype })
}

/// How many sequences a model writes at once for one answer, as its files have it: several in a search by beams.
///
/// # Errors
///
/// When a file is damaged, or has settings that are not supported.
pub fn sequences(parts: &Parts) -> Result<usize, PipelineError> {
    let described = parts.description();
    match tasks(&described.spec, described.head).first() {
        Some(&task) if task.is_generation() && task != Task::TextGeneration => {
            beams_of(&**parts.files(), &described.spec, task)
        }
        _ => Ok(1),
    }
}

/// Loads a model of which some parts may be elsewhere.
///
/// # Errors
///
/// When it is no model that can be run, or what is here of it needs more than `options` allow.
pub fn load_parts(
    parts: &Parts,
    elsewhere: Option<&Elsewhere>,
    options: &LoadOptions,
) -> Result<Box<dyn Pipeline>, PipelineError> {
    let (files, index, described) = (parts.files(), parts.index(), parts.description());
    let class = described.class;
    let tasks = tasks(&described.spec, described.head);
    if tasks.is_empty() {
        return Err(no_task(class).into());
    }
    let bytes = elsewhere.map_or_else(|| index.bytes(), |elsewhere| parts.anatomy().share_bytes(&elsewhere.share));
    if let Some(allowed_bytes) = options.memory_bytes.filter(|&allowed| allowed < bytes) {
        return Err(ModelError::OutOfMemory { needed_bytes: bytes, allowed_bytes }.into());
    }
    let engine = parts.engine().clone();
    let tokenizer = |files| Tokenizer::load(files, index.gguf());
    let spec = described.spec.clone();
    let usage = ExpertUsage::of(&spec).map(Arc::new);
    let model = |spec| {
        let loader = parts.loader(elsewhere.map(|elsewhere| &elsewhere.share));
        let mut model = Model::load(&loader, spec)?;
        if let Some(elsewhere) = elsewhere {
            elsewhere.stages.iter().try_for_each(|(range, stage)| model.set_stage(range.clone(), stage.clone()))?;
            if let Some(experts) = &elsewhere.experts {
                model.set_experts(experts);
            }
        }
        // A router is here, whoever has the experts.
        if let Some(usage) = &usage {
            model.watch_experts(usage);
        }
        loader.finish().map(|()| model)
    };
    if let [Task::ImageClassification | Task::ObjectDetection] = tasks {
        let head = ImageHead::read(&**files, engine.clone(), &spec)?;
        return Ok(Box::new(TaskPipeline::new(model(spec)?, head, bytes)));
    }
    if tasks == [Task::MaskGeneration] {
        let head = MaskHead::read(&**files, engine.clone())?;
        return Ok(Box::new(TaskPipeline::new(model(spec)?, head, bytes)));
    }
    if let Spec::TimeSeries(series) = &spec {
        let head = SeriesHead::new(series, engine.clone());
        return Ok(Box::new(TaskPipeline::new(model(spec)?, head, bytes)));
    }
    if let Spec::Speech(_) = &spec {
        let reader = TranscriptReader::read(&**files)?;
        let Model::Speech(model) = model(spec)? else { return Err(no_task(class).into()) };
        return Ok(Box::new(TranscriptPipeline::new(engine.clone(), *model, reader, bytes)));
    }
    // Files that tell how to read a text are small: what is wrong with them is said before the weights are read.
    let tokenizer = tokenizer(&**files)?;
    if tasks.iter().any(|task| task.is_generation() && *task != Task::TextGeneration) {
        let reading = (Reader::of(&**files, &spec)?, tasks);
        let (model, engine) = (model(spec)?, engine.clone());
        let pipeline = SequencePipeline::new((engine, &**files), model, tokenizer, reading, bytes, options)?;
        return Ok(Box::new(pipeline));
    }
    let model = match model(spec)? {
        Model::Decoder(decoder) if tasks == [Task::TextGeneration] => {
            return Ok(Box::new(TextPipeline::new((engine, &**files), *decoder, tokenizer, bytes, options)?));
        }
        model => model,
    };
    let context = options.context_tokens.unwrap_or(usize::MAX).min(model.context());
    let head = TextHead::read(&**files, engine, tokenizer, tasks, context)?;
    Ok(Box::new(TaskPipeline::new(model, head, bytes)))
}

/// The tasks that a class of a family is for; none for what has none yet.
pub fn tasks(spec: &Spec, head: HeadKind) -> &'static [Task] {
    let reads_text = match spec {
        Spec::Decoder(_) | Spec::Encoder(_) => true,
        Spec::EncoderDecoder(spec) => matches!(spec.source, SourceSpec::Tokens),
        _ => false,
    };
    match (spec, head) {
        (Spec::Decoder(_), HeadKind::NextToken) => &[Task::TextGeneration],
        (Spec::EncoderDecoder(_), HeadKind::NextToken) if reads_text => &[Task::Summarization, Task::Translation],
        (Spec::EncoderDecoder(_), HeadKind::NextToken) => &[Task::AutomaticSpeechRecognition],
        (Spec::Speech(_), HeadKind::Transcript) => &[Task::AutomaticSpeechRecognition],
        (Spec::Encoder(spec), HeadKind::States) if !matches!(spec.head, EncoderHead::States) => &[],
        (Spec::Decoder(_) | Spec::Encoder(_), HeadKind::States) => &[Task::FeatureExtraction, Task::Embedding],
        (_, HeadKind::SequenceLabels) if reads_text => &[Task::TextClassification],
        (_, HeadKind::TokenLabels) if reads_text => &[Task::TokenClassification],
        (_, HeadKind::Span) if reads_text => &[Task::QuestionAnswering],
        (Spec::Encoder(_), HeadKind::MaskedToken) => &[Task::FillMask],
        (Spec::TimeSeries(_), HeadKind::Forecast) => &[Task::TimeSeriesForecasting],
        (Spec::Vision(_), HeadKind::Image(arch::ImageHead::Labels)) => &[Task::ImageClassification],
        (Spec::Detection(_) | Spec::Deformable(_), HeadKind::Image(arch::ImageHead::Objects)) => {
            &[Task::ObjectDetection]
        }
        (Spec::Segmentation(_), _) => &[Task::MaskGeneration],
        (Spec::VisionLanguage(_), HeadKind::Image(arch::ImageHead::Caption)) => &[Task::ImageToText],
        (Spec::Multimodal(_), HeadKind::NextToken) => &[Task::ImageTextToText],
        _ => &[],
    }
}

fn no_task(class: &str) -> ModelError {
    let supported = Task::ALL.map(Task::name).join(", ");
    ModelError::Unsupported { what: "a task for the class".into(), found: class.into(), supported }
}
