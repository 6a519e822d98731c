//! What a recipe takes, what it refuses, and how it says so.

use super::*;
use crate::Error;

const MINIMAL: &str = "output_dir = \"runs/x\"\nmodel.path = \"m\"\ndata.train = \"train.jsonl\"\n";

fn parse(text: &str) -> crate::Result<Recipe> {
    Recipe::parse(text, "recipe.toml", &[])
}

fn with(overrides: &[&str]) -> crate::Result<Recipe> {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    Recipe::parse(MINIMAL, "recipe.toml", &overrides)
}

/// The lines of the error, without the headline.
fn problems(result: crate::Result<Recipe>) -> Vec<String> {
    match result.unwrap_err() {
        error @ Error::Recipe { .. } => {
            error.to_string().lines().skip(1).map(|line| line.trim().to_owned()).collect()
        }
        error => panic!("{error}"),
    }
}

#[test]
fn three_keys_are_enough_and_the_rest_has_the_documented_defaults() {
    let recipe = parse(MINIMAL).unwrap();
    assert_eq!(recipe, Recipe::new("runs/x", "m", "train.jsonl"));
    let expected = r#"output_dir = "runs/x"
overwrite_output_dir = false
seed = 42

[model]
path = "m"

[data]
train = "train.jsonl"
max_length = 1024
truncation = "error"
on_error = "strict"

[lora]
r = 16
lora_alpha = 32
lora_dropout = 0
target_modules = ["q_proj", "v_proj"]

[training]
num_train_epochs = 3
per_device_train_batch_size = 4
gradient_accumulation_steps = 8
learning_rate = 0.00002
weight_decay = 0.01
warmup_steps = 0
lr_scheduler_type = "linear"
max_steps = -1
logging_steps = 100
eval_strategy = "no"
max_grad_norm = 1

[generation]
max_new_tokens = 32
batch_size = 8

[evaluation]
metrics = ["rouge1", "rouge2", "rougeL"]
before = true
after = true

[runtime]
device = "cpu"
compute_dtype = "f32"
"#;
    assert_eq!(recipe.to_toml().unwrap(), expected);
}

/// Every key with a value that is not its default.
fn everything() -> Recipe {
    let text = r#"
output_dir = "runs/synopsis"
overwrite_output_dir = true
seed = 7
[model]
path = "models/\"odd\" name.gguf"
[data]
train = "a"
validation = "b"
test = "c"
max_train = 600
max_validation = 100
max_test = 50
max_length = 512
truncation = "keep_start"
on_error = "skip"
[lora]
r = 8
lora_alpha = 12.5
lora_dropout = 0.05
target_modules = "all-linear"
[training]
num_train_epochs = 0.5
per_device_train_batch_size = 2
gradient_accumulation_steps = 1
learning_rate = 1e-3
weight_decay = 0
warmup_steps = 0.03
lr_scheduler_type = "cosine"
max_steps = 1_000
logging_steps = 1
eval_strategy = "steps"
eval_steps = 5
max_grad_norm = 0.0
[generation]
max_new_tokens = 64
batch_size = 1
[evaluation]
metrics = ["rougeLsum", "rouge1"]
before = false
after = false
[runtime]
device = "cpu"
compute_dtype = "f32"
threads = 2
"#;
    parse(text).unwrap()
}

#[test]
fn every_key_is_read() {
    let recipe = everything();
    assert_eq!(recipe.lora.target_modules, TargetModules::AllLinear);
    let mut default = Recipe::new("runs/synopsis", "models/\"odd\" name.gguf", "a");
    // The only choices that there are.
    default.runtime.threads = recipe.runtime.threads;
    let (recipe, default) = (toml::Table::try_from(recipe).unwrap(), toml::Table::try_from(default).unwrap());
    for (section, keys) in schema::SECTIONS {
        let find = |table: &toml::Table, key: &str| match section {
            "" => table.get(key).cloned(),
            _ => table[section].get(key).cloned(),
        };
        for key in keys {
            assert!(find(&recipe, key).is_some(), "{section}.{key} is in no effective recipe");
            let fixed = ["output_dir", "path", "train", "device", "compute_dtype", "threads"];
            if !fixed.contains(key) {
                assert_ne!(find(&recipe, key), find(&default, key), "{section}.{key} was not read");
            }
        }
    }
}

#[test]
fn no_key_is_written_that_is_not_known() {
    for (section, value) in toml::Table::try_from(everything()).unwrap() {
        match value {
            toml::Value::Table(keys) => {
                for (key, _) in keys {
                    assert!(schema::keys_of(&section).contains(&key.as_str()), "{section}.{key}");
                }
            }
            _ => assert!(schema::keys_of("").contains(&section.as_str()), "{section}"),
        }
    }
}

#[test]
fn the_effective_recipe_starts_the_same_run_again() {
    for recipe in [everything(), parse(MINIMAL).unwrap()] {
        let text = recipe.to_toml().unwrap();
        let again = parse(&text).unwrap();
        assert_eq!(again, recipe);
        assert_eq!(again.to_toml().unwrap(), text);
    }
}

#[test]
fn the_recipe_of_the_module_documentation_is_read() {
    let docs = include_str!("mod.rs");
    let text: String = docs
        .lines()
        .skip_while(|line| !line.contains("```toml"))
        .skip(1)
        .take_while(|line| !line.contains("```"))
        .map(|line| line.trim_start_matches("//!").to_owned() + "\n")
        .collect();
    let mut recipe = parse(&text).unwrap();
    assert_eq!(recipe.data.max_train, Some(600));
    assert_eq!(recipe.runtime.threads, Some(2));
    recipe.runtime.threads = None;
    let mut default = Recipe::new("runs/synopsis", "models/SmolLM2-135M-Instruct", "data/train.jsonl");
    default.data = recipe.data.clone();
    assert_eq!(recipe, default, "the documented values are the defaults");
}

#[test]
fn all_problems_come_at_once_in_the_order_of_the_file() {
    let text = r#"
output_dir = "runs/x"
seed = -1
[model]
path = 3
[data]
max_length = 0
[lora]
r = 0
lora_alpha = 0
lora_dropout = 1.0
target_modules = "q_proj"
[training]
num_train_epochs = 0
per_device_train_batch_size = 0
gradient_accumulation_steps = 1e3
learning_rate = -1e-4
weight_decay = nan
warmup_steps = 2.5
lr_scheduler_type = "lienar"
max_steps = 0
logging_steps = "often"
max_grad_norm = -1
[generation]
max_new_tokens = 0
batch_size = 0
[evaluation]
metrics = ["rouge1", "blue"]
before = 1
[runtime]
device = "tpu"
compute_dtype = "f16"
threads = 0
"#;
    let expected = [
        "recipe.toml:3:1: `seed` is -1; expected an integer of at least 0",
        "recipe.toml:5:1: `model.path` is 3; expected a path, as a string in quotes",
        "recipe.toml:7:1: `data.max_length` is 0; expected an integer of at least 2",
        "recipe.toml:9:1: `lora.r` is 0; expected an integer from 1 to 65536",
        "recipe.toml:10:1: `lora.lora_alpha` is 0; expected a number above 0",
        "recipe.toml:11:1: `lora.lora_dropout` is 1.0; expected a number of at least 0 and below 1",
        "recipe.toml:12:1: `lora.target_modules` is the string \"q_proj\"; expected a list of different module \
         names, as in [\"q_proj\", \"v_proj\"], or \"all-linear\"",
        "recipe.toml:14:1: `training.num_train_epochs` is 0; expected a number above 0",
        "recipe.toml:15:1: `training.per_device_train_batch_size` is 0; expected an integer of at least 1",
        "recipe.toml:16:1: `training.gradient_accumulation_steps` is 1000.0; expected an integer of at least 1",
        "recipe.toml:17:1: `training.learning_rate` is -0.0001; expected a number above 0",
        "recipe.toml:18:1: `training.weight_decay` is nan; expected a number of at least 0",
        "recipe.toml:19:1: `training.warmup_steps` is 2.5; expected a whole number of steps, or a share of all \
         steps of at least 0 and below 1",
        "recipe.toml:20:1: `training.lr_scheduler_type` is the string \"lienar\"; expected \"linear\", \"cosine\", \
         \"cosine_with_restarts\", \"polynomial\", \"constant\", \"constant_with_warmup\" or \"inverse_sqrt\"",
        "recipe.toml:21:1: `training.max_steps` is 0; expected an integer of at least 1, or -1 for no limit",
        "recipe.toml:22:1: `training.logging_steps` is the string \"often\"; expected an integer of at least 1",
        "recipe.toml:23:1: `training.max_grad_norm` is -1; expected a number of at least 0 (0: no clipping)",
        "recipe.toml:25:1: `generation.max_new_tokens` is 0; expected an integer of at least 1",
        "recipe.toml:26:1: `generation.batch_size` is 0; expected an integer of at least 1",
        "recipe.toml:28:1: `evaluation.metrics` is the list [\"rouge1\", \"blue\"]; expected a list of different \
         names out of \"rouge1\", \"rouge2\", \"rouge3\", \"rouge4\", \"rouge5\", \"rouge6\", \"rouge7\", \
         \"rouge8\", \"rouge9\", \"rougeL\", \"rougeLsum\", \"bleu\" or \"chrf\"",
        "recipe.toml:29:1: `evaluation.before` is 1; expected true or false",
        "recipe.toml:31:1: `runtime.device` is the string \"tpu\"; expected \"cpu\", \"cuda\", \
         \"cuda:0\", \"cuda:1\", \"cuda:2\" or \"cuda:3\"",
        "recipe.toml:32:1: `runtime.compute_dtype` is the string \"f16\"; expected \"f32\"",
        "recipe.toml:33:1: `runtime.threads` is 0; expected an integer from 1 to 4096; leave it out for all cores",
        "recipe.toml: `data.train` is missing; add `train = \"...\"` under `[data]`",
    ];
    let found = problems(parse(text));
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
    let headline = parse(text).unwrap_err().to_string();
    assert!(headline.starts_with("recipe.toml: the recipe has 25 problems\n"), "{headline}");
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(
        problems(parse("")),
        [
            "recipe.toml: `output_dir` is missing; add `output_dir = \"...\"` at the top, before any section",
            "recipe.toml: `model.path` is missing; add `path = \"...\"` under `[model]`",
            "recipe.toml: `data.train` is missing; add `train = \"...\"` under `[data]`",
        ]
    );
}

#[test]
fn an_unknown_key_names_the_nearest_and_its_section() {
    let error = |line: &str| problems(parse(&format!("{MINIMAL}{line}"))).join("\n");
    assert_eq!(
        error("training.learning_rat = 1"),
        "recipe.toml:4:10: unknown key `training.learning_rat`; did you mean `training.learning_rate`?"
    );
    assert_eq!(
        error("learning_rate = 1"),
        "recipe.toml:4:1: unknown key `learning_rate`; did you mean `training.learning_rate`?"
    );
    assert_eq!(
        error("lora.batch_size = 1"),
        "recipe.toml:4:6: unknown key `lora.batch_size`; did you mean `generation.batch_size`?"
    );
    assert_eq!(error("model.dreams = 1"), "recipe.toml:4:7: unknown key `model.dreams`; known here: path");
    assert_eq!(
        error("[trainning]\nlearning_rate = 1"),
        "recipe.toml:4:2: unknown section `[trainning]`; did you mean `[training]`?"
    );
    assert_eq!(error("[[loar]]\nr = 1"), "recipe.toml:4:3: unknown section `[loar]`; did you mean `[lora]`?");
    assert_eq!(
        error("[xyzzy]"),
        "recipe.toml:4:2: unknown section `[xyzzy]`; known: model, data, lora, training, generation, evaluation, \
         runtime"
    );
    assert_eq!(error("lora = 3"), "recipe.toml:4:1: `lora` is 3; expected a section, `[lora]`");
    assert_eq!(
        error("[[lora]]\nr = 3"),
        "recipe.toml:4:3: `lora` is the list [{ r = 3 }]; expected a section, `[lora]`"
    );
}

#[test]
fn an_unknown_section_hides_no_other_problem() {
    let found = problems(Recipe::parse("[xyzzy]\n[lora]\nr = 0", "recipe.toml", &["seed=-1".to_owned()]));
    assert_eq!(found.len(), 6, "{found:?}");
}

#[test]
fn text_that_is_no_toml_is_placed() {
    let found = problems(parse("seed = 1\n[lora\nr = 3\n"));
    assert!(found[0].starts_with("recipe.toml:2:6: not valid TOML: "), "{found:?}");
    let found = problems(parse("é = 1\nseed = = 2\n"));
    assert!(found[0].starts_with("recipe.toml:1:1: not valid TOML: "), "{found:?}");
    let found = problems(parse("# é\nseed = 1 # é\r\nsede = run/x\r\n"));
    assert!(found[0].starts_with("recipe.toml:3:8: not valid TOML: "), "{found:?}");
    assert!(found[0].ends_with(", in `sede = run/x`"), "{found:?}");
    let found = problems(parse("seed = 1\nseed = 2\n"));
    assert!(found[0].starts_with("recipe.toml:2:1: not valid TOML: duplicate key"), "{found:?}");
}

#[test]
fn hostile_text_is_an_error_and_no_crash() {
    for text in [
        format!("seed = {}", "[".repeat(100_000)),
        format!("{}seed = 1", "a.".repeat(100_000)),
        "seed = 99999999999999999999999999".to_owned(),
        "seed = 0xffffffffffffffffffffffff".to_owned(),
        "\0".to_owned(),
        format!("{} = 1", "x".repeat(100_000)),
    ] {
        assert!(matches!(parse(&text), Err(Error::Recipe { .. })));
    }
    let long = problems(parse(&format!("{MINIMAL}lora.r = \"{}\"", "é".repeat(500)))).join("\n");
    assert!(long.contains("ééé...;") && long.chars().count() < 200, "{long}");
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_taken() {
    let text = format!("\u{feff}{}", MINIMAL.replace('\n', "\r\n"));
    assert_eq!(parse(&text).unwrap(), parse(MINIMAL).unwrap());
}

#[test]
fn overrides_win_and_the_last_one_of_a_key() {
    let recipe = with(&[
        "seed=1",
        "seed = 2",
        "training.learning_rate=1e-3",
        "lora.target_modules=all-linear",
        "runtime.threads=3",
        "model.path=other/model",
        "data.test=\"a = b.jsonl\"",
        "evaluation.metrics=[\"rougeL\"]",
    ])
    .unwrap();
    assert_eq!(recipe.seed, 2);
    assert_eq!(recipe.training.learning_rate, 1e-3);
    assert_eq!(recipe.lora.target_modules, TargetModules::AllLinear);
    assert_eq!(recipe.runtime.threads, Some(3));
    assert_eq!(recipe.model.path.to_str(), Some("other/model"));
    assert_eq!(recipe.data.test.unwrap().to_str(), Some("a = b.jsonl"));
    assert_eq!(recipe.evaluation.metrics, ["rougeL"]);
    let list = with(&["lora.target_modules=['k_proj','o_proj']"]).unwrap().lora.target_modules;
    assert_eq!(list, TargetModules::Named(vec!["k_proj".into(), "o_proj".into()]));
}

#[test]
fn an_override_may_mend_the_file() {
    let text = format!("{MINIMAL}lora.r = 0\n");
    assert!(parse(&text).is_err());
    assert_eq!(Recipe::parse(&text, "x", &["lora.r=4".to_owned()]).unwrap().lora.r, 4);
    let all = ["output_dir=o", "model.path=m", "data.train=t"].map(str::to_owned);
    assert_eq!(Recipe::parse("", "x", &all).unwrap(), Recipe::new("o", "m", "t"));
}

#[test]
fn overrides_pass_the_same_checks() {
    for (text, expected) in [
        ("lora.r=0", "--set lora.r=0: `lora.r` is 0; expected an integer from 1 to 65536"),
        (
            "lora.r=1000000000",
            "--set lora.r=1000000000: `lora.r` is 1000000000; expected an integer from 1 to 65536",
        ),
        ("lora.rank=8", "--set lora.rank=8: unknown key `lora.rank`; did you mean `lora.r`?"),
        ("lore.r=8", "--set lore.r=8: unknown section `[lore]`; did you mean `[lora]`?"),
        (
            "learning_rate=1",
            "--set learning_rate=1: unknown key `learning_rate`; did you mean `training.learning_rate`?",
        ),
        ("seed", "--set seed: expected `section.key=value`, as in `training.learning_rate=1e-4`"),
        ("=3", "--set =3: expected `section.key=value`, as in"),
        (".=3", "--set .=3: unknown section `[]`; known: model"),
        ("lora.=3", "--set lora.=3: unknown key `lora.`; known here: r,"),
        ("lora={r = 3}", "--set lora={r = 3}: `lora` is the table { r = 3 }; expected a section, `[lora]`"),
        ("data.train=7", "--set data.train=7: `data.train` is 7; expected a path, as a string in quotes"),
        (
            "data.test=",
            "--set data.test=: `data.test` is the string \"\"; expected a path, as a string in quotes",
        ),
        (
            "seed=1\nlora.r = 2",
            "--set seed=1\nlora.r = 2: `seed` is the string \"\"\"\n1\nlora.r = 2\"\"\"; expected an integer",
        ),
    ] {
        let found = problems(with(&[text])).join("\n");
        assert!(found.starts_with(expected), "{text:?}: {found}");
    }
    assert_eq!(problems(with(&["lora.r=0", "nope", "x.y=1"])).len(), 3);
}

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
            &["output_dir=./m/"],
            "--set output_dir=./m/: `output_dir` and `model.path` are the same path, \"./m/\"",
        ),
    ] {
        assert_eq!(problems(with(settings)), [expected]);
    }
    assert!(with(&["training.lr_scheduler_type=constant_with_warmup", "training.warmup_steps=5"]).is_ok());
    assert!(with(&["data.test=t", "data.max_test=5"]).is_ok());
    // A key that is wrong by itself contradicts nothing.
    assert_eq!(problems(with(&["data.max_test=5", "data.test=1"])).len(), 1);
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
}
