//! A learning rate that is too high or too low.

use serde::{Deserialize, Serialize};

use super::robust::{Fall, Residuals, Trend};
use super::{Alarm, Observation, StepSignals, Watcher, WatcherKind};

const DECAY: f64 = 0.9;
/// The trend has to be known so well before its rise counts.
const FEWEST: usize = 20;
const RISE: f64 = 0.25;
const DEVIATIONS: f64 = 4.0;
const IN_A_ROW: usize = 20;
const SHARE: f64 = 0.03;
const LOOK_EVERY: usize = 50;
const LONGEST: usize = 2000;

/// Finds a run whose loss rises and stays up (the rate is too high), and one that learns nothing (it is too low).
///
/// **Too high**: with the exponential mean `m` of the losses (decay 0.9), its lowest value `m_0` and the deviation `s` of the residuals
/// of the last 64 steps (as in [`LossSpike`](super::LossSpike)), it fires when `m - m_0 > max(m_0 / 4, 4 s sqrt(0.1 / 1.9))` holds for 20
/// steps in a row; `s sqrt((1 - decay) / (1 + decay))` is the deviation of the mean.
///
/// **Too low**: with the medians `m_1`, `m_2` of the two halves of all steps so far and the standard error `SE` of their difference (as in
/// [`Plateau`](super::Plateau)), it fires when `m_1 - m_2 + SE < 0.03 m_1`. Steps of the warm-up do not count; it looks every 50 steps,
/// from 100 steps and a fifth of the run (2,000 steps at the most) up to half of the run, over the first 2,000 of them, and says it once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearningRate {
    trend: Trend,
    residuals: Residuals,
    lowest: Option<f64>,
    #[serde(default)]
    lowest_at: usize,
    high_in_a_row: usize,
    /// The losses since the warm-up, the first 2,000 of them, until it is known whether they fall.
    losses: Vec<f64>,
    last_rate: Option<f64>,
    said_low: bool,
}

impl Default for LearningRate {
    fn default() -> Self {
        Self {
            trend: Trend::new(DECAY),
            residuals: Residuals::default(),
            lowest: None,
            lowest_at: 0,
            high_in_a_row: 0,
            losses: Vec::new(),
            last_rate: None,
            said_low: false,
        }
    }
}

impl LearningRate {
    fn too_high(&mut self, signals: &StepSignals) -> Option<Alarm> {
        self.residuals.push(self.trend.follow(signals.loss));
        let trend = self.trend.value()?;
        let scale = self.residuals.deviation(FEWEST)?;
        let lowest = match self.lowest {
            Some(lowest) if lowest < trend => lowest,
            _ => {
                (self.lowest, self.lowest_at) = (Some(trend), signals.step);
                trend
            }
        };
        let of_trend = scale * ((1.0 - DECAY) / (1.0 + DECAY)).sqrt();
        let high = trend - lowest > (RISE * lowest.abs()).max(DEVIATIONS * of_trend);
        self.high_in_a_row = if high { self.high_in_a_row + 1 } else { 0 };
        (self.high_in_a_row == IN_A_ROW).then(|| Alarm {
            what: format!(
                "the loss has risen from {lowest:.4} to {trend:.4} and stays there, at a learning rate of {:e}",
                signals.learning_rate
            ),
            advice: "the learning rate is too high: go back to a checkpoint with a third of it, or lengthen the warm-up".into(),
            since: Some(self.lowest_at),
        })
    }

    fn too_low(&mut self, signals: &StepSignals) -> Option<Alarm> {
        let last_rate = self.last_rate.replace(signals.learning_rate);
        let rises = last_rate.is_some_and(|last| signals.learning_rate > last);
        if rises || signals.learning_rate == 0.0 {
            // The warm-up goes on.
            self.losses.clear();
            return None;
        }
        let over = signals.step > signals.max_steps / 2 || self.said_low;
        if over {
            self.losses = Vec::new();
            return None;
        }
        if self.losses.len() >= LONGEST {
            return None;
        }
        self.losses.push(signals.loss);
        let count = self.losses.len();
        if count < 100.max(signals.max_steps / 5).min(LONGEST) || !count.is_multiple_of(LOOK_EVERY) {
            return None;
        }
        let fall = Fall::between_halves(&self.losses);
        self.said_low = fall.is_below(SHARE) && self.high_in_a_row == 0;
        self.said_low.then(|| Alarm {
            what: format!(
                "after {count} steps the loss has fallen by {:.4} ± {:.4} alone, from {:.4}, at a learning rate of {:e}",
                fall.by, fall.standard_error, fall.from, signals.learning_rate
            ),
            advice: "the learning rate may be too low: try three times as much, or find one with the range test; if that changes \
                     nothing, look whether the targets can be learnt from the prompts"
                .into(),
            since: None,
        })
    }
}

impl Watcher for LearningRate {
    const KIND: WatcherKind = WatcherKind::LearningRate;

    fn observe(&mut self, observation: Observation<'_>) -> Option<Alarm> {
        let Observation::Step(signals) = observation else { return None };
        let high = self.too_high(&signals);
        let low = self.too_low(&signals);
        high.or(low)
    }
}
