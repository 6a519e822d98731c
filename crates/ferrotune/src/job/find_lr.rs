//! The learning-rate range test of a recipe.

use super::{
    CausalLmTask, Observer, PackedDataset, arguments::training_arguments, base::Base, init_from,
    output::OutputDirectory, run::check_memory,
};
use crate::{
    Error, Result, atomic::write_atomically, progress::RangeStep, recipe::Recipe, report::range_test_svg,
};
use ferrotune_trainer::{Dataset, RangeOutcome, RangePoint, RangeTest, TrainingArguments};

/// What [`find_lr`] leaves in the recipe's `output_dir`.
pub const RANGE_TEST_FILES: [&str; 2] = ["find_lr.json", "find_lr.svg"];

/// Runs the range test of [`ferrotune_trainer::find_lr`] on a recipe's model, adapter and batches, and writes its points and its curve,
/// `find_lr.json` and `find_lr.svg`, into the recipe's `output_dir`. Nothing is trained, and a run that lies there stays as it is. `None` if
/// the observer cancels.
///
/// # Errors
/// As [`run`](super::run), as far as it prepares a training.
pub fn find_lr(recipe: &Recipe, observer: &mut dyn Observer) -> Result<Option<RangeOutcome>> {
    recipe.validate()?;
    recipe.check_paths(None)?;
    let arguments = training_arguments(recipe)?;
    arguments.validate()?;
    let directory = OutputDirectory::reopen(&recipe.output_dir)?;
    directory.check_inputs(recipe)?;
    init_from::check(recipe, false, observer)?;

    // The loss of the training examples is all that is looked at.
    let mut of_training = recipe.clone();
    (of_training.data.validation, of_training.data.test) = (None, None);
    let Some(mut base) = Base::load(&of_training, observer)? else { return Ok(None) };
    let adapter = init_from::adapter(recipe, &mut base.assistant)?;
    let train_set = PackedDataset::new(base.train.clone(), recipe.data_seed.unwrap_or(recipe.seed));
    let test = RangeTest::default();
    let max_steps = i64::try_from(test.steps).unwrap_or(i64::MAX);
    let plan = TrainingArguments { max_steps, ..arguments.clone() }.plan(train_set.len())?;
    check_memory(&base.assistant, &adapter, &train_set, (&arguments, &plan), &[], observer)?;
    let task = CausalLmTask::new(&base.assistant.model, &adapter)
        .with_forward_arguments(arguments.forward_arguments())?;

    observer.stage("looking for a learning rate");
    let mut step = 0;
    let found = ferrotune_trainer::find_lr(&task, &arguments, &train_set, test, |point| {
        let RangePoint { learning_rate, loss, smoothed_loss } = *point;
        step += 1;
        observer.range_step(&RangeStep { step, total_steps: test.steps, learning_rate, loss, smoothed_loss });
        !observer.cancelled()
    })?;
    if observer.cancelled() {
        return Ok(None);
    }
    let [json, svg] = RANGE_TEST_FILES.map(|name| recipe.output_dir.join(name));
    let text = serde_json::to_string_pretty(&found)
        .map_err(|source| Error::Write { path: json.clone(), source: source.into() })?;
    write_atomically(json, text + "\n")?;
    if let Some(curve) = range_test_svg(&found) {
        write_atomically(svg, curve)?;
    }
    Ok(Some(found))
}
