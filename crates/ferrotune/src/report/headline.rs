//! The top of the page: the result in plain words, what was done, and figures of the run.

use maud::{Markup, html};

use super::Report;
use super::metrics::{Metrics, TrainMetrics};
use super::text::{Untrusted, count, duration, grouped, mebibytes, plural, rate};
use super::words::{Words, words};

/// The line that a browser shows for the page.
pub(super) fn title(report: &Report) -> String {
    let Words { sentence, .. } = words(&report.metrics);
    let parts = [sentence.as_str(), report.model.as_str(), "fine-tuning report"];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" \u{b7} ")
}

/// The result, and what was done.
pub(super) fn top(report: &Report) -> Markup {
    let Words { sentence, detail } = words(&report.metrics);
    html! {
        header class="top" {
            p class="eyebrow" { "Fine-tuning report" }
            h1 { @if sentence.is_empty() { (Untrusted(&report.model)) } @else { (Untrusted(&sentence)) } }
            @if !detail.is_empty() { p class="lede" { (Untrusted(&detail)) } }
            (done(report))
        }
    }
}

/// A sentence or two on what was done.
fn done(report: &Report) -> Markup {
    let train = report.metrics.train.as_ref();
    html! {
        p class="done" {
            @if !report.model.is_empty() { b { (Untrusted(&report.model)) } " was fine-tuned" } @else { "Fine-tuned" }
            @if !report.data.is_empty() { " on " b { (Untrusted(&report.data)) } }
            @if let Some(train) = train.filter(|train| train.examples > 0) {
                ": " (plural(examples(&report.metrics, train), "example")) ", " (epochs(train.epochs))
            }
            "."
            @if let Some(method) = &report.method { " " (Untrusted(method)) "." }
        }
    }
}

/// The examples of the training file, however often each was seen.
fn examples(metrics: &Metrics, train: &TrainMetrics) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count"
    )]
    let per_epoch = (train.examples as f64 / train.epochs.max(1.0)).round() as u64;
    metrics.data.as_ref().map_or(per_epoch, |data| data.train.examples)
}

/// `1 epoch`, `1.5 epochs`.
fn epochs(epochs: f64) -> String {
    let text = format!("{epochs:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} epoch{}", if text == "1" { "" } else { "s" })
}

/// Figures of the run, a tile each.
pub(super) fn tiles(metrics: &Metrics) -> Markup {
    let mut tiles: Vec<(&str, String, Option<String>)> = vec![];
    if let Some(train) = &metrics.train {
        let apart = if metrics.validation.is_some() { ", without validation" } else { "" };
        let steps = plural(train.steps, "step") + apart;
        tiles.push(("Training", duration(train.seconds), Some(steps)));
        let tokens = Some(format!("{} tokens in all", count(train.real_tokens)));
        tiles.push(("Tokens per s", rate(train.real_tokens_per_s), tokens));
    }
    if let Some(validation) = &metrics.validation {
        let before = validation.loss_before.map(|loss| format!("{loss:.2} before training"));
        let perplexity = || format!("perplexity {:.1}", validation.loss.exp());
        let note = before.unwrap_or_else(perplexity);
        tiles.push(("Validation loss", format!("{:.2}", validation.loss), Some(note)));
    }
    if let Some(trainable) = metrics.trainable_parameters {
        #[expect(clippy::cast_precision_loss, reason = "a percentage")]
        let share = metrics
            .total_parameters
            .filter(|total| *total > 0)
            .map(|total| format!("{:.1} % of {}", 100.0 * trainable as f64 / total as f64, count(total)));
        tiles.push(("Trained parameters", count(trainable), share));
    }
    if let Some(mib) = metrics.peak_rss_mib {
        tiles.push(("Peak memory", mebibytes(mib), None));
    }
    if let Some(generation) = &metrics.generation {
        let prompts = (generation.prompts > 0).then(|| format!("{} prompts", grouped(generation.prompts)));
        tiles.push(("New tokens per s", rate(generation.new_tokens_per_s), prompts));
    }
    html! {
        @if !tiles.is_empty() {
            dl class="tiles" {
                @for (label, value, note) in tiles {
                    div {
                        dt { (label) }
                        dd { (value) @if let Some(note) = note { small { (note) } } }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DataMetrics, FileMetrics};
    use super::*;

    #[test]
    fn examples_are_counted_once_and_epochs_are_told() {
        let train = TrainMetrics { examples: 24, epochs: 1.5, ..TrainMetrics::default() };
        let mut metrics = Metrics { train: Some(train), ..Metrics::default() };
        let shown =
            |metrics: &Metrics| done(&Report { metrics: metrics.clone(), ..Report::default() }).into_string();
        assert!(shown(&metrics).contains(": 16 examples, 1.5 epochs."), "{}", shown(&metrics));
        let file = FileMetrics { examples: 1, ..FileMetrics::default() };
        metrics.data = Some(DataMetrics { train: file, ..DataMetrics::default() });
        assert!(shown(&metrics).contains(": 1 example, 1.5 epochs."), "{}", shown(&metrics));
        for (number, text) in
            [(1.0, "1 epoch"), (10.0, "10 epochs"), (0.254, "0.25 epochs"), (3.0, "3 epochs")]
        {
            assert_eq!(epochs(number), text);
        }
    }
}
