//! Going on with a run that was left.

use super::Observer;
use crate::{
    Error, Result,
    checkpoint::{self, InputFile, Saved, changes, other_threads},
    recipe::{RESULTS, Recipe, ResumeFromCheckpoint},
};
use ferrotune_lora::Adapter;
use ferrotune_trainer::restore_parameters;

/// Whether `output_dir` holds the results of this very recipe: all of them take their places together, at the end.
pub(super) fn is_finished(recipe: &Recipe) -> bool {
    let exists = |name: &str| recipe.output_dir.join(name).exists();
    exists("metrics.json") && exists("report.html") && is_of_earlier(recipe) == Some(true)
}

/// Refuses an `output_dir` that holds results of another recipe, which a run of this one must not replace.
pub(crate) fn refuse_another(recipe: &Recipe) -> Result<()> {
    if recipe.overwrite_output_dir || is_of_earlier(recipe) != Some(false) {
        return Ok(());
    }
    Err(Error::OutputExists { path: recipe.output_dir.clone(), found: RESULTS[1].to_owned() })
}

/// Whether the results in `output_dir` are those of this recipe; `None` if there are none.
fn is_of_earlier(recipe: &Recipe) -> Option<bool> {
    let comparable = |recipe: &Recipe| {
        let mut recipe = recipe.clone();
        recipe.overwrite_output_dir = false;
        recipe.training.resume_from_checkpoint = ResumeFromCheckpoint::Newest(false);
        recipe
    };
    let path = recipe.output_dir.join(RESULTS[1]);
    let earlier = path.exists().then(|| Recipe::load(path, &[]))?;
    Some(earlier.is_ok_and(|earlier| comparable(&earlier) == comparable(recipe)))
}

/// The checkpoint to go on from; `None`: from the start.
pub(super) fn choose(recipe: &Recipe, observer: &mut dyn Observer) -> Result<Option<Saved>> {
    let saved = match &recipe.training.resume_from_checkpoint {
        ResumeFromCheckpoint::Folder(path) => Some(checkpoint::read(path)?),
        ResumeFromCheckpoint::Newest(_) => {
            let (newest, damaged) = checkpoint::newest(&recipe.output_dir);
            damaged.iter().for_each(|error| observer.note(&format!("warning: {error}")));
            newest
        }
    };
    observer.note(&match &saved {
        Some(saved) => format!("going on from {}", saved.path.display()),
        None => format!("no checkpoint in {}: from the start", recipe.output_dir.display()),
    });
    Ok(saved)
}

/// Sees that the rest of the run is the rest of the run that was left; the hashes of its inputs.
pub(super) fn check(
    saved: &Saved,
    recipe: &Recipe,
    accept_changes: bool,
    observer: &mut dyn Observer,
) -> Result<Vec<InputFile>> {
    let inputs = InputFile::all(recipe, &saved.inputs)?;
    let changes = changes(saved, recipe, &inputs)?;
    if !changes.is_empty() && !accept_changes {
        return Err(Error::Changed { path: saved.path.clone(), changes });
    }
    changes.iter().for_each(|change| observer.note(&format!("warning: accepted: {change}")));
    if let Some(threads) = other_threads(saved, recipe)? {
        observer.note(&format!("warning: {threads}: the last bits of the rest may be others"));
    }
    Ok(inputs)
}

/// Puts the weights of a checkpoint into the adapter.
pub(super) fn restore(saved: &Saved, adapter: &Adapter) -> Result<()> {
    restore_parameters(&adapter.named_parameters(), &saved.adapter.named_parameters())
        .map_err(|error| Error::Checkpoint { path: saved.path.clone(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_lora::{LoraConfig, load_adapter, save_adapter};
    use ferrotune_trainer::{OptimizerState, TrainerState};
    use std::fs;
    use tch::{Device, Kind, Tensor};

    #[derive(Default)]
    struct Notes(Vec<String>);
    impl Observer for Notes {
        fn note(&mut self, text: &str) {
            self.0.push(text.to_owned());
        }
    }

    #[test]
    fn what_has_changed_is_refused_or_accepted_and_other_threads_are_said() {
        let folder = tempfile::tempdir().unwrap();
        let train = folder.path().join("train.jsonl");
        fs::write(&train, "abc").unwrap();
        let mut recipe = Recipe::new(folder.path().join("out"), folder.path(), &train);
        let ones = |size: [i64; 2]| Tensor::ones(size, (Kind::Float, Device::Cpu));
        let adapter = folder.path().join("adapter");
        save_adapter(&adapter, &LoraConfig::default(), &[("q_proj", ones([8, 3]), ones([5, 8]))]).unwrap();
        let saved = Saved {
            path: folder.path().join("out/checkpoint-1"),
            state: TrainerState::default(),
            adapter: load_adapter(&adapter).unwrap(),
            optimizer: OptimizerState { step: 0, tensors: Vec::new() },
            recipe: recipe.to_toml().unwrap(),
            inputs: InputFile::all(&recipe, &[]).unwrap(),
        };
        let mut notes = Notes::default();
        check(&saved, &recipe, false, &mut notes).unwrap();
        assert!(notes.0.is_empty(), "{:?}", notes.0);

        recipe.runtime.threads = Some(3);
        recipe.training.max_steps = 99;
        check(&saved, &recipe, false, &mut notes).unwrap();
        assert!(matches!(&notes.0[..], [note] if note.contains("`runtime.threads` was all and is 3")));

        recipe.training.learning_rate = 0.5;
        fs::write(&train, "abd").unwrap();
        let error = check(&saved, &recipe, false, &mut notes).unwrap_err();
        let are_named = matches!(&error, Error::Changed { changes, .. } if changes.len() == 2
            && changes[0].contains("training.learning_rate") && changes[1].contains("train.jsonl"));
        assert!(are_named && error.is_bad_input(), "{error}");
        check(&saved, &recipe, true, &mut notes).unwrap();
        assert_eq!(notes.0.iter().filter(|note| note.contains("accepted")).count(), 2, "{:?}", notes.0);
    }
}
