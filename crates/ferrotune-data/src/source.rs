//! Where a piece of data came from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A line of a file, shown as `file:line`.
///
/// It travels with an example from the file to the batch, so that a later error (a row that is too long, a step whose loss
/// is not finite) can name the lines that caused it. Cloning is cheap: the path is shared.
///
/// # Examples
/// ```
/// use ferrotune_data::Source;
/// use std::path::Path;
///
/// let source = Source { file: Path::new("train.jsonl").into(), line: 17 };
/// assert_eq!(source.to_string(), "train.jsonl:17");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// The file, as it was given.
    pub file: Arc<Path>,
    /// Line number, counted from 1.
    pub line: usize,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl serde::Serialize for Source {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
