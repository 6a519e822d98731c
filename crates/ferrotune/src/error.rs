//! The error type of this crate.

use std::path::PathBuf;

use ferrotune_precision::{MemoryBound, readable_bytes, readable_bytes_beside};

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

    /// A sweep cannot be made.
    #[error("the sweep cannot be made: {reason}")]
    Sweep {
        /// What is wrong with its grid, and what to do about it.
        reason: String,
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

    /// The output directory holds the results of another run.
    #[error(
        "{} holds another run ({found}); choose another `output_dir`, or set `overwrite_output_dir = true` to replace it",
        path.display()
    )]
    OutputExists {
        /// The directory.
        path: PathBuf,
        /// The entry by which it was recognised.
        found: String,
    },

    /// Another run has the output directory.
    #[error("another run is writing to {}; wait until it ends, or choose another `output_dir`", path.display())]
    OutputBusy {
        /// The directory.
        path: PathBuf,
    },

    /// A checkpoint is not whole.
    #[error("{} is no whole checkpoint: {reason}", path.display())]
    Checkpoint {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// Recipe, data or model are not those that a checkpoint was made with.
    #[error(
        "{} cannot be gone on with as if nothing had changed:\n  {}\nput it back, choose another `output_dir`, or give --accept-changes to go on all \
         the same: the result is then that of neither recipe",
        path.display(), changes.join("\n  ")
    )]
    Changed {
        /// The directory of the checkpoint.
        path: PathBuf,
        /// Each change, never empty.
        changes: Vec<String>,
    },

    /// The adapter that a run is to start from is not one for this run.
    #[error("{} is no adapter for this run:\n  {}", path.display(), differences.join("\n  "))]
    OtherAdapter {
        /// Its directory.
        path: PathBuf,
        /// Each difference, with what helps; never empty.
        differences: Vec<String>,
    },

    /// The run came to no end, and its last steps are in no checkpoint.
    #[error("{source}\n{}", kept(saved.as_deref()))]
    NotSaved {
        /// The last whole checkpoint.
        saved: Option<PathBuf>,
        /// Why there is no later one.
        source: Box<Error>,
    },

    /// Something in the output directory cannot be replaced by a result.
    #[error("{} is in the way: expected {expected}; move it away, or choose another `output_dir`", path.display())]
    OutputInTheWay {
        /// The entry.
        path: PathBuf,
        /// What can be there.
        expected: &'static str,
    },

    /// The disk of the output directory has less room than the results need.
    #[error(
        "{} has room for {}, and the results of this run need at least {}{}",
        path.display(), readable_bytes(*free_bytes), readable_bytes(*needed_bytes), more_room(*checkpoint_bytes)
    )]
    NoRoom {
        /// The directory.
        path: PathBuf,
        /// The least that the results need, with the checkpoints.
        needed_bytes: u64,
        /// How much of that is for checkpoints.
        checkpoint_bytes: u64,
        /// What is free.
        free_bytes: u64,
    },

    /// There is far too little memory for what is to come.
    #[error(
        "{what} needs about {} of memory and {} are available ({bound}): {remedy}",
        readable_bytes_beside(*needed_bytes, *needed_bytes.max(available_bytes)),
        readable_bytes_beside(*available_bytes, *needed_bytes.max(available_bytes))
    )]
    NotEnoughMemory {
        /// What needs it, and for what.
        what: String,
        /// How much it needs.
        needed_bytes: u64,
        /// How much this process can have.
        available_bytes: u64,
        /// What sets that bound.
        bound: MemoryBound,
        /// What helps.
        remedy: &'static str,
    },

    /// A run failed after its training; the adapter is kept.
    #[error("{source}\nthe training is not lost: its adapter is in {}", adapter.display())]
    AfterTraining {
        /// The directory of the adapter.
        adapter: PathBuf,
        /// What went wrong.
        source: Box<Error>,
    },

    /// The tokenizer has tokens that the model has no embedding for.
    #[error(
        "{}: the tokenizer has token ids up to {} and the model only {embeddings} embeddings: {}",
        model.display(), tokens - 1, belong_together(new_tokens)
    )]
    VocabularyTooLarge {
        /// The model directory.
        model: PathBuf,
        /// One more than the largest id of the tokenizer.
        tokens: usize,
        /// Rows of the embedding.
        embeddings: usize,
        /// Tokens that `tokenizer.json` does not have and another file adds.
        new_tokens: Vec<String>,
    },

    /// A test prompt leaves no room for its answer.
    #[error(
        "{example}: the prompt has {tokens} tokens; with `max_new_tokens` = {max_new_tokens} that is more than the model's \
         context of {context}: shorten the prompt or lower `max_new_tokens`"
    )]
    PromptTooLong {
        /// The example, as `test.jsonl:3`.
        example: String,
        /// Tokens of its prompt.
        tokens: usize,
        /// Tokens that the answer may have.
        max_new_tokens: usize,
        /// Tokens of the model's context.
        context: usize,
    },

    /// Examples have more tokens than the model's context.
    #[error("{}", beyond_context(examples, *total, *context))]
    BeyondContext {
        /// The first of them, as `train.jsonl:3`, each with its tokens.
        examples: Vec<(String, usize)>,
        /// How many there are.
        total: usize,
        /// Tokens of the model's context.
        context: usize,
    },

    /// Several things are wrong, and none of them hides another.
    #[error("{}", errors.iter().map(Error::to_string).collect::<Vec<_>>().join("\n"))]
    Several {
        /// All of them.
        errors: Vec<Error>,
    },

    /// An error in the data or the tokenizer.
    #[error(transparent)]
    Data(#[from] ferrotune_data::Error),

    /// An error in a fused function.
    #[error(transparent)]
    Kernels(#[from] ferrotune_kernels::Error),

    /// An error in an adapter.
    #[error(transparent)]
    Lora(#[from] ferrotune_lora::Error),

    /// An error in a metric.
    #[error(transparent)]
    Metrics(#[from] ferrotune_metrics::Error),

    /// An error in the model.
    #[error(transparent)]
    Models(#[from] ferrotune_models::Error),

    /// A device or dtype that this machine or version does not offer.
    #[error(transparent)]
    Precision(#[from] ferrotune_precision::Error),

    /// An error in the training loop.
    #[error(transparent)]
    Trainer(#[from] ferrotune_trainer::Error),

    /// libtorch failed, out of memory included.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// Whether the user can mend it: recipe, data or model files, or the room and the rights where something is to be written.
    /// The command line tools then exit with 2 in place of 1.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Recipe { .. }
            | Self::Sweep { .. }
            | Self::TooLarge { .. }
            | Self::Read { .. }
            | Self::OutputExists { .. }
            | Self::OutputBusy { .. }
            | Self::Checkpoint { .. }
            | Self::Changed { .. }
            | Self::OtherAdapter { .. }
            | Self::OutputInTheWay { .. }
            | Self::Write { .. }
            | Self::NoRoom { .. }
            | Self::NotEnoughMemory { .. }
            | Self::VocabularyTooLarge { .. }
            | Self::PromptTooLong { .. }
            | Self::BeyondContext { .. }
            | Self::Data(_)
            | Self::Metrics(_)
            | Self::Precision(_) => true,
            Self::Several { errors } => errors.iter().all(Self::is_bad_input),
            Self::Lora(error) => !is_libtorch_fault(error),
            Self::Models(error) => !is_libtorch_fault(error),
            Self::AfterTraining { source, .. } | Self::NotSaved { source, .. } => source.is_bad_input(),
            Self::Trainer(
                ferrotune_trainer::Error::Model { source, .. }
                | ferrotune_trainer::Error::Callback { source, .. },
            ) => source.downcast_ref::<Self>().is_some_and(Self::is_bad_input),
            Self::Trainer(error) => {
                use ferrotune_trainer::Error as Trainer;
                matches!(
                    error,
                    Trainer::InvalidArgument { .. }
                        | Trainer::UnknownName { .. }
                        | Trainer::EmptyDataset { .. }
                )
            }
            Self::RecipeToToml { .. } | Self::Kernels(_) | Self::Torch(_) => false,
        }
    }
}

fn more_room(checkpoint_bytes: u64) -> String {
    if checkpoint_bytes == 0 {
        return ": make room there, or choose another `output_dir`".to_owned();
    }
    format!(
        ", {} of it for checkpoints: make room there, choose another `output_dir`, or keep fewer checkpoints \
         (`training.save_total_limit`)",
        readable_bytes(checkpoint_bytes)
    )
}

fn kept(saved: Option<&std::path::Path>) -> String {
    match saved {
        Some(path) => format!("the last whole checkpoint is {}", path.display()),
        None => "there is no checkpoint".to_owned(),
    }
}

fn belong_together(new_tokens: &[String]) -> String {
    if new_tokens.is_empty() {
        return "they do not belong together".to_owned();
    }
    let named: Vec<String> = new_tokens.iter().take(5).map(|token| format!("{token:?}")).collect();
    format!(
        "tokenizer_config.json or special_tokens_map.json adds {}, which tokenizer.json does not have: mend the name there",
        named.join(", ")
    )
}

fn beyond_context(examples: &[(String, usize)], total: usize, context: usize) -> String {
    let what = if total == 1 { "example has" } else { "examples have" };
    let mut text = format!(
        "{total} {what} more tokens than the model's context of {context}: shorten or remove what is too long; with a limit of at \
         most {context}, a recipe's `data.max_length`, `data.truncation` = \"drop\", \"keep_start\" or \"keep_end\" does it"
    );
    for (example, tokens) in examples {
        text.push_str(&format!("\n  {example}: {tokens} tokens"));
    }
    if total > examples.len() {
        text.push_str(&format!("\n  ... and {} more", total - examples.len()));
    }
    text
}

/// Whether libtorch lies at the bottom of an error.
fn is_libtorch_fault(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|cause| cause.is::<tch::TchError>())
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
