//! Learning by heart.

use serde::{Deserialize, Serialize};

use super::robust::Trend;
use super::{Alarm, Observation, Watcher, WatcherKind};

const DECAY: f64 = 0.95;
const SHARE: f64 = 0.02;
const PATIENCE: usize = 2;

/// Finds a validation loss that rises while the training loss falls.
///
/// It fires when the last 2 evaluations both lie more than 2 % above the lowest one, the later not below the earlier, and the
/// exponential mean of the training losses (decay 0.95) is more than 2 % below what it was at the lowest evaluation. It says so once,
/// and again only after a new lowest evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overfitting {
    training: Trend,
    best: Option<Best>,
    /// Losses of the evaluations since the best one that lie above the margin, one after another.
    above: Vec<f64>,
    said: bool,
}

/// The lowest evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Best {
    step: usize,
    loss: f64,
    training: Option<f64>,
}

impl Default for Overfitting {
    fn default() -> Self {
        Self { training: Trend::new(DECAY), best: None, above: Vec::new(), said: false }
    }
}

impl Watcher for Overfitting {
    const KIND: WatcherKind = WatcherKind::Overfitting;

    fn observe(&mut self, observation: Observation<'_>) -> Option<Alarm> {
        let record = match observation {
            Observation::Step(signals) => {
                self.training.follow(signals.loss);
                return None;
            }
            Observation::Evaluation(record) => record,
            _ => return None,
        };
        let loss = record.evaluation.loss;
        let best = match self.best {
            Some(best) if loss >= best.loss => best,
            _ => {
                self.best = Some(Best { step: record.step, loss, training: self.training.value() });
                self.above.clear();
                self.said = false;
                return None;
            }
        };
        if loss <= (1.0 + SHARE) * best.loss {
            self.above.clear();
            return None;
        }
        let rises = self.above.last().is_none_or(|last| loss >= *last);
        self.above.push(loss);
        let (then, now) = (best.training?, self.training.value()?);
        let overfits = self.above.len() >= PATIENCE && rises && now < (1.0 - SHARE) * then;
        if !overfits || self.said {
            return None;
        }
        self.said = true;
        Some(Alarm {
            what: format!(
                "the validation loss was lowest after step {}, {:.4}, and is {loss:.4} now, while the training loss fell from \
                 {then:.4} to {now:.4}",
                best.step, best.loss
            ),
            advice: format!(
                "the model learns its examples by heart: take the adapter of step {}, train for fewer epochs, or give more data, a \
                 lower rank or dropout",
                best.step
            ),
            since: Some(best.step + 1),
        })
    }
}
