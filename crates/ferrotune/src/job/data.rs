//! The data of a run: read, turned into tokens, counted; what is left out is said.

use super::{Assistant, advice::short_answers, assistant::Prompts};
use crate::{
    Error, Result,
    job::Observer,
    recipe::Recipe,
    report::{DataMetrics, FileMetrics, Split},
};
use ferrotune_data::{
    Example, LineProblem, Preflight, Problems, Spread, TokenizeOptions, Tokenized, TokenizedExamples,
    read_examples_with,
};
use std::path::Path;

/// The three files as they were read.
pub(super) struct DataFiles {
    train: DataFile,
    validation: Option<DataFile>,
    test: Option<DataFile>,
}

/// The examples of a file, and its lines that hold none.
struct DataFile {
    path: String,
    examples: Vec<Example>,
    skipped: Problems<LineProblem>,
}

/// The data as the run uses them.
pub(super) struct Data {
    pub train: Vec<Tokenized>,
    pub validation: Option<Vec<Tokenized>>,
    /// The prompts of the validation file, where they are to be answered.
    pub validation_prompts: Option<Prompts>,
    pub test: Option<Prompts>,
    pub preflight: Preflight,
    pub metrics: DataMetrics,
    /// For the report.
    pub splits: Vec<Split>,
}

impl DataFiles {
    /// Reads all of them; what is wrong with one does not hide what is wrong with another.
    pub fn read(recipe: &Recipe, observer: &mut dyn Observer) -> Result<Self> {
        let data = &recipe.data;
        let mut read = |path: &Path, limit| -> Result<DataFile> {
            let (examples, skipped) = read_examples_with(path, limit, data.on_error)?;
            let path = path.display().to_string();
            if !skipped.is_empty() {
                let lines = if skipped.total == 1 { "line was" } else { "lines were" };
                observer.note(&format!("warning: {path}: {} bad {lines} skipped{skipped}", skipped.total));
            }
            Ok(DataFile { path, examples, skipped })
        };
        let train = read(&data.train, data.max_train);
        let validation = data.validation.as_ref().map(|path| read(path, data.max_validation)).transpose();
        let test = data.test.as_ref().map(|path| read(path, data.max_test)).transpose();
        let (train, validation, test) = all(train, validation, test)?;
        Ok(Self { train, validation, test })
    }

    /// Turns the examples into what `assistant` reads, and looks at them before the run.
    pub fn prepare(
        self,
        recipe: &Recipe,
        assistant: &Assistant,
        observer: &mut dyn Observer,
    ) -> Result<Data> {
        let Self { train, validation, test } = self;
        let options = TokenizeOptions {
            max_length: recipe.data.max_length,
            truncation: recipe.data.truncation,
            on_error: recipe.data.on_error,
        };
        let train = Rows::new(train, &options, assistant, observer);
        let to_answer = validation.as_ref().filter(|_| recipe.training.predict_with_generate);
        let (max_new_tokens, on_error) = (recipe.generation.max_new_tokens, recipe.data.on_error);
        // What is refused there is refused as rows as well, and said of them; what is too long as a row is answered, though.
        let validation_prompts = to_answer
            .map(|file| -> Result<Prompts> {
                let prompts = assistant.prompts(file.examples.clone(), max_new_tokens, on_error)?;
                note_short_answers(&file.path, &reference_tokens(&prompts, assistant)?, recipe, observer);
                Ok(prompts)
            })
            .transpose();
        let validation = validation.map(|file| Rows::new(file, &options, assistant, observer)).transpose();
        let test = test.map(|file| TestPrompts::new(file, recipe, assistant, observer)).transpose();
        let (train, validation, test) = all(train, validation, test)?;
        let validation_prompts = validation_prompts?;

        let preflight = train.preflight(assistant, options.max_length)?;
        observer.note(&preflight.to_string());
        preflight.check()?;
        if let Some(rows) = &validation {
            // Found out before the training, not by the evaluation at its end.
            rows.preflight(assistant, options.max_length)?.check()?;
        }
        let splits = [Some(train.split("train")), validation.as_ref().map(|rows| rows.split("validation"))];
        let splits = splits.into_iter().chain([test.as_ref().map(TestPrompts::split)]).flatten().collect();
        let metrics = DataMetrics {
            train: train.metrics(),
            validation: validation.as_ref().map(Rows::metrics),
            test: test.as_ref().map(TestPrompts::metrics),
        };
        Ok(Data {
            train: train.found.rows,
            validation: validation.map(|rows| rows.found.rows),
            validation_prompts,
            test: test.map(|test| test.prompts),
            preflight,
            metrics,
            splits,
        })
    }
}

/// A file to learn from, or to measure the loss on.
struct Rows {
    path: String,
    bad_lines: usize,
    found: TokenizedExamples,
}

impl Rows {
    fn new(
        file: DataFile,
        options: &TokenizeOptions,
        assistant: &Assistant,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let DataFile { path, examples, skipped } = file;
        let found = assistant.tokenize_with(&examples, options)?;
        note_refused(&path, &found.refused, observer);
        if !found.long.is_empty() {
            observer.note(&format!("warning: {path}: {}", found.long));
        }
        Ok(Self { path, bad_lines: skipped.total, found })
    }

    fn preflight(&self, assistant: &Assistant, max_length: usize) -> Result<Preflight> {
        let stop = assistant.stop_tokens();
        let mut preflight = Preflight::new(&self.found.rows, &assistant.tokenizer, &stop, max_length)?;
        preflight.rows_cut = self.found.long.cut().map(|example| example.source.clone()).collect();
        Ok(preflight)
    }

    fn metrics(&self) -> FileMetrics {
        let TokenizedExamples { rows, refused, long } = &self.found;
        FileMetrics {
            examples: rows.len() as u64,
            skipped: (self.bad_lines + refused.total) as u64,
            too_long: long.examples.len() as u64,
            cut: long.cut().count() as u64,
            left_out: long.left_out() as u64,
            target_tokens_lost: long.targets_lost() as u64,
        }
    }

    fn split(&self, name: &str) -> Split {
        let rows = &self.found.rows;
        let tokens: Vec<usize> = rows.iter().map(|row| row.input_ids.len()).collect();
        let targets: Vec<usize> = rows.iter().map(Tokenized::target_tokens).collect();
        let FileMetrics { examples, skipped, left_out, .. } = self.metrics();
        Split {
            name: name.to_owned(),
            file: self.path.clone(),
            examples,
            left_out: skipped + left_out,
            tokens: Some(tokens.iter().sum::<usize>() as u64),
            target_tokens: Some(targets.iter().sum::<usize>() as u64),
            tokens_per_example: Some(spread(tokens)),
            target_tokens_per_example: Some(spread(targets)),
        }
    }
}

/// Tokens of each reference.
fn reference_tokens(prompts: &Prompts, assistant: &Assistant) -> Result<Vec<usize>> {
    let tokens = |example: &Example| assistant.tokenizer.encode(example.completion.text(), false);
    prompts.examples.iter().map(|example| Ok(tokens(example)?.len())).collect()
}

/// Says where answers will mostly end before the references do.
fn note_short_answers(path: &str, reference_tokens: &[usize], recipe: &Recipe, observer: &mut dyn Observer) {
    if let Some(note) = short_answers(reference_tokens, recipe.generation.max_new_tokens) {
        observer.note(&format!("warning: {path}: {note}"));
    }
}

/// A file whose prompts are answered.
struct TestPrompts {
    path: String,
    bad_lines: usize,
    prompts: Prompts,
    /// Tokens of each reference.
    reference_tokens: Vec<usize>,
}

impl TestPrompts {
    fn new(
        file: DataFile,
        recipe: &Recipe,
        assistant: &Assistant,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let DataFile { path, examples, skipped } = file;
        let prompts = assistant.prompts(examples, recipe.generation.max_new_tokens, recipe.data.on_error)?;
        note_refused(&path, &prompts.refused, observer);
        let reference_tokens = reference_tokens(&prompts, assistant)?;
        if recipe.evaluation.before || recipe.evaluation.after {
            note_short_answers(&path, &reference_tokens, recipe, observer);
        }
        Ok(Self { path, bad_lines: skipped.total, prompts, reference_tokens })
    }

    fn metrics(&self) -> FileMetrics {
        let Prompts { examples, refused, .. } = &self.prompts;
        FileMetrics {
            examples: examples.len() as u64,
            skipped: (self.bad_lines + refused.total) as u64,
            ..FileMetrics::default()
        }
    }

    fn split(&self) -> Split {
        let FileMetrics { examples, skipped, .. } = self.metrics();
        let references = self.reference_tokens.clone();
        let both = self.prompts.prompt_ids.iter().zip(&references);
        let tokens: Vec<usize> = both.map(|(prompt, reference)| prompt.len() + reference).collect();
        Split {
            name: "test".to_owned(),
            file: self.path.clone(),
            examples,
            left_out: skipped,
            tokens: Some(tokens.iter().sum::<usize>() as u64),
            target_tokens: Some(references.iter().sum::<usize>() as u64),
            tokens_per_example: Some(spread(tokens)),
            target_tokens_per_example: Some(spread(references)),
        }
    }
}

fn note_refused(path: &str, refused: &Problems<ferrotune_data::Error>, observer: &mut dyn Observer) {
    if !refused.is_empty() {
        let examples = if refused.total == 1 { "example that" } else { "examples that" };
        let verb = if refused.total == 1 { "was" } else { "were" };
        observer.note(&format!(
            "warning: {path}: {} {examples} the chat template or the tokenizer refuses {verb} skipped{refused}",
            refused.total
        ));
    }
}

/// All three, or every error among them.
fn all<A, B, C>(a: Result<A>, b: Result<B>, c: Result<C>) -> Result<(A, B, C)> {
    match (a, b, c) {
        (Ok(a), Ok(b), Ok(c)) => Ok((a, b, c)),
        (a, b, c) => {
            let mut errors: Vec<Error> = [a.err(), b.err(), c.err()].into_iter().flatten().collect();
            // What is wrong with the model is wrong for every file.
            errors.dedup_by_key(|error| error.to_string());
            Err(if errors.len() == 1 { errors.swap_remove(0) } else { Error::Several { errors } })
        }
    }
}

fn spread(counts: Vec<usize>) -> [u64; 3] {
    let Spread { min, median, max } = Spread::of(counts);
    [min as u64, median as u64, max as u64]
}
