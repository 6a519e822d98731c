//! NaN and infinity.

use serde::{Deserialize, Serialize};

use super::{Alarm, Observation, Watcher, WatcherKind};

/// Finds a loss or a gradient that is NaN or infinite, and says which tensor, which step and which examples.
///
/// With [`Action::Skip`](super::Action::Skip) a bad batch costs its step alone. After [`MOST_IN_A_ROW`](Self::MOST_IN_A_ROW) such steps
/// in a row it is not the batch: then the run ends.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NonFinite {
    /// Steps in a row that were not finite, the last one included.
    in_a_row: usize,
}

impl NonFinite {
    /// Steps in a row that can be left out.
    pub const MOST_IN_A_ROW: usize = 5;

    /// Whether leaving out steps does not help.
    pub fn is_hopeless(&self) -> bool {
        self.in_a_row > Self::MOST_IN_A_ROW
    }
}

impl Watcher for NonFinite {
    const KIND: WatcherKind = WatcherKind::NonFinite;

    fn observe(&mut self, observation: Observation<'_>) -> Option<Alarm> {
        match observation {
            Observation::NonFinite { error, .. } => {
                self.in_a_row += 1;
                let advice = if self.is_hopeless() {
                    "not the examples but the parameters are at fault: go back to a checkpoint and lower the learning rate"
                } else {
                    "look at the examples that are named; if the loss rose before, lower the learning rate or max_grad_norm"
                };
                Some(Alarm { what: error.to_string(), advice: advice.into(), since: None })
            }
            Observation::Step(_) => {
                self.in_a_row = 0;
                None
            }
            _ => None,
        }
    }
}
