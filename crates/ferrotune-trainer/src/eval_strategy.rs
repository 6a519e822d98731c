//! When a run evaluates its validation set.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// `eval_strategy`: when the validation set is evaluated during a run. After the last step it always is.
///
/// ```
/// use ferrotune_trainer::{EvalStrategy, TrainingArguments};
/// let arguments = TrainingArguments {
///     eval_strategy: EvalStrategy::Steps,
///     eval_steps: Some(4.0),
///     max_steps: 10,
///     ..Default::default()
/// };
/// let plan = arguments.plan(1000)?;
/// let steps: Vec<usize> = (0..=10).filter(|&step| plan.evaluates_after(step)).collect();
/// assert_eq!(steps, [4, 8, 10]);
/// # Ok::<(), ferrotune_trainer::Error>(())
/// ```
///
/// # References
/// `transformers.TrainingArguments.eval_strategy` 5.23, which evaluates after the last step unless it is `no`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvalStrategy {
    /// Not between the first step and the last.
    #[default]
    No,
    /// Every `eval_steps` steps.
    Steps,
    /// At the end of each epoch.
    Epoch,
}

impl EvalStrategy {
    /// Every strategy.
    pub const ALL: [Self; 3] = [Self::No, Self::Steps, Self::Epoch];

    /// The name in `eval_strategy`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Steps => "steps",
            Self::Epoch => "epoch",
        }
    }
}

impl fmt::Display for EvalStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EvalStrategy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|strategy| strategy.name() == name).ok_or_else(|| Error::InvalidArgument {
            field: "eval_strategy",
            found: name.to_owned(),
            expected: "no, steps or epoch",
        })
    }
}
