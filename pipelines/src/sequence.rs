//! Models that read what is given whole, and then write the answer: an encoder with a decoder, what writes about a
//! picture, and what reads pictures among its tokens. [`Reader`] says what each is given.
//!
//! Answers are those of `transformers.pipeline` with its defaults (`pipelines/text2text_generation.py`,
//! `image_to_text.py` and `image_text_to_text.py`): for summaries and translations mostly the best of several beams. Which beam that is shows only at the end of
//! the search, so all tokens of such an answer come at the end; without beams they come one by one. Who asks for a
//! temperature gets draws without beams, and who asks for fewer tokens than the model's files say gets fewer; the files'
//! own bound holds for who asks for more.
//!
//! A job that another peer began goes on here with the very next token. Without beams its earlier tokens are read in.
//! With beams the search is made again, for it depends on more than the answer so far; should it end elsewhere, as with
//! another arithmetic it may, it is made once more among answers that begin with what was said.

mod beams;
mod reader;
mod rules;
mod settings;

use std::collections::BTreeMap;
use std::time::Instant;

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::cache::State;
use accel_models::model::{Extent, Inputs, Model};
use accel_protocol::{
    Arithmetic, ErrorCode, FinishReason, Generation, JobError, JobEvent, JobId, JobSpec, Task, TokenLogprob, Usage,
};

use crate::error::PipelineError;
use crate::pipeline::{Cost, LoadOptions, Pipeline, StepPlan};
use crate::sampling::{self, NotNumbers};
use crate::text::answer::Answer;
use crate::tokenizer::Tokenizer;
use beams::{Beams, Limits, Logprob, Next};
pub use reader::Reader;
use reader::Reading;
use settings::{Custom, Settings};

/// A model that reads its input whole and then writes, and that works on jobs.
pub struct SequencePipeline {
    engine: Engine,
    model: Model,
    tokenizer: Tokenizer,
    chosen: Chosen,
    extent: Extent,
    weight_bytes: u64,
    state_bytes_max: Option<u64>,
    /// The most tokens that are read, and that are written.
    contexts: [usize; 2],
    jobs: BTreeMap<JobId, Job>,
}

/// What a model reads, and how its answers are chosen for each task it does.
struct Chosen {
    reader: Reader,
    settings: Vec<(Task, Settings)>,
}

struct Job {
    generation: Generation,
    settings: Settings,
    limits: Limits,
    inputs: Inputs,
    /// What the sequence begins with.
    begin: Vec<u32>,
    /// Tokens of the input.
    read: u32,
    /// Tokens that another peer has said.
    prior: Vec<u32>,
    /// How many beams; 1 for none.
    beams: usize,
    search: Search,
    answer: Answer,
    state_bytes: u64,
    started: Option<Instant>,
    answering: Option<Instant>,
    /// The job has nothing left to do but say so.
    ended: Option<FinishReason>,
}

/// Where an answer stands.
enum Search {
    /// Nothing is read yet; a search is to begin with tokens that were said.
    Waiting { forced: Vec<u32> },
    /// One sequence: what it begins with, and the answer so far.
    One { tokens: Vec<u32>, state: State },
    /// Several, perhaps in a search that is made again.
    Beams { beams: Beams, state: State, again: bool },
}

impl Chosen {
    /// Reads a model's files.
    fn read(files: &dyn ModelFiles, reader: Reader, tasks: &[Task], vocabulary: usize) -> Result<Self, PipelineError> {
        let of = |&task: &Task| {
            let beams = if matches!(task, Task::Summarization | Task::Translation) { 4 } else { 1 };
            let custom = Custom { task: task.name(), beams, within: reader.writes_within() };
            let mut settings = Settings::read(files, custom, vocabulary)?;
            reader.settle(&mut settings);
            Ok((task, settings))
        };
        let settings = tasks.iter().map(of).collect::<Result<_, PipelineError>>()?;
        Ok(Self { reader, settings })
    }
}

impl SequencePipeline {
    /// A pipeline without jobs.
    ///
    /// # Errors
    ///
    /// When the model's files are damaged, or have settings that are not supported, or it does not write.
    pub fn new(
        (engine, files): (Engine, &dyn ModelFiles),
        model: Model,
        tokenizer: Tokenizer,
        (reader, tasks): (Reader, &[Task]),
        weight_bytes: u64,
        options: &LoadOptions,
    ) -> Result<Self, PipelineError> {
        let extent = model.extent().ok_or_else(ModelError::no_generation)?;
        let chosen = Chosen::read(files, reader, tasks, extent.vocabulary)?;
        let most = options.context_tokens.unwrap_or(usize::MAX);
        let contexts = extent.contexts.map(|context| context.min(most));
        let state_bytes_max = options.memory_bytes.map(|bytes| bytes.saturating_sub(weight_bytes));
        let jobs = BTreeMap::new();
        Ok(Self { engine, model, tokenizer, chosen, extent, weight_bytes, state_bytes_max, contexts, jobs })
    }

    fn settings(&self, task: Task) -> Result<Settings, JobError> {
        let settings = &self.chosen.settings;
        let found = settings.iter().find(|(of, _)| *of == task);
        let tasks = || settings.iter().map(|(task, _)| *task).collect::<Vec<_>>();
        found.map(|(_, settings)| settings.clone()).ok_or_else(|| crate::task::wrong_task(task, &tasks()))
    }

    fn check_prior(&self, spec: &JobSpec) -> Result<(), JobError> {
        match &spec.arithmetic {
            Some(asked) if !spec.prior.is_empty() && *asked != self.arithmetic() => {
                let words =
                    format!("the answer was begun by {}, and this peer computes {}", asked.0, self.arithmetic().0);
                return Err(JobError::new(ErrorCode::Unsupported, words));
            }
            _ => {}
        }
        let vocabulary = self.extent.vocabulary;
        match spec.prior.iter().find(|&&id| id as usize >= vocabulary) {
            None => Ok(()),
            Some(id) => {
                let words = format!("the token {id} is outside the model's vocabulary of {vocabulary}");
                Err(JobError::new(ErrorCode::ModelInvalid, words))
            }
        }
    }

    fn reserve(&self, state_bytes: u64) -> Result<(), JobError> {
        let used: u64 = self.jobs.values().map(|job| job.state_bytes).sum();
        match self.state_bytes_max {
            Some(allowed) if used.saturating_add(state_bytes) > allowed => {
                let words = format!(
                    "the job's keys and values take up to {state_bytes} bytes, but {} of {allowed} are left; \
                     ask for fewer tokens or try later",
                    allowed.saturating_sub(used)
                );
                Err(JobError::new(ErrorCode::OutOfResources, words))
            }
            _ => Ok(()),
        }
    }

    /// Carries a job on by one token.
    fn work(&mut self, id: JobId, out: &mut dyn FnMut(JobId, JobEvent)) -> Result<(), JobError> {
        let arithmetic = self.arithmetic();
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        if job.started.is_none() {
            job.started = Some(Instant::now());
            out(id, JobEvent::Started { prompt_tokens: job.read, arithmetic });
        }
        if let Some(reason) = job.ended {
            self.end(id, reason, out);
            return Ok(());
        }
        let logits = job.read_on(&self.model, self.extent.vocabulary).map_err(PipelineError::from)?;
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        if matches!(job.search, Search::Beams { .. }) {
            self.search(id, logits, out)
        } else {
            self.produce(id, logits, out)
        }
    }

    /// Chooses the next token of a job without beams.
    fn produce(
        &mut self,
        id: JobId,
        mut logits: Vec<Vec<f32>>,
        out: &mut dyn FnMut(JobId, JobEvent),
    ) -> Result<(), JobError> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let Search::One { tokens, .. } = &mut job.search else { return Ok(()) };
        let index = tokens.len() - job.begin.len();
        if let Some(&said) = job.prior.get(index) {
            tokens.push(said);
            let (done_tokens, total_tokens) = (index as u32 + 1, job.prior.len() as u32);
            out(id, JobEvent::Reading { done_tokens, total_tokens });
            return Ok(());
        }
        let logits = logits.pop().unwrap_or_default();
        let (rules, limits) = (&job.settings.rules, &job.limits);
        let masked = |scores: &mut [f32]| rules.apply(tokens, scores, &limits.ends, limits.max_length);
        let choice = sampling::choose_under(logits, tokens, index, &job.generation, masked).map_err(not_numbers)?;
        job.answering.get_or_insert_with(Instant::now);
        if job.limits.ends.contains(&choice.id) {
            self.end(id, FinishReason::EndOfText, out);
            return Ok(());
        }
        tokens.push(choice.id);
        job.say(id, &self.tokenizer, choice.id, choice.logprob, out)?;
        if let Some(reason) = job.finished() {
            self.end(id, reason, out);
        }
        Ok(())
    }

    /// Carries a job's beams on; when the search has ended, says the answer.
    fn search(
        &mut self,
        id: JobId,
        logits: Vec<Vec<f32>>,
        out: &mut dyn FnMut(JobId, JobEvent),
    ) -> Result<(), JobError> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let Search::Beams { beams, state, again } = &mut job.search else { return Ok(()) };
        let next = beams.advance(logits.into_iter(), &job.settings.rules, &job.limits).map_err(not_numbers)?;
        if let Next::On(from) = next {
            state.reorder(&from);
            // The best answer shows only at the end; until then, this says that somebody is at work.
            let (done, total) = (beams.length() as u32, job.limits.max_length as u32);
            out(id, JobEvent::Working { done, total });
            return Ok(());
        }
        let mut answer = beams.answer();
        let said = answer.iter().map(|(token, _)| token);
        if !*again && !job.prior.iter().eq(said.take(job.prior.len())) {
            job.search = Search::Waiting { forced: job.prior.clone() };
            return Ok(());
        }
        let reason = match answer.last() {
            Some((last, _)) if job.limits.ends.contains(last) => {
                answer.pop();
                FinishReason::EndOfText
            }
            _ => FinishReason::Length,
        };
        job.answering.get_or_insert_with(Instant::now);
        for (token, logprob) in answer.into_iter().skip(job.prior.len()) {
            if job.answer.stopped() {
                break;
            }
            job.say(id, &self.tokenizer, token, logprob, out)?;
        }
        self.end(id, reason, out);
        Ok(())
    }

    /// Says the last words of a job and forgets it.
    fn end(&mut self, id: JobId, reason: FinishReason, out: &mut dyn FnMut(JobId, JobEvent)) {
        let Some(mut job) = self.jobs.remove(&id) else { return };
        let milliseconds = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.duration_since(from).as_secs_f64() * 1e3,
            _ => 0.0,
        };
        let now = Some(Instant::now());
        let usage = Usage {
            prompt_tokens: job.read,
            completion_tokens: job.answer.tokens() as u32,
            prefill_ms: milliseconds(job.started, job.answering.or(now)),
            decode_ms: milliseconds(job.answering, now),
        };
        let event = match job.answer.finish(&self.tokenizer) {
            Ok((text, stopped)) => {
                let reason = if stopped { FinishReason::Stop } else { reason };
                JobEvent::Done { text, results: Vec::new(), reason, usage }
            }
            Err(reason) => JobEvent::Failed { error: undecodable(reason) },
        };
        out(id, event);
    }
}

impl Job {
    /// Reads what is not read yet: the input and what the sequence begins with, or the last token of each sequence.
    /// Answers the logits of what follows each: `[vocabulary]`.
    fn read_on(&mut self, model: &Model, vocabulary: usize) -> Result<Vec<Vec<f32>>, ModelError> {
        let rows = |logits: &Tensor| {
            let rows = logits.read(|all| all.chunks_exact(vocabulary.max(1)).map(<[f32]>::to_vec).collect::<Vec<_>>());
            rows.map_err(|source| ModelError::Tensor { place: "logits".into(), source })
        };
        match &mut self.search {
            Search::Waiting { forced } => {
                let (begun, start) = (model.begin(&self.inputs)?, self.begin.clone());
                let (mut state, mut logits) = (begun.state, rows(&begun.logits)?);
                self.search = if self.beams == 1 {
                    // It is read once, and a picture is large.
                    self.inputs = Inputs::default();
                    Search::One { tokens: start, state }
                } else {
                    // All beams are alike at first.
                    state.reorder(&vec![0; self.beams]);
                    logits = logits.iter().cycle().take(self.beams).cloned().collect();
                    let again = !forced.is_empty();
                    Search::Beams { beams: Beams::new(self.beams, &start, std::mem::take(forced)), state, again }
                };
                Ok(logits)
            }
            Search::One { tokens, state } => {
                let last = tokens.last().map_or(0, |&token| token.into());
                rows(&model.next(&[last], state)?)
            }
            Search::Beams { beams, state, .. } => rows(&model.next(&beams.last(), state)?),
        }
    }

    /// Says one more token.
    fn say(
        &mut self,
        id: JobId,
        tokenizer: &Tokenizer,
        token: u32,
        logprob: Option<Logprob>,
        out: &mut dyn FnMut(JobId, JobEvent),
    ) -> Result<(), JobError> {
        let index = self.answer.tokens() as u32;
        let text = self.answer.push(tokenizer, token).map_err(undecodable)?;
        let logprob = logprob.map(|(logprob, top)| TokenLogprob {
            logprob,
            top: top.into_iter().map(|(id, logprob)| (id, tokenizer.token_text(id), logprob)).collect(),
        });
        out(id, JobEvent::Token { index, id: token, text, logprob });
        Ok(())
    }

    /// Why the answer ends with its last token, if it does.
    fn finished(&self) -> Option<FinishReason> {
        if self.answer.stopped() {
            Some(FinishReason::Stop)
        } else if self.answer.tokens() + self.begin.len() >= self.limits.max_length {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}

impl Pipeline for SequencePipeline {
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic(self.engine.arithmetic().to_owned())
    }

    fn memory_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn admit(&mut self, spec: &JobSpec) -> Result<Cost, JobError> {
        spec.generation.validate()?;
        if self.jobs.contains_key(&spec.id) {
            return Err(JobError::new(ErrorCode::InvalidRequest, format!("the job {} is here already", spec.id)));
        }
        let mut settings = self.settings(spec.task)?;
        crate::task::check_options(spec.task, &spec.options)?;
        self.check_prior(spec)?;
        let mut generation = spec.generation.clone();
        let drawn = generation.temperature > 0.0;
        if settings.draws && !drawn {
            let words = "the model's files ask for draws (do_sample), which are not supported as the files have them; \
                         ask for a temperature over 0";
            return Err(JobError::new(ErrorCode::Unsupported, words));
        }
        // What a person asks for goes before what the files say.
        if generation.repetition_penalty == 1.0 {
            generation.repetition_penalty = settings.rules.repetition_penalty;
        }
        settings.rules.repetition_penalty = generation.repetition_penalty;
        let by =
            Reading { engine: &self.engine, model: &self.model, tokenizer: &self.tokenizer, context: self.contexts[0] };
        let read = self.chosen.reader.read(&by, spec.task, &spec.input, &settings)?;
        let begun = read.begin.len();
        settings.rules = settings.rules.after(begun, settings.min_length.after(begun));
        let max_length = settings.max_length.after(begun);
        if max_length <= begun {
            return Err(PipelineError::TooLong { found: begun, context: max_length.saturating_sub(1) }.into());
        }
        let max_length = max_length.min(begun.saturating_add(generation.max_tokens as usize));
        // The last token is not read.
        let max_length = max_length.min(self.contexts[1].saturating_add(1));
        let beams = if drawn { 1 } else { settings.beams };
        let limits = Limits {
            ends: if generation.ignore_eos { Vec::new() } else { settings.ends.clone() },
            max_length,
            length_penalty: settings.length_penalty,
            early_stopping: settings.early_stopping,
            logprobs: generation.logprobs.map(usize::from),
        };
        // While beams change places, some are there twice.
        let copies = if beams == 1 { 1 } else { 2 * beams };
        let positions = max_length.max(spec.prior.len() + begun).saturating_mul(copies);
        let positions = read.kept.saturating_add(positions) as u64;
        let state_bytes = self.extent.position_bytes.saturating_mul(positions);
        let state_bytes = state_bytes.saturating_add(self.extent.sequence_bytes.saturating_mul(copies as u64));
        self.reserve(state_bytes)?;
        // A token that only starts a decoder is no context of a text.
        let context = if begun > 1 { read.begin.as_slice() } else { &[] };
        let mut answer = Answer::new(context, &generation.stop);
        for &id in &spec.prior {
            // What came of these tokens has been said.
            let _said = answer.push(&self.tokenizer, id).map_err(undecodable)?;
        }
        let mut job = Job {
            generation,
            settings,
            limits,
            inputs: read.inputs,
            begin: read.begin,
            read: read.tokens as u32,
            prior: spec.prior.clone(),
            beams,
            search: Search::Waiting { forced: Vec::new() },
            answer,
            state_bytes,
            started: None,
            answering: None,
            ended: None,
        };
        job.ended = job.finished();
        let cost = Cost { prompt_tokens: job.read, memory_bytes: state_bytes };
        self.jobs.insert(spec.id, job);
        Ok(cost)
    }

    /// Each planned job goes on by one token; the first step reads all of its input, since the tokens of an encoder see
    /// each other both ways.
    fn step(&mut self, plan: &StepPlan, out: &mut dyn FnMut(JobId, JobEvent)) {
        for &(id, budget) in &plan.work {
            if budget == 0 {
                continue;
            }
            if let Err(error) = self.work(id, out) {
                self.jobs.remove(&id);
                out(id, JobEvent::Failed { error });
            }
        }
    }

    fn evict(&mut self, job: JobId) {
        self.jobs.remove(&job);
    }
}

fn not_numbers(error: NotNumbers) -> JobError {
    JobError::new(ErrorCode::ModelInvalid, error)
}

fn undecodable(reason: String) -> JobError {
    JobError::new(ErrorCode::Internal, format!("tokenizer: {reason}"))
}
