//! A loss far above its own trend.

use serde::{Deserialize, Serialize};

use super::robust::{Residuals, Trend};
use super::{Alarm, Observation, Watcher, WatcherKind};

const DECAY: f64 = 0.95;
const FEWEST: usize = 30;
/// Never in normal noise; that of small batches has longer tails.
const DEVIATIONS: f64 = 10.0;
/// What is less than three quarters of the loss, or than 0.05, may be a hard batch, however quiet the curve was.
const SHARE: f64 = 0.75;
const FLOOR: f64 = 0.05;

/// Finds a step whose loss is far above the trend of the steps before.
///
/// With the exponential mean `m` of the losses (decay 0.95) and the residuals `r_t = loss_t - m_(t-1)` of the last 64 steps, of which 30
/// are needed, it fires at `r_t > max(10 s, 3 m / 4, 0.05)`, where `s = 1.4826 median |r - median r|`. What is more than `max(3 s, 0.05)`
/// above the
/// trend moves it by that alone, so that a spike does not hide the next one; a level that stays is got used to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossSpike {
    trend: Trend,
    residuals: Residuals,
}

impl Default for LossSpike {
    fn default() -> Self {
        Self { trend: Trend::new(DECAY), residuals: Residuals::default() }
    }
}

impl Watcher for LossSpike {
    const KIND: WatcherKind = WatcherKind::LossSpike;

    fn observe(&mut self, observation: Observation<'_>) -> Option<Alarm> {
        let Observation::Step(signals) = observation else { return None };
        let loss = signals.loss;
        let before = self.trend.value().unwrap_or(loss);
        let residual = loss - before;
        let mut alarm = None;
        let mut followed = loss;
        if let Some(scale) = self.residuals.deviation(FEWEST) {
            followed = loss.min(before + (3.0 * scale).max(FLOOR));
            if residual > (DEVIATIONS * scale).max(SHARE * before).max(FLOOR) {
                alarm = Some(Alarm {
                    what: format!(
                        "the loss is {loss:.4}, {residual:.4} above its trend of {before:.4} (usual deviation {scale:.4}, gradient norm {:.3})",
                        signals.grad_norm
                    ),
                    advice: "one spike may be an odd batch: look at its examples; if it comes again, lower the learning rate or \
                             max_grad_norm, or lengthen the warm-up"
                        .into(),
                    since: None,
                });
            }
        }
        self.trend.follow(followed);
        self.residuals.push(residual);
        alarm
    }
}
