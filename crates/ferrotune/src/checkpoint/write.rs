//! Writing a checkpoint, and removing old ones.

use super::{
    BEING_WRITTEN, HASHES, InputFile, OPTIMIZER, RECIPE, STEP, TRAINER_STATE,
    boundary::reach,
    directory_name,
    hashes::{Hashes, sha256},
    list, read,
};
use crate::{Error, Result, recipe::Recipe};
use ferrotune_lora::{LoraConfig, save_adapter};
use ferrotune_precision::{explain_write_error, sync_directory};
use ferrotune_trainer::{OptimizerState, TrainerState};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};
use tch::{TchError, Tensor};

/// A copy of a run between two steps.
pub(super) struct Snapshot {
    pub state: TrainerState,
    /// Path, `A` and `B` of each adapted module.
    pub adapter: Vec<(String, Tensor, Tensor)>,
    pub optimizer: OptimizerState,
}

/// Writes the checkpoints of one run.
pub(crate) struct Writer {
    pub output_dir: PathBuf,
    pub config: LoraConfig,
    pub recipe: Recipe,
    pub save_total_limit: Option<usize>,
    /// What the run is made from, where it is known already.
    pub inputs: Vec<InputFile>,
    /// Checkpoints of the run that this one replaces. They go before its own first one gets its name.
    pub replaced: Vec<PathBuf>,
}

impl Writer {
    /// Writes a checkpoint and removes those that are too many; where it is.
    pub(super) fn write(&mut self, snapshot: &mut Snapshot) -> Result<PathBuf> {
        let step = snapshot.state.global_step;
        let place = self.output_dir.join(directory_name(step));
        let work = self.output_dir.join(BEING_WRITTEN);
        let _ = fs::remove_dir_all(&work);
        let state = &mut snapshot.state;
        let best = state.best_global_step.map(|best| (best, self.output_dir.join(directory_name(best))));
        let best = best.filter(|(best, path)| *best == step || path.is_dir());
        state.best_model_checkpoint = best.map(|(_, path)| path);
        let written = self.write_into(&work.join(directory_name(step)), snapshot).and_then(|()| {
            self.put(&work, &place, step)?;
            self.rotate(&work, snapshot.state.best_model_checkpoint.as_deref())
        });
        let _ = fs::remove_dir_all(&work);
        written.map(|()| place)
    }

    fn write_into(&mut self, directory: &Path, snapshot: &Snapshot) -> Result<()> {
        reach("begun");
        save_adapter(directory, &self.config, &snapshot.adapter)?;
        reach("adapter");
        let path = directory.join(OPTIMIZER);
        let OptimizerState { step, tensors } = &snapshot.optimizer;
        let step = Tensor::from(*step as i64);
        let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).chain([(STEP, &step)]);
        Tensor::write_safetensors(&named.collect::<Vec<_>>(), &path)
            .map_err(|error| io_error(&error))
            .and_then(|()| File::open(&path)?.sync_all())
            .map_err(|source| {
                let bytes =
                    tensors.iter().map(|(_, tensor)| tensor.numel() * tensor.kind().elt_size_in_bytes());
                failed(&path, explain_write_error(&path, Some(bytes.sum::<usize>() as u64), source))
            })?;
        reach("optimizer");
        let state =
            serde_json::to_vec_pretty(&snapshot.state).map_err(|source| failed(directory, source.into()))?;
        put_file(&directory.join(TRAINER_STATE), &state)?;
        reach("trainer_state");
        put_file(&directory.join(RECIPE), self.recipe.to_toml()?.as_bytes())?;
        reach("recipe");
        self.inputs = InputFile::all(&self.recipe, &self.inputs)?;
        let mut hashes = Hashes { inputs: self.inputs.clone(), files: Default::default() };
        let entries = fs::read_dir(directory).map_err(|source| failed(directory, source))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            hashes.files.insert(name, sha256(&path)?);
        }
        let hashes = serde_json::to_vec_pretty(&hashes).map_err(|source| failed(directory, source.into()))?;
        put_file(&directory.join(HASHES), &hashes)?;
        sync_directory(directory).map_err(|source| failed(directory, source))?;
        reach("hashes");
        let back = read(directory)?;
        let is_same = back.state == snapshot.state
            && back.optimizer.step == snapshot.optimizer.step
            && same(&back.optimizer.tensors, &snapshot.optimizer.tensors)
            && snapshot.adapter.iter().all(|(path, a, b)| {
                back.adapter.tensors.get(path).is_some_and(|(x, y)| x.equal(a) && y.equal(b))
            });
        if !is_same {
            let reason = "what was read back is not what was written".to_owned();
            return Err(Error::Checkpoint { path: directory.to_owned(), reason });
        }
        reach("verified");
        Ok(())
    }

    /// Gives a written checkpoint its name.
    fn put(&mut self, work: &Path, place: &Path, step: usize) -> Result<()> {
        // The run went back, or on from an earlier one: those of later steps are of a course that was given up.
        let later = list(&self.output_dir).into_iter().filter(|(of, _)| *of > step).map(|(_, path)| path);
        let mut old = std::mem::take(&mut self.replaced);
        for path in later {
            if !old.contains(&path) {
                old.push(path);
            }
        }
        for old in old {
            discard(work, &old)?;
        }
        if place.exists() {
            discard(work, place)?;
        }
        reach("discarded");
        let new = work.join(place.file_name().unwrap_or_default());
        fs::rename(&new, place).map_err(|source| failed(place, source))?;
        reach("renamed");
        sync_directory(&self.output_dir).map_err(|source| failed(&self.output_dir, source))
    }

    /// Removes the oldest checkpoints beyond `save_total_limit`; neither the newest nor the best, as `transformers.rotate_checkpoints` 5.23.
    fn rotate(&self, work: &Path, best: Option<&Path>) -> Result<()> {
        let Some(limit) = self.save_total_limit.filter(|&limit| limit > 0) else {
            return Ok(());
        };
        let checkpoints = list(&self.output_dir);
        let newest = checkpoints.last().map(|(_, path)| path.as_path());
        let kept = |path: &Path| Some(path) == newest || Some(path) == best;
        let protected = checkpoints.iter().filter(|(_, path)| kept(path)).count();
        let excess = checkpoints.len().saturating_sub(limit.max(protected));
        for (_, path) in checkpoints.iter().filter(|(_, path)| !kept(path)).take(excess) {
            reach("rotating");
            discard(work, path)?;
            reach("rotated");
        }
        Ok(())
    }
}

/// Takes the name from a checkpoint at once, and then removes it: half of one is never seen.
fn discard(work: &Path, checkpoint: &Path) -> Result<()> {
    let aside = work.join(format!("old-{}", checkpoint.file_name().unwrap_or_default().to_string_lossy()));
    let _ = fs::remove_dir_all(&aside);
    fs::rename(checkpoint, &aside).map_err(|source| failed(checkpoint, source))?;
    reach("moved_aside");
    fs::remove_dir_all(&aside).map_err(|source| failed(&aside, source))
}

fn put_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| failed(path, explain_write_error(path, Some(bytes.len() as u64), source)))
}

/// What the operating system said, which the library has in the words of its message alone.
fn io_error(error: &TchError) -> io::Error {
    let text = error.to_string();
    let code = text.split_once("Os { code: ").and_then(|(_, rest)| rest.split_once(',')?.0.parse().ok());
    code.map_or_else(|| io::Error::other(text), io::Error::from_raw_os_error)
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::Write { path: path.to_owned(), source }
}

/// Whether both have the same tensors under the same names, in whatever order.
fn same(found: &[(String, Tensor)], expected: &[(String, Tensor)]) -> bool {
    found.len() == expected.len()
        && expected
            .iter()
            .all(|(name, tensor)| found.iter().any(|(other, found)| other == name && found.equal(tensor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotated(steps: &[usize], limit: usize, best: Option<usize>) -> Vec<usize> {
        let folder = tempfile::tempdir().unwrap();
        let path = |step| folder.path().join(directory_name(step));
        for &step in steps {
            fs::create_dir(path(step)).unwrap();
        }
        fs::write(folder.path().join("checkpoint-notes"), "").unwrap();
        let work = folder.path().join(BEING_WRITTEN);
        fs::create_dir(&work).unwrap();
        let writer = Writer {
            output_dir: folder.path().to_owned(),
            config: LoraConfig::default(),
            recipe: Recipe::new("out", "model", "train.jsonl"),
            save_total_limit: Some(limit),
            inputs: Vec::new(),
            replaced: Vec::new(),
        };
        writer.rotate(&work, best.map(path).as_deref()).unwrap();
        list(folder.path()).into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn what_the_system_says_of_a_file_is_said_in_its_words() {
        let tensor = Tensor::from_slice(&[1.0_f32]);
        let path = Path::new("/dev/full");
        if path.exists() {
            let error = Tensor::write_safetensors(&[("a", &tensor)], path).unwrap_err();
            assert_eq!(io_error(&error).kind(), io::ErrorKind::StorageFull, "{error}");
        }
        let error = Tensor::write_safetensors(&[("a", &tensor)], "no/such/folder/file").unwrap_err();
        assert_eq!(io_error(&error).kind(), io::ErrorKind::NotFound, "{error}");
    }

    #[test]
    fn rotation_keeps_the_newest_and_the_best() {
        assert_eq!(rotated(&[2, 4, 10, 6], 2, None), [6, 10]);
        assert_eq!(rotated(&[2, 4, 6, 10], 2, Some(2)), [2, 10]);
        assert_eq!(rotated(&[2, 4, 6, 10], 1, Some(4)), [4, 10]);
        assert_eq!(rotated(&[2, 4, 6, 10], 1, Some(10)), [10]);
        assert_eq!(rotated(&[2, 4, 6, 10], 3, Some(99)), [4, 6, 10]);
        assert_eq!(rotated(&[2, 4], 5, None), [2, 4]);
        assert_eq!(rotated(&[2, 4], 0, None), [2, 4]);
    }
}
