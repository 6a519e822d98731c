//! One recipe and a grid over some of its keys: the same job for every combination of values, and a comparison.

use clap::Parser;
use ferrotune::{
    Result,
    job::{ForPeople, Observer},
    progress::{Event, Progress},
    recipe::Recipe,
    report::sweep_table,
    sweep::{Axis, Sweep},
};
use ferrotune_examples::{complain, guarded, prepare_to_compute, run_observed, say, this_command};
use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p ferrotune-examples --example sweep -- examples/recipes/demo.toml \\
    --set output_dir=runs/sweep --grid training.learning_rate=1e-4,3e-4,1e-3 --grid lora.r=8,16
  cargo run --release -p ferrotune-examples --example sweep -- examples/recipes/demo.toml \\
    --set output_dir=runs/targets --set evaluation.after=false --grid seed=1,2,3 \\
    --grid 'lora.target_modules=[\"q_proj\", \"v_proj\"],\"all-linear\"'

The same command goes on with a sweep that was left, and one with more values adds to it.

Exit codes: 0 done, 2 the recipe, the grid, the data or the model cannot be used, 130 or 143 interrupted by Ctrl-C or SIGTERM, 1 \
anything else, a trial that failed included.";

/// Fine-tune a model with every combination of some settings, and compare the results.
#[derive(Parser)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    /// The recipe, a TOML file.
    recipe: PathBuf,
    /// A key and the values to try: `seed`, `data_seed` or a key of `lora` or `training`; can be given again.
    #[arg(long = "grid", value_name = "section.key=value,value", required = true)]
    grid: Vec<String>,
    /// Override a key of the recipe; can be given again.
    #[arg(long = "set", value_name = "section.key=value")]
    set: Vec<String>,
    /// Write one JSON object a line to standard output instead of a progress bar.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    guarded(program)
}

fn program() -> ExitCode {
    let arguments = Arguments::parse();
    run_observed(
        arguments.json,
        |observer, interruption| {
            let (ended, recipe) = sweep(&arguments, observer, interruption)?;
            if ended.is_some() {
                let output_dir = recipe.output_dir.display().to_string();
                observer.tell(&Event::Done { output_dir: &output_dir, metrics: None });
            }
            Ok(ended)
        },
        |interruption| {
            let mut observer = ForPeople::new(Progress::stderr(), interruption.clone());
            Ok(sweep(&arguments, &mut observer, interruption)?.0)
        },
    )
}

/// Its exit code, unless it was interrupted.
fn sweep(
    arguments: &Arguments,
    observer: &mut dyn Observer,
    interruption: Arc<AtomicBool>,
) -> Result<(Option<ExitCode>, Recipe)> {
    let recipe = Recipe::load(&arguments.recipe, &arguments.set)?;
    recipe.check_paths(Some(&arguments.recipe))?;
    let axes: Vec<Axis> = arguments.grid.iter().map(|axis| axis.parse()).collect::<Result<_>>()?;
    let sweep = Sweep::new(&recipe, &axes)?;
    prepare_to_compute(recipe.runtime.threads);
    let outcome = sweep.run(observer, interruption)?;
    if outcome.cancelled {
        complain(format_args!("what is done is kept; go on with:\n  {}", this_command()));
        return Ok((None, recipe));
    }
    if !arguments.json {
        let directory = recipe.output_dir.display();
        say(format_args!(
            "{}\nsweep.json, sweep.html and a folder for each trial are in {directory}",
            sweep_table(&outcome.report)
        ));
    }
    let has_failed = outcome.report.trials.iter().any(|trial| trial.error.is_some());
    Ok((Some(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }), recipe))
}
