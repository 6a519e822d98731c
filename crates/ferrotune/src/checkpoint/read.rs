//! Reading checkpoints.

use super::{
    HASHES, InputFile, OPTIMIZER, RECIPE, STEP, TRAINER_STATE,
    hashes::{Hashes, sha256},
    list,
};
use crate::{Error, Result};
use ferrotune_lora::{AdapterFile, load_adapter};
use ferrotune_trainer::{OptimizerState, TrainerState};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tch::Tensor;

/// A checkpoint that was found whole.
#[derive(Debug)]
pub(crate) struct Saved {
    pub path: PathBuf,
    pub state: TrainerState,
    pub adapter: AdapterFile,
    pub optimizer: OptimizerState,
    /// The recipe that it was made by.
    pub recipe: String,
    pub inputs: Vec<InputFile>,
}

/// Reads a checkpoint, and holds each of its files to the hash that it was written with.
///
/// # Errors
/// [`Error::Checkpoint`] if a file is absent or damaged.
pub(crate) fn read(path: &Path) -> Result<Saved> {
    let damaged = |reason: String| Error::Checkpoint { path: path.to_owned(), reason };
    let text =
        |name: &str| fs::read_to_string(path.join(name)).map_err(|error| damaged(format!("{name}: {error}")));
    let hashes: Hashes =
        serde_json::from_str(&text(HASHES)?).map_err(|error| damaged(format!("{HASHES}: {error}")))?;
    for name in [OPTIMIZER, TRAINER_STATE, RECIPE] {
        if !hashes.files.contains_key(name) {
            return Err(damaged(format!("{HASHES} does not name {name}")));
        }
    }
    for (name, expected) in &hashes.files {
        let found = sha256(&path.join(name)).map_err(|error| damaged(error.to_string()))?;
        if found != *expected {
            return Err(damaged(format!(
                "{name} is not what was written: expected sha256 {expected}, found {found}"
            )));
        }
    }
    let state: TrainerState = serde_json::from_str(&text(TRAINER_STATE)?)
        .map_err(|error| damaged(format!("{TRAINER_STATE}: {error}")))?;
    let mut tensors = Tensor::read_safetensors(path.join(OPTIMIZER))
        .map_err(|error| damaged(format!("{OPTIMIZER}: {error}")))?;
    let step = tensors.iter().position(|(name, _)| name == STEP).map(|index| tensors.swap_remove(index).1);
    let step = step.and_then(|step| usize::try_from(step.f_int64_value(&[]).ok()?).ok());
    let step = step.ok_or_else(|| damaged(format!("{OPTIMIZER}: expected a whole number `{STEP}`")))?;
    Ok(Saved {
        path: path.to_owned(),
        optimizer: OptimizerState { step, tensors },
        state,
        adapter: load_adapter(path).map_err(|error| damaged(error.to_string()))?,
        recipe: text(RECIPE)?,
        inputs: hashes.inputs,
    })
}

/// The newest whole checkpoint of an output directory, and why each newer one is none.
pub(crate) fn newest(output_dir: &Path) -> (Option<Saved>, Vec<Error>) {
    let mut damaged = Vec::new();
    for (_, path) in list(output_dir).into_iter().rev() {
        match read(&path) {
            Ok(saved) => return (Some(saved), damaged),
            Err(error) => damaged.push(error),
        }
    }
    (None, damaged)
}
