//! `cargo xtask bench`: criterion's benchmarks as ratios to the reference beside them, and those ratios against the committed ones.
//!
//! A time says as much about a machine and what else it does as about a kernel. The ratio of two times that were taken in turn
//! says more, and still depends on what the processor can do, so the baseline names that.

mod baseline;
mod compare;
mod estimates;
mod ratio;

use std::collections::BTreeMap;
use std::env;
use std::process::{ExitCode, Stdio};
use std::thread;

use anyhow::{Result, anyhow};

use self::baseline::Baseline;
use crate::peers::BadInput;
use crate::{doctor, files, process, setup, workspace};

pub const EXAMPLES: &str = "\
Examples:
  cargo xtask bench
  cargo xtask bench --compare
  cargo xtask bench --compare 'rms_norm|swiglu'
  cargo xtask bench --compare 'lora_linear/forward_backward/.*/576x576/r16'
  cargo xtask bench --save
  FERROTUNE_BENCH_CLOCK=thread cargo xtask bench --compare

Names are `kernel/pass/variant/shape`. The reference of a comparison is the variant `libtorch`, or `frozen`, the layer without an
update; a filter has to leave it in. Everything is measured in rounds; a ratio is their median. It is worse if it rose by more than a
tenth and by more than its noise: the spread of the rounds, or the 95 % interval within one. A round takes about three minutes, and
wants a machine that does nothing else; with FERROTUNE_BENCH_CLOCK=thread it measures the time of one computing thread, which others
disturb less.

Exit codes: 0 measured and nothing worse, 1 a ratio is worse or something failed, 2 the baseline, the filter or a measurement cannot
be used.";

/// The committed ratios, seen from the root of the checkout.
const BASELINE: &str = "benches/baseline.json";
/// Where criterion writes for us, so that nothing of an earlier run is read.
const CRITERION: &str = "target/bench";

#[derive(clap::Args)]
pub struct Arguments {
    /// Only the benchmarks whose names match, a regular expression
    filter: Option<String>,
    /// Compare with the committed ratios (benches/baseline.json)
    #[arg(long)]
    compare: bool,
    /// Write the ratios down as those to compare with
    #[arg(long, conflicts_with_all = ["filter", "quick"])]
    save: bool,
    /// How often everything is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Few repetitions in one round, to see that everything runs
    #[arg(long)]
    quick: bool,
}

/// Measures, prints the ratios and, if asked to, compares and saves them.
///
/// # Errors
/// [`BadInput`] with the remedy; others if a benchmark fails.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = workspace::root();
    let baseline = root.join(BASELINE);
    // What can be known to be wrong is said before anything is built.
    let committed = if arguments.compare { Some(Baseline::read(&baseline)?) } else { None };
    let machine = machine();
    let home = root.join(CRITERION);
    std::fs::create_dir_all(&home)?;
    let _lock = files::Lock::acquire(&home, "bench")?;
    let criterion = home.join("criterion");
    let count = if arguments.quick { 1 } else { arguments.rounds };
    let mut rounds = Vec::new();
    for round in 1..=count {
        eprintln!("bench: round {round} of {count}");
        files::remove(&criterion)?;
        let mut command = workspace::cargo(["bench", "-p", "ferrotune-benches", "--"]);
        command.env("CRITERION_HOME", &criterion).stdout(Stdio::from(std::io::stderr()));
        command.args(arguments.quick.then_some("--quick")).args(&arguments.filter);
        process::run(&mut command)?;
        rounds.push(ratio::all(&estimates::read(&criterion)?)?);
    }
    let ratios = ratio::of_rounds(&rounds);
    if ratios.is_empty() {
        let filter = arguments.filter.as_deref().unwrap_or_default();
        return Err(anyhow!(BadInput(format!(
            "no benchmark has a name that matches {filter:?}: `cargo bench -p ferrotune-benches -- --list` tells all names"
        ))));
    }
    let now = Baseline { machine, ratios };
    let mut worse = 0;
    match &committed {
        Some(committed) => {
            let rows = compare::rows(committed, &now, arguments.filter.is_none())?;
            print!("{}", compare::machines(&committed.machine, &now.machine));
            print!("{}", compare::table(&rows));
            worse = rows.iter().filter(|row| row.is_regression()).count();
        }
        None => print!("{}", ratio::table(&now.ratios)),
    }
    if arguments.save {
        files::write(&baseline, now.text().as_bytes())?;
        eprintln!("bench: wrote {BASELINE}");
    }
    Ok(if worse > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What a ratio depends on, and when it was taken.
fn machine() -> BTreeMap<String, String> {
    let said = |program: &str, arguments: &[&str]| {
        let text = process::output(workspace::program(program).args(arguments)).ok()?;
        Some(text.trim().to_owned())
    };
    // Its version and kind; the folder it lies in is of this machine alone.
    let libtorch = workspace::cache().and_then(|cache| setup::libtorch(&cache)).ok();
    let libtorch = libtorch.and_then(|text| Some(text.split(", in ").next()?.to_owned()));
    let lock = std::fs::read_to_string(workspace::root().join("Cargo.lock")).unwrap_or_default();
    let entries = [
        ("cpu", Some(doctor::cpu())),
        ("cores", thread::available_parallelism().ok().map(|cores| cores.to_string())),
        ("clock", Some(env::var("FERROTUNE_BENCH_CLOCK").unwrap_or_else(|_| "wall".into()))),
        ("date", said("date", &["-u", "+%Y-%m-%d"])),
        ("rustc", said("rustc", &["--version"])),
        ("libtorch", libtorch),
        ("tch", locked(&lock, "tch")),
        ("criterion", locked(&lock, "criterion")),
    ];
    entries.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// The version of a package in the lock file.
fn locked(lock: &str, package: &str) -> Option<String> {
    let after = lock.split_once(&format!("\nname = \"{package}\"\nversion = \""))?.1;
    Some(after.split('"').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_lock_file() {
        let lock = "[[package]]\nname = \"tch-extra\"\nversion = \"9.0.0\"\n\n[[package]]\nname = \"tch\"\nversion = \"0.26.0\"\n";
        assert_eq!(locked(lock, "tch").as_deref(), Some("0.26.0"));
        assert_eq!(locked(lock, "torch"), None);
    }
}
