//! The error type of this crate.

use std::path::PathBuf;

use crate::recipe::Problem;

/// What can go wrong while reading a recipe or writing the results of a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The recipe cannot be used; every problem that was found is listed, in the order of the file.
    #[error("{}", list(path, problems))]
    Recipe {
        /// The recipe file.
        path: PathBuf,
        /// What is wrong with it, never empty.
        problems: Vec<Problem>,
    },

    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },

    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },

    /// A file is far larger than any recipe.
    #[error("{} has {bytes} bytes; a recipe has at most {limit}: is this the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest size that is read.
        limit: u64,
    },

    /// A recipe cannot be written as TOML, for example because a path is not UTF-8.
    #[error("the recipe cannot be written as TOML: {source}")]
    RecipeToToml {
        /// What the serialiser says.
        source: toml::ser::Error,
    },

    /// Numbers cannot be written as JSON.
    #[error("{what} cannot be written as JSON: {source}")]
    ToJson {
        /// What was to be written: `metrics.json`, or an event.
        what: &'static str,
        /// What the serialiser says.
        source: serde_json::Error,
    },
}

impl Error {
    /// Whether the user's input (recipe, data, model files) is at fault and not the program or the machine.
    /// The command line tools then exit with 2 in place of 1.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Recipe { .. } | Self::TooLarge { .. } | Self::Read { .. } => true,
            Self::Write { .. } | Self::RecipeToToml { .. } | Self::ToJson { .. } => false,
        }
    }
}

fn list(path: &std::path::Path, problems: &[Problem]) -> String {
    let mut text = match problems.len() {
        1 => format!("{}: the recipe has a problem", path.display()),
        n => format!("{}: the recipe has {n} problems", path.display()),
    };
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(&problem.to_string().replace('\n', "\n  "));
    }
    text
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
