//! The rate that falls when a metric stops improving.

use serde::{Deserialize, Serialize};

use super::kwargs::{FIELD, SchedulerKwargs};
use crate::{Error, Result};

/// `reduce_lr_on_plateau`: after each evaluation, `rate <- max(rate * factor, min_lr)` once more than `patience` of them in a row
/// were not better than the best by the threshold; then `cooldown` evaluations count for nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plateau {
    smaller_is_better: bool,
    relative: bool,
    threshold: f64,
    factor: f64,
    patience: usize,
    cooldown: usize,
    min_lr: f64,
    eps: f64,
    state: PlateauState,
}

/// What `reduce_lr_on_plateau` remembers, for a checkpoint: the rest of a schedule follows from the number of steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PlateauState {
    /// The rate.
    pub learning_rate: f64,
    /// The best metric; `None` before the first evaluation.
    pub best: Option<f64>,
    /// Evaluations in a row that were not better.
    pub num_bad_epochs: usize,
    /// Evaluations that are still passed over.
    pub cooldown_counter: usize,
}

impl Plateau {
    pub(super) fn new(kwargs: &SchedulerKwargs, learning_rate: f64) -> Result<Self> {
        let below_one = |number: f64| (0.0..1.0).contains(&number);
        Ok(Self {
            smaller_is_better: kwargs.choice("mode", &[("min", true), ("max", false)], true)?,
            relative: kwargs.choice("threshold_mode", &[("rel", true), ("abs", false)], true)?,
            threshold: kwargs.non_negative("threshold")?.unwrap_or(1e-4),
            factor: kwargs.number("factor", "a number of at least 0 and below 1", below_one)?.unwrap_or(0.1),
            patience: kwargs.count("patience")?.unwrap_or(10),
            cooldown: kwargs.count("cooldown")?.unwrap_or(0),
            min_lr: kwargs.non_negative("min_lr")?.unwrap_or(0.0),
            eps: kwargs.non_negative("eps")?.unwrap_or(1e-8),
            state: PlateauState { learning_rate, best: None, num_bad_epochs: 0, cooldown_counter: 0 },
        })
    }

    pub(super) const fn state(&self) -> PlateauState {
        self.state
    }

    pub(super) fn load_state(&mut self, state: PlateauState) -> Result<()> {
        if !(state.learning_rate.is_finite() && state.learning_rate >= 0.0) {
            return Err(Error::InvalidArgument {
                field: FIELD,
                found: format!("a state with learning_rate {}", state.learning_rate),
                expected: "a finite rate of at least 0",
            });
        }
        self.state = state;
        Ok(())
    }

    /// Hears the metric of an evaluation.
    pub(super) fn observe(&mut self, metric: f64) {
        let state = &mut self.state;
        let sign = if self.smaller_is_better { -1.0 } else { 1.0 };
        let bound = match state.best {
            None => sign * f64::NEG_INFINITY,
            Some(best) if self.relative => best * (1.0 + sign * self.threshold),
            Some(best) => best + sign * self.threshold,
        };
        if sign * metric > sign * bound {
            state.best = Some(metric);
            state.num_bad_epochs = 0;
        } else {
            state.num_bad_epochs += 1;
        }
        if state.cooldown_counter > 0 {
            state.cooldown_counter -= 1;
            state.num_bad_epochs = 0;
        }
        if state.num_bad_epochs > self.patience {
            let reduced = (state.learning_rate * self.factor).max(self.min_lr);
            if state.learning_rate - reduced > self.eps {
                state.learning_rate = reduced;
            }
            state.cooldown_counter = self.cooldown;
            state.num_bad_epochs = 0;
        }
    }
}
