//! Scores a model's predictions against the references: a table on the terminal, and the same as JSON.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use ferrotune_examples::guarded;
use ferrotune_metrics::{
    Comparison, Error, Estimate, Metric, Prediction, compare_predictions, evaluate_all, read_predictions,
    write_metrics,
};

/// Scores predictions against references.
///
/// Each line of the input is a JSON object with the fields "reference" and "prediction". Values are times 100; the interval
/// is the 95 % percentile interval of 1,000 bootstrap resamples, the same in every run.
#[derive(Parser)]
#[command(name = "evaluate", after_help = EXAMPLES)]
struct Arguments {
    /// JSON lines with the references and the predictions
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// The field that holds the predictions
    #[arg(long, value_name = "NAME", default_value = "prediction")]
    prediction_field: String,

    /// JSON lines of other predictions for the same references, to compare with [default: the input]
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,

    /// The field that holds those of the baseline [default: that of the predictions]
    #[arg(long, value_name = "NAME")]
    baseline_field: Option<String>,

    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = metric,
          default_value = "rouge1,rouge2,rougeL,rougeLsum", help = metrics_help())]
    metrics: Vec<Metric>,

    /// Where to write {"rougeL": {"value", "low", "high"}, ...}; with a baseline,
    /// {"rougeL": {"before", "after", "change"}, ...}, each of them with those three
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  # two lines to try it on
  printf '%s\\n' '{\"reference\": \"The cats sat.\", \"prediction\": \"A cat sat\"}' \\
                '{\"reference\": \"Dogs bark\", \"prediction\": \"dogs\"}' > predictions.jsonl

  cargo run --release -p ferrotune-examples --example evaluate -- --input predictions.jsonl

  cargo run --release -p ferrotune-examples --example evaluate -- \\
      --input predictions.jsonl --metrics rouge1,rougeL --output metrics.json

  # what a fine-tuned model wrote, from the output folder of a run
  cargo run --release -p ferrotune-examples --example evaluate -- \\
      --input runs/demo/predictions.jsonl --prediction-field after

  # and what the fine-tuning changed, with its paired interval
  cargo run --release -p ferrotune-examples --example evaluate -- \\
      --input runs/demo/predictions.jsonl --prediction-field after --baseline-field before

Exit codes: 0 done; 2 bad input or arguments; 1 anything else.";

fn metrics_help() -> String {
    let names = Metric::ALL.map(|metric| metric.to_string());
    format!("What to measure, separated by commas, of: {}", names.join(", "))
}

fn metric(name: &str) -> Result<Metric, Error> {
    name.trim().parse()
}

fn main() -> ExitCode {
    guarded(program)
}

fn program() -> ExitCode {
    let arguments = Arguments::parse();
    let (code, message) = match run(&arguments) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Input(error)) => (2, error.to_string()),
        Err(Failure::OfARun(message)) => (2, message),
        Err(Failure::Unpaired { file, error }) => (2, format!("{}: {error}", file.display())),
        Err(Failure::Terminal(error)) => (1, format!("cannot write to standard output: {error}")),
    };
    // With standard error closed there is nobody left to tell.
    _ = writeln!(io::stderr(), "error: {message}");
    ExitCode::from(code)
}

enum Failure {
    Input(Error),
    /// The predictions of a run, which are in other fields than the one asked for.
    OfARun(String),
    Unpaired {
        file: PathBuf,
        error: Error,
    },
    Terminal(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Input(error)
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(output) = &arguments.output {
        check_output(output, &arguments.input)?;
        if let Some(baseline) = &arguments.baseline {
            check_output(output, baseline)?;
        }
    }
    let mut metrics = Vec::new();
    for &metric in &arguments.metrics {
        if !metrics.contains(&metric) {
            metrics.push(metric);
        }
    }
    let predictions = read(&arguments.input, &arguments.prediction_field, "--prediction-field")?;
    let table = if arguments.baseline.is_some() || arguments.baseline_field.is_some() {
        let file = arguments.baseline.as_ref().unwrap_or(&arguments.input);
        let field = arguments.baseline_field.as_ref().unwrap_or(&arguments.prediction_field);
        let baseline = read(file, field, "--baseline-field")?;
        let comparisons = compare_predictions(&metrics, &baseline, &predictions).map_err(|error| {
            // The line is one of the input only where the baseline has ended.
            let ended = matches!(error, Error::Unpaired { before: None, .. });
            Failure::Unpaired { file: if ended { &arguments.input } else { file }.clone(), error }
        })?;
        if let Some(output) = &arguments.output {
            write_metrics(output, &comparisons)?;
        }
        comparison_table(&comparisons)
    } else {
        let pairs: Vec<(&str, &str)> =
            predictions.iter().map(|line| (line.reference.as_str(), line.prediction.as_str())).collect();
        let estimates = evaluate_all(&metrics, &pairs)?;
        if let Some(output) = &arguments.output {
            write_metrics(output, &estimates)?;
        }
        table(&estimates)
    };
    match print(&table, predictions.len(), arguments.output.as_deref()) {
        // A closed pipe (`evaluate ... | head -1`) is the reader's choice, not a failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Terminal(error)),
        _ => Ok(()),
    }
}

/// Reads predictions. Where the lines are those of a run's `predictions.jsonl`, a field that is not there is told with those that are.
fn read(file: &Path, field: &str, option: &str) -> Result<Vec<Prediction>, Failure> {
    read_predictions(file, field)
        .map_err(|error| of_a_run(file, field, option, &error).map_or(Failure::Input(error), Failure::OfARun))
}

/// What to give instead of `field`, if the first bad line has the fields of a run and nothing is wrong with it but that this one is absent.
fn of_a_run(file: &Path, field: &str, option: &str, error: &Error) -> Option<String> {
    let Error::BadLines { lines, .. } = error else { return None };
    let number = lines.first().filter(|bad| bad.field.as_deref() == Some(field))?.line;
    let line = BufReader::new(File::open(file).ok()?).lines().nth(number - 1)?.ok()?;
    let line: serde_json::Value = serde_json::from_str(line.trim_start_matches('\u{feff}')).ok()?;
    let has = |name: &&str| line.get(name).is_some_and(serde_json::Value::is_string);
    let fields = ["after", "before"].into_iter().filter(has);
    let choices: Vec<String> = fields.map(|name| format!("`{option} {name}`")).collect();
    (line.get(field).is_none() && !choices.is_empty()).then(|| {
        let (file, choices) = (file.display(), choices.join(" or "));
        format!("{file}:{number}: there is no field {field:?}; for the predictions of a run, give {choices}")
    })
}

/// A wrong `--output` is an error of the arguments, and told before any work.
fn check_output(path: &Path, input: &Path) -> Result<(), Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let source = if path.is_dir() {
        io::Error::new(io::ErrorKind::IsADirectory, "it is a folder; name a file")
    } else if !folder.is_dir() {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no folder {}; create it first", folder.display()),
        )
    } else if matches!((path.canonicalize(), input.canonicalize()), (Ok(a), Ok(b)) if a == b) {
        io::Error::new(io::ErrorKind::InvalidInput, "it is the input as well; name another file")
    } else {
        return Ok(());
    };
    Err(Error::Write { path: path.to_owned(), source })
}

fn table(estimates: &[(Metric, Estimate)]) -> String {
    let mut table = format!("{:<10} {:>7}   95 % interval\n", "metric", "value");
    for (metric, Estimate { value, low, high }) in estimates {
        table.push_str(&format!("{metric:<10} {value:>7.2}   {low:.2} to {high:.2}\n"));
    }
    table
}

fn comparison_table(comparisons: &[(Metric, Comparison)]) -> String {
    let mut table = format!("{:<10} {:<24} {:<24} change\n", "metric", "before", "after");
    for (metric, Comparison { before, after, change }) in comparisons {
        let score = |score: &Estimate| format!("{:.2} [{:.2}, {:.2}]", score.value, score.low, score.high);
        let Estimate { value, low, high } = change;
        let (before, after) = (score(before), score(after));
        table.push_str(&format!(
            "{metric:<10} {before:<24} {after:<24} {value:+.2} [{low:+.2}, {high:+.2}]\n"
        ));
    }
    table
}

fn print(table: &str, examples: usize, output: Option<&Path>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{table}")?;
    writeln!(out, "{examples} {}", if examples == 1 { "example" } else { "examples" })?;
    if let Some(output) = output {
        writeln!(out, "written to {}", output.display())?;
    }
    out.flush()
}
