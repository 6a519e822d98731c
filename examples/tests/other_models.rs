//! The programs that train something other than a language model, as processes.

#![allow(clippy::panic, reason = "the allowance for tests does not reach their helpers")]

mod common;

use common::{Run, run};
use std::path::Path;

fn program(name: &str, arguments: &[&str]) -> Run {
    run(name, Path::new(env!("CARGO_TARGET_TMPDIR")), arguments)
}

/// The number at the end of the last line that begins so.
#[track_caller]
fn last_number(run: &Run, beginning: &str) -> f64 {
    let line = run.stdout.lines().rfind(|line| line.starts_with(beginning));
    let number = line.and_then(|line| line.split_whitespace().next_back()?.parse().ok());
    number.unwrap_or_else(|| panic!("no number in a line {beginning:?}: {run}"))
}

#[test]
fn cnn_tells_shapes_apart_with_either_optimizer() {
    for arguments in [&[][..], &["--optim", "sgd", "--learning-rate", "0.1", "--seed", "7"]] {
        let run = program("cnn", arguments);
        run.succeeded();
        let accuracy = last_number(&run, "accuracy on 600 unseen pictures:");
        assert!(accuracy > 0.9, "{run}");
        let last = format!("accuracy {accuracy:.3}");
        let epochs: Vec<&str> = run.stdout.lines().filter(|line| line.starts_with("epoch")).collect();
        assert!(epochs.len() == 6 && epochs[5].ends_with(&last), "{run}");
    }
}

#[test]
fn classifier_tells_languages_apart_with_each_loss() {
    let lines = [
        ("en", "The baker opens at seven in the morning."),
        ("de", "Wo finde ich hier einen guten Bäcker?"),
        ("fr", "Les oiseaux chantent tôt le matin."),
        ("es", "¿Dónde están las llaves del coche?"),
    ];
    let mut losses = Vec::new();
    for loss in ["cross-entropy", "focal", "weighted"] {
        let texts = lines.iter().flat_map(|(_, line)| ["--text", line]);
        let run = program("classifier", &["--loss", loss].into_iter().chain(texts).collect::<Vec<_>>());
        run.succeeded();
        assert!(last_number(&run, "macro F1 on 33 unseen lines:") > 0.9, "{run}");
        for (language, line) in lines {
            let told = run.stdout.lines().find(|told| told.ends_with(line));
            assert!(told.is_some_and(|told| told.starts_with(language)), "{run}");
        }
        losses.push(last_number(&run, "99 lines to train on, mean training loss"));
    }
    assert!(losses[0] != losses[1] && losses[0] != losses[2] && losses[1] != losses[2], "{losses:?}");
}

#[test]
fn they_help_and_refuse_what_cannot_be() {
    for name in ["cnn", "classifier"] {
        let help = program(name, &["--help"]);
        help.succeeded();
        for words in [&format!("--example {name}"), "--num-train-epochs", "[default: ", "Exit codes"] {
            assert!(help.stdout.contains(words), "{words} is not in {help}");
        }
        program(name, &["--num-train-epochs", "many"]).refused(&["--num-train-epochs"]);
        program(name, &["--learning-rate=-1"]).refused(&["learning_rate"]);
    }
    program("cnn", &["--optim", "adamw"]).refused(&["adamw_torch"]);
    program("classifier", &["--loss", "hinge"]).refused(&["cross-entropy", "focal", "weighted"]);
}
