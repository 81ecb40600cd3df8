//! Sequence to sequence: an encoder reads what is given, and a decoder writes the answer.
//!
//! Answers are those of `transformers.pipeline` with its defaults, for summaries and translations
//! (`pipelines/text2text_generation.py`): mostly the best of several beams. Which beam that is shows only at the end of
//! the search, so all tokens of such an answer come at the end; without beams they come one by one. Who asks for a
//! temperature gets draws without beams, and who asks for fewer tokens than the model's files say gets fewer; the files'
//! own bound holds for who asks for more.
//!
//! A job that another peer began goes on here with the very next token. Without beams its earlier tokens are read in.
//! With beams the search is made again, for it depends on more than the answer so far; should it end elsewhere, as with
//! another arithmetic it may, it is made once more among answers that begin with what was said.

mod beams;
mod rules;
mod settings;

use std::collections::BTreeMap;
use std::time::Instant;

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::cache::State;
use accel_models::family::encoder_decoder::EncoderDecoder;
use accel_models::model::Inputs;
use accel_protocol::{
    Arithmetic, ErrorCode, FinishReason, Generation, Input, JobError, JobEvent, JobId, JobSpec, Task, TokenLogprob,
    Usage,
};

use crate::error::PipelineError;
use crate::pipeline::{Cost, LoadOptions, Pipeline, StepPlan};
use crate::sampling::{self, NotNumbers};
use crate::text::answer::Answer;
use crate::tokenizer::Tokenizer;
use beams::{Beams, Limits, Logprob, Next};
use settings::{Custom, Settings};

/// The tasks of models that read texts.
const TASKS: [Task; 2] = [Task::Summarization, Task::Translation];

/// An encoder with a decoder that works on jobs.
pub struct SequencePipeline {
    engine: Engine,
    model: EncoderDecoder,
    tokenizer: Tokenizer,
    settings: Vec<(Task, Settings)>,
    weight_bytes: u64,
    state_bytes_max: Option<u64>,
    /// The most tokens that are read, and that are written.
    contexts: [usize; 2],
    jobs: BTreeMap<JobId, Job>,
}

/// How a model's answers are chosen for each task it does.
pub struct Chosen(Vec<(Task, Settings)>);

struct Job {
    generation: Generation,
    settings: Settings,
    limits: Limits,
    inputs: Inputs,
    /// Tokens that the encoder reads.
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
    /// One sequence: the token that starts it, and the answer so far.
    One { tokens: Vec<u32>, state: State },
    /// Several, perhaps in a search that is made again.
    Beams { beams: Beams, state: State, again: bool },
}

impl Chosen {
    /// Reads a model's files.
    ///
    /// # Errors
    ///
    /// When they are damaged, or have settings that are not supported.
    pub fn read(files: &dyn ModelFiles, vocabulary: usize) -> Result<Self, PipelineError> {
        let of = |task: Task| {
            let custom = Custom { task: task.name(), beams: 4 };
            Ok((task, Settings::read(files, custom, vocabulary)?))
        };
        TASKS.into_iter().map(of).collect::<Result<_, PipelineError>>().map(Self)
    }
}

impl SequencePipeline {
    /// A pipeline without jobs.
    pub fn new(
        engine: Engine,
        model: EncoderDecoder,
        tokenizer: Tokenizer,
        chosen: Chosen,
        weight_bytes: u64,
        options: &LoadOptions,
    ) -> Self {
        let most = options.context_tokens.unwrap_or(usize::MAX);
        let contexts = model.contexts().map(|context| context.min(most));
        let state_bytes_max = options.memory_bytes.map(|bytes| bytes.saturating_sub(weight_bytes));
        let (settings, jobs) = (chosen.0, BTreeMap::new());
        Self { engine, model, tokenizer, settings, weight_bytes, state_bytes_max, contexts, jobs }
    }

    fn settings(&self, task: Task) -> Result<Settings, JobError> {
        let found = self.settings.iter().find(|(of, _)| *of == task);
        let tasks = || self.settings.iter().map(|(task, _)| *task).collect::<Vec<_>>();
        found.map(|(_, settings)| settings.clone()).ok_or_else(|| crate::task::wrong_task(task, &tasks()))
    }

    /// What the encoder reads of a job, and how many tokens that is.
    fn inputs(&self, task: Task, input: &Input, prefix: &str) -> Result<(Inputs, usize), PipelineError> {
        let Input::Text(text) = input else {
            return Err(PipelineError::input("the input", format!("expected one text for {task}")));
        };
        let tokens = self.tokenizer.encode_text(&format!("{prefix}{text}"));
        let tokens = tokens.map_err(|error| PipelineError::input("the text", error))?;
        let (found, context) = (tokens.len(), self.contexts[0]);
        if found > context {
            return Err(PipelineError::TooLong { found, context });
        }
        if found == 0 {
            return Err(PipelineError::input("the text", "expected at least one token, found none"));
        }
        let ids: Vec<i64> = tokens.into_iter().map(i64::from).collect();
        let ids = Tensor::whole(&self.engine, ids, &[1, found]);
        let ids = ids.map_err(|source| ModelError::Tensor { place: "input_ids".into(), source })?;
        let mut inputs = Inputs::default();
        inputs.insert("input_ids", ids);
        Ok((inputs, found))
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
        let vocabulary = self.model.vocabulary();
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
        let logits = job.read_on(&self.model).map_err(PipelineError::from)?;
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
        let index = tokens.len() - 1;
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
    /// Reads what is not read yet: the input and the token that starts the answer, or the last token of each sequence.
    /// Answers the logits of what follows each: `[vocabulary]`.
    fn read_on(&mut self, model: &EncoderDecoder) -> Result<Vec<Vec<f32>>, ModelError> {
        let vocabulary = model.vocabulary().max(1);
        let rows = |logits: &Tensor| {
            let rows = logits.read(|all| all.chunks_exact(vocabulary).map(<[f32]>::to_vec).collect::<Vec<_>>());
            rows.map_err(|source| ModelError::Tensor { place: "logits".into(), source })
        };
        match &mut self.search {
            Search::Waiting { forced } => {
                let (begun, start) = (model.begin(&self.inputs)?, vec![self.settings.start]);
                let (mut state, mut logits) = (begun.state, rows(&begun.logits)?);
                self.search = if self.beams == 1 {
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
        } else if self.answer.tokens() + 1 >= self.limits.max_length {
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
        let (mut inputs, read) = self.inputs(spec.task, &spec.input, &settings.prefix)?;
        inputs.insert_number("decoder_start_token_id", settings.start.into());
        let max_length = settings.max_length.min(generation.max_tokens as usize + 1);
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
        let positions = read.saturating_add(max_length.max(spec.prior.len() + 1).saturating_mul(copies));
        let state_bytes = self.model.position_bytes().saturating_mul(positions as u64);
        self.reserve(state_bytes)?;
        let mut answer = Answer::new(&[], &generation.stop);
        for &id in &spec.prior {
            // What came of these tokens has been said.
            let _said = answer.push(&self.tokenizer, id).map_err(undecodable)?;
        }
        let mut job = Job {
            generation,
            settings,
            limits,
            inputs,
            read: read as u32,
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
        self.jobs.insert(spec.id, job);
        Ok(Cost { prompt_tokens: read as u32, memory_bytes: state_bytes })
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
