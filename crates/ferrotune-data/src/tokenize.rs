//! Examples to token ids and labels.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{
    Completion, Error, Example, LongExamples, OnError, Problems, Prompt, Result, Source, TextTokenizer,
    Truncation, own_stack,
};

/// The label of a token that is not a target, as in PyTorch and Hugging Face.
pub const IGNORE: i64 = -100;

/// One example as token ids and labels.
///
/// # Shapes
/// - `input_ids`, `labels`: `[tokens]`
///
/// `labels[t]` is `input_ids[t]` where that token is a target and -100 elsewhere: unshifted, as Hugging Face has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    /// Token ids of prompt and completion.
    pub input_ids: Vec<u32>,
    /// Labels beside the tokens.
    pub labels: Vec<i64>,
    /// The line of the example.
    pub source: Source,
}

impl Tokenized {
    /// Number of targets. The first token is not one, whatever its label: nothing stands before it to predict it from.
    pub fn target_tokens(&self) -> usize {
        self.labels.iter().skip(1).filter(|label| **label != IGNORE).count()
    }

    /// Keeps these tokens only.
    pub(crate) fn keep(&mut self, range: Range<usize>) {
        self.input_ids.truncate(range.end);
        self.input_ids.drain(..range.start);
        self.labels.truncate(range.end);
        self.labels.drain(..range.start.min(self.labels.len()));
    }
}

/// What to do with examples that cannot be used as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizeOptions {
    /// The most tokens an example may have, prompt and completion.
    pub max_length: usize,
    /// What happens to a longer one.
    pub truncation: Truncation,
    /// What happens to one that the chat template or the tokenizer refuses.
    pub on_error: OnError,
}

impl TokenizeOptions {
    /// Every example that cannot be used as it is is an error.
    pub fn strict(max_length: usize) -> Self {
        Self { max_length, truncation: Truncation::Error, on_error: OnError::Strict }
    }
}

/// Examples as token ids and labels, and which are not among them.
#[derive(Debug, Default)]
pub struct TokenizedExamples {
    /// The rows, in the order of the examples.
    pub rows: Vec<Tokenized>,
    /// The examples that the chat template or the tokenizer refused.
    pub refused: Problems<Error>,
    /// The examples that were too long.
    pub long: LongExamples,
}

/// Prompts as token ids, and which are not among them.
#[derive(Debug, Default)]
pub struct PromptIds {
    /// One entry for each example, in order; `None` where its prompt was refused.
    pub prompts: Vec<Option<Vec<u32>>>,
    /// The examples whose prompts the chat template or the tokenizer refused.
    pub refused: Problems<Error>,
}

/// Turns one example into token ids and labels; the targets are those that TRL trains on.
///
/// - Messages: the prompt is rendered with the opening of the answer (the generation prompt), and prompt and completion are
///   rendered whole; both texts are encoded without further special tokens.
/// - Strings: the end-of-text token is appended to the completion if it does not end with it; the prompt, and prompt and
///   completion joined without a separator, are encoded with the special tokens that the tokenizer adds by itself.
///
/// The tokens that both encodings share from the start are context (label -100), the rest are targets. So a token that
/// merges the end of the prompt with the start of the completion is trained.
///
/// # Errors
/// [`Error::Example`] around an error of the chat template or the tokenizer.
///
/// # References
/// `trl.trainer.sft_trainer.SFTTrainer._prepare_dataset`, TRL 1.16.
pub fn tokenize(example: &Example, tokenizer: &TextTokenizer) -> Result<Tokenized> {
    let (input_ids, shared) =
        encode_both(example, tokenizer).map_err(|error| error.in_example(&example.source))?;
    let labels = input_ids
        .iter()
        .enumerate()
        .map(|(t, id)| if t < shared { IGNORE } else { i64::from(*id) })
        .collect();
    Ok(Tokenized { input_ids, labels, source: example.source.clone() })
}

/// Turns all examples into token ids and labels, in order; each must be good as it is.
///
/// # Errors
/// As [`tokenize_with`] with [`TokenizeOptions::strict`].
pub fn tokenize_all(
    examples: &[Example],
    tokenizer: &TextTokenizer,
    max_length: usize,
) -> Result<Vec<Tokenized>> {
    Ok(tokenize_with(examples, tokenizer, &TokenizeOptions::strict(max_length))?.rows)
}

/// Turns examples into token ids and labels (see [`tokenize`]), in order, on all cores, and says which were left out or cut.
///
/// # Errors
/// - [`Error::BadExamples`] with the first 20 examples that the chat template or the tokenizer refused, unless they are to be
///   skipped; [`Error::TooLong`]; [`Error::Several`] for both
/// - [`Error::NothingLeft`] if there were examples and no row is left
/// - [`Error::NoChatTemplate`]; an [`Error::Example`] alone if the chat template does not come to an end for it: these hold for
///   every example, and skip nothing
pub fn tokenize_with(
    examples: &[Example],
    tokenizer: &TextTokenizer,
    options: &TokenizeOptions,
) -> Result<TokenizedExamples> {
    let (rows, refused) = sort_out(in_parallel(examples, |example| tokenize(example, tokenizer)))?;
    let rows = rows.into_iter().flatten().collect();
    let strict = options.on_error == OnError::Strict;
    let (rows, long) = match options.truncation.apply(rows, options.max_length) {
        Err(long) if strict && !refused.is_empty() => {
            return Err(Error::Several { errors: vec![bad_examples(refused), long] });
        }
        Ok(_) if strict && !refused.is_empty() => return Err(bad_examples(refused)),
        result => result?,
    };
    if let (true, Some(example)) = (rows.is_empty(), examples.first()) {
        let cause = if long.is_empty() { bad_examples(refused) } else { Error::TooLong { long } };
        return Err(cause.nothing_left(&example.source.file));
    }
    Ok(TokenizedExamples { rows, refused, long })
}

/// The token ids of the prompts of all examples, in order.
///
/// # Errors
/// As [`prompt_ids_with`] with [`OnError::Strict`].
pub fn prompt_ids_all(examples: &[Example], tokenizer: &TextTokenizer) -> Result<Vec<Vec<u32>>> {
    Ok(prompt_ids_with(examples, tokenizer, OnError::Strict)?.prompts.into_iter().flatten().collect())
}

/// The token ids of the prompt of each example (see [`TextTokenizer::prompt_ids`]), and which were skipped.
///
/// # Errors
/// - [`Error::BadExamples`] with the first 20 examples that the chat template or the tokenizer refused, unless they are to be
///   skipped; [`Error::NothingLeft`] if it refused all of them
/// - [`Error::NoChatTemplate`]; an [`Error::Example`] alone if the chat template does not come to an end for it
pub fn prompt_ids_with(
    examples: &[Example],
    tokenizer: &TextTokenizer,
    on_error: OnError,
) -> Result<PromptIds> {
    let (prompts, refused) = sort_out(in_parallel(examples, |example| {
        tokenizer.prompt_ids(example).map_err(|error| error.in_example(&example.source))
    }))?;
    match (on_error, examples.first()) {
        (OnError::Strict, _) if !refused.is_empty() => Err(bad_examples(refused)),
        (OnError::Skip, Some(example)) if refused.total == examples.len() => {
            Err(bad_examples(refused).nothing_left(&example.source.file))
        }
        _ => Ok(PromptIds { prompts, refused }),
    }
}

/// The results of `work`, in the order of the items. After a problem that every item has, the rest are not tried.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Vec<Result<R>> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let chunk = items.len().div_ceil(threads).max(64);
    // A problem that every example has, or that takes its time to show, is told without a look at the rest.
    let hopeless = AtomicBool::new(false);
    let work = |item: &T| {
        let result = work(item);
        if matches!(&result, Err(error) if is_hopeless(error)) {
            hopeless.store(true, Ordering::Relaxed);
        }
        result
    };
    let until_hopeless = &|items: &[T]| -> Vec<Result<R>> {
        items.iter().take_while(|_| !hopeless.load(Ordering::Relaxed)).map(work).collect()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = items
            .chunks(chunk)
            .map(|chunk| (chunk, own_stack::spawn(scope, move || until_hopeless(chunk))))
            .collect();
        let join = |(chunk, worker): (_, std::io::Result<std::thread::ScopedJoinHandle<'_, _>>)| match worker
        {
            Ok(worker) => worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            // No more threads to be had.
            Err(_) => until_hopeless(chunk),
        };
        workers.into_iter().flat_map(join).collect()
    })
}

/// The results that are good, each at its place, and the problems of the rest.
fn sort_out<R>(results: Vec<Result<R>>) -> Result<(Vec<Option<R>>, Problems<Error>)> {
    let mut problems = Problems::default();
    let mut good = Vec::with_capacity(results.len());
    for result in results {
        match result {
            Ok(value) => good.push(Some(value)),
            Err(Error::Example { cause, .. }) if matches!(*cause, Error::NoChatTemplate { .. }) => {
                return Err(*cause);
            }
            Err(problem) if is_hopeless(&problem) => return Err(problem),
            Err(problem) => {
                problems.push(problem);
                good.push(None);
            }
        }
    }
    Ok((good, problems))
}

fn bad_examples(Problems { first, total }: Problems<Error>) -> Error {
    Error::BadExamples { problems: first, total }
}

/// Whether the examples that are left need not be tried.
fn is_hopeless(error: &Error) -> bool {
    matches!(error, Error::Example { cause, .. }
        if matches!(**cause, Error::NoChatTemplate { .. } | Error::TemplateEndless { .. }))
}

/// Token ids of prompt and completion, and how many of them the prompt alone shares.
fn encode_both(example: &Example, tokenizer: &TextTokenizer) -> Result<(Vec<u32>, usize)> {
    let prompt_ids = tokenizer.prompt_ids(example)?;
    let ids = match (&example.prompt, &example.completion) {
        (Prompt::Messages(prompt), Completion::Messages(completion)) => {
            let messages: Vec<_> = prompt.iter().chain(completion).cloned().collect();
            tokenizer.encode(&tokenizer.chat_template()?.render(&messages, false)?, false)?
        }
        (Prompt::Text(prompt), Completion::Text(completion)) => {
            let mut text = format!("{prompt}{completion}");
            if let Some(eos) = tokenizer.eos_token().filter(|eos| !completion.ends_with(*eos)) {
                text.push_str(eos);
            }
            tokenizer.encode(&text, true)?
        }
        (Prompt::Messages(_), Completion::Text(_)) | (Prompt::Text(_), Completion::Messages(_)) => {
            return Err(Error::MixedForms);
        }
    };
    let shared = prompt_ids.iter().zip(&ids).take_while(|(a, b)| a == b).count();
    Ok((ids, shared))
}
