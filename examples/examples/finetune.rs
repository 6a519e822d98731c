//! One recipe, the whole job: data in, an evaluated PEFT adapter and a report out.

use clap::Parser;
use ferrotune::{
    Result,
    job::{ForPeople, ForPrograms, RANGE_TEST_FILES, find_lr, run},
    progress::{Event, Progress},
    recipe::Recipe,
    report::{summary, table},
    trainer::RangeOutcome,
};
use ferrotune_examples::{
    complain, guarded, prepare_to_compute, run_observed, say, shell_word, this_command,
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p ferrotune-examples --example finetune -- examples/recipes/demo.toml
  cargo run --release -p ferrotune-examples --example finetune -- examples/recipes/demo.toml \\
    --set output_dir=runs/short --set training.max_steps=10 --set data.max_test=20
  cargo run --release -p ferrotune-examples --example finetune -- examples/recipes/demo.toml --find-lr

Exit codes: 0 done, 2 the recipe, the data or the model cannot be used, 130 or 143 interrupted by Ctrl-C or SIGTERM, with a \
checkpoint to go on from if a step was made and checkpoints are kept, 1 anything else.";

/// Fine-tune a Llama or Mistral model with LoRA, as a recipe says.
#[derive(Parser)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    /// The recipe, a TOML file.
    recipe: PathBuf,
    /// Override a key of the recipe; can be given again.
    #[arg(long = "set", value_name = "section.key=value")]
    set: Vec<String>,
    /// Go on from a checkpoint though recipe, data or model have changed, or from an adapter (`lora.init_from`) whose base has another name.
    #[arg(long)]
    accept_changes: bool,
    /// Train nothing; look for a learning rate by a range test on the recipe's model and data, and write find_lr.json and find_lr.svg to its
    /// output_dir.
    #[arg(long, conflicts_with = "accept_changes")]
    find_lr: bool,
    /// Write one JSON object a line to standard output instead of a progress bar.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    guarded(program)
}

fn program() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = |is_done: bool| is_done.then_some(ExitCode::SUCCESS);
    run_observed(
        arguments.json,
        |observer, interruption| finetune_json(&arguments, observer, interruption).map(ended),
        |interruption| finetune(&arguments, interruption).map(ended),
    )
}

fn load_recipe(arguments: &Arguments) -> Result<Recipe> {
    let recipe = Recipe::load(&arguments.recipe, &arguments.set)?;
    recipe.check_paths(Some(&arguments.recipe))?;
    prepare_to_compute(recipe.runtime.threads);
    Ok(recipe)
}

/// Whether the run came to its end.
fn finetune(arguments: &Arguments, interruption: Arc<AtomicBool>) -> Result<bool> {
    let recipe = load_recipe(arguments)?;
    if arguments.find_lr {
        let found = find_lr(&recipe, &mut ForPeople::new(Progress::stderr(), interruption))?;
        found.iter().for_each(|found| say(suggestion(&recipe, found)));
        return Ok(found.is_some());
    }
    let outcome = {
        let mut observer = ForPeople::new(Progress::stderr(), interruption.clone());
        run(&recipe, arguments.accept_changes, &mut observer, interruption)?
    };
    if outcome.cancelled {
        outcome.checkpoint.iter().for_each(|checkpoint| complain(going_on(checkpoint)));
    } else if !outcome.finished_before {
        say([table(&outcome.metrics), summary(&outcome.metrics), ending(&recipe)].join("\n").trim());
    }
    Ok(!outcome.cancelled)
}

/// The rate that a range test suggests, and how to use it.
fn suggestion(recipe: &Recipe, found: &RangeOutcome) -> String {
    let files = format!("{} are in {}", RANGE_TEST_FILES.join(" and "), recipe.output_dir.display());
    let Some(rate) = found.steepest else {
        return format!("The loss never falls: look at the data before you choose a learning rate.\n{files}");
    };
    let tenth =
        found.minimum_tenth.map(|rate| format!("; a tenth of the rate with the lowest loss is {rate:.1e}"));
    format!(
        "Suggested learning rate: {rate:.1e}, where the loss falls most steeply{}\n{files}\nUse it:\n  \
         --set training.learning_rate={rate:.1e}",
        tenth.unwrap_or_default()
    )
}

/// Where everything is, and what to do with it.
fn ending(recipe: &Recipe) -> String {
    let directory = &recipe.output_dir;
    let mut files = vec!["adapter/", "recipe.toml", "metrics.json"];
    files.extend(recipe.data.test.as_ref().map(|_| "predictions.jsonl"));
    let model = shell_word(&recipe.model.path.display().to_string());
    let adapter = shell_word(&directory.join("adapter").display().to_string());
    format!(
        "{} and report.html are in {}\nTry the adapter:\n  \
         cargo run --release -p ferrotune-examples --example generate -- --model {model} \\\n    \
         --adapter {adapter} --prompt \"...\"",
        files.join(", "),
        directory.display()
    )
}

/// The command that goes on with the run.
fn going_on(checkpoint: &Path) -> String {
    const RESUME: &str = "training.resume_from_checkpoint=true";
    let mut command = this_command();
    if !command.contains(RESUME) {
        command.push_str(&format!(" --set {RESUME}"));
    }
    format!("{} holds the run; go on with:\n  {command}", checkpoint.display())
}

fn finetune_json(
    arguments: &Arguments,
    observer: &mut ForPrograms<std::io::Stdout>,
    interruption: Arc<AtomicBool>,
) -> Result<bool> {
    let recipe = load_recipe(arguments)?;
    let output_dir = recipe.output_dir.display().to_string();
    if arguments.find_lr {
        let found = find_lr(&recipe, observer)?;
        if let Some(RangeOutcome { steepest, minimum_tenth, diverged, .. }) = &found {
            let (steepest, minimum_tenth, diverged) = (*steepest, *minimum_tenth, *diverged);
            observer.tell(&Event::FindLr { output_dir: &output_dir, steepest, minimum_tenth, diverged });
        }
        return Ok(found.is_some());
    }
    let outcome = run(&recipe, arguments.accept_changes, observer, interruption)?;
    if outcome.cancelled {
        outcome.checkpoint.iter().for_each(|checkpoint| complain(going_on(checkpoint)));
    } else {
        observer.tell(&Event::Done { output_dir: &output_dir, metrics: Some(&outcome.metrics) });
    }
    Ok(!outcome.cancelled)
}
