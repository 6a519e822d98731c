//! Settings that contradict each other, and files that do not exist.

use super::*;

#[test]
fn contradictions_are_refused_with_their_place() {
    for (settings, expected) in [
        (
            &["data.max_test=5"][..],
            "--set data.max_test=5: `data.max_test` limits a file that is not given; add `data.test`, or remove it",
        ),
        (
            &["training.lr_scheduler_type=constant", "training.warmup_steps=5"],
            "--set training.warmup_steps=5: `training.warmup_steps` is 5, but `training.lr_scheduler_type` \
             \"constant\" has no warm-up; use \"constant_with_warmup\", or remove `warmup_steps`",
        ),
        (
            &["training.eval_strategy=epoch"],
            "--set training.eval_strategy=epoch: `training.eval_strategy` is \"epoch\", but there is no file to \
             evaluate; add `data.validation`, or remove `eval_strategy`",
        ),
        (
            &["data.validation=v", "training.eval_steps=5"],
            "--set training.eval_steps=5: `training.eval_steps` is given, but `training.eval_strategy` is \"no\"; \
             use \"steps\", or remove `eval_steps`",
        ),
        (
            &["data.validation=v", "training.eval_delay=5"],
            "--set training.eval_delay=5: `training.eval_delay` is 5, but `training.eval_strategy` is \"no\"; use \"steps\" or \
             \"epoch\", or remove `eval_delay`",
        ),
        (
            &["training.run_name=first"],
            "--set training.run_name=first: `training.run_name` names the run in its log, but there is no `training.report_to`; add \
             it, or remove `run_name`",
        ),
        (
            &["training.optim_args=momentum=0.9"],
            "--set training.optim_args=momentum=0.9: training argument optim_args = \"momentum=0.9\": expected none: AdamW is told by \
             adam_beta1, adam_beta2, adam_epsilon and weight_decay",
        ),
        (
            &["training.optim=sgd", "training.optim_args=momentun=0.9"],
            "--set training.optim_args=momentun=0.9: optim_args \"momentun\" is not offered: expected one of momentum, dampening, \
             nesterov; did you mean \"momentum\"?",
        ),
        (
            &["training.predict_with_generate=true"],
            "--set training.predict_with_generate=true: `training.predict_with_generate` answers the prompts of a file that is not \
             given; add `data.validation`, or remove it",
        ),
        (
            &["data.validation=v", "training.metric_for_best_model=eval_rougeL"],
            "--set training.metric_for_best_model=eval_rougeL: rougeL scores answers, and `training.predict_with_generate` is false; \
             set it to true",
        ),
        (
            &[
                "data.validation=v",
                "training.predict_with_generate=true",
                "training.metric_for_best_model=eval_bleu",
            ],
            "--set training.metric_for_best_model=eval_bleu: bleu is not among `evaluation.metrics`; add it there",
        ),
        (
            &["training.early_stopping_threshold=0.5"],
            "--set training.early_stopping_threshold=0.5: `training.early_stopping_threshold` is 0.5, but there is no \
             `training.early_stopping_patience`, without which no run stops early; add it, or remove the threshold",
        ),
        (
            &["data.max_validation=5"],
            "--set data.max_validation=5: `data.max_validation` limits a file that is not given; add `data.validation`, or remove it",
        ),
        (
            &["output_dir=a/", "data.test=./a/predictions.jsonl"],
            "--set output_dir=a/: `data.test` is what the run itself writes, `predictions.jsonl` of `output_dir`: choose another \
             `output_dir`",
        ),
        (
            &["output_dir=a", "model.path=a/adapter"],
            "--set output_dir=a: `model.path` is what the run itself writes, `adapter` of `output_dir`: choose another `output_dir`",
        ),
        (
            &["output_dir=train.jsonl"],
            "--set output_dir=train.jsonl: `output_dir` and `data.train` are the same path, \"train.jsonl\"",
        ),
        (
            &["output_dir=./m/"],
            "--set output_dir=./m/: `output_dir` and `model.path` are the same path, \"./m/\"",
        ),
    ] {
        assert_eq!(problems(with(settings)), [expected]);
    }
    // What the trainer refuses by itself has its place, too.
    let best = ["data.validation=v", "training.load_best_model_at_end=true", "training.eval_strategy=steps"];
    let multiple = |settings: [&'static str; 2]| with(&[&best[..], &settings].concat());
    assert!(multiple(["training.eval_steps=2", "training.save_steps=4"]).is_ok());
    let refused = problems(multiple(["training.eval_steps=3", "training.save_steps=4"]));
    let begin = "--set training.load_best_model_at_end=true: training argument load_best_model_at_end = true";
    assert!(
        refused.len() == 1
            && refused[0].starts_with(begin)
            && refused[0].contains("a multiple of eval_steps"),
        "{refused:?}"
    );
    assert!(with(&["training.lr_scheduler_type=constant_with_warmup", "training.warmup_steps=5"]).is_ok());
    assert!(with(&["data.test=t", "data.max_test=5"]).is_ok());
    // A key that is wrong by itself contradicts nothing.
    assert_eq!(problems(with(&["data.max_test=5", "data.test=1"])).len(), 1);
}

#[test]
fn one_of_two_dtypes_is_chosen() {
    for key in ["training.bf16", "training.fp16", "training.gradient_checkpointing"] {
        assert!(with(&[&format!("{key}=true")]).is_ok());
    }
    let found = problems(with(&["training.bf16=true", "training.fp16=true"]));
    assert!(found.len() == 1 && found[0].contains("choose one of them"), "{found:?}");
}

#[test]
fn a_recipe_made_in_code_passes_the_same_checks() {
    let mut recipe = Recipe::new("o", "m", "t");
    recipe.validate().unwrap();
    recipe.lora.r = 0;
    recipe.training.learning_rate = f64::NAN;
    assert_eq!(problems(recipe.validate().map(|()| recipe)).len(), 2);
}

#[test]
fn missing_files_are_named_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let recipe_file = dir.path().join("recipe.toml");
    std::fs::write(dir.path().join("beside.jsonl"), "{}").unwrap();
    std::fs::write(&recipe_file, MINIMAL.replace("train.jsonl", "beside.jsonl")).unwrap();

    let mut recipe = Recipe::load(&recipe_file, &["data.test=/does/not/exist".to_owned()]).unwrap();
    recipe.data.validation = Some(dir.path().to_owned());
    recipe.output_dir = recipe_file.clone();
    let error = recipe.check_paths(Some(&recipe_file)).unwrap_err();
    assert!(error.is_bad_input());
    let lines: Vec<String> = error.to_string().lines().skip(1).map(str::to_owned).collect();
    assert_eq!(lines.len(), 5, "{error}");
    assert!(lines[0].contains("`model.path` = \"m\" does not exist in the current directory, /"), "{error}");
    assert!(
        lines[1].contains("beside.jsonl\"; ") || lines[1].contains("beside.jsonl\", or start"),
        "{error}"
    );
    assert!(
        lines[2].contains("`data.validation`") && lines[2].ends_with("is a folder; expected a JSONL file")
    );
    assert!(lines[3].ends_with("`data.test` = \"/does/not/exist\" does not exist"), "{error}");
    assert!(lines[4].ends_with("is a file; expected a folder"), "{error}");

    let whole = Recipe::new("o", dir.path(), recipe_file.clone());
    whole.check_paths(None).unwrap();
}

#[test]
fn held_out_data_that_are_the_training_data_are_warned_about() {
    let recipe = with(&["data.test=./train.jsonl", "data.validation=other.jsonl"]).unwrap();
    let warnings = recipe.warnings();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].starts_with("`data.test` and `data.train` are the same file"), "{warnings:?}");
}

#[test]
fn a_warm_up_that_the_run_does_not_outlive_is_warned_about() {
    let warnings = with(&["training.max_steps=5", "training.warmup_steps=5"]).unwrap().warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("never reaches its peak"), "{warnings:?}");
    assert!(with(&["training.max_steps=5", "training.warmup_steps=4"]).unwrap().warnings().is_empty());
}

#[test]
fn files_that_are_no_recipe_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    assert!(matches!(Recipe::load(&path, &[]), Err(Error::Read { .. })));
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(Recipe::load(&path, &[]), Err(Error::TooLarge { .. })));
    std::fs::write(&path, [0xff, 0xfe, 0]).unwrap();
    assert!(Recipe::load(&path, &[]).unwrap_err().is_bad_input());
    assert!(matches!(Recipe::load(dir.path(), &[]), Err(Error::Read { .. })));
    #[cfg(unix)]
    assert!(matches!(Recipe::load("/dev/zero", &[]), Err(Error::Read { .. })));
}

/// Each kind of problem, by its name.
#[test]
fn every_kind_of_problem_is_reached() {
    fn kinds(result: crate::Result<Recipe>) -> Vec<ProblemKind> {
        match result {
            Err(Error::Recipe { problems, .. }) => problems.into_iter().map(|problem| problem.kind).collect(),
            other => panic!("{other:?}"),
        }
    }
    use ProblemKind::*;
    assert!(matches!(kinds(parse("seed =="))[..], [Syntax { .. }, ..]));
    assert!(matches!(kinds(with(&["seed"]))[..], [Override { .. }]));
    assert!(matches!(kinds(with(&["lora.rnk=1"]))[..], [UnknownKey { .. }]));
    assert!(matches!(kinds(with(&["training.logging_dir=logs"]))[..], [NotOffered { .. }]));
    assert!(matches!(kinds(with(&["lorra.r=1"]))[..], [UnknownSection { .. }]));
    assert!(matches!(kinds(parse(""))[..], [Missing { .. }, Missing { .. }, Missing { .. }]));
    assert!(matches!(kinds(with(&["lora.r=one"]))[..], [WrongType { .. }]));
    assert!(matches!(kinds(with(&["lora.r=0"]))[..], [OutOfRange { .. }]));
    assert!(matches!(kinds(with(&["data.max_test=1"]))[..], [Contradiction { .. }]));
    let absent = Recipe::new("o", "/no/model", "/no/train.jsonl");
    assert!(matches!(kinds(absent.check_paths(None).map(|()| absent))[..], [Path { .. }, Path { .. }]));
}

#[test]
fn older_names_are_taken_for_the_newer_and_not_beside_them() {
    let recipe =
        with(&["data.validation=v", "training.evaluation_strategy=epoch", "training.warmup_ratio=0.1"])
            .unwrap();
    assert_eq!((recipe.training.eval_strategy.as_str(), recipe.training.warmup_steps), ("epoch", 0.1));
    let found = problems(with(&["training.warmup_ratio=0.1", "training.warmup_steps=3"]));
    assert!(
        found.iter().any(|problem| problem.contains("`training.warmup_ratio` is an older name")),
        "{found:?}"
    );
}

#[test]
fn a_schedule_is_told_what_it_takes() {
    let recipe =
        with(&["training.lr_scheduler_type=cosine", "training.lr_scheduler_kwargs={ num_cycles = 2 }"])
            .unwrap();
    assert_eq!(recipe.training.lr_scheduler_kwargs, [("num_cycles", 2.0)].into());
    for (settings, reason) in [
        (
            ["training.lr_scheduler_type=\"cosine\"", "training.lr_scheduler_kwargs={ num_cycle = 2 }"],
            "did you mean \"num_cycles\"?",
        ),
        (["training.lr_scheduler_type=\"warmup_stable_decay\"", "seed=1"], "num_decay_steps"),
        (["training.lr_scheduler_type=\"reduce_lr_on_plateau\"", "seed=1"], "`training.eval_strategy`"),
    ] {
        let found = problems(with(&settings));
        assert!(found.iter().any(|problem| problem.contains(reason)), "{found:?}");
    }
}
