//! Checks of more than one key: settings that contradict each other, files that do not exist.

use std::path::{Path, PathBuf};

use ferrotune_trainer::{Evaluation, Schedule, SchedulerType};

use super::config::Recipe;
use super::problem::{Place, Problem, ProblemKind};
use super::source::Source;
use crate::job::training_arguments;

/// What a run writes to `output_dir`: a folder, and files.
pub(crate) const RESULTS: [&str; 5] =
    ["adapter", "recipe.toml", "metrics.json", "predictions.jsonl", "report.html"];

/// Settings that cannot hold together. A key that already has a problem is left in peace.
pub(super) fn contradictions(recipe: &Recipe, source: &Source, problems: &mut Vec<Problem>) {
    let troubled: Vec<String> =
        problems.iter().flat_map(|problem| problem.kind.keys()).map(str::to_owned).collect();
    let mut contradiction = |keys: [&str; 2], reason: String| {
        if keys.iter().any(|key| troubled.iter().any(|troubled| troubled == key)) {
            return;
        }
        let (section, key) = keys[0].split_once('.').unwrap_or(("", keys[0]));
        problems.push(Problem {
            place: source.place(section, key),
            kind: ProblemKind::Contradiction { keys: keys.map(str::to_owned).to_vec(), reason },
        });
    };

    let data = &recipe.data;
    for (limit, key, file, file_key) in [
        (data.max_validation, "data.max_validation", &data.validation, "data.validation"),
        (data.max_test, "data.max_test", &data.test, "data.test"),
    ] {
        if limit.is_some() && file.is_none() {
            let reason = format!("`{key}` limits a file that is not given; add `{file_key}`, or remove it");
            contradiction([key, file_key], reason);
        }
    }

    let training = &recipe.training;
    if training.lr_scheduler_type == "constant" && training.warmup_steps > 0.0 {
        contradiction(
            ["training.warmup_steps", "training.lr_scheduler_type"],
            format!(
                "`training.warmup_steps` is {}, but `training.lr_scheduler_type` \"constant\" has no warm-up; \
                 use \"constant_with_warmup\", or remove `warmup_steps`",
                training.warmup_steps
            ),
        );
    }
    if training.lr_scheduler_type == "reduce_lr_on_plateau" && training.eval_strategy == "no" {
        contradiction(
            ["training.lr_scheduler_type", "training.eval_strategy"],
            "`training.lr_scheduler_type` is \"reduce_lr_on_plateau\", which follows the validation; set \
             `training.eval_strategy` to \"epoch\" or \"steps\""
                .to_owned(),
        );
    }
    // Whether the schedule takes what it is told does not depend on the number of steps.
    let schedule = training
        .lr_scheduler_type
        .parse::<SchedulerType>()
        .and_then(|kind| Schedule::new(kind, &training.lr_scheduler_kwargs, training.learning_rate, 0, 1));
    if let Err(error) = schedule {
        contradiction(["training.lr_scheduler_kwargs", "training.lr_scheduler_type"], error.to_string());
    }
    if training.eval_strategy != "no" && data.validation.is_none() {
        contradiction(
            ["training.eval_strategy", "data.validation"],
            format!(
                "`training.eval_strategy` is \"{}\", but there is no file to evaluate; add `data.validation`, or remove \
                 `eval_strategy`",
                training.eval_strategy
            ),
        );
    }
    if training.eval_strategy != "steps" && training.eval_steps.is_some() {
        contradiction(
            ["training.eval_steps", "training.eval_strategy"],
            format!(
                "`training.eval_steps` is given, but `training.eval_strategy` is \"{}\"; use \"steps\", or remove \
                 `eval_steps`",
                training.eval_strategy
            ),
        );
    }
    if training.predict_with_generate && data.validation.is_none() {
        contradiction(
            ["training.predict_with_generate", "data.validation"],
            "`training.predict_with_generate` answers the prompts of a file that is not given; add `data.validation`, or remove it"
                .to_owned(),
        );
    }
    let metric = training.metric_for_best_model.as_deref().and_then(|name| name.strip_prefix("eval_"));
    if let Some(metric) = metric.filter(|name| !Evaluation::METRICS.contains(name)) {
        if !training.predict_with_generate {
            contradiction(
                ["training.metric_for_best_model", "training.predict_with_generate"],
                format!(
                    "{metric} scores answers, and `training.predict_with_generate` is false; set it to true"
                ),
            );
        } else if !recipe.evaluation.metrics.iter().any(|name| name == metric) {
            contradiction(
                ["training.metric_for_best_model", "evaluation.metrics"],
                format!("{metric} is not among `evaluation.metrics`; add it there"),
            );
        }
    }
    if training.early_stopping_patience.is_none() && training.early_stopping_threshold > 0.0 {
        contradiction(
            ["training.early_stopping_threshold", "training.early_stopping_patience"],
            format!(
                "`training.early_stopping_threshold` is {}, but there is no `training.early_stopping_patience`, without which no run stops \
                 early; add it, or remove the threshold",
                training.early_stopping_threshold
            ),
        );
    }
    if training.eval_strategy == "no" && training.eval_delay > 0.0 {
        contradiction(
            ["training.eval_delay", "training.eval_strategy"],
            format!(
                "`training.eval_delay` is {}, but `training.eval_strategy` is \"no\"; use \"steps\" or \"epoch\", or remove \
                 `eval_delay`",
                training.eval_delay
            ),
        );
    }
    if training.run_name.is_some() && training.report_to.is_empty() {
        contradiction(
            ["training.run_name", "training.report_to"],
            "`training.run_name` names the run in its log, but there is no `training.report_to`; add it, or remove `run_name`".to_owned(),
        );
    }
    if training.bf16 && training.fp16 {
        contradiction(
            ["training.fp16", "training.bf16"],
            "`training.bf16` and `training.fp16` are both true; choose one of them".to_owned(),
        );
    }
    let output = plain(&recipe.output_dir);
    for (key, path) in inputs(recipe) {
        if plain(path) == output {
            contradiction(
                ["output_dir", key],
                format!("`output_dir` and `{key}` are the same path, \"{}\"", recipe.output_dir.display()),
            );
        }
        // A result would replace what it is made from.
        if let Some(name) = RESULTS.into_iter().find(|name| plain(path) == output.join(name)) {
            let reason = format!(
                "`{key}` is what the run itself writes, `{name}` of `output_dir`: choose another `output_dir`"
            );
            contradiction(["output_dir", key], reason);
        }
    }
}

/// What the trainer itself refuses, at its place in the recipe.
pub(super) fn arguments(recipe: &Recipe, source: &Source, problems: &mut Vec<Problem>) {
    use ferrotune_trainer::Error::{InvalidArgument, UnknownName};
    let refused = training_arguments(recipe).and_then(|arguments| Ok(arguments.validate()?));
    if let Err(crate::Error::Trainer(
        error @ (InvalidArgument { field, .. } | UnknownName { argument: field, .. }),
    )) = refused
    {
        let (keys, reason) = (vec![format!("training.{field}")], error.to_string());
        let kind = ProblemKind::Contradiction { keys, reason };
        problems.push(Problem { place: source.place("training", field), kind });
    }
}

/// The keys of the inputs that are no data files.
const MODEL: &str = "model.path";
const INIT_FROM: &str = "lora.init_from";

/// What a run reads, by its keys.
pub(crate) fn inputs(recipe: &Recipe) -> impl Iterator<Item = (&'static str, &Path)> {
    let data = &recipe.data;
    let optional = [
        (INIT_FROM, &recipe.lora.init_from),
        ("data.validation", &data.validation),
        ("data.test", &data.test),
    ];
    let required = [(MODEL, recipe.model.path.as_path()), ("data.train", data.train.as_path())];
    required.into_iter().chain(optional.into_iter().filter_map(|(key, path)| Some((key, path.as_deref()?))))
}

/// What is legal and hardly ever meant: held-out data that are the training data, a warm-up that the run does not outlive.
pub(super) fn warnings(recipe: &Recipe) -> Vec<String> {
    let data = &recipe.data;
    let mut warnings: Vec<String> = [("data.validation", &data.validation), ("data.test", &data.test)]
        .into_iter()
        .filter(|(_, path)| path.as_ref().is_some_and(|path| same_file(path, &data.train)))
        .map(|(key, _)| {
            format!(
                "`{key}` and `data.train` are the same file: what is measured on it is no held-out result"
            )
        })
        .collect();
    let training = &recipe.training;
    #[expect(clippy::cast_precision_loss, reason = "no run has 2^53 steps")]
    if training.max_steps > 0 && training.warmup_steps >= training.max_steps as f64 {
        warnings.push(format!(
            "`training.warmup_steps` is {}, and `training.max_steps` ends the run after {}: \
             the learning rate never reaches its peak",
            training.warmup_steps, training.max_steps
        ));
    }
    warnings
}

/// A problem for each file that is absent or of the wrong kind.
pub(super) fn paths(recipe: &Recipe, recipe_file: Option<&Path>, place: &Place) -> Vec<Problem> {
    let mut problems = vec![];
    let mut problem = |key: &str, path: &Path, reason: String| {
        let kind = ProblemKind::Path { key: key.to_owned(), path: path.to_owned(), reason };
        problems.push(Problem { place: place.clone(), kind });
    };

    let model = &recipe.model.path;
    if !model.exists() {
        problem(MODEL, model, absent(model, recipe_file));
    } else if model.is_file() && model.extension().is_none_or(|extension| extension != "gguf") {
        let reason = "is a file; expected a Hugging Face model directory or a .gguf file".to_owned();
        problem(MODEL, model, reason);
    }
    for (key, path) in inputs(recipe).filter(|(key, _)| *key != MODEL) {
        if !path.exists() {
            problem(key, path, absent(path, recipe_file));
        } else if key == INIT_FROM {
            if !path.is_dir() {
                problem(key, path, "is a file; expected the folder of an adapter".to_owned());
            }
        } else if path.is_dir() {
            problem(key, path, "is a folder; expected a JSONL file".to_owned());
        } else if !path.is_file() {
            problem(key, path, "is a pipe, a socket or a device; expected a JSONL file".to_owned());
        }
    }
    if recipe.output_dir.exists() && !recipe.output_dir.is_dir() {
        problem("output_dir", &recipe.output_dir, "is a file; expected a folder".to_owned());
    }
    problems
}

/// Why a path is not found; relative paths are the usual reason.
fn absent(path: &Path, recipe_file: Option<&Path>) -> String {
    if path.is_absolute() {
        return "does not exist".to_owned();
    }
    let mut reason = match std::env::current_dir() {
        Ok(folder) => format!("does not exist in the current directory, {}", folder.display()),
        Err(_) => "does not exist in the current directory".to_owned(),
    };
    if let Some(folder) = recipe_file.and_then(Path::parent) {
        let beside = folder.join(path);
        if beside.exists() {
            reason.push_str(&format!(
                "; paths are not relative to the recipe: write \"{}\", or start the run in \"{}\"",
                beside.display(),
                folder.display()
            ));
        }
    }
    reason
}

fn same_file(a: &Path, b: &Path) -> bool {
    plain(a) == plain(b) || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// A path without `.` and doubled slashes.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect()
}
