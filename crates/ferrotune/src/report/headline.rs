//! The top of the page: what changed, in one large line, in figures and in a table.

use maud::{Markup, html};

use super::Report;
use super::metrics::Metrics;
use super::scale::Scale;
use super::scores::Interval;
use super::table::{Row, ends, rows};
use super::text::{Untrusted, count, duration, grouped, mebibytes, rate, signed};

/// The one metric that stands for all, written large.
pub(super) fn hero(metrics: &Metrics) -> Markup {
    let rows = rows(metrics);
    let Some(row) = rows.iter().find(|row| row.metric == "rougeL").or(rows.first()) else {
        return html! {};
    };
    html! {
        div class="hero" {
            p class="eyebrow" { (metric_name(row.metric)) }
            p class="figures" {
                @if let Some(before) = row.before {
                    span class="before" { (format!("{:.1}", before.value)) }
                }
                @if row.before.is_some() && row.after.is_some() {
                    span class="arrow" aria-label="to" { "\u{2192}" }
                }
                @if let Some(after) = row.after {
                    span class="after" { (format!("{:.1}", after.value)) }
                }
            }
            @if let Some(change) = row.change {
                p class="gain" {
                    b class=(direction(change)) { (signed(change)) " points" }
                    @if let Some(interval) = row.change_interval {
                        "95 % interval " (signed(interval.low)) " to " (signed(interval.high))
                    }
                }
            }
        }
    }
}

/// Figures of the run, a tile each.
pub(super) fn tiles(metrics: &Metrics) -> Markup {
    let mut tiles: Vec<(&str, String, Option<String>)> = vec![];
    if let Some(train) = &metrics.train {
        let steps = if train.steps == 1 { "step" } else { "steps" };
        tiles.push(("Training", duration(train.seconds), Some(format!("{} {steps}", grouped(train.steps)))));
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

/// The table of all metrics, with a small chart in each row.
pub(super) fn scores(report: &Report) -> Option<Markup> {
    let rows = rows(&report.metrics);
    if rows.is_empty() {
        return None;
    }
    let has = |pick: fn(&Row<'_>) -> bool| rows.iter().any(pick);
    let (has_before, has_after) = (has(|row| row.before.is_some()), has(|row| row.after.is_some()));
    let has_change = has(|row| row.change.is_some());
    let intervals = rows.iter().flat_map(|row| [row.before, row.after]).flatten();
    let top = intervals.map(|interval| interval.high.max(interval.value)).filter(|end| end.is_finite());
    let top = (top.fold(1.0, f64::max) / 10.0).ceil() * 10.0;
    let x = Scale::new((0.0, top), (6.0, 294.0));
    Some(html! {
        div class="scroll" {
            table class="scores" {
                thead {
                    tr {
                        th scope="col" { "Metric" }
                        @if has_before { th scope="col" class="number" { "Before" } }
                        @if has_after { th scope="col" class="number" { "After" } }
                        @if has_change { th scope="col" class="number" { "Change" } }
                        th scope="col" class="plot" { div class="ends" { span { "0" } span { (format!("{top:.0}")) } } }
                    }
                }
                tbody {
                    @for row in &rows {
                        tr {
                            th scope="row" { (metric_name(row.metric)) }
                            @if has_before { (score(row.before)) }
                            @if has_after { (score(row.after)) }
                            @if has_change { (change(row)) }
                            td class="plot" { (dumbbell(row, x)) }
                        }
                    }
                }
            }
        }
        p class="note" {
            "Scores from 0 to 100"
            @if let Some(generation) = report.metrics.generation.as_ref().filter(|g| g.prompts > 0) {
                " on " (grouped(generation.prompts)) " held-out prompts, answered greedily"
            }
            "; in brackets the 95 % interval from resampled examples."
        }
    })
}

fn score(interval: Option<Interval>) -> Markup {
    html! {
        td class="number" {
            @if let Some(interval) = interval {
                (format!("{:.1}", interval.value)) small { (ends(interval)) }
            }
        }
    }
}

fn change(row: &Row<'_>) -> Markup {
    html! {
        td class="number" {
            @if let Some(change) = row.change {
                b class=(direction(change)) { (signed(change)) }
                @if let Some(interval) = row.change_interval {
                    small { "[" (signed(interval.low)) ", " (signed(interval.high)) "]" }
                }
            }
        }
    }
}

/// Before and after as two dots on a line, with their intervals.
fn dumbbell(row: &Row<'_>, x: Scale) -> Markup {
    let finite = |interval: Option<Interval>| {
        interval.filter(|i| i.value.is_finite() && i.low.is_finite() && i.high.is_finite())
    };
    let marks = [("before", finite(row.before)), ("after", finite(row.after))];
    html! {
        svg viewBox="0 0 300 24" aria-hidden="true" {
            path class="grid" d="M6 12H294" {}
            @if let [(_, Some(before)), (_, Some(after))] = marks {
                path class="span" d=(format!("M{} 12H{}", x.at(before.value), x.at(after.value))) {}
            }
            @for (class, interval) in marks {
                @if let Some(interval) = interval {
                    path class={ "whisker " (class) } d=(format!("M{} 12H{}", x.at(interval.low), x.at(interval.high))) {}
                    circle class=(class) cx=(x.at(interval.value)) cy="12" r="5" {}
                }
            }
        }
    }
}

fn direction(change: f64) -> &'static str {
    match change {
        ..-0.05 => "down",
        0.05.. => "up",
        _ => "level",
    }
}

/// `rougeL` as papers write it.
fn metric_name(metric: &str) -> Markup {
    html! {
        @match metric.strip_prefix("rouge") {
            Some(kind) => { "ROUGE-" (Untrusted(kind)) }
            None => {
                @match metric {
                    "bleu" => "BLEU",
                    "chrf" => "chrF",
                    other => (Untrusted(other)),
                }
            }
        }
    }
}
