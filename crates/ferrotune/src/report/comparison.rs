//! Before and after: a table of all metrics.

use maud::{Markup, html};

use super::Report;
use super::scale::Scale;
use super::scores::Interval;
use super::table::{Row, ends, metric_name, rows};
use super::text::{Untrusted, plural, signed};

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
                caption { (caption(report)) }
                thead {
                    tr {
                        th scope="col" { "Metric" }
                        @if has_before { th scope="col" class="number" { "Before" } }
                        @if has_after { th scope="col" class="number" { "After" } }
                        @if has_change { th scope="col" class="number" { "Change" } }
                        th scope="col" class="plot" { span class="unseen" { "Chart" } div class="ends" aria-hidden="true" { span { "0" } span { (format!("{top:.0}")) } } }
                    }
                }
                tbody {
                    @for row in &rows {
                        tr {
                            th scope="row" { (Untrusted(&metric_name(row.metric))) }
                            @if has_before { (score(row.before)) }
                            @if has_after { (score(row.after)) }
                            @if has_change { (change(row)) }
                            td class="plot" { (dumbbell(row, x)) }
                        }
                    }
                }
            }
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
                b class=(direction(change, row.change_interval)) { (signed(change)) }
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

/// No direction where the change may be chance.
fn direction(change: f64, interval: Option<Interval>) -> &'static str {
    match interval {
        Some(interval) if interval.low <= 0.0 && interval.high >= 0.0 => "level",
        _ if change >= 0.05 => "up",
        _ if change <= -0.05 => "down",
        _ => "level",
    }
}

fn caption(report: &Report) -> Markup {
    html! {
        "Scores from 0 to 100"
        @if let Some(generation) = report.metrics.generation.as_ref().filter(|generation| generation.prompts > 0) {
            " on " (plural(generation.prompts, "test prompt")) ", answered greedily"
        }
        "; in brackets the 95 % interval from resampled examples, that of the change paired prompt by prompt. A change is coloured if its interval leaves out zero."
    }
}
