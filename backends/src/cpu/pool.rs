//! Threads that share the parts of one operation.
//!
//! An operation takes microseconds, so the caller works too, parts are claimed one by one (a thread that the system holds
//! up delays one part, not its whole share), and a thread that finds nothing spins for a moment before it sleeps.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Looks for work that a thread takes before it sleeps: some tens of microseconds, the gap between two operations.
const SPINS: u32 = 2_000;
/// Looks that a finished caller takes before it lets others run: on a busy machine the thread that it waits for may be
/// one of them.
const WAIT_SPINS: u32 = 500;

/// Room that a thread keeps from part to part.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Unpacked weights, or the scores of one query.
    pub weights: Vec<f32>,
    /// Sums in progress.
    pub sums: Vec<f32>,
}

/// Where the parts of one operation write, each in a range of its own.
#[derive(Clone, Copy, Debug)]
pub struct Target(pub *mut f32);

// SAFETY: whoever writes through it says why the ranges are disjoint.
unsafe impl Sync for Target {}

/// The threads. Dropping it ends them.
pub struct Pool {
    shared: Arc<Shared>,
    own: Mutex<Scratch>,
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &(self.threads.len() + 1)).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Shared {
    /// Counts operations, so that a spinning thread sees a new one without the lock.
    number: AtomicU64,
    current: Mutex<Current>,
    wake: Condvar,
}

#[derive(Default)]
struct Current {
    operation: Option<Arc<Operation>>,
    stopping: bool,
}

type Task<'a> = dyn Fn(usize, &mut Scratch) + Sync + 'a;

struct Operation {
    /// Valid as long as a part is unfinished; see `Pool::run`.
    task: *const Task<'static>,
    parts: usize,
    next: AtomicUsize,
    finished: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the task is `Sync`, and `Pool::run` keeps it alive while any thread may call it.
unsafe impl Send for Operation {}
// SAFETY: as above.
unsafe impl Sync for Operation {}

impl Pool {
    /// The caller's thread and `threads - 1` more.
    ///
    /// # Errors
    ///
    /// When the system starts no more threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut pool = Self { shared, own: Mutex::default(), threads: Vec::new() };
        for number in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("compute-{number}"));
            let work = move || {
                super::slice::give_way();
                shared.work();
            };
            pool.threads.push(builder.spawn(work)?);
        }
        Ok(pool)
    }

    /// Calls `task` once for each part, on any thread, and returns when all are done.
    pub fn run(&self, parts: usize, task: &Task<'_>) {
        let mut own = lock(&self.own);
        if parts <= 1 || self.threads.is_empty() {
            (0..parts).for_each(|part| task(part, &mut own));
            return;
        }
        // SAFETY: only the lifetime changes. The pointer is used for claimed parts alone, and this function returns only
        // after every part is finished, so no use outlives the borrow.
        let task = unsafe { std::mem::transmute::<&Task<'_>, &'static Task<'static>>(task) };
        let operation = Arc::new(Operation {
            task,
            parts,
            next: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            panic: Mutex::new(None),
        });
        self.shared.publish(|current| current.operation = Some(Arc::clone(&operation)));
        operation.take_part(&mut own);
        let mut spins = 0;
        while operation.finished.load(Ordering::Acquire) < parts {
            spins += 1;
            if spins < WAIT_SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if let Some(panic) = lock(&operation.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.publish(|current| current.stopping = true);
        for thread in self.threads.drain(..) {
            // A panic of a part has been handed to the caller of `run` already.
            let _ended = thread.join();
        }
    }
}

impl Shared {
    /// Changes what the threads look at, and calls them. The number changes under the lock, so no call is missed.
    fn publish(&self, change: impl FnOnce(&mut Current)) {
        let mut current = lock(&self.current);
        change(&mut current);
        self.number.fetch_add(1, Ordering::Release);
        drop(current);
        self.wake.notify_all();
    }

    fn work(&self) {
        let mut scratch = Scratch::default();
        let mut seen = 0;
        while let Some(operation) = self.next(&mut seen) {
            operation.take_part(&mut scratch);
        }
    }

    /// The operation after the one that was `seen`; `None` when the pool ends.
    fn next(&self, seen: &mut u64) -> Option<Arc<Operation>> {
        for _ in 0..SPINS {
            if self.number.load(Ordering::Acquire) != *seen {
                break;
            }
            std::hint::spin_loop();
        }
        let mut current = lock(&self.current);
        loop {
            if current.stopping {
                return None;
            }
            let number = self.number.load(Ordering::Acquire);
            match &current.operation {
                Some(operation) if number != *seen => {
                    *seen = number;
                    return Some(Arc::clone(operation));
                }
                _ => {}
            }
            current = self.wake.wait(current).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Operation {
    fn take_part(&self, scratch: &mut Scratch) {
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= self.parts {
                return;
            }
            // SAFETY: this part is claimed and unfinished, so `Pool::run` has not returned and the task is alive.
            let task = unsafe { &*self.task };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(part, scratch))) {
                *lock(&self.panic) = Some(panic);
            }
            self.finished.fetch_add(1, Ordering::Release);
        }
    }
}

/// What a lock guards here is whole at every moment, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
