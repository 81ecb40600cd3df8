//! Layers that this node works out for others or for itself: their weights, what is kept of sequences, and the thread
//! that computes with both.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Instant;

use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::cache::State;
use accel_models::share::{Parts, Share};
use accel_models::stack::{Layers, Reading};
use accel_models::stage::StagePass;
use accel_pipelines::PipelineError;
use accel_protocol::limits::{STAGE_SEQUENCES, STAGE_STATES};
use accel_protocol::{ErrorCode, JobError, StateChange};

use super::super::experts::Spread;
use crate::memory::Reserved;
use crate::scheduler::Models;

/// Calls that wait at most.
const CALLS: usize = 4096;
/// Memory for sequences is taken in pieces of this size.
const MEMORY_STEP: u64 = 1 << 20;

/// Who keeps sequences with a stage: a holding of a stream, or a model of this node.
pub type Owner = u64;

/// Hears what came of a pass: the rows that were wanted, and the microseconds since it arrived.
pub type Answer = Box<dyn FnOnce(Result<(Tensor, u64), JobError>) + Send>;

/// What a thread of layers is asked.
pub enum Call {
    /// To put tokens through.
    Pass {
        owner: Owner,
        /// Which of the owner's states; none where nothing is kept.
        state: Option<u32>,
        pass: StagePass,
        arrived: Instant,
        answer: Answer,
    },
    /// To change what is kept.
    Change { owner: Owner, state: u32, change: StateChange },
    /// To forget all that is kept for an owner.
    Leave(Owner),
}

/// Layers with their thread, which ends when this is dropped.
#[derive(Debug)]
pub struct StageThread {
    calls: SyncSender<Call>,
    engine: Engine,
    hidden: usize,
    memory: Reserved,
}

impl StageThread {
    /// Reads the layers of a share, whose blocks are here, and starts their thread. `experts` works out the experts of
    /// all of them; without it, those of the share are all.
    ///
    /// # Errors
    /// When they cannot be read, or the system gives no thread.
    pub fn start(
        parts: &Parts,
        share: &Share,
        experts: Option<Arc<Spread>>,
        memory: Reserved,
        loaded: Models,
    ) -> Result<Self, JobError> {
        let dense = Share { experts: Default::default(), ..share.clone() };
        let (mut layers, of_stack) =
            parts.layers(if experts.is_some() { &dense } else { share }).map_err(PipelineError::Model)?;
        if let Some(experts) = experts {
            layers.set_experts(&(experts as Arc<dyn accel_models::layers::moe::Experts>));
        }
        let first = share.layers.first().map_or(0, |first| first - of_stack.start);
        let range = first..first + share.layers.len();
        let (calls, inbox) = sync_channel(CALLS);
        let hidden = layers.spec().hidden;
        let desk = Desk { layers, first: of_stack.start, range, inbox, states: HashMap::new(), loaded };
        let work = move || {
            desk.work();
            accel_backends::cpu::give_back();
        };
        let start = std::thread::Builder::new().name("accel-stage".to_owned()).spawn(work);
        start.map_err(|error| JobError::new(ErrorCode::OutOfResources, format!("no thread for layers: {error}")))?;
        Ok(Self { calls, engine: parts.engine().clone(), hidden, memory })
    }

    /// What computes.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Numbers of a row.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Bytes of the layers in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Hands a call over; one that cannot be taken is answered at once.
    pub fn call(&self, call: Call) {
        if let Err(TrySendError::Full(call) | TrySendError::Disconnected(call)) = self.calls.try_send(call)
            && let Call::Pass { answer, .. } = call
        {
            answer(Err(JobError::new(ErrorCode::Internal, "the thread of the layers takes no more")));
        }
    }
}

/// The thread.
struct Desk {
    layers: Layers,
    /// The number of the stack's first layer in the model.
    first: usize,
    /// Which of the stack's layers.
    range: Range<usize>,
    inbox: Receiver<Call>,
    states: HashMap<(Owner, u32), Kept>,
    /// The node's own models: those that nobody uses make room.
    loaded: Models,
}

/// Sequences that are kept.
struct Kept {
    state: State,
    /// Positions that each slot has, with those of what it is made from.
    slots: Vec<(usize, usize)>,
    memory: Vec<Reserved>,
}

impl Desk {
    fn work(mut self) {
        while let Ok(call) = self.inbox.recv() {
            match call {
                Call::Pass { owner, state, pass, arrived, answer } => {
                    let made = self.pass(owner, state, &pass);
                    let micros = || arrived.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
                    answer(made.map(|made| (made, micros())));
                }
                Call::Change { owner, state, change: StateChange::Forget } => drop(self.states.remove(&(owner, state))),
                Call::Change { owner, state, change } => {
                    // A change of what was lost is none.
                    if let Some(kept) = self.states.get_mut(&(owner, state))
                        && let Err(error) = kept.change(change, &self.layers, &self.loaded)
                    {
                        tracing::warn!(%error, "sequences were dropped for want of memory");
                        self.states.remove(&(owner, state));
                    }
                }
                Call::Leave(owner) => self.states.retain(|(of, _), _| *of != owner),
            }
        }
    }

    /// Puts tokens through, and has whoever asked hear what routers choose.
    fn pass(&mut self, owner: Owner, state: Option<u32>, pass: &StagePass) -> Result<Tensor, JobError> {
        self.layers.watch_experts(self.first, pass.routed.as_ref());
        let reading = Reading { rows: &pass.rows, absent: &pass.absent, source: pass.source.as_ref() };
        let (range, x) = (self.range.clone(), pass.x.clone());
        let made = match state {
            None => {
                if pass.rows.iter().any(|row| row.past > 0) {
                    return Err(invalid("what came before is kept in no state".into()));
                }
                self.layers.forward(range, x, &reading, None, None)
            }
            Some(name) => {
                let known = self.states.contains_key(&(owner, name));
                if !known && self.states.keys().filter(|(of, _)| *of == owner).count() >= STAGE_STATES {
                    return Err(invalid(format!("{STAGE_STATES} states are kept already")));
                }
                let fresh = || Kept { state: self.layers.state(), slots: Vec::new(), memory: Vec::new() };
                let kept = self.states.entry((owner, name)).or_insert_with(fresh);
                kept.make_room(&self.layers, pass, &self.loaded)?;
                for (row, absent) in pass.rows.iter().zip(&pass.absent) {
                    kept.state.hide(row.slot, absent.clone());
                }
                self.layers.forward(range, x, &reading, None, Some(&mut kept.state))
            }
        };
        let picked = made.and_then(|made| {
            let all = pass.wanted.iter().copied().eq(0..made.dims().first().copied().unwrap_or(0));
            let at = |source| ModelError::Tensor { place: "wanted".into(), source };
            if all || pass.wanted.is_empty() { Ok(made) } else { made.pick(0, &pass.wanted).map_err(at) }
        });
        Ok(picked.map_err(PipelineError::Model)?)
    }
}

impl Kept {
    /// Takes the memory that a pass needs, after a look whether it follows from what is kept.
    fn make_room(&mut self, layers: &Layers, pass: &StagePass, loaded: &Models) -> Result<(), JobError> {
        for (place, row) in pass.rows.iter().enumerate() {
            if row.slot >= STAGE_SEQUENCES {
                return Err(invalid(format!("slot {} of {STAGE_SEQUENCES}", row.slot)));
            }
            if self.slots.len() <= row.slot {
                self.slots.resize(row.slot + 1, (0, 0));
            }
            let slot = &mut self.slots[row.slot];
            if row.past > slot.0 {
                return Err(invalid(format!("{} positions came before, and {} are kept", row.past, slot.0)));
            }
            let source = pass.source.as_ref().and_then(|source| source.lengths.get(place)).copied();
            *slot = (row.past + row.len, source.unwrap_or(slot.1));
        }
        self.reserve(layers, loaded)
    }

    /// Takes the memory that the slots need.
    fn reserve(&mut self, layers: &Layers, loaded: &Models) -> Result<(), JobError> {
        let used = self.slots.iter().filter(|slot| slot.0 > 0);
        let bytes: u64 =
            used.map(|(own, source)| (own + source) as u64 * layers.position_bytes() + layers.sequence_bytes()).sum();
        let reserved: u64 = self.memory.iter().map(Reserved::bytes).sum();
        if bytes > reserved {
            self.memory.push(loaded.make_room((bytes - reserved).next_multiple_of(MEMORY_STEP))?);
        }
        // What nobody uses is given back.
        if bytes == 0 {
            self.memory.clear();
        }
        Ok(())
    }

    fn change(&mut self, change: StateChange, layers: &Layers, loaded: &Models) -> Result<(), JobError> {
        match change {
            StateChange::Clear(slot) => {
                let slot = slot as usize;
                if let Some(positions) = self.slots.get_mut(slot) {
                    *positions = (0, 0);
                    self.state.clear(slot);
                }
            }
            StateChange::Reorder(from) => {
                let from: Vec<usize> = from.into_iter().map(|slot| slot as usize).take(STAGE_SEQUENCES).collect();
                self.slots = from.iter().map(|&slot| self.slots.get(slot).copied().unwrap_or_default()).collect();
                self.reserve(layers, loaded)?;
                self.state.reorder(&from);
            }
            StateChange::Forget => {}
        }
        self.reserve(layers, loaded)
    }
}

fn invalid(words: String) -> JobError {
    JobError::new(ErrorCode::InvalidRequest, words)
}
