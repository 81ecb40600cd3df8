//! Text generation: several jobs at once, each with its own keys and values.
//!
//! A job is a prompt, the answer so far, and how much of both has been read. Everything it emits is a function of the
//! job and of the model's arithmetic, so a job that another peer began goes on here with the very next token: its earlier
//! tokens are read like a longer prompt, and run through the text and stop logic without being said again.
//!
//! Tokens are those of `transformers.pipeline("text-generation", do_sample=False)`: the rules of the model's
//! `generation_config.json` hold (penalties, n-grams, what is suppressed or forced, the least length). Draws and lengths
//! are for whoever asks, as with any server of chats: without a temperature the likeliest token is taken, whatever the
//! files say, and an answer has as many tokens as were asked for. Text is what the tokens say; no space is taken away.
//!
//! Where stages elsewhere work out some of the layers, the jobs go through the model in several flights, one in each
//! place, and the chunks of a prompt one behind the other. What a stage kept of a job it may lose; all jobs are then read
//! again from their beginnings, and go on with the very next token.

mod flights;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_backends::files::ModelFiles;
use accel_backends::tensor::Engine;
use accel_models::ModelError;
use accel_models::cache::{Row, State};
use accel_models::family::decoder::Decoder;
use accel_models::usage::ExpertUsage;
use accel_protocol::{
    Arithmetic, ErrorCode, FinishReason, Generation, Input, JobError, JobEvent, JobId, JobSpec, Task, Usage,
};

use crate::admission::{self, KEPT};
use crate::error::PipelineError;
use crate::generation::answer::Answer;
use crate::generation::rules::Rules;
use crate::generation::sampling::{self, NotNumbers};
use crate::generation::settings::{Custom, Settings, unsupported};
use crate::pipeline::{Cost, LOSSES, LoadOptions, Pipeline, StepPlan};
use crate::tokenizer::Tokenizer;
use flights::{Flight, Flights, Landing};

/// A decoder that works on jobs.
pub struct TextPipeline {
    engine: Engine,
    decoder: Decoder,
    tokenizer: Tokenizer,
    settings: Settings,
    state: State,
    weight_bytes: u64,
    state_bytes_max: Option<u64>,
    context: usize,
    jobs: BTreeMap<JobId, Job>,
    flights: Flights,
    /// Times that a stage lost what it kept since the last token.
    losses: usize,
}

/// Chunks of a prompt that are under way at most: enough for each place to have one to work on, and one to go on with.
const CHUNKS: usize = 4;
/// How long a step waits for what is under way; then the caller may look after other things.
const WAIT: Duration = Duration::from_millis(10);

struct Job {
    slot: usize,
    generation: Generation,
    rules: Rules,
    /// The prompt, then the answer.
    tokens: Vec<u32>,
    prompt: usize,
    /// Tokens whose keys and values are kept, or will be when what is under way has arrived.
    read: usize,
    /// Flights that it is on.
    flights: usize,
    /// Nobody wants it any more, but it is on flights, and its slot is not free.
    left: bool,
    answer: Answer,
    state_bytes: u64,
    started: Option<Instant>,
    answering: Option<Instant>,
    /// The job has nothing left to do but say so.
    ended: Option<FinishReason>,
}

impl TextPipeline {
    /// A pipeline without jobs.
    ///
    /// # Errors
    ///
    /// When the model's files are damaged, or have settings that are not supported.
    pub fn new(
        (engine, files): (Engine, &dyn ModelFiles),
        decoder: Decoder,
        tokenizer: Tokenizer,
        weight_bytes: u64,
        options: &LoadOptions,
    ) -> Result<Self, PipelineError> {
        let custom = Custom { task: Task::TextGeneration.name(), beams: 1, within: false, transcribes: false };
        let settings = Settings::read(files, custom, decoder.vocabulary())?;
        if settings.beams > 1 {
            return Err(unsupported("num_beams", &settings.beams.into()));
        }
        let context = options.context_tokens.unwrap_or(usize::MAX).min(decoder.context());
        let state_bytes_max = options.memory_bytes.map(|bytes| bytes.saturating_sub(weight_bytes));
        let (state, jobs, flights) = (decoder.state(), BTreeMap::new(), Flights::new(&decoder)?);
        Ok(Self {
            engine,
            decoder,
            tokenizer,
            settings,
            state,
            weight_bytes,
            state_bytes_max,
            context,
            jobs,
            flights,
            losses: 0,
        })
    }

    /// The tokens of a job's input.
    fn prompt(&self, input: &Input) -> Result<Vec<u32>, JobError> {
        let invalid = |reason: String| JobError::new(ErrorCode::InvalidRequest, reason);
        let prompt = match input {
            Input::Text(text) => self.tokenizer.encode_text(&format!("{}{text}", self.settings.prefix)),
            Input::Chat(messages) => {
                let no_template = "the model has no chat template; send the prompt as plain text instead (--raw)";
                let template = self.tokenizer.chat().ok_or_else(|| invalid(no_template.into()))?;
                let text = template.render(messages).map_err(|e| invalid(format!("the model's chat template: {e}")))?;
                self.tokenizer.encode_prompt(&text)
            }
            Input::Blob(_) => Err("an input by CID has to be fetched before the job is admitted".into()),
            _ => Err("expected one text or a conversation for text-generation".into()),
        };
        let prompt = prompt.map_err(invalid)?;
        if prompt.is_empty() {
            return Err(invalid("the prompt has no tokens; send at least one".into()));
        }
        Ok(prompt)
    }

    /// The most positions that a job will take, if the context holds its prompt.
    fn positions(&self, prompt: usize, spec: &JobSpec) -> Result<usize, JobError> {
        let context = self.context;
        if prompt > context || prompt + spec.prior.len() > context + 1 {
            let words = format!(
                "the prompt takes {prompt} tokens and the answer so far {}, but the model's context has {context}; \
                 shorten the prompt",
                spec.prior.len()
            );
            return Err(JobError::new(ErrorCode::ContextLength, words));
        }
        Ok(context.min(prompt + (spec.generation.max_tokens as usize).max(spec.prior.len())))
    }

    /// Begins the planned jobs, and gathers what each reads.
    fn gather(&mut self, plan: &StepPlan, out: &mut dyn FnMut(JobId, JobEvent)) -> Vec<(JobId, Row)> {
        let arithmetic = self.arithmetic();
        let mut work: Vec<(JobId, Row)> = Vec::new();
        for &(id, budget) in &plan.work {
            let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.left) else { continue };
            if budget == 0 || work.iter().any(|(other, _)| *other == id) {
                continue;
            }
            if job.started.is_none() {
                job.started = Some(Instant::now());
                let prompt_tokens = job.prompt as u32;
                out(id, JobEvent::Started { prompt_tokens, arithmetic: arithmetic.clone() });
            }
            if let Some(reason) = job.ended {
                self.end(id, reason, out);
                continue;
            }
            if !job.may_read() {
                continue;
            }
            let len = budget.min(job.tokens.len() - job.read);
            work.push((id, Row { len, past: job.read, slot: job.slot, horizon: job.prompt }));
        }
        work
    }

    /// Sends the work on its way, in as many flights as can be worked on at the same time. Whether there was any.
    fn begin(&mut self, work: &[(JobId, Row)], out: &mut dyn FnMut(JobId, JobEvent)) -> bool {
        let jobs = self.jobs.values().filter(|job| !job.left).count();
        for work in work.chunks(jobs.div_ceil(self.flights.places()).max(1)) {
            let (mut ids, mut wanted, mut whole) = (Vec::new(), Vec::new(), Vec::new());
            for &(id, row) in work {
                let Some(job) = self.jobs.get_mut(&id) else { continue };
                ids.extend_from_slice(&job.tokens[row.past..row.past + row.len]);
                (job.read, job.flights) = (row.past + row.len, job.flights + 1);
                if job.read == job.tokens.len() {
                    wanted.push(ids.len() - 1);
                    whole.push(id);
                }
            }
            let flight = Flight::new(work.to_vec(), wanted, whole);
            let landing = match self.decoder.embed_ids(&self.engine, &ids, &flight.rows()) {
                Ok(x) => self.flights.carry_on(&self.decoder, &mut self.state, flight, x),
                Err(error) => Landing::Failed(flight, error),
            };
            self.report_reading(work, out);
            self.land(landing, out);
        }
        !work.is_empty()
    }

    /// Carries on what came back from stages within a time.
    fn go_on(&mut self, within: Duration, out: &mut dyn FnMut(JobId, JobEvent)) -> bool {
        let Some((flight, made)) = self.flights.arrived(within) else { return false };
        let landing = match made {
            Ok(x) => self.flights.carry_on(&self.decoder, &mut self.state, flight, x),
            Err(error) => Landing::Failed(flight, error),
        };
        self.land(landing, out);
        true
    }

    /// Goes by what became of a flight.
    fn land(&mut self, landing: Landing, out: &mut dyn FnMut(JobId, JobEvent)) {
        let (flight, logits) = match landing {
            Landing::Under => return,
            Landing::Through(flight, logits) => (flight, Ok(logits)),
            Landing::Failed(_, ModelError::Lost { .. }) if self.losses < LOSSES => return self.read_again(),
            Landing::Failed(flight, error) => (flight, Err(error)),
        };
        for (id, _) in &flight.work {
            let Some(job) = self.jobs.get_mut(id) else { continue };
            job.flights = job.flights.saturating_sub(1);
            if job.left {
                self.evict(*id);
            }
        }
        let vocabulary = self.decoder.vocabulary();
        let rows = logits.and_then(|logits| {
            let rows = |all: &[f32]| all.chunks_exact(vocabulary).map(<[f32]>::to_vec).collect::<Vec<_>>();
            let read = logits.map_or_else(|| Ok(Vec::new()), |logits| logits.read(rows));
            read.map_err(|source| ModelError::Tensor { place: "logits".into(), source })
        });
        match rows {
            Ok(rows) => {
                for (id, logits) in flight.whole.into_iter().zip(rows) {
                    self.losses = 0;
                    if let Err(error) = self.produce(id, logits, out) {
                        self.fail(id, error, out);
                    }
                }
            }
            Err(error) => {
                let error = JobError::new(ErrorCode::Internal, error);
                for (id, _) in flight.work {
                    self.fail(id, error.clone(), out);
                }
            }
        }
    }

    /// Reads all jobs from their beginnings.
    fn read_again(&mut self) {
        self.losses += 1;
        self.flights.clear();
        for job in self.jobs.values_mut() {
            (job.read, job.flights) = (0, 0);
        }
        let left: Vec<JobId> = self.jobs.iter().filter(|(_, job)| job.left).map(|(id, _)| *id).collect();
        left.into_iter().for_each(|id| self.evict(id));
    }

    /// Says how far the jobs are that have not read all they have.
    fn report_reading(&self, work: &[(JobId, Row)], out: &mut dyn FnMut(JobId, JobEvent)) {
        for (id, _) in work {
            let Some(job) = self.jobs.get(id).filter(|job| job.read < job.tokens.len()) else { continue };
            let (done_tokens, total_tokens) = (job.read as u32, job.tokens.len() as u32);
            out(*id, JobEvent::Reading { done_tokens, total_tokens });
        }
    }

    /// Chooses a job's next token and says what follows from it.
    fn produce(&mut self, id: JobId, logits: Vec<f32>, out: &mut dyn FnMut(JobId, JobEvent)) -> Result<(), JobError> {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.left) else { return Ok(()) };
        let index = job.answer.tokens();
        let ends = if job.generation.ignore_eos { &[] } else { self.tokenizer.ends() };
        let length_max = job.prompt.saturating_add(job.generation.max_tokens as usize);
        let masked = |scores: &mut [f32]| job.rules.apply(&job.tokens, scores, ends, length_max);
        let choice = sampling::choose(logits, &job.tokens, index, &job.generation, masked)
            .map_err(|error: NotNumbers| JobError::new(ErrorCode::ModelInvalid, error))?;
        job.answering.get_or_insert_with(Instant::now);
        if ends.contains(&choice.id) {
            self.end(id, FinishReason::EndOfText, out);
            return Ok(());
        }
        let internal = |reason: String| JobError::new(ErrorCode::Internal, format!("tokenizer: {reason}"));
        let text = job.answer.push(&self.tokenizer, choice.id).map_err(internal)?;
        let logprob = choice.logprob.map(|(logprob, top)| accel_protocol::TokenLogprob {
            logprob,
            top: top.into_iter().map(|(id, logprob)| (id, self.tokenizer.token_text(id), logprob)).collect(),
        });
        job.tokens.push(choice.id);
        out(id, JobEvent::Token { index: index as u32, id: choice.id, text, logprob });
        if let Some(reason) = job.finished(self.context) {
            self.end(id, reason, out);
        }
        Ok(())
    }

    /// Says the last words of a job and forgets it.
    fn end(&mut self, id: JobId, reason: FinishReason, out: &mut dyn FnMut(JobId, JobEvent)) {
        let Some(mut job) = self.jobs.remove(&id) else { return };
        self.state.clear(job.slot);
        let milliseconds = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.duration_since(from).as_secs_f64() * 1e3,
            _ => 0.0,
        };
        let now = Some(Instant::now());
        let usage = Usage {
            prompt_tokens: job.prompt as u32,
            completion_tokens: job.answer.tokens() as u32,
            prefill_ms: milliseconds(job.started, job.answering.or(now)),
            decode_ms: milliseconds(job.answering, now),
        };
        let event = match job.answer.finish(&self.tokenizer) {
            Ok((text, stopped)) => {
                let reason = if stopped { FinishReason::Stop } else { reason };
                JobEvent::Done { text, results: Vec::new(), reason, usage }
            }
            Err(reason) => {
                JobEvent::Failed { error: JobError::new(ErrorCode::Internal, format!("tokenizer: {reason}")) }
            }
        };
        out(id, event);
    }

    fn fail(&mut self, id: JobId, error: JobError, out: &mut dyn FnMut(JobId, JobEvent)) {
        if self.jobs.get(&id).is_some_and(|job| !job.left) {
            self.evict(id);
            out(id, JobEvent::Failed { error });
        }
    }
}

impl Job {
    /// Whether there is something to read that waits for nothing.
    fn may_read(&self) -> bool {
        self.read < self.tokens.len() && self.flights < CHUNKS
    }

    /// Why the answer ends with its last token, if it does.
    fn finished(&self, context: usize) -> Option<FinishReason> {
        if self.answer.stopped() {
            Some(FinishReason::Stop)
        } else if self.answer.tokens() >= self.generation.max_tokens as usize || self.tokens.len() > context {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}

impl Pipeline for TextPipeline {
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic(self.engine.arithmetic().to_owned())
    }

    fn memory_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn admit(&mut self, spec: &JobSpec) -> Result<Cost, JobError> {
        admission::check(spec, &[Task::TextGeneration], &self.jobs)?;
        admission::check_prior(spec, &self.arithmetic())?;
        let mut tokens = self.prompt(&spec.input)?;
        let prompt = tokens.len();
        let positions = self.positions(prompt, spec)?;
        let state_bytes = self.decoder.position_bytes().saturating_mul(positions as u64);
        let state_bytes = state_bytes.saturating_add(self.decoder.sequence_bytes());
        let used = self.jobs.values().map(|job| job.state_bytes).sum();
        admission::check_room(|| KEPT.to_owned(), state_bytes, used, self.state_bytes_max)?;
        let mut answer = Answer::new(&tokens, &spec.generation.stop);
        tokens.extend_from_slice(&spec.prior);
        admission::check_tokens(&tokens, self.decoder.vocabulary())?;
        for &id in &spec.prior {
            // What came of these tokens has been said.
            let _said = answer
                .push(&self.tokenizer, id)
                .map_err(|reason| JobError::new(ErrorCode::Internal, format!("tokenizer: {reason}")))?;
        }
        let taken: Vec<usize> = self.jobs.values().map(|job| job.slot).collect();
        let slot = (0..=taken.len()).find(|slot| !taken.contains(slot)).unwrap_or(taken.len());
        self.state.clear(slot);
        let generation = self.settings.obeying(&spec.generation);
        let mut rules = self.settings.rules.clone().after(prompt, self.settings.min_length.after(prompt));
        rules.repetition_penalty = generation.repetition_penalty;
        let mut job = Job {
            slot,
            generation,
            rules,
            tokens,
            prompt,
            read: 0,
            flights: 0,
            left: false,
            answer,
            state_bytes,
            started: None,
            answering: None,
            ended: None,
        };
        job.ended = job.finished(self.context);
        self.jobs.insert(spec.id, job);
        Ok(Cost { prompt_tokens: prompt as u32, memory_bytes: state_bytes })
    }

    fn step(&mut self, plan: &StepPlan, out: &mut dyn FnMut(JobId, JobEvent)) {
        let mut busy = false;
        // What others wait for goes first.
        while self.go_on(Duration::ZERO, out) {
            busy = true;
        }
        let work = self.gather(plan, out);
        busy |= self.begin(&work, out);
        if !busy && !self.flights.is_empty() {
            self.go_on(WAIT, out);
        }
    }

    fn evict(&mut self, job: JobId) {
        match self.jobs.get_mut(&job) {
            Some(job) if job.flights > 0 => job.left = true,
            Some(_) => {
                if let Some(job) = self.jobs.remove(&job) {
                    self.state.clear(job.slot);
                }
            }
            None => {}
        }
    }

    fn expert_usage(&self) -> Option<Arc<ExpertUsage>> {
        self.decoder.stack().expert_usage().cloned()
    }
}
