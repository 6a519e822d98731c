//! Checkpoints of a run: `checkpoint-N` in its `output_dir`, after `N` optimizer steps.
//!
//! A checkpoint has the files of the adapter, `optimizer.safetensors`, `trainer_state.json`, `recipe.toml` and `hashes.json`. It is
//! written beside its place, flushed, read back and compared; then it gets its name. What has that name is whole, whenever the run is
//! killed, unless the disk damaged it later, which its hashes show.

mod boundary;
mod changes;
mod hashes;
mod read;
mod room;
mod saver;
mod write;
mod written;

pub(crate) use changes::{changes, other_threads};
pub(crate) use hashes::InputFile;
pub(crate) use read::{Saved, newest, read};
pub(crate) use room::room;
pub(crate) use saver::Saver;
pub(crate) use write::Writer;
pub(crate) use written::Written;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// transformers' `PREFIX_CHECKPOINT_DIR`, with its dash.
const PREFIX: &str = "checkpoint-";
/// Where checkpoints are written, and where those that go are moved before they are removed.
const BEING_WRITTEN: &str = ".checkpoint-being-written";

const OPTIMIZER: &str = "optimizer.safetensors";
/// The tensor in it that counts the updates.
const STEP: &str = "step";
const TRAINER_STATE: &str = "trainer_state.json";
const RECIPE: &str = "recipe.toml";
const HASHES: &str = "hashes.json";

fn directory_name(step: usize) -> String {
    format!("{PREFIX}{step}")
}

/// The checkpoints of an output directory with their steps, the oldest first; whole or not.
pub(crate) fn list(output_dir: &Path) -> Vec<(usize, PathBuf)> {
    let entries = fs::read_dir(output_dir).into_iter().flatten().flatten();
    let mut found: Vec<(usize, PathBuf)> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| {
            let step = entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
            Some((step, entry.path()))
        })
        .collect();
    found.sort_unstable();
    found
}

/// Whether a directory claims to be a checkpoint, whole or not.
pub(crate) fn is_one(directory: &Path) -> bool {
    directory.join(HASHES).exists()
}

/// Removes what a killed run was writing.
pub(crate) fn remove_unfinished(output_dir: &Path) {
    let _ = fs::remove_dir_all(output_dir.join(BEING_WRITTEN));
}
