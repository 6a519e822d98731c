//! What is wrong with a single key, or with the file.

use super::*;

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
         \"cosine_with_restarts\", \"polynomial\", \"constant\", \"constant_with_warmup\", \"inverse_sqrt\", \"reduce_lr_on_plateau\", \"cosine_with_min_lr\", \"cosine_warmup_with_min_lr\" or \"warmup_stable_decay\"",
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
        "recipe.toml:33:1: `runtime.threads` is 0; expected an integer from 1 to 1024; leave it out for all cores",
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
        "recipe.toml:4:2: unknown section `[xyzzy]`; known: model, data, lora, training, watch, generation, \
         evaluation, runtime"
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
