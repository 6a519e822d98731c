//! The error type of this crate.

use ferrotune_precision::{short_shape, short_text};
use std::path::{Path, PathBuf};

/// What went wrong, where, and how to mend it.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb: `open`, `write`, `rename`...
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The reason given by the operating system.
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
    /// A JSON file is far larger than any of a model.
    #[error("{} is larger than {}: is this the right file?", path.display(), ferrotune_precision::readable_bytes(*limit))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The largest size that is read.
        limit: u64,
    },
    /// A GGUF file breaks the rules of its own format: truncated, damaged, or not a GGUF file at all.
    #[error(
        "{}: byte {offset}: {what}: expected {expected}, found {found}; fetch the file again",
        path.display(), what = short_text(what), expected = short_text(expected), found = short_text(found)
    )]
    GgufMalformed {
        /// The GGUF file.
        path: PathBuf,
        /// Where in the file reading stopped.
        offset: u64,
        /// The part that was being read.
        what: String,
        /// What the format asks for.
        expected: String,
        /// What the file holds.
        found: String,
    },
    /// A GGUF file is sound but holds something that this crate does not do.
    #[error(
        "{}: {what} `{found}` is not supported (supported: {supported}); {remedy}",
        path.display(), what = short_text(what), found = short_text(found)
    )]
    GgufUnsupported {
        /// The GGUF file.
        path: PathBuf,
        /// The metadata key, tensor or property concerned.
        what: String,
        /// Its value in this file.
        found: String,
        /// The values that are supported.
        supported: String,
        /// What the user can do instead.
        remedy: &'static str,
    },
    /// A metadata key that is needed is absent from a GGUF file.
    #[error("{}: metadata key `{key}` is missing; {remedy}", path.display())]
    GgufKeyMissing {
        /// The GGUF file.
        path: PathBuf,
        /// The absent key.
        key: String,
        /// What the user can do instead.
        remedy: &'static str,
    },
    /// A metadata key of a GGUF file has a value of the wrong type or out of its range.
    #[error(
        "{}: metadata key `{key}`: expected {expected}, found {found}",
        path.display(), found = short_text(found)
    )]
    GgufKeyInvalid {
        /// The GGUF file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The type or range that is needed.
        expected: String,
        /// The value of the file.
        found: String,
    },
    /// A GGUF file lacks a tensor that its architecture needs.
    #[error("{}: tensor `{tensor}` is missing; fetch the file again", path.display())]
    GgufTensorMissing {
        /// The GGUF file.
        path: PathBuf,
        /// The absent tensor.
        tensor: String,
    },
    /// A tensor of a GGUF file has another shape than the metadata of the file imply.
    #[error("{}: tensor `{tensor}`: expected shape {expected:?}, found {found:?} (outermost dimension first)", path.display())]
    GgufTensorShape {
        /// The GGUF file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that follows from the metadata, outermost dimension first.
        expected: Vec<usize>,
        /// The shape in the file, outermost dimension first.
        found: Vec<usize>,
    },
    /// The vocabulary or the merges of a GGUF file contradict each other.
    #[error("{}: `{key}`[{index}]: {problem}: `{found}`", path.display(), found = short_text(found))]
    GgufVocabulary {
        /// The GGUF file.
        path: PathBuf,
        /// The metadata array concerned.
        key: &'static str,
        /// The index in that array.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
        /// The entry.
        found: String,
    },
    /// Quantised data is not a whole number of blocks, or the destination has another length than the data.
    #[error(
        "{ggml_type} data: {bytes} bytes are {expected_elements} elements in whole blocks of {block_bytes} bytes, but {elements} were asked for"
    )]
    GgufBlockLength {
        /// Name of the storage type.
        ggml_type: &'static str,
        /// Length of the data.
        bytes: usize,
        /// Length of one block.
        block_bytes: usize,
        /// Elements in the whole blocks of the data.
        expected_elements: usize,
        /// Elements that the destination holds.
        elements: usize,
    },
    /// The directory that an import should make exists and is something else.
    #[error(
        "{} exists and {reason}; choose another output directory, or remove this one if nothing in it is needed",
        path.display(), reason = short_text(reason)
    )]
    ImportTargetExists {
        /// The output directory.
        path: PathBuf,
        /// Why it cannot be taken as it is.
        reason: String,
    },
    /// The caller stopped an import; nothing of it is left.
    #[error("the import into {} was stopped; nothing of it is left", path.display())]
    ImportStopped {
        /// The output directory.
        path: PathBuf,
    },
    /// `config.json` is not JSON.
    #[error("line {line}, column {column}: expected a JSON object: {reason}", reason = short_text(reason))]
    ConfigMalformed {
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault, from 1.
        column: usize,
        /// The parser's reason.
        reason: String,
    },
    /// A field of a model's configuration asks for something that this crate does not compute.
    #[error(
        "`{key}` = {found} is not supported: {reason}; choose a Llama or Mistral model without it",
        found = short_text(found)
    )]
    ConfigUnsupported {
        /// The field.
        key: String,
        /// Its value.
        found: String,
        /// Why it is refused.
        reason: String,
    },
    /// A field of a model's configuration has a value that it cannot have.
    #[error("`{key}` is {found}, expected {expected}", found = short_text(found))]
    ConfigInvalid {
        /// The field.
        key: String,
        /// Its value.
        found: String,
        /// What it can be.
        expected: String,
    },
    /// An error in the contents of a file.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<Error>,
    },
    /// A path leads to something else than a model.
    #[error("{} is not a model directory but {found}; {remedy}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What to give instead.
        remedy: String,
    },
    /// Git has left a pointer in place of a large file.
    #[error(
        "{} is a Git LFS pointer and not the file itself: run `git lfs pull` in its folder, or download the file again",
        path.display()
    )]
    GitLfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A tensor of the model holds NaN or an infinity.
    #[error(
        "{}: tensor `{tensor}` holds NaN or infinity: the file is damaged, or the training that wrote it diverged; fetch it again",
        path.display(), tensor = short_text(tensor)
    )]
    TensorNotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A directory has no weights.
    #[error(
        "{} has neither model.safetensors nor model.safetensors.index.json; give a Hugging Face model directory with safetensors weights",
        path.display()
    )]
    NoWeights {
        /// The directory.
        path: PathBuf,
    },
    /// A file of weights is damaged.
    #[error("{}: {reason}", path.display(), reason = short_text(reason))]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that the configuration asks for is not there.
    #[error(
        "{}: tensor `{tensor}` is missing: config.json and weights do not belong together, or the download is not whole",
        path.display(), tensor = short_text(tensor)
    )]
    TensorMissing {
        /// The directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// Tensors that the configuration does not ask for.
    #[error(
        "{}: {count} tensor(s) have no place in the model that config.json describes, `{first}` first: config.json and weights do not belong together",
        path.display(), first = short_text(first)
    )]
    TensorsUnexpected {
        /// The directory.
        path: PathBuf,
        /// Their number.
        count: usize,
        /// The first.
        first: String,
    },
    /// A tensor has another shape than the configuration implies.
    #[error(
        "{}: tensor `{tensor}` has shape {found}, config.json asks for {expected}",
        path.display(), tensor = short_text(tensor), found = short_shape(found), expected = short_shape(expected)
    )]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that follows from the configuration.
        expected: Vec<i64>,
        /// The shape in the file.
        found: Vec<i64>,
    },
    /// A tensor has a dtype that weights cannot have here.
    #[error(
        "{}: tensor `{tensor}` has dtype {found}, expected F32, F16 or BF16",
        path.display(), tensor = short_text(tensor)
    )]
    TensorDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        found: String,
    },
    /// A token id that the vocabulary does not have.
    #[error(
        "token id {id} is outside the vocabulary of {vocab_size} tokens: the tokenizer is not this model's"
    )]
    TokenOutOfRange {
        /// The id.
        id: i64,
        /// Rows of the embedding.
        vocab_size: i64,
    },
    /// Inputs that do not fit each other.
    #[error("{what}: found {found}, expected {expected}")]
    Inputs {
        /// What does not fit.
        what: &'static str,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A LoRA layer could not be made or run.
    #[error(transparent)]
    Lora(#[from] ferrotune_lora::Error),
    /// A fused function could not run.
    #[error(transparent)]
    Kernel(#[from] ferrotune_kernels::Error),
    /// libtorch failed, out of memory included.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// Result with the error type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn in_file(self, path: impl Into<PathBuf>) -> Self {
        Self::InFile { path: path.into(), source: Box::new(self) }
    }

    /// Adds to the error of a full disk how much room `bytes` bytes at `path` would need.
    pub(crate) fn with_room(self, place: &Path, bytes: u64) -> Self {
        let explain = |source| ferrotune_precision::explain_write_error(place, Some(bytes), source);
        match self {
            Self::Io { action, path, source } => Self::Io { action, path, source: explain(source) },
            error => error,
        }
    }

    /// A closure for `map_err` on operations of the file system.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hostile_file_says_is_cut() {
        let tensor = format!("beginning{}end", "é".repeat(1_000_000));
        let text = Error::TensorMissing { path: "model".into(), tensor }.to_string();
        assert!(text.contains("beginning") && text.contains("ééé … ééé") && text.contains("end"), "{text}");
        assert!(text.chars().count() < 1000, "{text}");
        assert_eq!(short_text("`lm_head.weight`"), "`lm_head.weight`");
        assert_eq!(short_shape(&[300, -1]), "[300, -1]");
        assert_eq!(short_shape(&[2; 100_000]), "[2, 2, 2, 2, 2, 2, 2, 2, …] (100000 dimensions)");
    }
}
