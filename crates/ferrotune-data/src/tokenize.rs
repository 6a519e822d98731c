//! Examples to token ids and labels.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::MAX_LISTED;
use crate::{Completion, Error, Example, Prompt, Result, Source, TextTokenizer};

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
/// - [`Error::TooLong`] if prompt and completion have more than `max_length` tokens: nothing is cut in silence
/// - [`Error::Example`] around an error of the chat template or the tokenizer
///
/// # References
/// `trl.trainer.sft_trainer.SFTTrainer._prepare_dataset`, TRL 1.16.
pub fn tokenize(example: &Example, tokenizer: &TextTokenizer, max_length: usize) -> Result<Tokenized> {
    let (input_ids, shared) =
        encode_both(example, tokenizer).map_err(|error| error.in_example(&example.source))?;
    if input_ids.len() > max_length {
        return Err(Error::TooLong { example: example.source.clone(), tokens: input_ids.len(), max_length });
    }
    let labels = input_ids
        .iter()
        .enumerate()
        .map(|(t, id)| if t < shared { IGNORE } else { i64::from(*id) })
        .collect();
    Ok(Tokenized { input_ids, labels, source: example.source.clone() })
}

/// Turns all examples into token ids and labels, in order, and reports all bad ones at once. Works on all cores.
///
/// # Errors
/// [`Error::BadExamples`] with the first 20 problems (see [`tokenize`]) and their number; [`Error::NoChatTemplate`]; an
/// [`Error::Example`] alone if the chat template does not come to an end for it.
pub fn tokenize_all(
    examples: &[Example],
    tokenizer: &TextTokenizer,
    max_length: usize,
) -> Result<Vec<Tokenized>> {
    in_parallel(examples, |example| tokenize(example, tokenizer, max_length))
}

/// The token ids of the prompts of all examples, in order; bad ones are reported as by [`tokenize_all`].
///
/// # Errors
/// [`Error::BadExamples`] with the first 20 problems (see [`TextTokenizer::prompt_ids`]) and their number;
/// [`Error::NoChatTemplate`]; an [`Error::Example`] alone if the chat template does not come to an end for it.
pub fn prompt_ids_all(examples: &[Example], tokenizer: &TextTokenizer) -> Result<Vec<Vec<u32>>> {
    in_parallel(examples, |example| {
        tokenizer.prompt_ids(example).map_err(|error| error.in_example(&example.source))
    })
}

/// The results of `work`, in the order of the items, or their problems.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
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
    let until_hopeless = |items: &[T]| -> Vec<Result<R>> {
        items.iter().take_while(|_| !hopeless.load(Ordering::Relaxed)).map(work).collect()
    };
    let results: Vec<Result<R>> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            items.chunks(chunk).map(|chunk| scope.spawn(move || until_hopeless(chunk))).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Vec<Result<R>>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().flat_map(join).collect()
    });
    let (mut rows, mut problems, mut total) = (Vec::with_capacity(items.len()), Vec::new(), 0);
    for result in results {
        match result {
            Ok(row) => rows.push(row),
            Err(Error::Example { cause, .. }) if matches!(*cause, Error::NoChatTemplate { .. }) => {
                return Err(*cause);
            }
            Err(problem) if is_hopeless(&problem) => return Err(problem),
            Err(problem) => {
                total += 1;
                if problems.len() < MAX_LISTED {
                    problems.push(problem);
                }
            }
        }
    }
    if total > 0 { Err(Error::BadExamples { problems, total }) } else { Ok(rows) }
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
