//! What can be wrong with a recipe, said so that it can be mended without reading the documentation.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a value of a recipe was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Place {
    /// In the file; line and column count from 1, columns in characters.
    Line {
        /// The recipe file.
        file: Arc<PathBuf>,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// In a `--set` of the command line.
    Override(String),
    /// Nowhere: a value that is missing, or one that stands at its default.
    File(Arc<PathBuf>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Self::Override(text) => write!(f, "--set {text}"),
            Self::File(file) => write!(f, "{}", file.display()),
        }
    }
}

/// One thing that is wrong with a recipe, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written.
    pub place: Place,
    /// What is wrong.
    pub kind: ProblemKind,
}

/// The kinds of [`Problem`]. Keys are written with their section, as in `training.learning_rate`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The file is no TOML.
    Syntax {
        /// What the parser says.
        message: String,
    },
    /// A `--set` that is not of the form `section.key=value`.
    Override {
        /// What is wrong with it.
        message: String,
    },
    /// A key that no recipe has.
    UnknownKey {
        /// The key as written.
        key: String,
        /// The most similar key that exists, if any is similar.
        nearest: Option<String>,
        /// The keys that its section has; empty where the section itself is unknown.
        known: Vec<&'static str>,
    },
    /// An argument of transformers that is not offered.
    NotOffered {
        /// The key.
        key: String,
        /// Why.
        reason: &'static str,
    },
    /// A section that no recipe has.
    UnknownSection {
        /// The section as written.
        section: String,
        /// The most similar section that exists, if any is similar.
        nearest: Option<String>,
    },
    /// A required key is absent.
    Missing {
        /// The key.
        key: String,
    },
    /// A value of the wrong type.
    WrongType {
        /// The key.
        key: String,
        /// What it takes.
        expected: String,
        /// The value as written and its type.
        found: String,
    },
    /// A value of the right type that makes no sense.
    OutOfRange {
        /// The key.
        key: String,
        /// What it takes.
        expected: String,
        /// The value as written.
        found: String,
    },
    /// Settings that cannot hold together.
    Contradiction {
        /// The keys that contradict each other.
        keys: Vec<String>,
        /// Why, and how to mend it.
        reason: String,
    },
    /// A file or folder that the recipe names is absent or of the wrong kind.
    Path {
        /// The key that names it.
        key: String,
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ProblemKind {
    /// The keys that this problem is about.
    #[must_use]
    pub fn keys(&self) -> Vec<&str> {
        match self {
            Self::Syntax { .. } | Self::Override { .. } | Self::UnknownSection { .. } => vec![],
            Self::UnknownKey { key, .. }
            | Self::NotOffered { key, .. }
            | Self::Missing { key }
            | Self::WrongType { key, .. }
            | Self::OutOfRange { key, .. }
            | Self::Path { key, .. } => vec![key],
            Self::Contradiction { keys, .. } => keys.iter().map(String::as_str).collect(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        match &self.kind {
            ProblemKind::Syntax { message } => write!(f, "not valid TOML: {message}"),
            ProblemKind::Override { message } => f.write_str(message),
            ProblemKind::UnknownKey { key, nearest, known } => {
                write!(f, "unknown key `{key}`")?;
                match (nearest, known.is_empty()) {
                    (Some(nearest), _) => write!(f, "; did you mean `{nearest}`?"),
                    (None, false) => write!(f, "; known here: {}", known.join(", ")),
                    (None, true) => Ok(()),
                }
            }
            ProblemKind::NotOffered { key, reason } => {
                write!(f, "`{key}` is not offered: {reason}; remove it")
            }
            ProblemKind::UnknownSection { section, nearest } => {
                write!(f, "unknown section `[{section}]`")?;
                match nearest {
                    Some(nearest) => write!(f, "; did you mean `[{nearest}]`?"),
                    None => write!(f, "; known: {}", super::schema::section_names().join(", ")),
                }
            }
            ProblemKind::Missing { key } => match key.split_once('.') {
                Some((section, name)) => {
                    write!(f, "`{key}` is missing; add `{name} = \"...\"` under `[{section}]`")
                }
                None => write!(f, "`{key}` is missing; add `{key} = \"...\"` at the top, before any section"),
            },
            ProblemKind::WrongType { key, expected, found }
            | ProblemKind::OutOfRange { key, expected, found } => {
                write!(f, "`{key}` is {found}; expected {expected}")
            }
            ProblemKind::Contradiction { reason, .. } => f.write_str(reason),
            ProblemKind::Path { key, path, reason } => {
                write!(f, "`{key}` = \"{}\" {reason}", path.display())
            }
        }
    }
}
