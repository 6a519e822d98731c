//! The crate's error type.

use ferrotune_precision::{short_shape, short_text};
use std::path::{Path, PathBuf};

/// What can go wrong in this crate, with the place, what was expected, what was found and how to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// The operation, as a verb phrase: `read`, `rename`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// Something that is no file is in the place of one.
    #[error("{} is {found}, expected a file", path.display())]
    NotAFile {
        /// Its path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },

    /// An error in the contents of a file.
    #[error("{path}: {source}", path = path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<Error>,
    },

    /// A text is not JSON, or not a JSON object.
    #[error("line {line}, column {column}: expected a JSON object, found {reason}", reason = short_text(reason))]
    Json {
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault, from 1.
        column: usize,
        /// The parser's reason.
        reason: String,
    },

    /// An option of the configuration has a value that it cannot have.
    #[error("`{key}` is {found}, expected {expected}", key = short_text(key), found = short_text(found))]
    InvalidValue {
        /// The option, under its name in `adapter_config.json`.
        key: String,
        /// The value.
        found: String,
        /// What the option accepts.
        expected: String,
    },

    /// An option is on that changes what the adapter computes and that this crate does not implement.
    #[error("`{key}` is {value}: {reason}; {remedy}", value = short_text(value))]
    Unsupported {
        /// The option, under its name in `adapter_config.json`.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// What the option does.
        reason: &'static str,
        /// What can be done.
        remedy: &'static str,
    },

    /// A regular expression is not valid, or uses what linear-time matching cannot express.
    #[error(
        "`{key}` holds the pattern {pattern:?}: {reason}",
        pattern = short_text(pattern), reason = short_text(reason)
    )]
    Pattern {
        /// The option that holds the pattern.
        key: String,
        /// The pattern.
        pattern: String,
        /// What is wrong and how to mend it.
        reason: String,
    },

    /// The target modules name no linear layer of the model.
    #[error("{targets} matches no linear layer{note}; the model has {available}", targets = short_text(targets))]
    NoTarget {
        /// The option and its value.
        targets: String,
        /// What narrowed the choice, if anything did.
        note: String,
        /// The distinct suffixes of the model's linear layers.
        available: String,
    },

    /// The target modules name a module that holds layers and is none.
    #[error(
        "{targets} matches `{path}`, which is not a linear layer but holds some; name the layers in it, for example `{example}`",
        targets = short_text(targets)
    )]
    NotLinear {
        /// The option and its value.
        targets: String,
        /// The module.
        path: String,
        /// A layer in it.
        example: String,
    },

    /// A tensor's shape is not the expected one.
    #[error(
        "tensor `{tensor}` has shape {found}, expected {expected}: {reason}",
        tensor = short_text(tensor), reason = short_text(reason), found = short_shape(found), expected = short_shape(expected)
    )]
    ShapeMismatch {
        /// The tensor.
        tensor: String,
        /// The expected shape; -1 is any size.
        expected: Vec<i64>,
        /// Its shape.
        found: Vec<i64>,
        /// Where the expectation comes from.
        reason: String,
    },

    /// One half of an adapter is there and the other is not.
    #[error(
        "tensor `{present}` is there and its other half `{missing}` is not: the file is incomplete, save the adapter again",
        present = short_text(present), missing = short_text(missing)
    )]
    MissingTensor {
        /// The half that is there.
        present: String,
        /// The half that is not.
        missing: String,
    },

    /// A tensor that does not belong to a LoRA adapter of linear layers.
    #[error(
        "tensor `{tensor}` is not a LoRA weight of this adapter: {reason}",
        tensor = short_text(tensor), reason = short_text(reason)
    )]
    UnexpectedTensor {
        /// The tensor.
        tensor: String,
        /// Why, and how to mend it.
        reason: String,
    },

    /// A tensor has a dtype that an adapter cannot have.
    #[error("tensor `{tensor}` has dtype {found}, expected F32, F16 or BF16", tensor = short_text(tensor))]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        found: String,
    },

    /// A tensor holds NaN or an infinity.
    #[error(
        "tensor `{tensor}` holds NaN or infinity: the training that wrote it diverged, use an earlier checkpoint",
        tensor = short_text(tensor)
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
    },

    /// A file is not a safetensors file, or a damaged one.
    #[error(
        "not a whole safetensors file ({reason}): copy or save the adapter again",
        reason = short_text(reason)
    )]
    Safetensors {
        /// The reason.
        reason: String,
    },

    /// A directory holds its adapter as a pickle file, which can run code when it is read.
    #[error(
        "{path} is a pickle file, which can run code when it is read, and is refused; \
         convert it where you trust it: load it in Python with PEFT and save it with `save_pretrained` (safetensors)",
        path = path.display()
    )]
    PickleRefused {
        /// The file.
        path: PathBuf,
    },

    /// A directory holds no adapter.
    #[error("{path} holds no adapter: {missing} is missing{hint}", path = path.display())]
    NoAdapter {
        /// The directory.
        path: PathBuf,
        /// The file that is missing.
        missing: &'static str,
        /// Where an adapter was seen instead, if anywhere.
        hint: String,
    },

    /// A directory to be replaced holds something besides an adapter.
    #[error(
        "{path} is to be replaced by an adapter and holds {found} as well, which would be lost; \
         choose another directory or move it away",
        path = path.display(), found = short_text(found)
    )]
    ForeignFile {
        /// The directory.
        path: PathBuf,
        /// The entry that is not an adapter's.
        found: String,
    },

    /// A stacked layer of which some parts have a bias and others none.
    #[error("{} cannot be stacked into one layer: some have a bias and others none", paths.join(", "))]
    MixedBias {
        /// The modules.
        paths: Vec<String>,
    },

    /// A module that is not there.
    #[error("there is no linear module `{path}`; there is {}", available.join(", "))]
    NoSuchModule {
        /// The module asked for.
        path: String,
        /// The modules that are there.
        available: Vec<String>,
    },

    /// An adapter that is not the model's.
    #[error(
        "the adapter has weights for {count} module(s) that the model does not have, `{first}` first: \
         it was trained on another model",
        first = short_text(first)
    )]
    OtherModel {
        /// Number of modules without a counterpart.
        count: usize,
        /// The first of them.
        first: String,
    },

    /// A module that the adapter's configuration names has no weights in its file.
    #[error(
        "the adapter has no weights for `{path}`, which its `target_modules` name: it was trained on another model",
        path = short_text(path)
    )]
    NoWeights {
        /// The module.
        path: String,
    },

    /// A fused function could not run.
    #[error(transparent)]
    Kernel(#[from] ferrotune_kernels::Error),

    /// libtorch failed, out of memory included.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Adds to the error of a full disk how much room `bytes` bytes in `directory` would need.
    pub(crate) fn with_room(self, directory: &Path, bytes: usize) -> Self {
        match self {
            Self::Io { action, path, source } => {
                let source = ferrotune_precision::explain_write_error(directory, Some(bytes as u64), source);
                Self::Io { action, path, source }
            }
            error => error,
        }
    }

    pub(crate) fn in_file(self, path: impl Into<PathBuf>) -> Self {
        Self::InFile { path: path.into(), source: Box::new(self) }
    }

    pub(crate) fn value(key: impl Into<String>, found: impl ToString, expected: impl Into<String>) -> Self {
        Self::InvalidValue { key: key.into(), found: found.to_string(), expected: expected.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hostile_file_says_is_cut() {
        let tensor = format!("beginning{}end", "é".repeat(1_000_000));
        let text = Error::NotFinite { tensor }.to_string();
        assert!(text.contains("beginning") && text.contains("ééé … ééé") && text.contains("end"), "{text}");
        assert!(text.chars().count() < 1000, "{text}");
        assert_eq!(short_text("`lm_head.weight`"), "`lm_head.weight`");
        assert_eq!(short_shape(&[300, -1]), "[300, -1]");
        assert_eq!(short_shape(&[2; 100_000]), "[2, 2, 2, 2, 2, 2, 2, 2, …] (100000 dimensions)");
    }
}
