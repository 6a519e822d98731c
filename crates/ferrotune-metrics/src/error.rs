//! What can go wrong, each with where, what was expected, what was found and how to mend it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::Metric;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A metric's name is not known.
    #[error("unknown metric {found:?}: the known ones are {}", known_metrics())]
    UnknownMetric {
        /// The name given.
        found: String,
    },

    /// There is nothing to average over.
    #[error("no examples to evaluate: expected at least one pair of a reference and a prediction")]
    NoExamples,

    /// Perplexity is a mean over target tokens, and there are none.
    #[error("no target tokens: perplexity needs the likelihood of at least one; were all labels masked?")]
    NoTargetTokens,

    /// A file could not be read.
    #[error("{}: cannot read predictions: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },

    /// A file could not be written.
    #[error("{}: cannot write metrics: {source}{}", path.display(), remedy(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },

    /// A file of predictions holds no lines.
    #[error("{}: no predictions: expected lines such as {{\"reference\": \"...\", \"{prediction_field}\": \"...\"}}", path.display())]
    NoPredictions {
        /// The file.
        path: PathBuf,
        /// The field that was to hold the predictions.
        prediction_field: String,
    },

    /// Lines of a file of predictions are not what they should be.
    #[error("{}", display_bad_lines(path, lines, *total))]
    BadLines {
        /// The file.
        path: PathBuf,
        /// The first ones, at most [`BadLine::MAX_SHOWN`].
        lines: Vec<BadLine>,
        /// How many there are in all.
        total: usize,
    },

    /// Two sets of predictions are not those of the same examples in the same order.
    #[error("{}", display_unpaired(*line, before.as_deref(), after.as_deref()))]
    Unpaired {
        /// The line of the first prediction that has no partner, in the set before; in the set after, if the one before has ended.
        line: usize,
        /// The reference before; `None` if there are no more predictions before.
        before: Option<String>,
        /// The reference after; `None` if there are no more predictions after.
        after: Option<String>,
    },
}

/// One bad line of a file of predictions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Line in the file, from 1.
    pub line: usize,
    /// Character in the line, from 1.
    pub column: usize,
    /// The field concerned, unless it is the line as a whole.
    pub field: Option<String>,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl BadLine {
    /// At most this many bad lines of a file are kept; the others are counted.
    pub const MAX_SHOWN: usize = 20;
}

/// What helps where the place is full.
fn remedy(error: &io::Error) -> &'static str {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => "; make room there, or name a file elsewhere",
        FileTooLarge => "; raise the limit (`ulimit -f`), or name a file elsewhere",
        _ => "",
    }
}

fn display_unpaired(line: usize, before: Option<&str>, after: Option<&str>) -> String {
    let said = |reference: Option<&str>| match reference {
        // Enough to find it by.
        Some(text) if text.chars().count() > 60 => {
            format!("the reference {:?}...", text.chars().take(57).collect::<String>())
        }
        Some(text) => format!("the reference {text:?}"),
        None => "no more predictions".to_owned(),
    };
    format!(
        "line {line}: expected the same reference before and after, found {} before and {} after; compare predictions of the \
         same examples in the same order",
        said(before),
        said(after)
    )
}

fn known_metrics() -> String {
    Metric::ALL.map(|metric| metric.name()).join(", ")
}

fn display_bad_lines(path: &std::path::Path, lines: &[BadLine], total: usize) -> String {
    use fmt::Write as _;
    let mut text = String::new();
    for BadLine { line, column, field, expected, found } in lines {
        // Writing to a string cannot fail.
        _ = write!(text, "{}:{line}:{column}: ", path.display());
        if let Some(field) = field {
            _ = write!(text, "field {field:?}: ");
        }
        _ = writeln!(text, "expected {expected}, found {found}");
    }
    if total > lines.len() {
        _ = writeln!(text, "... and {} more", total - lines.len());
    }
    _ = write!(text, "{total} bad {} in {}", if total == 1 { "line" } else { "lines" }, path.display());
    text
}
