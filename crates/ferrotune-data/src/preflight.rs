//! A look at the data before the run: what would be learned, and whether anything would.

use std::fmt;

use crate::error::MAX_LISTED;
use crate::{Error, IGNORE, Result, Source, TextTokenizer, Tokenized};

/// Smallest, median and largest of some counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: usize,
    /// The middle one (the lower of the two in the middle).
    pub median: usize,
    /// The largest.
    pub max: usize,
}

impl Spread {
    /// Of the given counts; all zero if there are none.
    pub fn of(mut counts: Vec<usize>) -> Self {
        counts.sort_unstable();
        match (counts.first(), counts.get(counts.len().saturating_sub(1) / 2), counts.last()) {
            (Some(min), Some(median), Some(max)) => Self { min: *min, median: *median, max: *max },
            _ => Self::default(),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "min {}, median {}, max {}", self.min, self.median, self.max)
    }
}

/// What a run would learn from: counted, and one row shown.
///
/// [`Display`](fmt::Display) is a few lines for the terminal; [`serde::Serialize`] for a report.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Preflight {
    /// Number of rows.
    pub rows: usize,
    /// Number of tokens of all rows, prompts and completions.
    pub tokens: usize,
    /// Number of target tokens of all rows.
    pub targets: usize,
    /// Tokens per row.
    pub tokens_per_row: Spread,
    /// Targets per row.
    pub targets_per_row: Spread,
    /// Rows without a target: nothing is learned from them.
    pub rows_without_target: Vec<Source>,
    /// Rows longer than `max_length`. Always empty for rows of [`tokenize_all`](crate::tokenize_all), which refuses them, and for those
    /// that a [`Truncation`](crate::Truncation) has cut before.
    pub rows_cut: Vec<Source>,
    /// The tokens at which generation stops.
    pub stop_token_ids: Vec<u32>,
    /// Rows with a stop token among their targets. If there are none, the model does not learn to end its answer.
    pub rows_with_stop_target: usize,
    /// The first row that has a target: its text with the targets in ⟦ ⟧ (see [`marked_text`](Self::marked_text)).
    pub marked_example: String,
    /// Where that row came from.
    pub marked_source: Option<Source>,
}

impl Preflight {
    /// Counts rows. `stop_token_ids` are the tokens at which generation stops: the end tokens of the model's generation
    /// configuration, or [`TextTokenizer::eos_token_id`].
    ///
    /// # Errors
    /// - [`Error::LabelCount`] if a row does not have one label per token
    /// - [`Error::Tokenizer`] if a row cannot be decoded
    pub fn new(
        rows: &[Tokenized],
        tokenizer: &TextTokenizer,
        stop_token_ids: &[u32],
        max_length: usize,
    ) -> Result<Self> {
        if let Some(row) = rows.iter().find(|row| row.input_ids.len() != row.labels.len()) {
            let (tokens, labels) = (row.input_ids.len(), row.labels.len());
            return Err(Error::LabelCount { example: row.source.clone(), tokens, labels });
        }
        let tokens: Vec<usize> = rows.iter().map(|row| row.input_ids.len()).collect();
        let targets: Vec<usize> = rows.iter().map(Tokenized::target_tokens).collect();
        let sources = |pick: &dyn Fn(&Tokenized) -> bool| -> Vec<Source> {
            rows.iter().filter(|row| pick(row)).map(|row| row.source.clone()).collect()
        };
        let stops = |row: &&Tokenized| {
            row.labels
                .iter()
                .skip(1)
                .any(|label| stop_token_ids.iter().any(|stop| i64::from(*stop) == *label))
        };
        let shown = rows.iter().find(|row| row.target_tokens() > 0).or(rows.first());
        Ok(Self {
            rows: rows.len(),
            tokens: tokens.iter().sum(),
            targets: targets.iter().sum(),
            rows_without_target: sources(&|row| row.target_tokens() == 0),
            rows_cut: sources(&|row| row.input_ids.len() > max_length),
            stop_token_ids: stop_token_ids.to_vec(),
            rows_with_stop_target: rows.iter().filter(stops).count(),
            marked_example: shown.map_or(Ok(String::new()), |row| Self::marked_text(row, tokenizer))?,
            marked_source: shown.map(|row| row.source.clone()),
            tokens_per_row: Spread::of(tokens),
            targets_per_row: Spread::of(targets),
        })
    }

    /// Refuses a run that would learn nothing.
    ///
    /// # Errors
    /// [`Error::NothingToLearn`] if no row has a target; it names the first of them.
    pub fn check(&self) -> Result<()> {
        if self.targets > 0 {
            return Ok(());
        }
        let without_target = self.rows_without_target.iter().take(MAX_LISTED).cloned().collect();
        Err(Error::NothingToLearn { rows: self.rows, without_target })
    }

    /// The text of a row, special tokens included, with every run of targets between ⟦ and ⟧.
    ///
    /// Without the brackets this is the decoded row. Where a run starts or ends within a character (byte-level tokens), its
    /// parts are decoded on their own and show `\u{fffd}` there.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the row cannot be decoded.
    pub fn marked_text(row: &Tokenized, tokenizer: &TextTokenizer) -> Result<String> {
        let is_target = |t: usize| t > 0 && row.labels.get(t).is_some_and(|label| *label != IGNORE);
        let (mut marked, mut before) = (String::new(), String::new());
        let mut start = 0;
        while start < row.input_ids.len() {
            let on = is_target(start);
            let end =
                (start..row.input_ids.len()).find(|t| is_target(*t) != on).unwrap_or(row.input_ids.len());
            // Decoders treat the start of a text in a way of their own, so a run is what it adds to the text before it.
            let whole = tokenizer.decode(&row.input_ids[..end], false)?;
            let piece = match whole.strip_prefix(&before) {
                Some(piece) => piece.to_string(),
                None => tokenizer.decode(&row.input_ids[start..end], false)?,
            };
            marked.push_str(&if on { format!("⟦{piece}⟧") } else { piece });
            (before, start) = (whole, end);
        }
        Ok(marked)
    }
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.targets as f64 / self.tokens.max(1) as f64;
        writeln!(f, "rows      {}", self.rows)?;
        writeln!(f, "tokens    {} ({} per row)", self.tokens, self.tokens_per_row)?;
        writeln!(
            f,
            "targets   {}, {share:.1} % of the tokens ({} per row)",
            self.targets, self.targets_per_row
        )?;
        writeln!(f, "no target {}", listed(&self.rows_without_target))?;
        writeln!(f, "cut       {}", listed(&self.rows_cut))?;
        let stop = match (self.stop_token_ids.is_empty(), self.rows_with_stop_target) {
            (true, _) => "not known: no stop token was given".to_string(),
            (false, 0) => "not trained: the model will not learn to end its answer".to_string(),
            (false, rows) if rows == self.rows => "trained in every row".to_string(),
            (false, rows) => format!("trained in {rows} of {} rows", self.rows),
        };
        writeln!(f, "stop      {stop}")?;
        if let Some(source) = &self.marked_source {
            writeln!(f, "example   {source}, trained text in ⟦ ⟧:")?;
            for line in self.marked_example.lines() {
                writeln!(f, "  | {line}")?;
            }
        }
        Ok(())
    }
}

fn listed(sources: &[Source]) -> String {
    if sources.is_empty() {
        return "0 rows".to_string();
    }
    let named: Vec<String> = sources.iter().take(MAX_LISTED).map(Source::to_string).collect();
    let more = if sources.len() > named.len() { ", ..." } else { "" };
    let rows = if sources.len() == 1 { "row" } else { "rows" };
    format!("{} {rows}: {}{more}", sources.len(), named.join(", "))
}
