//! The recipe itself: read, checked, written.

use std::path::{Path, PathBuf};
use std::{fs, io};

use ferrotune_data::{OnError, Truncation};
use ferrotune_lora::{LoraConfig, load_config};
use ferrotune_trainer::{Action, ResumeFromCheckpoint, WatchActions, WatcherKind};
use serde::Serialize;

use super::check;
use super::problem::{Place, Problem, ProblemKind};
use super::reader::{Reader, one_of};
use super::schema::{
    COMPUTE_DTYPES, DEVICES, EVAL_STRATEGIES, LOGGING_STRATEGIES, LR_SCHEDULER_TYPES, METRICS, OPTIMIZERS,
    REPORT_TO, SAVE_STRATEGIES, VALIDATION_METRICS,
};
use super::sections::{
    ALL_LINEAR, DataSection, EvaluationSection, GenerationSection, LoraSection, ModelSection, RuntimeSection,
    TargetModules, TrainingSection,
};
use super::source::Source;
use crate::{Error, Result};

/// The largest recipe file that is read; real ones have a kilobyte.
const MAX_BYTES: u64 = 1 << 20;
/// More threads than any machine has cores for; libtorch takes a number like 10^9 at its word.
const MAX_THREADS: i64 = 1024;
/// A rank beyond the width of any layer adds nothing, and one of 10^9 would take all memory.
const MAX_RANK: i64 = 65536;

/// A whole run in one value; see the [module](super) for the file it is read from.
///
/// [`load`](Self::load), [`parse`](Self::parse) and [`validate`](Self::validate) apply the same checks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    /// The folder that the results go to. Required.
    pub output_dir: PathBuf,
    /// Whether results of an earlier run in `output_dir` may be replaced. Default: false.
    pub overwrite_output_dir: bool,
    /// The seed of everything random: order of the data, initial adapter, dropout. Default: 42.
    pub seed: u64,
    /// The seed of the order of the data alone. Default: `seed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_seed: Option<u64>,
    /// The model that is fine-tuned.
    pub model: ModelSection,
    /// The data files.
    pub data: DataSection,
    /// The adapter.
    pub lora: LoraSection,
    /// The training loop.
    pub training: TrainingSection,
    /// What is done about each fault of the training that a watcher may find.
    pub watch: WatchActions,
    /// How answers are generated.
    pub generation: GenerationSection,
    /// What is measured on them.
    pub evaluation: EvaluationSection,
    /// Where and how it is computed.
    pub runtime: RuntimeSection,
}

impl Recipe {
    /// A recipe with the three required settings and the defaults of the rest.
    ///
    /// ```
    /// use ferrotune::recipe::{Recipe, TargetModules};
    ///
    /// let mut recipe = Recipe::new("runs/first", "models/SmolLM2-135M-Instruct", "train.jsonl");
    /// recipe.lora.target_modules = TargetModules::AllLinear;
    /// recipe.validate()?;
    /// # Ok::<(), ferrotune::Error>(())
    /// ```
    #[must_use]
    pub fn new(output_dir: impl Into<PathBuf>, model: impl Into<PathBuf>, train: impl Into<PathBuf>) -> Self {
        Self {
            output_dir: output_dir.into(),
            overwrite_output_dir: false,
            seed: 42,
            data_seed: None,
            model: ModelSection { path: model.into() },
            data: DataSection::new(train),
            lora: LoraSection::default(),
            training: TrainingSection::default(),
            watch: WatchActions::default(),
            generation: GenerationSection::default(),
            evaluation: EvaluationSection::default(),
            runtime: RuntimeSection::default(),
        }
    }

    /// Reads a recipe file and lays `section.key=value` overrides over it, the last of a key winning.
    ///
    /// # Errors
    /// [`Error::Read`] if there is no such file; [`Error::TooLarge`]; [`Error::Recipe`] with all problems at once.
    pub fn load(path: impl AsRef<Path>, overrides: &[String]) -> Result<Self> {
        let path = path.as_ref();
        let read_error = |source| Error::Read { path: path.to_owned(), source };
        let metadata = fs::metadata(path).map_err(read_error)?;
        if !metadata.is_file() {
            // A pipe may wait for ever, and a device never end.
            let what = if metadata.is_dir() { "it is a folder" } else { "it is no regular file" };
            return Err(read_error(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        let bytes = metadata.len();
        if bytes > MAX_BYTES {
            return Err(Error::TooLarge { path: path.to_owned(), bytes, limit: MAX_BYTES });
        }
        let text = fs::read_to_string(path).map_err(read_error)?;
        Self::parse(&text, path, overrides)
    }

    /// Like [`load`](Self::load), on text; `name` stands in the errors.
    ///
    /// ```
    /// use ferrotune::recipe::Recipe;
    ///
    /// let text = r#"
    ///     output_dir = "runs/first"
    ///     model.path = "models/SmolLM2-135M-Instruct"
    ///     data.train = "train.jsonl"
    /// "#;
    /// let recipe = Recipe::parse(text, "recipe.toml", &["training.learning_rate=1e-3".to_owned()])?;
    /// assert_eq!(recipe.training.learning_rate, 1e-3);
    ///
    /// let error = Recipe::parse(text, "recipe.toml", &["training.lerning_rate=1e-3".to_owned()]).unwrap_err();
    /// assert!(error.to_string().contains("did you mean `training.learning_rate`?"));
    /// # Ok::<(), ferrotune::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Recipe`] with all problems at once.
    pub fn parse(text: &str, name: impl AsRef<Path>, overrides: &[String]) -> Result<Self> {
        let name = name.as_ref();
        let mut problems = vec![];
        let mut source = Source::parse(text, name, &mut problems);
        // After a syntax error nothing is known about the values.
        if !problems.iter().any(|problem| matches!(problem.kind, ProblemKind::Syntax { .. })) {
            for text in overrides {
                source.set(text, &mut problems);
            }
            source.older_names(&mut problems);
            source.unknown_keys(&mut problems);
            let recipe = read(&source, &mut problems);
            check::contradictions(&recipe, &source, &mut problems);
            if problems.is_empty() {
                check::arguments(&recipe, &source, &mut problems);
            }
            if problems.is_empty() {
                return Ok(recipe);
            }
        }
        // By line; what is missing comes last.
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        Err(Error::Recipe { path: name.to_owned(), problems })
    }

    /// Checks a recipe that was made in code as if it had been read from a file.
    ///
    /// # Errors
    /// [`Error::Recipe`] with all problems at once; [`Error::RecipeToToml`] for a path that is not UTF-8.
    pub fn validate(&self) -> Result<()> {
        Self::parse(&self.to_toml()?, "recipe", &[]).map(|_| ())
    }

    /// Checks that the files which the recipe names exist, all of them at once, before anything is loaded.
    ///
    /// With the path of the recipe file it also says where a file is found beside the recipe only.
    ///
    /// # Errors
    /// [`Error::Recipe`] with a problem for each file that is absent or of the wrong kind.
    pub fn check_paths(&self, recipe_file: Option<&Path>) -> Result<()> {
        let name = recipe_file.unwrap_or(Path::new("recipe"));
        let problems = check::paths(self, recipe_file, &Place::File(name.to_owned().into()));
        if problems.is_empty() { Ok(()) } else { Err(Error::Recipe { path: name.to_owned(), problems }) }
    }

    /// What looks like a mistake but may be meant, a sentence each: held-out data that are the training data.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        check::warnings(self)
    }

    /// The effective recipe, every default written out. Read again it gives an equal recipe.
    ///
    /// # Errors
    /// [`Error::RecipeToToml`] for a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|source| Error::RecipeToToml { source })
    }
}

/// Reads every key; one that is absent or wrong gets its default, so that all are looked at.
fn read(source: &Source, problems: &mut Vec<Problem>) -> Recipe {
    let mut reader = Reader { source, section: "", problems };

    let s = reader.at("");
    let output_dir = s.required("output_dir", Reader::path).unwrap_or_default();
    let overwrite_output_dir = s.boolean("overwrite_output_dir");
    let seed = s.count("seed", 0);
    let data_seed = s.count("data_seed", 0);

    let model = reader.at("model").required("path", Reader::path).unwrap_or_default();

    let s = reader.at("data");
    let train = s.required("train", Reader::path).unwrap_or_default();
    let mut recipe = Recipe::new(output_dir, model, train);
    recipe.data.validation = s.path("validation");
    recipe.data.test = s.path("test");
    recipe.data.max_train = s.count("max_train", 1);
    recipe.data.max_validation = s.count("max_validation", 1);
    recipe.data.max_test = s.count("max_test", 1);
    // One token of prompt, one of completion.
    set(&mut recipe.data.max_length, s.count("max_length", 2));
    let truncation = s.choice("truncation", &Truncation::ALL.map(Truncation::name));
    set(&mut recipe.data.truncation, truncation.and_then(|name| Truncation::from_name(&name)));
    let on_error = s.choice("on_error", &OnError::ALL.map(OnError::name));
    set(&mut recipe.data.on_error, on_error.and_then(|name| OnError::from_name(&name)));
    set(&mut recipe.overwrite_output_dir, overwrite_output_dir);
    set(&mut recipe.seed, seed.map(|seed| seed as u64));
    recipe.data_seed = data_seed.map(|seed| seed as u64);

    read_lora(reader.at("lora"), &mut recipe.lora);
    read_training(reader.at("training"), &mut recipe.training);
    read_watch(reader.at("watch"), &mut recipe.watch);

    let s = reader.at("generation");
    set(&mut recipe.generation.max_new_tokens, s.count("max_new_tokens", 1));
    set(&mut recipe.generation.batch_size, s.count("batch_size", 1));

    let s = reader.at("evaluation");
    let expected = format!("a list of different names out of {}", one_of(METRICS));
    set(&mut recipe.evaluation.metrics, s.names("metrics", &expected, |name| METRICS.contains(&name)));
    set(&mut recipe.evaluation.before, s.boolean("before"));
    set(&mut recipe.evaluation.after, s.boolean("after"));

    let s = reader.at("runtime");
    set(&mut recipe.runtime.device, s.choice("device", DEVICES));
    set(&mut recipe.runtime.compute_dtype, s.choice("compute_dtype", COMPUTE_DTYPES));
    let expected = format!("an integer from 1 to {MAX_THREADS}; leave it out for all cores");
    let threads = s.integer("threads", &expected, |threads| (1..=MAX_THREADS).contains(&threads));
    recipe.runtime.threads = threads.and_then(|threads| usize::try_from(threads).ok());
    recipe
}

fn read_lora(s: &mut Reader<'_>, lora: &mut LoraSection) {
    lora.init_from = s.path("init_from");
    if let Some(config) = lora.init_from.as_ref().and_then(|directory| load_config(directory).ok()) {
        of_adapter(s, config, lora);
    }
    let expected = format!("an integer from 1 to {MAX_RANK}");
    let rank = s.integer("r", &expected, |rank| (1..=MAX_RANK).contains(&rank));
    set(&mut lora.r, rank.and_then(|rank| usize::try_from(rank).ok()));
    set(&mut lora.lora_alpha, s.number("lora_alpha", "a number above 0", |alpha| alpha > 0.0));
    let dropout = s.number("lora_dropout", "a number of at least 0 and below 1", |p| (0.0..1.0).contains(&p));
    set(&mut lora.lora_dropout, dropout);
    if s.is_string("target_modules", ALL_LINEAR) {
        lora.target_modules = TargetModules::AllLinear;
    } else {
        let expected = "a list of different module names, as in [\"q_proj\", \"v_proj\"], or \"all-linear\"";
        let names = s.names("target_modules", expected, |name| !name.trim().is_empty());
        set(&mut lora.target_modules, names.map(TargetModules::Named));
    }
}

/// What an adapter has where the recipe leaves it out. Whether there is an adapter is seen when the run begins.
fn of_adapter(s: &mut Reader<'_>, config: LoraConfig, lora: &mut LoraSection) {
    (lora.r, lora.lora_alpha, lora.lora_dropout) = (config.rank, config.lora_alpha, config.lora_dropout);
    lora.target_modules = match config.target_modules {
        ferrotune_lora::TargetModules::AllLinear => TargetModules::AllLinear,
        ferrotune_lora::TargetModules::Names(names) => TargetModules::Named(names),
        ferrotune_lora::TargetModules::Pattern(pattern) => {
            let reason = format!(
                "`target_modules` of the adapter is the pattern {pattern:?}; name its modules in `lora.target_modules`"
            );
            return s.unless_given("target_modules", "init_from", reason);
        }
    };
}

fn read_training(s: &mut Reader<'_>, training: &mut TrainingSection) {
    let positive = |value: f64| value > 0.0;
    let not_negative = |value: f64| value >= 0.0;
    set(&mut training.num_train_epochs, s.number("num_train_epochs", "a number above 0", positive));
    set(&mut training.per_device_train_batch_size, s.count("per_device_train_batch_size", 1));
    set(&mut training.gradient_accumulation_steps, s.count("gradient_accumulation_steps", 1));
    set(&mut training.dataloader_drop_last, s.boolean("dataloader_drop_last"));
    set(&mut training.learning_rate, s.number("learning_rate", "a number above 0", positive));
    set(&mut training.weight_decay, s.number("weight_decay", "a number of at least 0", not_negative));
    let beta = |value: f64| (0.0..1.0).contains(&value);
    let expected = "a number of at least 0 and below 1";
    set(&mut training.adam_beta1, s.number("adam_beta1", expected, beta));
    set(&mut training.adam_beta2, s.number("adam_beta2", expected, beta));
    set(&mut training.adam_epsilon, s.number("adam_epsilon", "a number of at least 0", not_negative));
    let expected = "a whole number of steps, or a share of all steps of at least 0 and below 1";
    let warmup = s.number("warmup_steps", expected, |steps| {
        (0.0..1.0).contains(&steps) || (1.0..1e15).contains(&steps) && steps.fract() == 0.0
    });
    set(&mut training.warmup_steps, warmup);
    set(&mut training.lr_scheduler_type, s.choice("lr_scheduler_type", LR_SCHEDULER_TYPES));
    let expected = "an integer of at least 1, or -1 for no limit";
    set(&mut training.max_steps, s.integer("max_steps", expected, |steps| steps == -1 || steps >= 1));
    set(&mut training.logging_strategy, s.choice("logging_strategy", LOGGING_STRATEGIES));
    set(&mut training.logging_steps, s.count("logging_steps", 1));
    set(&mut training.logging_first_step, s.boolean("logging_first_step"));
    set(&mut training.eval_strategy, s.choice("eval_strategy", EVAL_STRATEGIES));
    let expected = "a whole number of steps, or a share of all steps above 0 and below 1";
    training.eval_steps = s.number("eval_steps", expected, |steps| {
        steps > 0.0 && steps < 1.0 || (1.0..1e15).contains(&steps) && steps.fract() == 0.0
    });
    set(&mut training.eval_delay, s.number("eval_delay", "a number of at least 0", not_negative));
    let expected = "a number of at least 0 (0: no clipping)";
    set(&mut training.max_grad_norm, s.number("max_grad_norm", expected, not_negative));
    let share =
        s.number("label_smoothing_factor", "a number from 0 to 1", |share| (0.0..=1.0).contains(&share));
    set(&mut training.label_smoothing_factor, share);
    training.neftune_noise_alpha = s.number("neftune_noise_alpha", "a number of at least 0", not_negative);
    set(&mut training.bf16, s.boolean("bf16"));
    set(&mut training.fp16, s.boolean("fp16"));
    set(&mut training.gradient_checkpointing, s.boolean("gradient_checkpointing"));
    set(&mut training.optim, s.choice("optim", OPTIMIZERS));
    training.optim_args = s.text("optim_args", "a text such as \"momentum=0.9,nesterov=true\"");
    training.loraplus_lr_ratio = s.number("loraplus_lr_ratio", "a number above 0", positive);
    let expected = "a table of numbers and names, as in { num_cycles = 2 }";
    set(&mut training.lr_scheduler_kwargs, s.scheduler_kwargs("lr_scheduler_kwargs", expected));
    read_saving(s, training);
}

fn read_saving(s: &mut Reader<'_>, training: &mut TrainingSection) {
    set(&mut training.save_strategy, s.choice("save_strategy", SAVE_STRATEGIES));
    let expected = "a whole number of steps, or a share of all steps above 0 and below 1";
    let steps = s.number("save_steps", expected, |steps| {
        steps > 0.0 && steps < 1.0 || (1.0..1e15).contains(&steps) && steps.fract() == 0.0
    });
    set(&mut training.save_steps, steps);
    training.save_total_limit = s.count("save_total_limit", 1);
    set(&mut training.load_best_model_at_end, s.boolean("load_best_model_at_end"));
    training.metric_for_best_model = s.choice("metric_for_best_model", VALIDATION_METRICS);
    set(&mut training.predict_with_generate, s.boolean("predict_with_generate"));
    training.greater_is_better = s.boolean("greater_is_better");
    training.early_stopping_patience = s.count("early_stopping_patience", 1);
    let threshold = s.number("early_stopping_threshold", "a number of at least 0", |value| value >= 0.0);
    set(&mut training.early_stopping_threshold, threshold);
    let resume = if s.is_text("resume_from_checkpoint") {
        s.path("resume_from_checkpoint").map(ResumeFromCheckpoint::Folder)
    } else {
        s.boolean("resume_from_checkpoint").map(ResumeFromCheckpoint::Newest)
    };
    set(&mut training.resume_from_checkpoint, resume);
    set(&mut training.report_to, s.reporters("report_to", REPORT_TO));
    training.run_name = s.text("run_name", "a text");
}

fn read_watch(s: &mut Reader<'_>, watch: &mut WatchActions) {
    for watcher in WatcherKind::ALL {
        let choices = WatchActions::choices(watcher);
        let names: Vec<&str> = choices.iter().copied().map(Action::name).chain([WatchActions::OFF]).collect();
        if let Some(name) = s.choice(watcher.name(), &names) {
            watch.set(watcher, choices.iter().copied().find(|action| action.name() == name));
        }
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}
