//! Places at which a test kills the process.

/// Ends the process if the environment names this place, in programs built for debugging alone.
///
/// `FERROTUNE_ABORT_AT=renamed` ends it where `renamed` is first reached, `renamed:3` where it is reached the third time.
pub(super) fn reach(name: &str) {
    if cfg!(debug_assertions)
        && let Ok(wanted) = std::env::var("FERROTUNE_ABORT_AT")
    {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static REACHED: AtomicUsize = AtomicUsize::new(0);
        let (place, count) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        if place == name && (REACHED.fetch_add(1, Ordering::Relaxed) + 1).to_string() == count {
            std::process::abort();
        }
    }
}
