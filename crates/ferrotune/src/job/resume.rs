//! Going on with a run that was left.

use super::Observer;
use crate::{
    Error, Result,
    checkpoint::{self, InputFile, Saved, changes, other_threads},
    recipe::{RESULTS, Recipe, ResumeFromCheckpoint},
};
use ferrotune_lora::Adapter;

/// Whether `output_dir` holds the results of this very recipe: all of them take their places together, at the end.
pub(super) fn is_finished(recipe: &Recipe) -> bool {
    let path = |name: &str| recipe.output_dir.join(name);
    let comparable = |recipe: &Recipe| {
        let mut recipe = recipe.clone();
        recipe.overwrite_output_dir = false;
        recipe.training.resume_from_checkpoint = ResumeFromCheckpoint::Newest(false);
        recipe
    };
    let earlier = Recipe::load(path(RESULTS[1]), &[]);
    path("metrics.json").exists()
        && path("report.html").exists()
        && earlier.is_ok_and(|earlier| comparable(&earlier) == comparable(recipe))
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
    let _guard = tch::no_grad_guard();
    let misfit = |path: &str, expected: String, found: String| Error::Checkpoint {
        path: saved.path.clone(),
        reason: format!("the adapter of {path}: expected {expected}, found {found}"),
    };
    if let Some(path) =
        saved.adapter.tensors.keys().find(|path| !adapter.weights().iter().any(|(other, ..)| other == *path))
    {
        return Err(misfit(path, "none, as the recipe has it".to_owned(), "one".to_owned()));
    }
    for (path, a, b) in adapter.weights() {
        let Some((saved_a, saved_b)) = saved.adapter.tensors.get(path) else {
            return Err(misfit(path, "one, as the recipe has it".to_owned(), "none".to_owned()));
        };
        for (place, value) in [(a, saved_a), (b, saved_b)] {
            if place.size() != value.size() {
                return Err(misfit(path, format!("{:?}", place.size()), format!("{:?}", value.size())));
            }
            place.shallow_clone().f_copy_(value)?;
        }
    }
    Ok(())
}
