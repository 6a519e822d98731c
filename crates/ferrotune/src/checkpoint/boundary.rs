//! Places at which a test kills the process, or holds the thread that writes.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Does what the environment says of this place, in programs built for debugging alone.
///
/// `FERROTUNE_ABORT_AT=renamed` ends the process where `renamed` is first reached, `renamed:3` where it is reached the third time;
/// `FERROTUNE_HOLD_AT` leaves the thread there for ever.
pub(super) fn reach(name: &str) {
    if cfg!(debug_assertions) {
        static REACHED: AtomicUsize = AtomicUsize::new(0);
        let is_wanted = |variable: &str| {
            let Ok(wanted) = std::env::var(variable) else { return false };
            let (place, count) = wanted.split_once(':').unwrap_or((&wanted, "1"));
            place == name && (REACHED.fetch_add(1, Ordering::Relaxed) + 1).to_string() == count
        };
        if is_wanted("FERROTUNE_ABORT_AT") {
            std::process::abort();
        }
        if is_wanted("FERROTUNE_HOLD_AT") {
            loop {
                std::thread::park();
            }
        }
    }
}
