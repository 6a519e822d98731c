//! How long the rest of a stage takes.

use std::time::{Duration, Instant};

/// The pace of a stage that does equal pieces of work, with pauses for other work between them.
///
/// With `done` pieces in `t` seconds (those that were done before it began not counted), pauses not counted, and pauses of `p` seconds on average, what is left takes
/// `t / done * (total - done) + p * pauses_left`. It is reckoned whenever a piece ends and counts down until the next one does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    start: Instant,
    /// When the last piece or pause ended.
    at: Instant,
    /// Pieces that were done before it began.
    before: usize,
    done: usize,
    paused: Duration,
    pauses: u32,
    pauses_left: usize,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self::after(0, now)
    }

    /// Of a stage that goes on after so many pieces.
    pub(super) fn after(before: usize, now: Instant) -> Self {
        Self { start: now, at: now, before, done: before, paused: Duration::ZERO, pauses: 0, pauses_left: 0 }
    }

    /// Whether no piece is done yet.
    pub(super) fn is_unused(&self) -> bool {
        self.done == 0
    }

    /// So many pieces were done before it began.
    pub(super) fn begin_after(&mut self, before: usize) {
        (self.before, self.done) = (before, before);
    }

    /// So many pieces are done.
    pub(super) fn advance(&mut self, done: usize, now: Instant) {
        if done > self.done {
            (self.done, self.at) = (done, now);
        }
    }

    /// A pause has just ended, and so many are to come.
    pub(super) fn paused(&mut self, length: Duration, pauses_left: usize, now: Instant) {
        self.paused += length;
        self.pauses += 1;
        (self.pauses_left, self.at) = (pauses_left, now);
    }

    /// The time to the end of `total` pieces; unknown before the first is done and after the last.
    pub(super) fn left(&self, total: usize, now: Instant) -> Option<Duration> {
        if self.done == self.before || self.done >= total {
            return None;
        }
        let worked = (self.at - self.start).saturating_sub(self.paused).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let (done, rest, pauses_left) =
            ((self.done - self.before) as f64, (total - self.done) as f64, self.pauses_left as f64);
        let pause = self.paused.as_secs_f64() / f64::from(self.pauses.max(1));
        let left = worked / done * rest + pause * pauses_left - (now - self.at).as_secs_f64();
        Duration::try_from_secs_f64(left.max(0.0)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn time_left_follows_the_pace_and_counts_down() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.left(40, start + s(9)), None, "nothing is known before the first");
        pace.advance(10, start + s(20));
        assert_eq!(pace.left(40, start + s(20)), Some(s(60)));
        // Nothing new: what was known before, less the time since.
        pace.advance(10, start + s(25));
        assert_eq!(pace.left(40, start + s(25)), Some(s(55)));
        assert_eq!(pace.left(40, start + s(500)), Some(s(0)), "late, and not negative");
        pace.advance(40, start + s(80));
        assert_eq!(pace.left(40, start + s(80)), None);
    }

    #[test]
    fn what_was_done_before_is_no_part_of_the_pace() {
        let start = Instant::now();
        let mut pace = Pace::after(30, start);
        assert_eq!(pace.left(40, start + s(9)), None);
        pace.advance(32, start + s(4));
        assert_eq!(pace.left(40, start + s(4)), Some(s(16)));
    }

    #[test]
    fn pauses_do_not_slow_the_pace_and_those_to_come_are_counted() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.paused(s(7), 2, start + s(7));
        assert_eq!(pace.left(10, start + s(7)), None);
        pace.advance(1, start + s(9));
        assert_eq!(pace.left(10, start + s(9)), Some(s(2 * 9 + 7 * 2)));
        pace.advance(5, start + s(17));
        pace.paused(s(9), 1, start + s(26));
        assert_eq!(pace.left(10, start + s(26)), Some(s(2 * 5 + 8)));
    }
}
