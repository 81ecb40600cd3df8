//! Passes that are under way through the layers of a model, of which some may be elsewhere.
//!
//! While one pass is with a stage, others are worked on here, so that nobody idles where there are several.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use accel_backends::tensor::Tensor;
use accel_models::ModelError;
use accel_models::cache::{Row, State};
use accel_models::family::decoder::Decoder;
use accel_models::stack::Segment;
use accel_models::stage::StagePass;
use accel_models::usage::Routed;
use accel_protocol::JobId;

/// Some tokens of some jobs on their way.
pub struct Flight {
    /// The jobs with their rows.
    pub work: Vec<(JobId, Row)>,
    /// The tokens whose logits are wanted, each of another job.
    pub wanted: Vec<usize>,
    /// The jobs of these.
    pub whole: Vec<JobId>,
    /// Segments that are behind it.
    passed: usize,
}

impl Flight {
    /// Tokens that have not left yet.
    pub fn new(work: Vec<(JobId, Row)>, wanted: Vec<usize>, whole: Vec<JobId>) -> Self {
        Self { work, wanted, whole, passed: 0 }
    }

    /// The rows of all jobs.
    pub fn rows(&self) -> Vec<Row> {
        self.work.iter().map(|(_, row)| *row).collect()
    }
}

/// What became of a flight.
pub enum Landing {
    /// It is under way.
    Under,
    /// It is through, with the logits of what is wanted: `[wanted, vocabulary]`.
    Through(Flight, Option<Tensor>),
    /// It failed.
    Failed(Flight, ModelError),
}

type Arrival = (u64, Result<Tensor, ModelError>);

/// The passes of one model.
pub struct Flights {
    segments: Vec<Segment>,
    under_way: BTreeMap<u64, Flight>,
    next: u64,
    send: Sender<Arrival>,
    arrivals: Receiver<Arrival>,
}

impl Flights {
    /// No passes yet.
    ///
    /// # Errors
    ///
    /// When some layers are nowhere.
    pub fn new(decoder: &Decoder) -> Result<Self, ModelError> {
        let segments = decoder.stack().segments(0..decoder.depth())?;
        let (send, arrivals) = channel();
        Ok(Self { segments, under_way: BTreeMap::new(), next: 0, send, arrivals })
    }

    /// How many can be worked on at the same time.
    pub fn places(&self) -> usize {
        self.segments.len().max(1)
    }

    /// Whether some are with a stage.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Forgets all that are under way; what comes of them is passed over.
    pub fn clear(&mut self) {
        self.under_way.clear();
    }

    /// A flight that came back from a stage, within a time.
    pub fn arrived(&mut self, within: Duration) -> Option<(Flight, Result<Tensor, ModelError>)> {
        loop {
            let (number, made) = self.arrivals.recv_timeout(within).ok()?;
            if let Some(flight) = self.under_way.remove(&number) {
                return Some((flight, made));
            }
        }
    }

    /// Carries a flight on as far as it goes here; x: the states of its tokens, `[tokens, hidden]`.
    pub fn carry_on(&mut self, decoder: &Decoder, state: &mut State, mut flight: Flight, mut x: Tensor) -> Landing {
        let rows = flight.rows();
        while let Some(segment) = self.segments.get(flight.passed) {
            flight.passed += 1;
            let last = flight.passed == self.segments.len();
            match segment {
                Segment::Here(range) => match decoder.layers(range.clone(), x, &rows, state) {
                    Ok(made) => x = made,
                    Err(error) => return Landing::Failed(flight, error),
                },
                Segment::There(number) => {
                    let tokens = rows.iter().map(|row| row.len).sum();
                    let wanted = if last { flight.wanted.clone() } else { (0..tokens).collect() };
                    if last {
                        // No others come back.
                        flight.wanted = (0..flight.wanted.len()).collect();
                    }
                    let routed = decoder.stack().expert_usage().map(|usage| usage.clone() as Arc<dyn Routed>);
                    let pass = StagePass { rows, x, wanted, absent: Vec::new(), source: None, keeps: true, routed };
                    let (id, send) = (self.next, self.send.clone());
                    self.next += 1;
                    self.under_way.insert(id, flight);
                    if let Some(stage) = state.stage(*number) {
                        // Where nobody listens any more, the model is gone.
                        stage.send(pass, Box::new(move |made| drop(send.send((id, made)))));
                    }
                    return Landing::Under;
                }
            }
        }
        if flight.wanted.is_empty() {
            return Landing::Through(flight, None);
        }
        match decoder.head(&x, &flight.wanted) {
            Ok(logits) => Landing::Through(flight, Some(logits)),
            Err(error) => Landing::Failed(flight, error),
        }
    }
}
