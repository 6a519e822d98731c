//! Every combination of the values, as recipes.

use super::Axis;
use crate::{
    Error, Result,
    recipe::{Recipe, ResumeFromCheckpoint},
    report::Objective,
};

/// A grid beyond this is a slip of the hand.
const MAX_TRIALS: usize = 1000;

/// Keys of `lora` and `training` that trials cannot differ in, each with the reason.
const SHARED: [(&str, &str); 4] = [
    ("training.resume_from_checkpoint", "each trial goes on from its own checkpoints"),
    ("training.predict_with_generate", "the prompts are read once, for all trials"),
    ("training.label_smoothing_factor", "losses under different smoothing cannot be compared"),
    ("lora.init_from", "the answers before training are asked of one adapter only"),
];

/// A grid of trials, looked at and ready to be run.
#[derive(Debug, Clone)]
pub struct Sweep {
    pub(super) recipe: Recipe,
    pub(super) axes: Vec<Axis>,
    pub(super) objective: Objective,
    pub(super) trials: Vec<Trial>,
}

/// One combination of values.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// The name of its folder, as in `learning_rate=1e-4,r=8`.
    pub name: String,
    /// The value of each axis.
    pub values: Vec<String>,
    /// The run.
    pub recipe: Recipe,
}

impl Sweep {
    /// A trial of every combination, the values of the last axis changing first.
    ///
    /// The axes may be the seeds and the keys of `lora` and `training`; model and data are the same for all trials. Trials are judged by
    /// the validation loss, or by the first metric on the test data where there is no validation data.
    ///
    /// # Errors
    /// [`Error::Sweep`] for a grid that cannot be made, [`Error::Recipe`] for a trial that no recipe can be.
    pub fn new(recipe: &Recipe, axes: &[Axis]) -> Result<Self> {
        let refused = |reason: String| Err(Error::Sweep { reason });
        let count = axes.iter().map(|axis| axis.values.len()).try_fold(1_usize, usize::checked_mul);
        match count {
            _ if axes.is_empty() => return refused("there is nothing to vary".to_owned()),
            Some(0) => return refused("an axis has no values".to_owned()),
            Some(1..=MAX_TRIALS) => {}
            _ => return refused(format!("more than {MAX_TRIALS} trials; give fewer values")),
        }
        for (index, axis) in axes.iter().enumerate() {
            check(axis)?;
            if axes[..index].iter().any(|other| other.name() == axis.name()) {
                return refused(format!("`{}` is given twice; write all its values together", axis.key));
            }
        }
        let Some(objective) = objective(recipe) else {
            return refused(
                "there are no held-out data to judge the trials by: set `data.validation`, or `data.test` with \
                 `evaluation.after = true`"
                    .to_owned(),
            );
        };
        let text = recipe.to_toml()?;
        let mut trials: Vec<Trial> = Vec::new();
        for values in combinations(axes) {
            let trial = Trial::new(recipe, &text, axes, values)?;
            if let Some(other) = trials.iter().find(|other| other.same_run(&trial)) {
                return refused(format!("`{}` and `{}` are the same trial", other.name, trial.name));
            }
            trials.push(trial);
        }
        Ok(Self { recipe: recipe.clone(), axes: axes.to_vec(), objective, trials })
    }

    /// The trials in the order in which they are run.
    pub fn trials(&self) -> &[Trial] {
        &self.trials
    }
}

impl Trial {
    fn new(recipe: &Recipe, text: &str, axes: &[Axis], values: Vec<String>) -> Result<Self> {
        let settings = || axes.iter().zip(&values);
        let overrides: Vec<String> =
            settings().map(|(axis, value)| format!("{}={value}", axis.key)).collect();
        let name: Vec<String> =
            settings().map(|(axis, value)| format!("{}={}", axis.name(), file_name(value))).collect();
        let name = name.join(",");
        let mut own = Recipe::parse(text, "the recipe of the sweep", &overrides)?;
        own.output_dir = recipe.output_dir.join(&name);
        // With `overwrite_output_dir` every trial is made again.
        own.training.resume_from_checkpoint = ResumeFromCheckpoint::Newest(!recipe.overwrite_output_dir);
        own.validate()?;
        Ok(Self { name, values, recipe: own })
    }

    fn same_run(&self, other: &Self) -> bool {
        let anywhere = |recipe: &Recipe| Recipe { output_dir: "".into(), ..recipe.clone() };
        self.name == other.name || anywhere(&self.recipe) == anywhere(&other.recipe)
    }
}

fn check(axis: &Axis) -> Result<()> {
    let shared = SHARED.iter().find(|(key, _)| *key == axis.key).map(|(_, reason)| *reason);
    let may_differ = axis.is_seed() || ["lora.", "training."].iter().any(|part| axis.key.starts_with(part));
    match shared.or((!may_differ).then_some(
        "model, data and evaluation are the same for all trials; the axes may be `seed`, `data_seed` and the keys of `lora` and `training`",
    )) {
        Some(reason) => Err(Error::Sweep { reason: format!("trials cannot differ in `{}`: {reason}", axis.key) }),
        None => Ok(()),
    }
}

/// What held-out data there are decides.
fn objective(recipe: &Recipe) -> Option<Objective> {
    let metric = recipe.evaluation.metrics.first();
    let metric = metric.filter(|_| recipe.data.test.is_some() && recipe.evaluation.after);
    if recipe.data.validation.is_some() {
        Some(Objective { name: "validation.loss".to_owned(), greater_is_better: false })
    } else {
        metric.map(|metric| Objective { name: format!("after.{metric}"), greater_is_better: true })
    }
}

fn combinations(axes: &[Axis]) -> Vec<Vec<String>> {
    axes.iter().fold(vec![vec![]], |sets, axis| {
        let longer = |set: &Vec<String>| {
            let set = set.clone();
            axis.values.iter().map(move |value| [&set[..], std::slice::from_ref(value)].concat())
        };
        sets.iter().flat_map(longer).collect()
    })
}

/// A value as part of the name of a folder: the names of a list are joined, and nothing leads elsewhere.
fn file_name(value: &str) -> String {
    let value = value.replace(['[', ']', '"', '\'', ' '], "").replace(',', "+");
    value.chars().map(|c| if c.is_alphanumeric() || "+-._".contains(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::TargetModules;

    fn recipe() -> Recipe {
        let mut recipe = Recipe::new("runs/sweep", "model", "train.jsonl");
        recipe.data.validation = Some("validation.jsonl".into());
        recipe
    }

    fn sweep(recipe: &Recipe, axes: &[&str]) -> Result<Sweep> {
        let axes: Vec<Axis> = axes.iter().map(|axis| axis.parse()).collect::<Result<_>>()?;
        Sweep::new(recipe, &axes)
    }

    #[test]
    fn every_combination_is_a_recipe_with_a_folder_of_its_own() {
        let modules = r#"lora.target_modules=["q_proj", "up_proj"],"all-linear""#;
        let sweep = sweep(&recipe(), &["training.learning_rate=1e-4,3e-4", modules]).unwrap();
        let names: Vec<&str> = sweep.trials().iter().map(|trial| trial.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "learning_rate=1e-4,target_modules=q_proj+up_proj",
                "learning_rate=1e-4,target_modules=all-linear",
                "learning_rate=3e-4,target_modules=q_proj+up_proj",
                "learning_rate=3e-4,target_modules=all-linear"
            ]
        );
        let last = &sweep.trials()[3].recipe;
        assert_eq!(last.training.learning_rate, 3e-4);
        assert_eq!(last.lora.target_modules, TargetModules::AllLinear);
        assert_eq!(last.output_dir, recipe().output_dir.join(names[3]));
        assert_eq!(last.training.resume_from_checkpoint, ResumeFromCheckpoint::Newest(true));
        assert_eq!(sweep.objective.name, "validation.loss");
    }

    #[test]
    fn a_grid_that_cannot_be_made_is_refused() {
        let many = format!("seed={}", (0..1001).map(|seed| seed.to_string()).collect::<Vec<_>>().join(","));
        for (axes, words) in [
            (&[][..], "nothing to vary"),
            (&["lora.r=8", "lora.r=16"], "given twice"),
            (&["lora.r=8,8"], "the same trial"),
            (&["training.learning_rate=1e-4,0.0001"], "the same trial"),
            (&["data.max_length=8,16"], "the same for all trials"),
            (&["training.predict_with_generate=true,false"], "once, for all trials"),
            (&["training.label_smoothing_factor=0,0.1"], "cannot be compared"),
            (&["training.lerning_rate=1,2"], "did you mean `training.learning_rate`"),
            (&["lora.r=0,8"], "lora.r"),
            (&[&many], "more than 1000"),
        ] {
            let error = sweep(&recipe(), axes).unwrap_err();
            assert!(error.is_bad_input() && error.to_string().contains(words), "{axes:?}: {error}");
        }
    }

    #[test]
    fn without_validation_data_the_test_data_judge_and_without_any_nothing_does() {
        let mut recipe = recipe();
        recipe.data.validation = None;
        let error = sweep(&recipe, &["lora.r=8,16"]).unwrap_err();
        assert!(error.to_string().contains("no held-out data"), "{error}");
        recipe.data.test = Some("test.jsonl".into());
        let sweep = sweep(&recipe, &["lora.r=8,16"]).unwrap();
        assert_eq!(sweep.objective, Objective { name: "after.rouge1".to_owned(), greater_is_better: true });
    }

    #[test]
    fn a_value_leads_to_no_other_folder() {
        assert_eq!(file_name("../a/b c"), ".._a_bc");
        assert_eq!(file_name(r#"["q_proj", "v_proj"]"#), "q_proj+v_proj");
    }
}
