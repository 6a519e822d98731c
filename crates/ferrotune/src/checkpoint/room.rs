//! How much room the checkpoints of a run take.

use super::list;
use ferrotune_trainer::{SaveStrategy, TrainPlan};
use std::{fs, path::Path};

/// What the files of a checkpoint take that hold no tensors: a block of the disk each, at least.
const SMALL_FILES: u64 = 4 * 4096;

/// Bytes that the checkpoints of a run take beyond those that are in its output directory, at least.
///
/// `tensors` is the size of the tensors of one, `done` the steps that a run which goes on has done; a run that begins replaces those that are there.
pub(crate) fn room(
    output_dir: &Path,
    plan: &TrainPlan,
    tensors: u64,
    save_total_limit: Option<usize>,
    done: Option<usize>,
) -> u64 {
    let bytes = tensors.saturating_add(SMALL_FILES);
    let to_write = match plan.save_strategy {
        // The first evaluation is the best so far; what follows nobody knows.
        SaveStrategy::Best => 1,
        _ => (done.unwrap_or(0) + 1..=plan.max_steps).filter(|&step| plan.saves_after(step)).count(),
    };
    let there = list(output_dir);
    let kept = if done.is_some() { there.len() } else { 0 };
    // An old one goes when a new one is whole.
    let most = save_total_limit.map_or(usize::MAX, |limit| limit.saturating_sub(kept) + 1);
    let needed = bytes.saturating_mul(to_write.min(most) as u64);
    if done.is_some() || to_write == 0 {
        return needed;
    }
    // They go when the first new one is whole.
    let replaced: u64 = there.iter().map(|(_, path)| size(path)).sum();
    needed.saturating_sub(replaced).max(bytes)
}

/// Bytes of the files of a directory.
fn size(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_trainer::TrainingArguments;

    #[test]
    fn it_is_that_of_all_that_will_be_there_at_one_time() {
        let folder = tempfile::tempdir().unwrap();
        let needed = |save_strategy, save_steps, limit, done| {
            let arguments = TrainingArguments {
                max_steps: 10,
                save_strategy,
                save_steps,
                ..TrainingArguments::default()
            };
            room(folder.path(), &arguments.plan(100).unwrap(), 1000, limit, done)
        };
        let bytes = 1000 + SMALL_FILES;
        let steps = SaveStrategy::Steps;
        assert_eq!(needed(steps, 3.0, None, None), 4 * bytes, "after steps 3, 6, 9 and 10");
        assert_eq!(
            needed(steps, 3.0, Some(2), None),
            3 * bytes,
            "a third one is written before the first one goes"
        );
        assert_eq!(needed(steps, 3.0, Some(9), None), 4 * bytes);
        assert_eq!(needed(steps, 500.0, None, None), bytes);
        assert_eq!(needed(SaveStrategy::No, 3.0, None, None), 0);

        for step in [3, 6] {
            let checkpoint = folder.path().join(format!("checkpoint-{step}"));
            fs::create_dir(&checkpoint).unwrap();
            fs::write(checkpoint.join("optimizer.safetensors"), [0; 900]).unwrap();
        }
        assert_eq!(needed(steps, 3.0, None, Some(6)), 2 * bytes, "those after 9 and 10 are still to come");
        assert_eq!(needed(steps, 3.0, Some(2), Some(6)), bytes);
        assert_eq!(needed(steps, 3.0, None, Some(10)), 0);
        assert_eq!(needed(steps, 3.0, None, None), 4 * bytes - 1800, "1800 become free");
        assert_eq!(needed(steps, 500.0, None, None), bytes, "not before the new one is there");
    }
}
