//! A loss that no longer falls.

use serde::{Deserialize, Serialize};

use super::robust::{Fall, median};
use super::{Alarm, Observation, Watcher, WatcherKind};

const FIRST: usize = 25;
/// The fall from one half of the window to the other that is asked for.
const SHARE: f64 = 0.02;
/// What a run has to have learnt for its rest to be a plateau; one that learnt nothing is the affair of the learning rate.
const LEARNT: f64 = 0.05;

/// Finds a loss that fell and falls no more, while the learning rate is still high.
///
/// Over a window of `W` steps, a quarter of the run but at least 100 and at most 1,000, with the median losses `m_1` and `m_2` of its
/// halves and the standard error `SE` of their difference (1.2533 times that of a mean, by the median absolute deviations), it fires
/// where `m_1 - m_2 + SE < 0.02 m_1`. It looks every `W / 2` steps, while the rate is at least half of its highest (later it is the
/// schedule that slows the run), and if `m_2` is at least 5 % below the median of the first 25 steps. Where the noise would hide a
/// fall, `SE` is large and it is silent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Plateau {
    first: Vec<f64>,
    window: Vec<f64>,
    highest_rate: f64,
}

impl Watcher for Plateau {
    const KIND: WatcherKind = WatcherKind::Plateau;

    fn observe(&mut self, observation: Observation<'_>) -> Option<Alarm> {
        let Observation::Step(signals) = observation else { return None };
        self.highest_rate = self.highest_rate.max(signals.learning_rate);
        if self.first.len() < FIRST {
            self.first.push(signals.loss);
        }
        self.window.push(signals.loss);
        let length = (signals.max_steps / 4).clamp(100, 1000);
        if self.window.len() < length {
            return None;
        }
        let fall = Fall::between_halves(&self.window);
        self.window.drain(..length / 2);
        let start = median(self.first.iter().copied());
        let now = fall.from - fall.by;
        let flat = fall.is_below(SHARE) && signals.learning_rate >= 0.5 * self.highest_rate;
        (flat && now <= (1.0 - LEARNT) * start).then(|| Alarm {
            what: format!(
                "the loss has fallen by {:.4} ± {:.4} over the last {length} steps, to {now:.4}",
                fall.by, fall.standard_error
            ),
            advice:
                "what this rate can learn is learnt: let the rate fall sooner, stop early, or give more data or a higher rank"
                    .into(),
            since: None,
        })
    }
}
