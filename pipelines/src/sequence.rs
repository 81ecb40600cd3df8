//! Models that read what is given and then write the answer: an encoder with a decoder, what writes about a picture, what
//! reads pictures among its tokens, and what writes down what is said. [`Reader`] says what each is given.
//!
//! Answers are those of `transformers.pipeline` with its defaults (`pipelines/text2text_generation.py`,
//! `image_to_text.py`, `image_text_to_text.py` and `automatic_speech_recognition.py`): for summaries, translations and
//! sounds mostly the best of several beams. Which beam that is shows only at the end of the search, so all tokens of such
//! an answer come at the end; without beams they come one by one. Who asks for a temperature gets draws without beams, and
//! who asks for fewer tokens than the model's files say gets fewer; the files' own bound holds for who asks for more.
//!
//! A sound is heard a window at a time, each in a search of its own, and the tokens of a window are a part of the answer
//! as soon as they stand; see [`transcription`].
//!
//! A job that another peer began goes on here with the very next token. Without beams its earlier tokens are read in.
//! With beams the search is made again, for it depends on more than the answer so far; should it end elsewhere, as with
//! another arithmetic it may, it is made once more among answers that begin with what was said. A sound whose answer has
//! times is heard again from its beginning, for what was said does not tell where its windows end.

mod beams;
mod languages;
mod reader;
pub mod transcription;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::cache::State;
use accel_models::model::{Extent, Inputs, Model};
use accel_models::spec::Spec;
use accel_models::usage::ExpertUsage;
use accel_protocol::{
    Arithmetic, ErrorCode, FinishReason, Generation, JobError, JobEvent, JobId, JobSpec, Task, TokenLogprob, Usage,
};

use crate::admission::{self, KEPT};
use crate::error::PipelineError;
use crate::generation::answer::Answer;
use crate::generation::sampling::{self, NotNumbers};
use crate::generation::settings::{Custom, Settings};
use crate::pipeline::{Cost, LOSSES, LoadOptions, Pipeline, StepPlan};
use crate::tokenizer::Tokenizer;
use beams::{Beams, Limits, Logprob, Next};
pub use reader::Reader;
use reader::{Read, Reading, Source};
use transcription::Prompt;

/// A model that reads its input and then writes, and that works on jobs.
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
    source: Source,
    /// What the sequence that is written begins with.
    prompt: Prompt,
    /// Tokens of the input.
    read: u32,
    /// Tokens that another peer has said.
    prior: Vec<u32>,
    /// Whether what another peer has said is found anew, and not read in.
    replays: bool,
    /// The most tokens of the sequence, however many are asked for.
    length_max: usize,
    /// Tokens of the answer before this window.
    before: usize,
    /// What was said of this window, or of all that was given.
    said: Vec<(u32, Option<Logprob>)>,
    /// How many of these are a part of the answer.
    told: usize,
    /// How many beams; 1 for none.
    beams: usize,
    search: Search,
    answer: Answer,
    state_bytes: u64,
    /// Times that stages lost what they kept of it.
    losses: usize,
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
            let transcribes = task == Task::AutomaticSpeechRecognition;
            let beams = match task {
                Task::Summarization | Task::Translation => 4,
                _ if transcribes => 5,
                _ => 1,
            };
            let custom = Custom { task: task.name(), beams, within: reader.writes_within(), transcribes };
            let mut settings = Settings::read(files, custom, vocabulary)?;
            reader.settle(&mut settings);
            Ok((task, settings))
        };
        let settings = tasks.iter().map(of).collect::<Result<_, PipelineError>>()?;
        Ok(Self { reader, settings })
    }
}

/// How many beams a model searches with in a task, as its files have it; 1 for none.
///
/// # Errors
///
/// When a file is damaged, or has settings that are not supported.
pub fn beams_of(files: &dyn ModelFiles, spec: &Spec, task: Task) -> Result<usize, PipelineError> {
    // Which tokens there are is looked at when the model is loaded.
    let chosen = Chosen::read(files, Reader::of(files, spec)?, &[task], usize::MAX)?;
    Ok(chosen.settings.iter().map(|(_, settings)| settings.beams).max().unwrap_or(1))
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
        let found = self.chosen.settings.iter().find(|(of, _)| *of == task);
        found.map(|(_, settings)| settings.clone()).ok_or_else(|| admission::wrong_task(task, &[]))
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
        let logits = match job.read_on(&self.model, self.extent.vocabulary, &self.engine) {
            Err(PipelineError::Model(ModelError::Lost { .. })) if job.losses < LOSSES => {
                job.begin_again();
                return Ok(());
            }
            logits => logits?,
        };
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
        let index = job.before + job.said.len();
        if let Some(&said) = job.prior.get(index).filter(|_| !job.replays) {
            tokens.push(said);
            job.said.push((said, None));
            let (done_tokens, total_tokens) = (index as u32 + 1, job.prior.len() as u32);
            out(id, JobEvent::Reading { done_tokens, total_tokens });
        } else {
            let logits = logits.pop().unwrap_or_default();
            let (rules, limits) = (&job.settings.rules, &job.limits);
            let masked = |scores: &mut [f32]| rules.apply(tokens, scores, &limits.ends, limits.max_length);
            let choice = sampling::choose(logits, tokens, index, &job.generation, masked).map_err(not_numbers)?;
            job.answering.get_or_insert_with(Instant::now);
            if job.limits.ends.contains(&choice.id) {
                return self.turn(id, FinishReason::EndOfText, out);
            }
            tokens.push(choice.id);
            job.said.push((choice.id, choice.logprob));
        }
        job.tell(id, job.source.certain(&job.said), &self.tokenizer, out)?;
        match job.finished() {
            Some(reason) => self.turn(id, reason, out),
            None => Ok(()),
        }
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
        if !job.replays
            && !*again
            && !job.prior.iter().skip(job.before).eq(said.take(job.prior.len().saturating_sub(job.before)))
        {
            job.search = Search::Waiting { forced: job.prior.iter().skip(job.before).copied().collect() };
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
        job.said = answer;
        self.turn(id, reason, out)
    }

    /// Ends a window, and with the last one the job.
    fn turn(&mut self, id: JobId, reason: FinishReason, out: &mut dyn FnMut(JobId, JobEvent)) -> Result<(), JobError> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        job.tell(id, job.source.kept(&job.said), &self.tokenizer, out)?;
        let more = match &mut job.source {
            Source::Sound(sound) if !job.answer.stopped() => sound.turn(&job.said)?,
            _ => false,
        };
        let total = job.before + job.told;
        let left = (job.generation.max_tokens as usize).saturating_sub(total);
        if !more {
            if job.replays && total < job.prior.len() {
                return Err(told_otherwise());
            }
            self.end(id, reason, out);
        } else if left == 0 {
            self.end(id, FinishReason::Length, out);
        } else {
            (job.before, job.told) = (total, 0);
            job.said.clear();
            job.limits.max_length = job.length_max.min(job.prompt.tokens.len() + left);
            job.search = Search::Waiting { forced: Vec::new() };
        }
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
    /// Begins again what stages have lost; what was said of this window is read in, not said again.
    fn begin_again(&mut self) {
        self.losses += 1;
        if self.before + self.told > self.prior.len() {
            // Of windows before this one nothing is read in.
            self.prior.resize(self.before, 0);
            self.prior.extend(self.said.iter().take(self.told).map(|(token, _)| *token));
        }
        self.said.clear();
        self.told = 0;
        self.search = Search::Waiting { forced: Vec::new() };
    }

    /// Reads what is not read yet: what is given and what the answer begins with, or the last token of each sequence.
    /// Answers the logits of what follows each: `[vocabulary]`.
    fn read_on(&mut self, model: &Model, vocabulary: usize, engine: &Engine) -> Result<Vec<Vec<f32>>, PipelineError> {
        let rows = |logits: &Tensor| {
            let rows = logits.read(|all| all.chunks_exact(vocabulary.max(1)).map(<[f32]>::to_vec).collect::<Vec<_>>());
            rows.map_err(|source| ModelError::Tensor { place: "logits".into(), source })
        };
        match &mut self.search {
            Search::Waiting { forced } => {
                let begun = match &self.source {
                    Source::Whole(inputs) => model.begin(inputs)?,
                    Source::Sound(sound) => {
                        let mut inputs = sound.inputs(engine)?;
                        let start = self.prompt.tokens.first().copied().unwrap_or_default();
                        inputs.insert_number("decoder_start_token_id", start.into());
                        model.begin(&inputs)?
                    }
                };
                let (mut state, mut logits) = (begun.state, rows(&begun.logits)?);
                self.prompt.settle(logits.first().map_or(&[], Vec::as_slice))?;
                for &token in self.prompt.tokens.iter().skip(self.prompt.read) {
                    logits = rows(&model.next(&[token.into()], &mut state)?)?;
                }
                let prompt = self.prompt.tokens.clone();
                self.search = if self.beams == 1 {
                    if let Source::Whole(inputs) = &mut self.source
                        && !model.has_stages()
                    {
                        // It is read once, and a picture is large.
                        *inputs = Inputs::default();
                    }
                    Search::One { tokens: prompt, state }
                } else {
                    // All beams are alike at first.
                    state.reorder(&vec![0; self.beams]);
                    logits = logits.iter().cycle().take(self.beams).cloned().collect();
                    let again = !forced.is_empty();
                    Search::Beams { beams: Beams::new(self.beams, &prompt, std::mem::take(forced)), state, again }
                };
                Ok(logits)
            }
            Search::One { tokens, state } => {
                let last = tokens.last().map_or(0, |&token| token.into());
                Ok(rows(&model.next(&[last], state)?)?)
            }
            Search::Beams { beams, state, .. } => Ok(rows(&model.next(&beams.last(), state)?)?),
        }
    }

    /// Makes the tokens of this window up to a place a part of the answer, and says those that no peer has said.
    fn tell(
        &mut self,
        id: JobId,
        upto: usize,
        tokenizer: &Tokenizer,
        out: &mut dyn FnMut(JobId, JobEvent),
    ) -> Result<(), JobError> {
        while self.told < upto && !self.answer.stopped() {
            let index = self.before + self.told;
            let Some((token, logprob)) = self.said.get_mut(self.told) else { break };
            let (token, logprob) = (*token, logprob.take());
            self.told += 1;
            match self.prior.get(index) {
                Some(&prior) if prior == token => continue,
                Some(_) => return Err(told_otherwise()),
                None => {}
            }
            let text = say(&mut self.answer, &self.source, tokenizer, token)?;
            let logprob = logprob.map(|(logprob, top)| TokenLogprob {
                logprob,
                top: top.into_iter().map(|(id, logprob)| (id, tokenizer.token_text(id), logprob)).collect(),
            });
            out(id, JobEvent::Token { index: index as u32, id: token, text, logprob });
        }
        Ok(())
    }

    /// Why this window, or all of it, ends with its last token, if it does.
    fn finished(&self) -> Option<FinishReason> {
        if self.answer.stopped() {
            Some(FinishReason::Stop)
        } else if self.prompt.tokens.len() + self.said.len() >= self.limits.max_length {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Why a job that another peer began has nothing left to do, if it has not.
    fn ended(&self) -> Option<FinishReason> {
        let whole = matches!(self.source, Source::Whole(_));
        let full = whole && self.prompt.tokens.len() + self.prior.len() >= self.limits.max_length;
        if self.answer.stopped() {
            Some(FinishReason::Stop)
        } else if full || self.prior.len() >= self.generation.max_tokens as usize {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}

/// Adds a token to an answer, and gives the text that became certain with it.
fn say(answer: &mut Answer, source: &Source, tokenizer: &Tokenizer, token: u32) -> Result<String, JobError> {
    if source.is_silent(token) {
        answer.pass();
        return Ok(String::new());
    }
    answer.push(tokenizer, token).map_err(undecodable)
}

impl Pipeline for SequencePipeline {
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic(self.engine.arithmetic().to_owned())
    }

    fn memory_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn admit(&mut self, spec: &JobSpec) -> Result<Cost, JobError> {
        let tasks: Vec<Task> = self.chosen.settings.iter().map(|(task, _)| *task).collect();
        admission::check(spec, &tasks, &self.jobs)?;
        admission::check_prior(spec, &self.arithmetic())?;
        admission::check_tokens(&spec.prior, self.extent.vocabulary)?;
        let mut settings = self.settings(spec.task)?;
        let generation = settings.obeying(&spec.generation);
        let drawn = generation.temperature > 0.0;
        if settings.draws && !drawn {
            let words = "the model's files ask for draws (do_sample), which are not supported as the files have them; \
                         ask for a temperature over 0";
            return Err(JobError::new(ErrorCode::Unsupported, words));
        }
        settings.rules.repetition_penalty = generation.repetition_penalty;
        let (engine, model, tokenizer) = (&self.engine, &self.model, &self.tokenizer);
        let by = Reading { engine, model, tokenizer, contexts: self.contexts };
        let Read { source, prompt, tokens: read, kept, kept_bytes } =
            self.chosen.reader.read(&by, spec, &mut settings)?;
        let begun = prompt.tokens.len();
        settings.rules = settings.rules.after(begun, settings.min_length.after(begun));
        // The last token is not read.
        let length_max = settings.max_length.after(begun).min(self.contexts[1].saturating_add(1));
        if length_max <= begun {
            return Err(PipelineError::TooLong { found: begun, context: length_max.saturating_sub(1) }.into());
        }
        let max_length = length_max.min(begun.saturating_add(generation.max_tokens as usize));
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
        let longest = match &source {
            Source::Whole(_) => max_length.max(spec.prior.len() + begun),
            Source::Sound(_) => max_length,
        };
        let positions = kept.saturating_add(longest.saturating_mul(copies)) as u64;
        let state_bytes = self.extent.position_bytes.saturating_mul(positions).saturating_add(kept_bytes);
        let state_bytes = state_bytes.saturating_add(self.extent.sequence_bytes.saturating_mul(copies as u64));
        let used = self.jobs.values().map(|job| job.state_bytes).sum();
        admission::check_room(|| KEPT.to_owned(), state_bytes, used, self.state_bytes_max)?;
        // Tokens that only start a decoder are no context of a text.
        let context = if prompt.is_text { prompt.tokens.as_slice() } else { &[] };
        let mut answer = Answer::new(context, &generation.stop);
        if self.chosen.reader.tidies() && self.tokenizer.is_tidy() {
            answer = answer.tidy();
        }
        for &id in &spec.prior {
            // What came of these tokens has been said.
            let _said = say(&mut answer, &source, &self.tokenizer, id)?;
        }
        let timed = settings.rules.timestamps.is_some() || spec.prior.iter().any(|&token| source.is_silent(token));
        let mut job = Job {
            generation,
            settings,
            limits,
            source,
            prompt,
            read: read as u32,
            prior: spec.prior.clone(),
            replays: timed && !spec.prior.is_empty(),
            length_max,
            before: 0,
            said: Vec::new(),
            told: 0,
            beams,
            search: Search::Waiting { forced: Vec::new() },
            answer,
            state_bytes,
            losses: 0,
            started: None,
            answering: None,
            ended: None,
        };
        job.ended = job.ended();
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

    fn expert_usage(&self) -> Option<Arc<ExpertUsage>> {
        self.model.expert_usage().cloned()
    }
}

fn told_otherwise() -> JobError {
    let words =
        "the answer was begun by a peer that heard otherwise, and what it said cannot be gone on with; ask anew";
    JobError::new(ErrorCode::Unsupported, words)
}

fn not_numbers(error: NotNumbers) -> JobError {
    JobError::new(ErrorCode::ModelInvalid, error)
}

fn undecodable(reason: String) -> JobError {
    JobError::new(ErrorCode::Internal, format!("tokenizer: {reason}"))
}
