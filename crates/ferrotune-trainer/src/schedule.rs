//! Learning-rate schedules.
//!
//! The learning rate of an optimizer step is `learning_rate * factor(s)`, where `s` counts the steps already done: the first step of a
//! schedule with warm-up has rate 0. With `w` warm-up steps and `T` steps in all, the factor is `s / w` while `s < w`; then, with
//! `p = (s - w) / (T - w)`:
//!
//! | name | factor |
//! |---|---|
//! | `linear` | `1 - p` |
//! | `cosine` | `(1 + cos(pi p)) / 2` |
//! | `cosine_with_restarts` | `(1 + cos(pi (p mod 1))) / 2`, 0 from `p = 1` on |
//! | `polynomial` | `((lr - end) (1 - p)^power + end) / lr`, `power = 1`, `end = 1e-7` |
//! | `constant` | 1, and no warm-up |
//! | `constant_with_warmup` | 1 |
//! | `inverse_sqrt` | `1 / sqrt((s + t - w) / t)`, `t = w`, or 10,000 without warm-up |
//!
//! ```
//! use ferrotune_trainer::{Schedule, SchedulerType};
//! let schedule = Schedule::new(SchedulerType::Linear, 1e-3, 2, 10)?;
//! assert_eq!(schedule.factor(0), 0.0);
//! assert_eq!(schedule.learning_rate(2), 1e-3);
//! assert_eq!(schedule.factor(6), 0.5);
//! # Ok::<(), ferrotune_trainer::Error>(())
//! ```
//!
//! # References
//! The names, and the factor of each step, are those of `transformers.optimization` 5.23 with its default keyword arguments.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

const POLYNOMIAL_END: f64 = 1e-7;
const INVERSE_SQRT_TIMESCALE: usize = 10_000;

/// The name of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum SchedulerType {
    /// Straight down to 0.
    #[default]
    Linear,
    /// Half a cosine down to 0.
    Cosine,
    /// Half a cosine that starts again.
    CosineWithRestarts,
    /// A power of what remains.
    Polynomial,
    /// No change, and no warm-up.
    Constant,
    /// No change after the warm-up.
    ConstantWithWarmup,
    /// The inverse square root of the step.
    InverseSqrt,
}

impl SchedulerType {
    /// Every schedule that is offered.
    pub const ALL: [Self; 7] = [
        Self::Linear,
        Self::Cosine,
        Self::CosineWithRestarts,
        Self::Polynomial,
        Self::Constant,
        Self::ConstantWithWarmup,
        Self::InverseSqrt,
    ];

    /// The name in `lr_scheduler_type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::CosineWithRestarts => "cosine_with_restarts",
            Self::Polynomial => "polynomial",
            Self::Constant => "constant",
            Self::ConstantWithWarmup => "constant_with_warmup",
            Self::InverseSqrt => "inverse_sqrt",
        }
    }
}

impl fmt::Display for SchedulerType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SchedulerType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| Error::UnknownScheduler {
            found: name.into(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

impl TryFrom<String> for SchedulerType {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<SchedulerType> for String {
    fn from(kind: SchedulerType) -> Self {
        kind.name().into()
    }
}

/// The learning rate of every step of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    kind: SchedulerType,
    learning_rate: f64,
    warmup_steps: usize,
    training_steps: usize,
}

impl Schedule {
    /// The schedule of `training_steps` steps, of which the first `warmup_steps` warm up to `learning_rate`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for `polynomial` with a learning rate that is not above the rate it ends at.
    pub fn new(
        kind: SchedulerType,
        learning_rate: f64,
        warmup_steps: usize,
        training_steps: usize,
    ) -> Result<Self> {
        if kind == SchedulerType::Polynomial && learning_rate <= POLYNOMIAL_END {
            return Err(Error::InvalidArgument {
                field: "learning_rate",
                found: learning_rate.to_string(),
                expected: "a value above 1e-7, where the polynomial schedule ends",
            });
        }
        Ok(Self { kind, learning_rate, warmup_steps, training_steps })
    }

    /// What the learning rate is multiplied by in the step before which `steps_done` were done.
    pub fn factor(&self, steps_done: usize) -> f64 {
        let (step, warmup, total) = (steps_done as f64, self.warmup_steps as f64, self.training_steps as f64);
        if self.kind == SchedulerType::Constant {
            return 1.0;
        }
        if steps_done < self.warmup_steps {
            return step / warmup;
        }
        let progress = (step - warmup) / (total - warmup).max(1.0);
        match self.kind {
            SchedulerType::Linear => ((total - step) / (total - warmup).max(1.0)).max(0.0),
            SchedulerType::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
            SchedulerType::CosineWithRestarts if progress >= 1.0 => 0.0,
            SchedulerType::CosineWithRestarts => (0.5 * (1.0 + (PI * (progress % 1.0)).cos())).max(0.0),
            SchedulerType::Polynomial if steps_done > self.training_steps => {
                POLYNOMIAL_END / self.learning_rate
            }
            SchedulerType::Polynomial => {
                ((self.learning_rate - POLYNOMIAL_END) * (1.0 - progress) + POLYNOMIAL_END)
                    / self.learning_rate
            }
            SchedulerType::InverseSqrt => {
                let timescale = match self.warmup_steps {
                    0 => INVERSE_SQRT_TIMESCALE as f64,
                    steps => steps as f64,
                };
                1.0 / ((step + timescale - warmup) / timescale).sqrt()
            }
            SchedulerType::Constant | SchedulerType::ConstantWithWarmup => 1.0,
        }
    }

    /// The learning rate of the step before which `steps_done` were done.
    pub fn learning_rate(&self, steps_done: usize) -> f64 {
        self.learning_rate * self.factor(steps_done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let message = "cosine_with_min_lr".parse::<SchedulerType>().unwrap_err().to_string();
        assert!(message.contains("\"cosine_with_min_lr\""), "{message}");
        for kind in SchedulerType::ALL {
            assert!(message.contains(kind.name()), "{message}");
            assert_eq!(kind.name().parse::<SchedulerType>().unwrap(), kind);
        }
    }

    #[test]
    fn a_run_that_only_warms_up_has_a_finite_rate_everywhere() {
        for kind in SchedulerType::ALL {
            let schedule = Schedule::new(kind, 1e-3, 5, 5).unwrap();
            for step in 0..8 {
                assert!(schedule.learning_rate(step).is_finite(), "{kind} at {step}");
            }
        }
    }
}
