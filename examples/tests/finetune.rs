//! The `finetune` example as a process: what it leaves behind, what it repeats, what it refuses to overwrite.

#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod common;

use common::{Job, json_lines, model, number, snapshot, tiny_gguf};
use ferrotune::data::{TextTokenizer, epoch_order, read_examples, tokenize_all};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;

/// Tokens of each training example.
fn train_tokens(job: &Job) -> Vec<usize> {
    let tokenizer = TextTokenizer::from_dir(model()).unwrap();
    let examples = read_examples(&job.path("train.jsonl"), None).unwrap();
    tokenize_all(&examples, &tokenizer, 128).unwrap().iter().map(|row| row.input_ids.len()).collect()
}

fn tensor_shapes(job: &Job, file: &str) -> Vec<(String, Vec<usize>)> {
    let bytes = fs::read(job.path(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut shapes: Vec<_> =
        tensors.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect();
    shapes.sort();
    shapes
}

/// The numbers of `train.loss` that do not depend on the machine's speed.
fn losses(job: &Job, output_dir: &str) -> Vec<Value> {
    job.json(&format!("{output_dir}/metrics.json"))["train"]["loss"].as_array().unwrap().clone()
}

#[test]
fn a_run_leaves_an_adapter_numbers_predictions_and_a_page() {
    let job = Job::new();
    // Text that would be markup, if the page let it.
    let hostile =
        "<script src=\"https://example.org/x.js\">alert(1)</script><img src=http://example.org/x.png>";
    job.write_examples("test.jsonl", &[("and the dog?", "the log"), (hostile, "the mat"), ("one", "two")]);
    let run = job.finetune(&["generation.max_new_tokens=5"]);
    run.succeeded();
    assert!(run.stdout.contains("rougeL"), "{run}");

    let mut names: Vec<_> = fs::read_dir(job.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["adapter", "checkpoint-2", "metrics.json", "predictions.jsonl", "recipe.toml", "report.html"]
    );

    let config = job.json("out/adapter/adapter_config.json");
    assert_eq!(
        (&config["peft_type"], &config["r"], &config["lora_alpha"]),
        (&"LORA".into(), &4.into(), &8.into())
    );
    let shapes = tensor_shapes(&job, "out/adapter/adapter_model.safetensors");
    assert_eq!(shapes.len(), 2 * 2 * 2, "A and B of two modules in two layers: {shapes:?}");
    let key = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight";
    assert!(shapes.contains(&(key.to_owned(), vec![16, 4])), "{shapes:?}");

    let metrics = job.json("out/metrics.json");
    for pass in ["before", "after"] {
        for metric in ["rouge1", "rouge2", "rougeL"] {
            assert!((0.0..=100.0).contains(&number(&metrics, &format!("/{pass}/{metric}"))));
        }
    }
    let seconds = number(&metrics, "/train/seconds");
    let real_tokens: usize = train_tokens(&job).iter().sum();
    assert_eq!(metrics["train"]["real_tokens"].as_u64(), Some(real_tokens as u64));
    let rate = number(&metrics, "/train/real_tokens_per_s");
    assert!((rate * seconds / real_tokens as f64 - 1.0).abs() < 1e-6, "{rate}");
    for positive in
        ["/generation/new_tokens_per_s", "/peak_rss_mib", "/time_to_first_step_s", "/validation/loss"]
    {
        assert!(number(&metrics, positive) > 0.0, "{positive}");
    }
    assert_eq!(metrics["trainable_parameters"].as_u64(), Some(896));
    let features = metrics["cpu_features"].as_array().unwrap();
    assert!(features.iter().all(Value::is_string), "{features:?}");
    let losses = metrics["train"]["loss"].as_array().unwrap();
    for (index, logged) in losses.iter().enumerate() {
        assert_eq!(logged["step"].as_u64(), Some(index as u64 + 1));
        assert!(number(logged, "/loss") > 0.0 && number(logged, "/grad_norm") > 0.0);
    }
    let rates: Vec<f64> = losses.iter().map(|logged| number(logged, "/learning_rate")).collect();
    assert_eq!(rates, [1e-3, 5e-4], "linear, without warm-up");

    let predictions = job.json_lines("out/predictions.jsonl");
    let prompts: Vec<_> = predictions.iter().map(|line| line["prompt"].as_str().unwrap()).collect();
    assert_eq!(prompts, ["and the dog?", hostile, "one"]);
    let references: Vec<_> = predictions.iter().map(|line| line["reference"].as_str().unwrap()).collect();
    assert_eq!(references, ["the log", "the mat", "two"]);
    assert!(predictions.iter().all(|line| line["before"].is_string() && line["after"].is_string()));

    assert_self_contained(&job.read("out/report.html"));
}

/// Nothing on the page runs or is fetched.
fn assert_self_contained(page: &str) {
    let lower = page.to_lowercase();
    assert!(lower.starts_with("<!doctype html>") && lower.trim_end().ends_with("</html>"));
    for tag in lower.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()) {
        assert!(
            !tag.starts_with("script") && !tag.starts_with("iframe") && !tag.starts_with("link"),
            "<{tag}>"
        );
        let address = tag.replace("http://www.w3.org/2000/svg", "");
        assert!(!address.contains("http:") && !address.contains("https:"), "<{tag}>");
    }
    for style in lower.split("<style>").skip(1).map(|rest| rest.split("</style>").next().unwrap()) {
        assert!(!style.contains("@import") && !style.contains("url("), "{style}");
    }
    assert!(lower.contains("&lt;script"), "the hostile prompt is shown as text");
}

#[test]
fn a_short_run_says_what_it_lacks_and_shows_every_step() {
    let job = Job::new();
    // The defaults: a loss every 100 steps.
    let settings =
        ["training.logging_steps=100", "training.num_train_epochs=3", "generation.max_new_tokens=2"];
    let run = job.finetune(&settings);
    run.succeeded();
    for note in [
        "6 optimizer steps",
        "`training.num_train_epochs` (now 3)",
        "`training.logging_steps` is 100",
        "cut off at 2 new tokens, and the references have up to",
    ] {
        assert!(run.stderr.contains(note), "{note} is not in {run}");
    }
    assert_eq!(losses(&job, "out").len(), 1, "logging_steps is obeyed");
    let page = job.read("out/report.html");
    assert!(page.contains("at step 1, ") && page.contains("at step 6."), "the curve has every step");
    assert!(page.contains("4 examples, 3 epochs"));
    assert!(page.contains("<b>train.jsonl</b>"));

    // The tiny model does not know when to end.
    let metrics = job.json("out/metrics.json");
    assert_eq!(metrics["generation"]["max_new_tokens"], 2);
    let cut = format!("{} of 3 answers were cut off at 2 new tokens", metrics["generation"]["answers_cut"]);
    assert!(metrics["generation"]["answers_cut"].as_u64().unwrap() > 0 && page.contains(&cut), "{cut}");
    for said in [
        cut.as_str(),
        "validation loss ",
        "for the 6 steps of training",
        "adapter/, recipe.toml, metrics.json, predictions.jsonl and report.html are in out\n",
        "--adapter out/adapter --prompt",
    ] {
        assert!(run.stdout.contains(said), "{said} is not in {run}");
    }
}

#[test]
fn the_effective_recipe_repeats_the_run_and_a_finished_run_is_not_overwritten_unasked() {
    let job = Job::new();
    let settings = ["evaluation.before=false", "evaluation.after=false", "lora.lora_dropout=0.25", "seed=7"];
    job.finetune(&settings).succeeded();
    let recipe = job.read("out/recipe.toml");
    for line in ["seed = 7", "lora_dropout = 0.25", "weight_decay = 0.01", "before = false", "threads = 1"] {
        assert!(recipe.lines().any(|found| found == line), "{line} is not in\n{recipe}");
    }

    let again = job.run("finetune", &["out/recipe.toml", "--set", "output_dir=again"]);
    again.succeeded();
    assert_eq!(losses(&job, "out"), losses(&job, "again"));
    let weights = |run: &str| fs::read(job.path(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(weights("out") == weights("again"), "the same adapter, bit for bit");
    job.run("finetune", &["out/recipe.toml", "--set", "output_dir=other", "--set", "seed=8"]).succeeded();
    assert_ne!(losses(&job, "out"), losses(&job, "other"), "the seed matters");

    job.write("out/notes.txt", "mine");
    let before = snapshot(&job.path("out"));
    let refused = job.finetune(&settings);
    refused.refused(&["out holds another run", "overwrite_output_dir = true"]);
    assert!(before == snapshot(&job.path("out")), "nothing changed");

    let overwrite = ["overwrite_output_dir=true", "training.max_steps=1", "evaluation.before=false"];
    job.finetune(&overwrite).succeeded();
    assert_eq!(losses(&job, "out").len(), 1);
    assert_eq!(job.read("out/notes.txt"), "mine");
    let first = &job.json_lines("out/predictions.jsonl")[0];
    assert!(first.get("before").is_none() && first["after"].is_string(), "{first}");
    let metrics = job.json("out/metrics.json");
    assert!(metrics.get("before").is_none() && metrics["after"]["rougeL"].is_number());
}

#[test]
fn the_validation_loss_is_followed_and_changes_no_bit_of_the_adapter() {
    let job = Job::new();
    let run = |output: &str, settings: &[&str]| {
        let output_dir = format!("output_dir={output}");
        let quick = ["evaluation.before=false", "evaluation.after=false", "lora.lora_dropout=0.25"];
        let all = [&quick[..], &["training.num_train_epochs=2", &output_dir], settings].concat();
        job.finetune(&all).succeeded();
        let metrics = job.json(&format!("{output}/metrics.json"));
        let history = metrics["validation"]["history"].as_array().unwrap().clone();
        let steps: Vec<u64> = history.iter().map(|at| at["step"].as_u64().unwrap()).collect();
        assert_eq!(metrics["validation"]["loss_before"], history[0]["loss"]);
        assert_eq!(metrics["validation"]["loss"], history[history.len() - 1]["loss"]);
        let weights = fs::read(job.path(output).join("adapter/adapter_model.safetensors")).unwrap();
        (steps, history, losses(&job, output), weights)
    };
    let (steps, start_and_end, train, weights) = run("no", &[]);
    assert_eq!(steps, [0, 4], "before the first step and after the last, whatever the strategy");
    let (steps, epochs, ..) = run("epoch", &["training.eval_strategy=epoch"]);
    assert_eq!(steps, [0, 2, 4]);
    let (steps, each, same_train, same_weights) =
        run("steps", &["training.eval_strategy=steps", "training.eval_steps=3"]);
    assert_eq!(steps, [0, 3, 4]);
    assert_eq!(train, same_train);
    assert!(weights == same_weights, "the same adapter, bit for bit");
    assert_eq!([&each[0], &each[2]], [&start_and_end[0], &start_and_end[1]]);
    assert_eq!(epochs[2], each[2]);
    let (start, end) = (number(&each[0], "/loss"), number(&each[2], "/loss"));
    assert!(start != end, "the model has learnt: {start} {end}");
}

#[test]
fn json_events_are_one_object_a_line_and_end_with_done() {
    let job = Job::new();
    let run = job.run("finetune", &["recipe.toml", "--json", "--set", "evaluation.after=false"]);
    run.succeeded();
    let events = json_lines(&run.stdout);
    let of = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    let stages: Vec<_> = of("stage").iter().map(|event| event["name"].as_str().unwrap()).collect();
    assert_eq!(
        stages,
        ["reading data", "loading model", "answers before training", "training", "writing results"]
    );
    let steps = of("step");
    assert_eq!(steps.len(), 2);
    assert_eq!((&steps[1]["step"], &steps[1]["total_steps"]), (&2.into(), &2.into()));
    let validated: Vec<_> = of("validation").iter().map(|event| event["step"].clone()).collect();
    assert_eq!(validated, [0, 2]);
    let generated = of("generation");
    assert_eq!(generated.last().unwrap()["prompts"], 3, "the last event of a pass counts every prompt");
    assert!(of("note").iter().any(|note| note["text"].as_str().unwrap().contains("targets")));

    let done = events.last().unwrap();
    assert_eq!((&done["event"], &done["output_dir"]), (&"done".into(), &"out".into()));
    let metrics = job.json("out/metrics.json");
    assert_eq!(done["metrics"], metrics);
    assert!(metrics["before"]["rougeL"].is_number() && metrics.get("after").is_none());
    let first = &job.json_lines("out/predictions.jsonl")[0];
    assert!(first.get("after").is_none() && first["before"].is_string(), "{first}");
}

#[test]
fn a_run_that_fails_says_so_in_its_last_event() {
    let job = Job::new();
    job.write("train.jsonl", "no JSON");
    let run = job.run("finetune", &["recipe.toml", "--json"]);
    run.refused(&["train.jsonl:1:"]);
    let last = json_lines(&run.stdout).pop().unwrap();
    assert_eq!(last["event"], "error");
    assert!(last["message"].as_str().unwrap().contains("train.jsonl:1:"), "{last}");
}

#[test]
fn without_held_out_data_there_is_only_the_training() {
    let job = Job::new();
    let recipe = job.read("recipe.toml");
    let kept: Vec<_> =
        recipe.lines().filter(|line| !line.starts_with("test") && !line.starts_with("validation")).collect();
    job.write("recipe.toml", kept.join("\n"));
    // A model that is a GGUF file is imported into the cache on the way.
    let gguf = tiny_gguf();
    job.finetune(&[&format!("model.path={}", gguf.display()), "runtime.threads=2"]).succeeded();
    assert!(!job.path("out/predictions.jsonl").exists());
    assert!(job.path("cache/ferrotune/models").is_dir());
    let metrics = job.json("out/metrics.json");
    for absent in ["before", "after", "validation", "generation"] {
        assert!(metrics.get(absent).is_none(), "{absent}");
    }
    assert_eq!(losses(&job, "out").len(), 2);
    assert!(job.read("out/report.html").contains("loss"));
}

#[test]
fn adapters_sit_on_the_named_layers_or_on_all_linear_ones() {
    let job = Job::new();
    let quick = ["evaluation.before=false", "evaluation.after=false", "training.max_steps=1"];
    let train = |output: &str, targets: &str| {
        let (output, targets) = (format!("output_dir={output}"), format!("lora.target_modules={targets}"));
        job.finetune(&[&[output.as_str(), targets.as_str()], &quick[..]].concat()).succeeded();
    };
    train("all", "all-linear");
    train("named", r#"["o_proj", "layers.1.mlp.down_proj"]"#);
    let parameters = |run: &str| job.json(&format!("{run}/metrics.json"))["trainable_parameters"].clone();
    assert_eq!(parameters("all"), 4096);
    assert_eq!(tensor_shapes(&job, "all/adapter/adapter_model.safetensors").len(), 2 * 7 * 2);
    assert_eq!(parameters("named"), 2 * 256 + 384);
    let shapes = tensor_shapes(&job, "named/adapter/adapter_model.safetensors");
    assert_eq!(shapes.iter().filter(|(name, _)| name.contains("down_proj")).count(), 2, "{shapes:?}");
    assert_eq!(shapes.len(), 6);
}

#[test]
fn epochs_may_be_fractional_and_max_steps_wins() {
    let job = Job::new();
    let tokens = train_tokens(&job);
    let epoch: usize = tokens.iter().sum();
    let second = epoch_order(4, 42 + 1);
    let half_of_second: usize = second[..2].iter().map(|&index| tokens[index]).sum();
    for (setting, steps, real_tokens) in [
        ("training.num_train_epochs=1.5", 3, epoch + half_of_second),
        ("training.max_steps=3", 3, epoch + half_of_second),
        ("training.max_steps=4", 4, 2 * epoch),
    ] {
        let quiet = ["overwrite_output_dir=true", "evaluation.before=false", "evaluation.after=false"];
        job.finetune(&[&[setting, "training.logging_steps=2"], &quiet[..]].concat()).succeeded();
        let metrics = job.json("out/metrics.json");
        assert_eq!(metrics["train"]["steps"], steps, "{setting}");
        assert_eq!(metrics["train"]["real_tokens"], real_tokens, "{setting}");
        let logged: Vec<_> = losses(&job, "out").iter().map(|logged| logged["step"].clone()).collect();
        // Every second step, and the last.
        let expected: Vec<Value> =
            if steps == 3 { vec![2.into(), 3.into()] } else { vec![2.into(), 4.into()] };
        assert_eq!(logged, expected, "{setting}");
    }
}

#[test]
fn answers_to_the_validation_prompts_decide_which_adapter_is_kept() {
    let job = Job::new();
    // The same prompts before and after: what they score there must be what they scored during the training.
    fs::copy(job.path("test.jsonl"), job.path("validation.jsonl")).unwrap();
    let settings = [
        "training.max_steps=6",
        "training.learning_rate=0.5",
        "lora.target_modules=all-linear",
        "training.eval_strategy=steps",
        "training.eval_steps=1",
        "training.save_steps=1",
        "training.predict_with_generate=true",
        "training.load_best_model_at_end=true",
        "training.metric_for_best_model=eval_chrf",
        "evaluation.metrics=[\"chrf\"]",
    ];
    let run = job.finetune(&settings);
    run.succeeded();
    assert!(run.stderr.contains("validation answers at step 6: chrf "), "{run}");
    let metrics = job.json("out/metrics.json");
    let scores = metrics["validation"]["history"].as_array().unwrap();
    assert_eq!(scores.len(), 7, "before the first step and after each: {metrics}");
    let chrf = |entry: &serde_json::Value| entry["scores"]["chrf"].as_f64().unwrap();
    // The first of the best ones, but for the evaluation before the first step.
    let best = scores[1..].iter().map(chrf).fold(f64::MIN, f64::max);
    let step = scores[1..].iter().find(|entry| chrf(entry) == best).unwrap()["step"].as_u64().unwrap();
    assert!(scores.iter().any(|entry| chrf(entry) != best), "{metrics}");
    let bytes = |path: &str| fs::read(job.path(path)).unwrap();
    let kept = format!("out/checkpoint-{step}/adapter_model.safetensors");
    assert!(bytes("out/adapter/adapter_model.safetensors") == bytes(&kept), "step {step}");
    let state = job.json(&format!("out/checkpoint-{step}/trainer_state.json"));
    assert_eq!(state["best_metric"].as_f64(), Some(best), "{state}");
    assert_eq!(metrics["validation"]["best_step"], step, "{metrics}");
    assert_eq!(metrics["before"]["chrf"], scores[0]["scores"]["chrf"], "{metrics}");
    assert_eq!(metrics["after"]["chrf"].as_f64(), Some(best), "{metrics}");
}

#[test]
fn what_the_libraries_warn_of_is_said() {
    let job = Job::new();
    let settings = ["training.evaluation_strategy=epoch", "training.max_steps=1"];
    let run = job.finetune(&settings);
    run.succeeded();
    let said = "warning: --set training.evaluation_strategy=epoch: `training.evaluation_strategy` is an older name of \
                `training.eval_strategy`, which it is taken for";
    assert_eq!(run.stderr.matches(said).count(), 1, "{run}");
}
