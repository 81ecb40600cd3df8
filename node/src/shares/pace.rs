//! How fast a peer answers what it is asked, and when it is late or slow.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A call that takes so many times what it should is late,
const PATIENCE: f64 = 8.0;
/// unless that is less than this: a busy machine may take so long to do anything,
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
/// and no call gets more.
const MOST_PATIENCE: Duration = Duration::from_secs(5);
/// A peer that is late so often in a row is asked no more before it has answered.
const LATE: u32 = 2;
/// A call is slow when its way takes so many times what the way to its peer usually does,
const SLOW: f64 = 5.0;
/// and so much more;
const SLOWER: Duration = Duration::from_millis(20);
/// and a peer whose calls are slow so often in a row is slow: a busy machine may stumble.
const SLOW_CALLS: u32 = 16;
/// How much the newest call counts in a peer's pace.
const NEWEST: f64 = 0.2;

/// How fast a peer answers, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// What a call takes beside its rows: the way there and back.
    pub transport: f64,
    /// What a row takes.
    pub row: f64,
    /// Calls that were late one after the other.
    pub late: u32,
    /// Calls that were slow one after the other.
    pub slow: u32,
}

/// A peer's pace, which follows what its calls take.
#[derive(Debug)]
pub struct Paced {
    /// Seconds of the way there and back at first.
    usual: f64,
    pace: Mutex<Pace>,
}

impl Paced {
    /// A peer that is `usual` seconds away, with `row` seconds for a row.
    pub fn new(usual: f64, row: f64) -> Self {
        Self { usual, pace: Mutex::new(Pace { transport: usual, row, late: 0, slow: 0 }) }
    }

    /// Whether it answers in time, and about as fast as it did at first.
    pub fn is_well(&self) -> bool {
        let pace = self.pace();
        pace.late < LATE && pace.slow < SLOW_CALLS
    }

    /// Whether it was late so often that it is asked no more.
    pub fn is_late(&self) -> bool {
        self.pace().late >= LATE
    }

    /// How fast it answers.
    pub fn pace(&self) -> Pace {
        *self.paced()
    }

    fn paced(&self) -> MutexGuard<'_, Pace> {
        // Each change is a whole one.
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds that so many rows should take.
    pub fn expected(&self, rows: usize) -> f64 {
        let pace = self.pace();
        pace.transport + rows as f64 * pace.row
    }

    /// How long so many rows are waited for.
    pub fn patience(&self, rows: usize) -> Duration {
        let patience = Duration::try_from_secs_f64(PATIENCE * self.expected(rows)).unwrap_or(MOST_PATIENCE);
        patience.clamp(LEAST_PATIENCE, MOST_PATIENCE)
    }

    /// Takes into account what a call took, and what of it there.
    pub fn took(&self, rows: usize, elapsed: Duration, there: Duration) {
        let mut pace = self.paced();
        let newest = |old: &mut f64, new: f64| *old += NEWEST * (new - *old);
        let way = elapsed.saturating_sub(there).as_secs_f64();
        pace.slow = if way > SLOW * self.usual + SLOWER.as_secs_f64() { pace.slow + 1 } else { 0 };
        newest(&mut pace.transport, way);
        newest(&mut pace.row, there.as_secs_f64() / rows.max(1) as f64);
        pace.late = 0;
    }

    /// Takes into account that a call was late.
    pub fn was_late(&self) {
        self.paced().late += 1;
    }
}
