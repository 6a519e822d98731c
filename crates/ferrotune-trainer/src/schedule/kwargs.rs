//! `lr_scheduler_kwargs`: what a schedule can be told beside the steps of its warm-up.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, SchedulerType};

/// The further arguments of a schedule, by transformers' names.
///
/// ```
/// use ferrotune_trainer::{SchedulerKwargs, SchedulerType, TrainingArguments};
/// let arguments = TrainingArguments {
///     lr_scheduler_type: SchedulerType::CosineWithMinLr,
///     lr_scheduler_kwargs: SchedulerKwargs::from([("min_lr_rate", 0.1)]),
///     max_steps: 10,
///     ..Default::default()
/// };
/// let schedule = arguments.schedule(&arguments.plan(8)?)?;
/// assert_eq!(schedule.factor(10), 0.1);
/// # Ok::<(), ferrotune_trainer::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SchedulerKwargs(BTreeMap<String, SchedulerKwarg>);

/// A value of [`SchedulerKwargs`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SchedulerKwarg {
    /// A number.
    Number(f64),
    /// A name, such as that of `decay_type`.
    Name(String),
}

impl fmt::Display for SchedulerKwarg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => write!(f, "{name:?}"),
        }
    }
}

impl From<f64> for SchedulerKwarg {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for SchedulerKwarg {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl<V: Into<SchedulerKwarg>, const N: usize> From<[(&str, V); N]> for SchedulerKwargs {
    fn from(kwargs: [(&str, V); N]) -> Self {
        kwargs.into_iter().collect()
    }
}

impl<K: Into<String>, V: Into<SchedulerKwarg>> FromIterator<(K, V)> for SchedulerKwargs {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(kwargs: I) -> Self {
        Self(kwargs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// The argument that a refusal names.
pub(super) const FIELD: &str = "lr_scheduler_kwargs";

impl SchedulerKwargs {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives an argument that is not given yet.
    pub(crate) fn set_default(&mut self, name: &str, value: &str) {
        self.0.entry(name.to_owned()).or_insert_with(|| value.into());
    }

    /// Refuses a name that the schedule does not take.
    pub(super) fn check_names(&self, kind: SchedulerType) -> Result<()> {
        let known = names(kind);
        match self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, value)) if known.is_empty() => Err(Error::InvalidArgument {
                field: FIELD,
                found: format!("{{{name}: {value}}}"),
                expected: "nothing: this lr_scheduler_type takes no further arguments",
            }),
            Some((name, _)) => Err(Error::unknown_name(FIELD, name, known)),
        }
    }

    /// A number that `accept` agrees with, if it is given.
    pub(super) fn number(
        &self,
        name: &str,
        expected: &'static str,
        accept: impl FnOnce(f64) -> bool,
    ) -> Result<Option<f64>> {
        match self.0.get(name) {
            None => Ok(None),
            Some(SchedulerKwarg::Number(number)) if number.is_finite() && accept(*number) => {
                Ok(Some(*number))
            }
            Some(value) => {
                Err(Error::InvalidArgument { field: FIELD, found: format!("{{{name}: {value}}}"), expected })
            }
        }
    }

    /// A number of at least 0, if it is given.
    pub(super) fn non_negative(&self, name: &str) -> Result<Option<f64>> {
        self.number(name, "a number of at least 0", |number| number >= 0.0)
    }

    /// A count, if it is given.
    pub(super) fn count(&self, name: &str) -> Result<Option<usize>> {
        let whole = |number: f64| number >= 0.0 && number.fract() == 0.0 && number <= 1e15;
        let number = self.number(name, "a whole number of at least 0", whole)?;
        Ok(number.map(|number| number as usize))
    }

    /// One of a few names, else the first of them.
    pub(super) fn choice<T: Copy>(&self, name: &'static str, choices: &[(&str, T)], default: T) -> Result<T> {
        let Some(found) = self.0.get(name) else { return Ok(default) };
        let text = match found {
            SchedulerKwarg::Name(text) => text.clone(),
            SchedulerKwarg::Number(number) => number.to_string(),
        };
        choices.iter().find(|(choice, _)| *choice == text).map(|(_, value)| *value).ok_or_else(|| {
            let known: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
            Error::unknown_name(name, &text, &known)
        })
    }
}

/// What a schedule can be told.
const fn names(kind: SchedulerType) -> &'static [&'static str] {
    match kind {
        SchedulerType::Linear | SchedulerType::Constant | SchedulerType::ConstantWithWarmup => &[],
        SchedulerType::Cosine | SchedulerType::CosineWithRestarts => &["num_cycles"],
        SchedulerType::Polynomial => &["lr_end", "power"],
        SchedulerType::InverseSqrt => &["timescale"],
        SchedulerType::CosineWithMinLr => &["num_cycles", "min_lr", "min_lr_rate"],
        SchedulerType::CosineWarmupWithMinLr => &["num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"],
        SchedulerType::WarmupStableDecay => &[
            "num_decay_steps",
            "num_stable_steps",
            "warmup_type",
            "decay_type",
            "min_lr_ratio",
            "num_cycles",
        ],
        SchedulerType::ReduceLrOnPlateau => {
            &["mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps"]
        }
    }
}
