//! What to do with lines and examples that cannot be used, and what was done.

use std::fmt;

use crate::error::MAX_LISTED;

/// What happens to a line or an example that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// All of them are reported in one error.
    #[default]
    Strict,
    /// They are left out, counted and named.
    Skip,
}

impl OnError {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::Strict, Self::Skip];

    /// Its name in a configuration: `strict` or `skip`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Skip => "skip",
        }
    }

    /// The choice of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|choice| choice.name() == name)
    }
}

/// What is wrong with some lines or examples: how many there are, and the first of them.
///
/// [`Display`](fmt::Display) is the list, a line for each and one for the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems<P> {
    /// The first problems, at most [`MAX_LISTED`].
    pub first: Vec<P>,
    /// How many there are.
    pub total: usize,
}

impl<P> Default for Problems<P> {
    fn default() -> Self {
        Self { first: Vec::new(), total: 0 }
    }
}

impl<P> Problems<P> {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    pub(crate) fn push(&mut self, problem: P) {
        self.total += 1;
        if self.first.len() < MAX_LISTED {
            self.first.push(problem);
        }
    }
}

impl<P: fmt::Display> fmt::Display for Problems<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::error::listed(&self.first, self.total))
    }
}
