//! Learning-rate schedules.

mod kwargs;
mod plateau;

use std::f64::consts::PI;

pub use kwargs::{SchedulerKwarg, SchedulerKwargs};
pub use plateau::PlateauState;

use crate::{Error, Result, SchedulerType};
use kwargs::FIELD;
use plateau::Plateau;

/// The learning rate of every step of a run.
///
/// The learning rate of an optimizer step is `learning_rate * factor(s)`, where `s` counts the steps already done: the first step of a
/// schedule with warm-up has rate 0. With `w` warm-up steps and `T` steps in all, the factor is `s / w` while `s < w`, if the table says
/// nothing else; then, with
/// `p = (s - w) / (T - w)`, `c` for `num_cycles` and `m` for `min_lr_rate` (or `min_lr / learning_rate`):
///
/// | name | factor | `lr_scheduler_kwargs`, with their defaults |
/// |---|---|---|
/// | `linear` | `1 - p` | |
/// | `cosine` | `(1 + cos(2 pi c p)) / 2` | `num_cycles` 0.5 |
/// | `cosine_with_restarts` | `(1 + cos(pi (c p mod 1))) / 2`, 0 from `p = 1` on | `num_cycles` 1 |
/// | `polynomial` | `((lr - end) (1 - p)^power + end) / lr` | `lr_end` 1e-7, `power` 1 |
/// | `constant` | 1, and no warm-up | |
/// | `constant_with_warmup` | 1 | |
/// | `inverse_sqrt` | `1 / sqrt((s + t - w) / t)` | `timescale` `t`: `w`, or 10,000 without warm-up |
/// | `cosine_with_min_lr` | `m + (1 - m) (1 + cos(2 pi c p)) / 2` | `num_cycles` 0.5; `min_lr` or `min_lr_rate`, required |
/// | `cosine_warmup_with_min_lr` | the same a step ahead, `p = (s - w + 1) / (T - w)`, after `(s + 1) / w`, or `u + (1 - u) s / (w - 1)` | also `warmup_lr_rate` `u` |
/// | `warmup_stable_decay` | 1 for `num_stable_steps`, down to `min_lr_ratio` in `num_decay_steps` | `num_decay_steps`, required; `num_stable_steps`: what is left; `min_lr_ratio` 0, `warmup_type` `linear`, `decay_type` `cosine` (or `linear`, `1-sqrt`), `num_cycles` 0.5 |
/// | `reduce_lr_on_plateau` | no warm-up; the rate times `factor`, not below `min_lr`, when more than `patience` evaluations in a row have not improved the metric by `threshold`; then none counts for `cooldown` evaluations ([`Schedule::observe`]) | `mode` `min`, `factor` 0.1, `patience` 10, `threshold` 1e-4, `threshold_mode` `rel`, `cooldown` 0, `min_lr` 0, `eps` 1e-8 |
///
/// ```
/// use ferrotune_trainer::{Schedule, SchedulerKwargs, SchedulerType};
/// let schedule = Schedule::new(SchedulerType::Linear, &SchedulerKwargs::default(), 1e-3, 2, 10)?;
/// assert_eq!(schedule.factor(0), 0.0);
/// assert_eq!(schedule.learning_rate(2), 1e-3);
/// assert_eq!(schedule.factor(6), 0.5);
///
/// let kwargs = SchedulerKwargs::from([("patience", 0.0), ("factor", 0.5)]);
/// let mut schedule = Schedule::new(SchedulerType::ReduceLrOnPlateau, &kwargs, 1e-3, 0, 10)?;
/// for loss in [2.0, 1.0, 1.5] {
///     schedule.observe(loss);
/// }
/// assert_eq!(schedule.learning_rate(3), 5e-4);
/// # Ok::<(), ferrotune_trainer::Error>(())
/// ```
///
/// # References
/// The names, and the factor of each step, are those of `transformers.optimization` 5.23, `reduce_lr_on_plateau` that of
/// `torch.optim.lr_scheduler.ReduceLROnPlateau`.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    curve: Curve,
    learning_rate: f64,
    warmup_steps: usize,
    training_steps: usize,
}

/// What the factor does after the warm-up.
#[derive(Debug, Clone, PartialEq)]
enum Curve {
    Constant,
    ConstantWithWarmup,
    Linear,
    Cosine { waves: f64, floor: f64 },
    CosineStepAhead { waves: f64, floor: f64, start: Option<f64> },
    Restarts { cycles: f64 },
    Polynomial { end: f64, power: f64 },
    InverseSqrt { timescale: f64 },
    StableDecay { rise: Ramp, stable_steps: f64, decay_steps: f64, fall: Ramp, waves: f64, floor: f64 },
    Plateau(Plateau),
}

/// `warmup_type` and `decay_type`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ramp {
    Linear,
    Cosine,
    OneMinusSqrt,
}

const RAMPS: [(&str, Ramp); 3] =
    [("linear", Ramp::Linear), ("cosine", Ramp::Cosine), ("1-sqrt", Ramp::OneMinusSqrt)];

impl Schedule {
    /// The schedule of `training_steps` steps, of which the first `warmup_steps` warm up to `learning_rate`.
    ///
    /// # Errors
    /// [`Error::UnknownName`] for one of the `kwargs` that the schedule does not take, and for an unknown name in one;
    /// [`Error::InvalidArgument`] for any of a schedule that takes none, a value out of range, one that is missing, and a `learning_rate`
    /// that is not above the rate
    /// that `polynomial` ends at.
    pub fn new(
        kind: SchedulerType,
        kwargs: &SchedulerKwargs,
        learning_rate: f64,
        warmup_steps: usize,
        training_steps: usize,
    ) -> Result<Self> {
        kwargs.check_names(kind)?;
        let waves = || Ok(kwargs.non_negative("num_cycles")?.unwrap_or(0.5));
        let curve = match kind {
            SchedulerType::Linear => Curve::Linear,
            SchedulerType::Constant => Curve::Constant,
            SchedulerType::ConstantWithWarmup => Curve::ConstantWithWarmup,
            SchedulerType::Cosine => Curve::Cosine { waves: waves()?, floor: 0.0 },
            SchedulerType::CosineWithRestarts => {
                Curve::Restarts { cycles: kwargs.count("num_cycles")?.unwrap_or(1) as f64 }
            }
            SchedulerType::Polynomial => {
                let end = kwargs.non_negative("lr_end")?.unwrap_or(1e-7);
                if learning_rate <= end {
                    return Err(Error::InvalidArgument {
                        field: "learning_rate",
                        found: learning_rate.to_string(),
                        expected: "a value above lr_end (1e-7 unless lr_scheduler_kwargs says otherwise), where the \
                                   polynomial schedule ends",
                    });
                }
                Curve::Polynomial { end, power: kwargs.non_negative("power")?.unwrap_or(1.0) }
            }
            SchedulerType::InverseSqrt => {
                let default = if warmup_steps == 0 { 10_000.0 } else { warmup_steps as f64 };
                let positive = |number: f64| number > 0.0;
                let timescale = kwargs.number("timescale", "a number above 0", positive)?.unwrap_or(default);
                Curve::InverseSqrt { timescale }
            }
            SchedulerType::CosineWithMinLr => {
                Curve::Cosine { waves: waves()?, floor: floor(kwargs, learning_rate)? }
            }
            SchedulerType::CosineWarmupWithMinLr => Curve::CosineStepAhead {
                waves: waves()?,
                floor: floor(kwargs, learning_rate)?,
                start: kwargs.non_negative("warmup_lr_rate")?,
            },
            SchedulerType::WarmupStableDecay => {
                let decay_steps = kwargs.count("num_decay_steps")?.ok_or(Error::InvalidArgument {
                    field: FIELD,
                    found: "without num_decay_steps".into(),
                    expected: "num_decay_steps: over how many steps warmup_stable_decay falls",
                })? as f64;
                // Below 0 where the steps are too few: then the fall has begun before the warm-up ends.
                let what_is_left = training_steps as f64 - warmup_steps as f64 - decay_steps;
                Curve::StableDecay {
                    rise: kwargs.choice("warmup_type", &RAMPS, Ramp::Linear)?,
                    stable_steps: kwargs
                        .count("num_stable_steps")?
                        .map_or(what_is_left, |steps| steps as f64),
                    decay_steps,
                    fall: kwargs.choice("decay_type", &RAMPS, Ramp::Cosine)?,
                    waves: waves()?,
                    floor: kwargs.non_negative("min_lr_ratio")?.unwrap_or(0.0),
                }
            }
            SchedulerType::ReduceLrOnPlateau => Curve::Plateau(Plateau::new(kwargs, learning_rate)?),
        };
        Ok(Self { curve, learning_rate, warmup_steps, training_steps })
    }

    /// What the learning rate is multiplied by in the step before which `steps_done` were done.
    pub fn factor(&self, steps_done: usize) -> f64 {
        let (step, warmup, total) = (steps_done as f64, self.warmup_steps as f64, self.training_steps as f64);
        let warms_up = steps_done < self.warmup_steps;
        let steps_after = (total - warmup).max(1.0);
        let progress = (step - warmup) / steps_after;
        match self.curve {
            Curve::Constant => 1.0,
            Curve::Plateau(ref plateau) => match plateau.state().learning_rate {
                rate if rate == self.learning_rate => 1.0,
                rate => rate / self.learning_rate,
            },
            Curve::CosineStepAhead { start: None, .. } if warms_up => (step + 1.0) / warmup,
            Curve::CosineStepAhead { start: Some(start), .. } if warms_up => {
                start + (1.0 - start) * step / (warmup - 1.0).max(1.0)
            }
            Curve::StableDecay { rise, floor, .. } if warms_up => {
                let progress = step / warmup;
                let factor = match rise {
                    Ramp::Linear => progress,
                    Ramp::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
                    Ramp::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
                };
                (factor * (1.0 - floor) + floor).max(0.0)
            }
            _ if warms_up => step / warmup,
            Curve::ConstantWithWarmup => 1.0,
            Curve::Linear => ((total - step) / steps_after).max(0.0),
            Curve::Cosine { waves, floor } => above(floor, wave(waves, progress)),
            Curve::CosineStepAhead { waves, floor, .. } => {
                above(floor, wave(waves, (step - warmup + 1.0) / steps_after))
            }
            Curve::Restarts { .. } if progress >= 1.0 => 0.0,
            Curve::Restarts { cycles } => wave(0.5, (cycles * progress) % 1.0).max(0.0),
            Curve::Polynomial { end, .. } if steps_done > self.training_steps => end / self.learning_rate,
            Curve::Polynomial { end, power } => {
                ((self.learning_rate - end) * (1.0 - progress).powf(power) + end) / self.learning_rate
            }
            Curve::InverseSqrt { timescale } => 1.0 / ((step + timescale - warmup) / timescale).sqrt(),
            Curve::StableDecay { stable_steps, decay_steps, fall, waves, floor, .. } => {
                let falling = step - warmup - stable_steps;
                if falling < 0.0 {
                    return 1.0;
                }
                if falling >= decay_steps {
                    return floor;
                }
                let progress = falling / decay_steps;
                above(
                    floor,
                    match fall {
                        Ramp::Linear => 1.0 - progress,
                        Ramp::Cosine => wave(waves, progress),
                        Ramp::OneMinusSqrt => 1.0 - progress.sqrt(),
                    },
                )
            }
        }
    }

    /// The learning rate of the step before which `steps_done` were done.
    pub fn learning_rate(&self, steps_done: usize) -> f64 {
        match &self.curve {
            Curve::Plateau(plateau) => plateau.state().learning_rate,
            _ => self.learning_rate * self.factor(steps_done),
        }
    }

    /// Hears the metric of an evaluation, which moves `reduce_lr_on_plateau` and nothing else.
    pub fn observe(&mut self, metric: f64) {
        if let Curve::Plateau(plateau) = &mut self.curve {
            plateau.observe(metric);
        }
    }

    /// What must be kept beside the number of steps to go on later: something for `reduce_lr_on_plateau` alone.
    pub fn state(&self) -> Option<PlateauState> {
        match &self.curve {
            Curve::Plateau(plateau) => Some(plateau.state()),
            _ => None,
        }
    }

    /// Takes over what [`Schedule::state`] gave; other schedules than `reduce_lr_on_plateau` have nothing to take.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if its rate is not a number of at least 0.
    pub fn load_state(&mut self, state: PlateauState) -> Result<()> {
        match &mut self.curve {
            Curve::Plateau(plateau) => plateau.load_state(state),
            _ => Ok(()),
        }
    }
}

/// `(1 + cos(2 pi waves p)) / 2`
fn wave(waves: f64, progress: f64) -> f64 {
    0.5 * (1.0 + (PI * waves * 2.0 * progress).cos())
}

fn above(floor: f64, factor: f64) -> f64 {
    (factor * (1.0 - floor) + floor).max(0.0)
}

/// `min_lr_rate`, or `min_lr` by the learning rate.
fn floor(kwargs: &SchedulerKwargs, learning_rate: f64) -> Result<f64> {
    match (kwargs.non_negative("min_lr")?, kwargs.non_negative("min_lr_rate")?) {
        (Some(rate), None) if learning_rate > 0.0 => Ok(rate / learning_rate),
        (None, Some(share)) => Ok(share),
        (rate, share) => Err(Error::InvalidArgument {
            field: FIELD,
            found: format!("min_lr {rate:?} and min_lr_rate {share:?}"),
            expected: "either min_lr, with a learning_rate above 0, or min_lr_rate",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn required(kind: SchedulerType) -> SchedulerKwargs {
        match kind {
            SchedulerType::CosineWithMinLr | SchedulerType::CosineWarmupWithMinLr => {
                [("min_lr_rate", 0.1)].into()
            }
            SchedulerType::WarmupStableDecay => [("num_decay_steps", 2.0)].into(),
            _ => SchedulerKwargs::default(),
        }
    }

    #[test]
    fn a_run_that_only_warms_up_has_a_finite_rate_everywhere() {
        for kind in SchedulerType::ALL {
            let schedule = Schedule::new(kind, &required(kind), 1e-3, 5, 5).unwrap();
            for step in 0..8 {
                assert!(schedule.learning_rate(step).is_finite(), "{kind} at {step}");
            }
        }
    }

    #[test]
    fn kwargs_that_a_schedule_cannot_use_are_refused() {
        let refusal = |kind, kwargs| Schedule::new(kind, &kwargs, 1e-3, 0, 10).unwrap_err().to_string();
        let message = refusal(SchedulerType::Cosine, [("num_cycle", 1.0)].into());
        assert!(message.contains("did you mean \"num_cycles\"?"), "{message}");
        let message = refusal(SchedulerType::Linear, [("power", 1.0)].into());
        assert!(
            message.contains("{power: 1}") && message.contains("takes no further arguments"),
            "{message}"
        );
        let message = refusal(SchedulerType::ReduceLrOnPlateau, [("factor", 1.0)].into());
        assert!(message.contains("{factor: 1}") && message.contains("below 1"), "{message}");
        let message = refusal(SchedulerType::ReduceLrOnPlateau, [("mode", "mni")].into());
        assert!(message.contains("did you mean \"min\"?"), "{message}");
        for kind in [SchedulerType::CosineWithMinLr, SchedulerType::WarmupStableDecay] {
            let message = refusal(kind, SchedulerKwargs::default());
            assert!(message.contains("min_lr_rate") || message.contains("num_decay_steps"), "{message}");
        }
        let both = refusal(SchedulerType::CosineWithMinLr, [("min_lr", 1e-5), ("min_lr_rate", 0.1)].into());
        assert!(both.contains("either min_lr"), "{both}");
        let end = refusal(SchedulerType::Polynomial, [("lr_end", 1e-3)].into());
        assert!(end.contains("learning_rate = 0.001"), "{end}");
    }

    #[test]
    fn a_plateau_goes_on_from_its_state() {
        let kwargs = SchedulerKwargs::from([("patience", 1.0), ("cooldown", 1.0), ("factor", 0.5)]);
        let new = || Schedule::new(SchedulerType::ReduceLrOnPlateau, &kwargs, 1e-3, 0, 10).unwrap();
        let losses = [2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5];
        let mut whole = new();
        losses.iter().for_each(|&loss| whole.observe(loss));
        assert_eq!(whole.learning_rate(9), 2.5e-4);
        for cut in 0..losses.len() {
            let (mut first, mut second) = (new(), new());
            losses[..cut].iter().for_each(|&loss| first.observe(loss));
            let text = serde_json::to_string(&first.state()).unwrap();
            second.load_state(serde_json::from_str::<Option<PlateauState>>(&text).unwrap().unwrap()).unwrap();
            losses[cut..].iter().for_each(|&loss| second.observe(loss));
            assert_eq!(second, whole, "cut at {cut}");
        }
        let broken = PlateauState { learning_rate: f64::NAN, ..whole.state().unwrap() };
        assert!(whole.load_state(broken).is_err());
        let linear = Schedule::new(SchedulerType::Linear, &SchedulerKwargs::default(), 1e-3, 0, 10).unwrap();
        assert_eq!(linear.state(), None);
    }
}
