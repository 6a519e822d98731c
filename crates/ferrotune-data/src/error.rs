//! What can go wrong with data, and how to mend it.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{LongExamples, Source};

/// At most this many problems are listed in one error; the total is always given.
pub const MAX_LISTED: usize = 20;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error in the data, in the tokenizer files or in the chat template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read.
    #[error("{}: cannot read the file: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        cause: std::io::Error,
    },
    /// A path that leads to no regular file.
    #[error("{}: expected a regular file, found {found}", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// A file of the tokenizer that is far larger than any.
    #[error("{}: {bytes} bytes, more than the {limit} that such a file may have: is this the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest size that is read.
        limit: u64,
    },
    /// A data file that is of another kind as a whole.
    #[error("{}: expected one JSON object a line, found {found}: {help}", path.display())]
    NotJsonLines {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        found: &'static str,
        /// How to make a JSONL file of it.
        help: &'static str,
    },
    /// A data file holds no line at all, or only blank ones.
    #[error("{}: the file holds no examples: expected one JSON object a line", path.display())]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },
    /// Lines of a data file that are not what they should be.
    #[error("{}", listing(*total, "bad line", problems))]
    BadLines {
        /// The first problems, at most [`MAX_LISTED`].
        problems: Vec<LineProblem>,
        /// How many lines are bad.
        total: usize,
    },
    /// A file of the tokenizer is missing.
    #[error("{}: the file does not exist: {help}", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
        /// How to get it.
        help: &'static str,
    },
    /// A file of the tokenizer is not what it should be.
    #[error("{}: expected {expected}, found {found}", path.display())]
    BadTokenizerFile {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The tokenizer refused to encode or decode.
    #[error("{}: the tokenizer cannot {action}: {cause}", path.display())]
    Tokenizer {
        /// Its file.
        path: PathBuf,
        /// `encode` or `decode` and of what.
        action: String,
        /// The tokenizer's own words.
        cause: String,
    },
    /// Messages were given to a tokenizer that has no chat template.
    #[error(
        "{}: the model has no chat template, so messages cannot be rendered: put a `chat_template.jinja` there (copy it \
         from the chat version of the model), or give the data as strings: {{\"prompt\": \"...\", \"completion\": \"...\"}}",
        path.display()
    )]
    NoChatTemplate {
        /// The model directory.
        path: PathBuf,
    },
    /// A chat template that is not valid Jinja.
    #[error("chat template, line {line}: not valid: {cause}")]
    TemplateSyntax {
        /// Line within the template.
        line: usize,
        /// What is wrong.
        cause: String,
    },
    /// A chat template that failed on these messages.
    #[error("chat template, line {line}: cannot render the messages: {cause}")]
    TemplateRender {
        /// Line within the template.
        line: usize,
        /// What went wrong.
        cause: String,
    },
    /// A chat template that does not come to an end.
    #[error(
        "chat template, line {line}: it does not come to an end within {steps} steps: is there a loop over too much, or a \
         macro that calls itself?"
    )]
    TemplateEndless {
        /// Line within the template at which it was stopped.
        line: usize,
        /// The steps that it may take.
        steps: u64,
    },
    /// The chat template of a model directory is not valid.
    #[error("{}{}: {cause}", path.display(), field.map(|field| format!(", `{field}`")).unwrap_or_default())]
    BadChatTemplate {
        /// The file that holds it.
        path: PathBuf,
        /// The field of that file, unless the file is the template.
        field: Option<&'static str>,
        /// What is wrong with it.
        #[source]
        cause: Box<Error>,
    },
    /// The chat template itself refused the messages with `raise_exception`.
    #[error("the chat template refuses the messages: {message}")]
    TemplateRaised {
        /// The template's own words.
        message: String,
    },
    /// One example could not be tokenised.
    #[error("{example}: {cause}")]
    Example {
        /// The line of the example.
        example: Source,
        /// What went wrong.
        #[source]
        cause: Box<Error>,
    },
    /// A prompt of messages with a completion that is a string, or the other way round.
    #[error("the prompt and the completion must both be strings or both be lists of messages")]
    MixedForms,
    /// Examples have more tokens than allowed.
    #[error("{long}")]
    TooLong {
        /// All of them.
        long: LongExamples,
    },
    /// Of a file, every line or example was left out.
    #[error("{}: nothing is left of it: {cause}", path.display())]
    NothingLeft {
        /// The file.
        path: PathBuf,
        /// Why the last of them were left out.
        #[source]
        cause: Box<Error>,
    },
    /// Several things are wrong, and none of them hides another.
    #[error("{}", errors.iter().map(Error::to_string).collect::<Vec<_>>().join("\n"))]
    Several {
        /// All of them.
        errors: Vec<Error>,
    },
    /// Several examples could not be tokenised.
    #[error("{}", listing(*total, "bad example", problems))]
    BadExamples {
        /// The first problems, at most [`MAX_LISTED`].
        problems: Vec<Error>,
        /// How many examples are bad.
        total: usize,
    },
    /// A row whose labels do not fit its tokens.
    #[error(
        "{example}: {tokens} tokens but {labels} labels: every token needs one label (-100 for no target)"
    )]
    LabelCount {
        /// The line of the example.
        example: Source,
        /// Number of tokens.
        tokens: usize,
        /// Number of labels.
        labels: usize,
    },
    /// A run that would learn nothing.
    #[error("{}", nothing_to_learn(*rows, without_target))]
    NothingToLearn {
        /// Number of rows.
        rows: usize,
        /// The first of the rows without a target, at most [`MAX_LISTED`].
        without_target: Vec<Source>,
    },
}

impl Error {
    /// The error together with the example in which it happened.
    pub(crate) fn in_example(self, example: &Source) -> Self {
        Error::Example { example: example.clone(), cause: Box::new(self) }
    }

    /// The error as the reason why nothing of a file can be used.
    pub(crate) fn nothing_left(self, path: &Path) -> Self {
        Error::NothingLeft { path: path.to_path_buf(), cause: Box::new(self) }
    }
}

/// One bad line of a data file, shown as `file:line:column: expected ..., found ...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineProblem {
    /// The line.
    pub source: Source,
    /// Column within the line: characters (not bytes), counted from 1.
    pub column: usize,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for LineProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: expected {}, found {}", self.source, self.column, self.expected, self.found)
    }
}

fn listing<T: fmt::Display>(total: usize, what: &str, problems: &[T]) -> String {
    format!("{total} {what}{}:{}", if total == 1 { "" } else { "s" }, listed(problems, total))
}

/// The first of `total` things, each on a line of its own, and how many more there are.
pub(crate) fn listed<T: fmt::Display>(first: &[T], total: usize) -> String {
    let mut text: String = first.iter().map(|one| format!("\n  {one}")).collect();
    if total > first.len() {
        text.push_str(&format!("\n  ... and {} more", total - first.len()));
    }
    text
}

fn nothing_to_learn(rows: usize, without_target: &[Source]) -> String {
    if rows == 0 {
        return "there is nothing to learn: no examples".to_string();
    }
    let named: Vec<String> = without_target.iter().map(Source::to_string).collect();
    let more = if rows > named.len() { ", ..." } else { "" };
    format!(
        "there is nothing to learn: none of the {rows} rows has a target token ({}{more}): the completion must add tokens \
         to the prompt; look at what the chat template renders for the last answer",
        named.join(", ")
    )
}
