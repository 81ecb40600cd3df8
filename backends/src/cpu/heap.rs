//! Memory that was freed goes back to the system.
//!
//! The C library of GNU keeps what a thread has freed for that thread's next needs, and the more the larger the pieces were:
//! up to 64 MB for every thread that ever read weights. A model that has left memory would go on taking its place.

/// What a thread may keep of what it freed last; large enough for what comes and goes in every step.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: i32 = 16 << 20;

/// From this size on, memory comes from the system and goes back to it piece by piece: the most that can be said.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const PIECE_BYTES: i32 = 32 << 20;

/// Bounds what threads keep of what they have freed, from now on. For the start of a program that loads models.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn bound_heap() {
    // SAFETY: both may be called at any time, from any thread. A value that is refused changes nothing.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, PIECE_BYTES);
    }
}

/// Gives memory that was freed, by whatever thread, back to the system. Takes some milliseconds; for when a model has left.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    // SAFETY: it may be called at any time, from any thread; it looks only at what is free.
    unsafe { libc::malloc_trim(0) };
}

/// Other libraries give back what is free by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn bound_heap() {}

/// Other libraries give back what is free by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
