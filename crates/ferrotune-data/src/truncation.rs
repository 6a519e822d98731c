//! Examples with more tokens than allowed: refused, left out or cut, and always said.

use std::fmt;

use crate::error::listed;
use crate::{Error, MAX_LISTED, Result, Source, Tokenized};

/// What happens to an example with more tokens than allowed.
///
/// [`KeepStart`](Self::KeepStart) and [`KeepEnd`](Self::KeepEnd) keep what TRL keeps with the `truncation_mode` of that name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// All of them are reported in one error.
    #[default]
    Error,
    /// It is left out.
    Drop,
    /// Its first tokens are kept: the end of the answer goes first, and with it the token that ends it.
    KeepStart,
    /// Its last tokens are kept: the start of the prompt goes first.
    KeepEnd,
}

impl Truncation {
    /// Every choice.
    pub const ALL: [Self; 4] = [Self::Error, Self::Drop, Self::KeepStart, Self::KeepEnd];

    /// Its name in a configuration: `error`, `drop`, `keep_start` or `keep_end`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Drop => "drop",
            Self::KeepStart => "keep_start",
            Self::KeepEnd => "keep_end",
        }
    }

    /// The choice of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|choice| choice.name() == name)
    }

    /// Makes every row at most `max_length` tokens long, or leaves it out, and says what was done.
    ///
    /// A row that would keep no target is left out, for nothing is learned from it. Rows that are short enough stay as they are,
    /// in their order.
    ///
    /// # Errors
    /// [`Error::TooLong`] with [`Truncation::Error`], if a row has more than `max_length` tokens.
    ///
    /// # Examples
    /// ```
    /// use ferrotune_data::{Source, Tokenized, Truncation};
    /// # fn main() -> ferrotune_data::Result<()> {
    /// # let source = |line| Source { file: std::path::Path::new("train.jsonl").into(), line };
    ///
    /// // Two tokens of prompt, two of answer; and a prompt that fills the row by itself.
    /// let rows = vec![
    ///     Tokenized { input_ids: vec![1, 2, 3, 4], labels: vec![-100, -100, 3, 4], source: source(1) },
    ///     Tokenized { input_ids: vec![1, 2, 5, 6], labels: vec![-100, -100, -100, 6], source: source(2) },
    /// ];
    /// let (rows, long) = Truncation::KeepStart.apply(rows, 3)?;
    /// assert_eq!(rows.len(), 1);
    /// assert_eq!(rows[0].labels, [-100, -100, 3]);
    /// assert_eq!((long.examples.len(), long.left_out(), long.targets_lost()), (2, 1, 2));
    /// # Ok(()) }
    /// ```
    ///
    /// # References
    /// `trl.trainer.sft_trainer.SFTTrainer._prepare_dataset`, TRL 1.16.
    pub fn apply(self, rows: Vec<Tokenized>, max_length: usize) -> Result<(Vec<Tokenized>, LongExamples)> {
        let mut long = LongExamples { truncation: self, max_length, examples: Vec::new() };
        let mut kept = Vec::with_capacity(rows.len());
        for mut row in rows {
            let tokens = row.input_ids.len();
            if tokens <= max_length {
                kept.push(row);
                continue;
            }
            let targets = row.target_tokens();
            match self {
                Self::Error => {}
                Self::Drop => row.keep(0..0),
                Self::KeepStart => row.keep(0..max_length),
                Self::KeepEnd => row.keep(tokens - max_length..tokens),
            }
            let targets_lost = targets - row.target_tokens();
            let left_out = row.target_tokens() == 0;
            let source = row.source.clone();
            long.examples.push(LongExample { source, tokens, targets, targets_lost, left_out });
            if !left_out {
                kept.push(row);
            }
        }
        if self == Self::Error && !long.examples.is_empty() {
            return Err(Error::TooLong { long });
        }
        Ok((kept, long))
    }
}

/// The examples with more tokens than allowed, and what was done with them.
///
/// [`Display`](fmt::Display) is a headline and a line for each of the first [`MAX_LISTED`].
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LongExamples {
    /// What was done.
    pub truncation: Truncation,
    /// The most tokens that are allowed.
    pub max_length: usize,
    /// All of them, in order.
    pub examples: Vec<LongExample>,
}

/// An example with more tokens than allowed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LongExample {
    /// The line of the example.
    pub source: Source,
    /// Its number of tokens, prompt and completion.
    pub tokens: usize,
    /// How many of them are targets.
    pub targets: usize,
    /// Targets that are not trained because the example was cut or left out.
    pub targets_lost: usize,
    /// Whether it was left out.
    pub left_out: bool,
}

impl LongExamples {
    /// Whether no example was too long.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// How many were left out.
    pub fn left_out(&self) -> usize {
        self.examples.iter().filter(|example| example.left_out).count()
    }

    /// The examples that were cut and kept.
    pub fn cut(&self) -> impl Iterator<Item = &LongExample> {
        let changed = matches!(self.truncation, Truncation::KeepStart | Truncation::KeepEnd);
        self.examples.iter().filter(move |example| changed && !example.left_out)
    }

    /// Targets that are not trained, of all of them.
    pub fn targets_lost(&self) -> usize {
        self.examples.iter().map(|example| example.targets_lost).sum()
    }
}

impl fmt::Display for LongExamples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.examples.len();
        let what = if total == 1 { "example has" } else { "examples have" };
        write!(f, "{total} {what} more than max_length = {} tokens", self.max_length)?;
        let targets: usize = self.examples.iter().map(|example| example.targets).sum();
        let lost = self.targets_lost();
        match self.truncation {
            Truncation::Error => f.write_str(
                ": shorten or remove them, raise max_length, or set truncation = \"drop\" (leaves them out), \"keep_start\" or \
                 \"keep_end\" (cuts them)",
            )?,
            Truncation::Drop => write!(f, ": left out, with {lost} target tokens")?,
            Truncation::KeepStart | Truncation::KeepEnd => {
                let end = if self.truncation == Truncation::KeepStart { "first" } else { "last" };
                write!(f, ": cut to the {end} {} tokens; {lost} of their {targets} target tokens are lost", self.max_length)?;
                if self.left_out() > 0 {
                    write!(f, "; {} left out, for no target is left", self.left_out())?;
                }
            }
        }
        let lines: Vec<String> =
            self.examples.iter().take(MAX_LISTED).map(|example| self.line(example)).collect();
        f.write_str(&listed(&lines, total))
    }
}

impl LongExamples {
    fn line(&self, example: &LongExample) -> String {
        let LongExample { source, tokens, targets, targets_lost, left_out } = example;
        match self.truncation {
            Truncation::Error | Truncation::Drop => {
                format!("{source}: {tokens} tokens, {targets} of them targets")
            }
            Truncation::KeepStart | Truncation::KeepEnd => {
                let out = if *left_out { ": left out" } else { "" };
                format!("{source}: {tokens} tokens, {targets_lost} of {targets} targets lost{out}")
            }
        }
    }
}
