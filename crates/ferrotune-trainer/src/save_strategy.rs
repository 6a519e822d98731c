//! When a run writes a checkpoint.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// `save_strategy`: after which steps a checkpoint is written.
///
/// # References
/// `transformers.SaveStrategy` 5.23.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveStrategy {
    /// Never.
    No,
    /// Every `save_steps` steps, and after the last one.
    #[default]
    Steps,
    /// At the end of each epoch.
    Epoch,
    /// Whenever an evaluation is the best so far.
    Best,
}

impl SaveStrategy {
    /// Every strategy.
    pub const ALL: [Self; 4] = [Self::No, Self::Steps, Self::Epoch, Self::Best];

    /// The name in `save_strategy`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Steps => "steps",
            Self::Epoch => "epoch",
            Self::Best => "best",
        }
    }
}

impl fmt::Display for SaveStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SaveStrategy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|strategy| strategy.name() == name).ok_or_else(|| Error::InvalidArgument {
            field: "save_strategy",
            found: name.to_owned(),
            expected: "no, steps, epoch or best",
        })
    }
}
