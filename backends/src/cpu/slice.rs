//! Threads that compute give way to threads that answer.
//!
//! A thread that computes for milliseconds without a pause holds up whoever has just been woken: a token that is done waits
//! for the next one, because the thread that would send it gets its turn only when a slice of time is over. Linux lets a
//! thread ask for longer slices (since 6.12), and lets whoever is woken with a shorter one go first. So threads that
//! compute ask for the longest there is: they are interrupted more readily and lose nothing, since they get their share
//! all the same.

/// The longest slice that Linux gives.
#[cfg(target_os = "linux")]
const SLICE_NANOSECONDS: u64 = 100_000_000;

/// What Linux knows of a thread's scheduling: `struct sched_attr` of `linux/sched/types.h`, in its first form.
#[cfg(target_os = "linux")]
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Asks for long slices for the calling thread, which is to compute. Where the system knows of no such thing, nothing
/// changes.
#[cfg(target_os = "linux")]
pub fn give_way() {
    let size = size_of::<Attributes>() as u32;
    let mut attributes = Attributes { size, ..Attributes::default() };
    // SAFETY: 0 is the calling thread; the kernel writes at most `size` bytes into `attributes`, which lives.
    let read = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    // Somebody may have given this process another policy, which is theirs to say.
    if read != 0 || attributes.policy != libc::SCHED_OTHER as u32 {
        return;
    }
    attributes.size = size;
    attributes.runtime = SLICE_NANOSECONDS;
    // SAFETY: the kernel reads `size` bytes of `attributes`, which lives. A kernel that refuses changes nothing.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// Other systems are not asked.
#[cfg(not(target_os = "linux"))]
pub fn give_way() {}
