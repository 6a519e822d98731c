//! `--set` on the command line.

use super::*;

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
        ("lora.=3", "--set lora.=3: unknown key `lora.`; known here: init_from, r,"),
        ("lora={r = 3}", "--set lora={r = 3}: `lora` is the table { r = 3 }; expected a section, `[lora]`"),
        ("data.train=7", "--set data.train=7: `data.train` is 7; expected a path, as a string in quotes"),
        ("data.test=", "--set data.test=: there is no value after `=`"),
        ("lora.r= ", "--set lora.r= : there is no value after `=`"),
        (
            "lora.r=\"\"",
            "--set lora.r=\"\": `lora.r` is the string \"\"; expected an integer from 1 to 65536",
        ),
        // What a shell leaves of quotes.
        (
            "lora.target_modules=[q_proj, v_proj]",
            "--set lora.target_modules=[q_proj, v_proj]: the value is not valid TOML: ",
        ),
        (
            "evaluation.metrics=[\"rougeL\"",
            "--set evaluation.metrics=[\"rougeL\": the value is not valid TOML: ",
        ),
        ("data.train=\"a.jsonl", "--set data.train=\"a.jsonl: the value is not valid TOML: "),
        (
            "data.truncation=keep",
            "--set data.truncation=keep: `data.truncation` is the string \"keep\"; expected \"error\", \"drop\", ",
        ),
        (
            "data.on_error=true",
            "--set data.on_error=true: `data.on_error` is true; expected \"strict\" or \"skip\"",
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
fn a_list_that_the_shell_took_the_quotes_of_is_answered_with_how_to_write_it() {
    let found = problems(with(&["lora.target_modules=[q_proj]"])).join("\n");
    assert!(found.contains("--set 'lora.target_modules=[\"q_proj\", \"v_proj\"]'"), "{found}");
}
