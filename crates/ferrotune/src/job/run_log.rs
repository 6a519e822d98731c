//! The log of a run, as `training.report_to` asks for it.

use crate::{Result, recipe::Recipe, report::Output};
use ferrotune_trainer::{Reporting, TrainingArguments, default_logging_dir};
use serde_json::{Map, Value};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Answers that the log shows.
const SAMPLES: usize = 5;

/// The reporters of a run, with its whole recipe as hyperparameters; `None` where nothing is reported to. A run that goes on from a
/// checkpoint goes on with the newest log.
pub(super) fn open(
    recipe: &Recipe,
    arguments: &TrainingArguments,
    goes_on: bool,
) -> Result<Option<Reporting>> {
    if arguments.report_to.is_empty() {
        return Ok(None);
    }
    let newest = if goes_on { newest(&recipe.output_dir) } else { None };
    let folder = newest.unwrap_or_else(|| default_logging_dir(&recipe.output_dir));
    Ok(Some(Reporting::new(arguments, &folder)?.with_hparams(hparams(recipe)?)))
}

/// The log that was begun last.
fn newest(output_dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(output_dir.join("runs")).ok()?.flatten();
    let logs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let dated = logs.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())));
    dated.max().map(|(_, path)| path)
}

/// What is not among the training arguments, by the recipe's keys: `lora.r`.
fn hparams(recipe: &Recipe) -> Result<Map<String, Value>> {
    let table: toml::Table = toml::from_str(&recipe.to_toml()?).unwrap_or_default();
    let mut found = Map::new();
    for (section, value) in table.into_iter().filter(|(section, _)| section != "training") {
        match value {
            toml::Value::Table(keys) => {
                let named = keys.into_iter().map(|(key, value)| (format!("{section}.{key}"), json(value)));
                found.extend(named);
            }
            value => drop(found.insert(section, json(value))),
        }
    }
    Ok(found)
}

fn json(value: toml::Value) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// Shows the first answers, those before the training at step 0 and those after it at the last step.
pub(super) fn show_answers(reporting: &mut Reporting, step: usize, outputs: &[Output]) {
    for (index, output) in outputs.iter().take(SAMPLES).enumerate() {
        let tag = format!("answers/{}", index + 1);
        for (step, answer) in [(0, &output.before), (step, &output.after)] {
            if let Some(answer) = answer {
                let Output { prompt, reference, .. } = output;
                let text = [("Prompt", prompt), ("Reference", reference), ("Answer", answer)]
                    .map(|(head, text)| format!("**{head}**\n\n{}\n", verbatim(text)));
                reporting.text(step, &tag, &text.join("\n"));
            }
        }
    }
}

/// As a block of code of Markdown, in which nothing is read as Markdown.
fn verbatim(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_goes_on_takes_the_newest_log_and_another_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut recipe = Recipe::new(folder.path(), "m", "t");
        let arguments =
            TrainingArguments { report_to: vec!["csv".to_owned()], ..TrainingArguments::default() };
        assert_eq!(newest(folder.path()), None);
        for name in ["Nov27_10-00-00_a", "Jan01_10-00-00_a"] {
            fs::create_dir_all(folder.path().join("runs").join(name)).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(newest(folder.path()), Some(folder.path().join("runs/Jan01_10-00-00_a")));
        let names =
            |reporting: Option<Reporting>| reporting.unwrap().names().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(open(&recipe, &arguments, true).unwrap()), ["csv"]);
        assert!(open(&recipe, &TrainingArguments::default(), true).unwrap().is_none());
        recipe.lora.r = 3;
        let hparams = hparams(&recipe).unwrap();
        assert_eq!((hparams["lora.r"].as_u64(), hparams["watch.plateau"].as_str()), (Some(3), Some("say")));
        assert!(!hparams.keys().any(|key| key.starts_with("training")));
    }

    #[test]
    fn text_of_the_data_is_no_markdown() {
        assert_eq!(verbatim("# a\n<b>"), "    # a\n    <b>\n");
    }
}
