//! The lower half of the page: the data, the recipe, the machine.

use maud::{Markup, html};

use super::metrics::{FileMetrics, Metrics};
use super::stages::stages;
use super::text::{Untrusted, clip, duration, grouped, plural};
use super::{Fact, PreflightFacts, Report, Split};

/// Characters of the example and of the recipe that are shown at most.
const EXAMPLE_CHARS: usize = 8_000;
const RECIPE_CHARS: usize = 20_000;

/// The data files and what was found in them.
pub(super) fn data(report: &Report) -> Option<Markup> {
    if report.splits.is_empty() && report.preflight.is_none() {
        return None;
    }
    Some(html! {
        @if !report.splits.is_empty() { (splits(&report.splits)) }
        @if let Some(lengths) = &report.lengths {
            @if let Some(chart) = lengths.chart() { (chart) }
        }
        @if let Some(preflight) = &report.preflight {
            (findings(preflight, report.metrics.data.as_ref().map(|data| &data.train)))
        }
    })
}

fn splits(splits: &[Split]) -> Markup {
    let has_tokens = splits.iter().any(|split| split.tokens.is_some());
    let has_left_out = splits.iter().any(|split| split.left_out > 0);
    let has_targets = splits.iter().any(|split| split.target_tokens.is_some());
    html! {
        div class="scroll" {
            table class="files" {
                caption {
                    "The examples of each file."
                    @if has_tokens || has_targets { " In small: the fewest, the median and the most tokens of an example." }
                }
                thead {
                    tr {
                        th scope="col" { "Split" }
                        th scope="col" class="number" { "Examples" }
                        @if has_left_out { th scope="col" class="number" { "Left out" } }
                        @if has_tokens { th scope="col" class="number" { "Tokens" } }
                        @if has_targets { th scope="col" class="number" { "Target tokens" } }
                    }
                }
                tbody {
                    @for split in splits {
                        tr {
                            th scope="row" { (Untrusted(&split.name)) }
                            td class="number" { (grouped(split.examples)) }
                            @if has_left_out { td class="number" { (grouped(split.left_out)) } }
                            @if has_tokens { (tokens(split.tokens, split.tokens_per_example)) }
                            @if has_targets { (tokens(split.target_tokens, split.target_tokens_per_example)) }
                        }
                    }
                }
            }
        }
        dl class="paths" {
            @for split in splits { div { dt { (Untrusted(&split.name)) } dd { code { (Untrusted(&split.file)) } } } }
        }
    }
}

fn tokens(total: Option<u64>, spread: Option<[u64; 3]>) -> Markup {
    html! {
        td class="number" {
            @if let Some(total) = total { (grouped(total)) }
            @if let Some(spread) = spread {
                small { (spread.map(grouped).join(" \u{b7} ")) }
            }
        }
    }
}

fn findings(found: &PreflightFacts, train: Option<&FileMetrics>) -> Markup {
    let rows = |count: u64| format!("{} of {}", grouped(count), grouped(found.rows));
    let stop = match found.rows_with_stop_target {
        0 => "in no example: the model does not learn to end its answer".to_owned(),
        all if all == found.rows => "in every example".to_owned(),
        some => format!("in {} examples", rows(some)),
    };
    html! {
        h3 { "Checked before training" }
        dl class="facts" {
            div { dt { "End of the answer is trained" } dd class=[(found.rows_with_stop_target == 0).then_some("down")] { (stop) } }
            div { dt { "Examples with nothing to learn" } dd { (rows(found.rows_without_target)) } }
            @match train {
                Some(train) => {
                    div { dt { "Bad lines skipped" } dd { (grouped(train.skipped)) } }
                    div {
                        dt { "Too long" }
                        dd {
                            (plural(train.too_long, "example"))
                            @if train.too_long > 0 {
                                ": " (grouped(train.cut)) " cut, " (grouped(train.left_out)) " left out, "
                                (plural(train.target_tokens_lost, "target token")) " lost"
                            }
                        }
                    }
                }
                None => div { dt { "Examples cut" } dd { (rows(found.rows_cut)) } },
            }
        }
        @if !found.marked_example.is_empty() {
            @let (text, left_out) = clip(&found.marked_example, EXAMPLE_CHARS);
            p class="note" {
                "One example as the model reads it"
                @if let Some(source) = &found.marked_source { " (" (Untrusted(source)) ")" }
                "; only what is " mark { "marked" } " is learnt."
            }
            pre dir="auto" tabindex="0" {
                @for (piece, learnt) in marked(text) {
                    @if learnt { mark { (Untrusted(piece)) } } @else { (Untrusted(piece)) }
                }
                @if left_out > 0 { span class="more" { " … " (grouped(left_out as u64)) " more characters" } }
            }
        }
    }
}

/// Cuts a text at `⟦` and `⟧`.
fn marked(text: &str) -> Vec<(&str, bool)> {
    let mut pieces = vec![];
    for (index, piece) in text.split('⟦').enumerate() {
        match piece.split_once('⟧') {
            Some((learnt, rest)) if index > 0 => pieces.extend([(learnt, true), (rest, false)]),
            _ => pieces.push((piece, index > 0)),
        }
    }
    pieces.retain(|(piece, _)| !piece.is_empty());
    pieces
}

/// The effective recipe.
pub(super) fn recipe(recipe: &str) -> Markup {
    let (text, left_out) = clip(recipe.trim(), RECIPE_CHARS);
    html! {
        pre class="recipe" tabindex="0" {
            @for (index, block) in text.split("\n\n").enumerate() {
                @if index > 0 { "\n" }
                code class="block" { (Untrusted(block)) "\n" }
            }
            @if left_out > 0 { span class="more" { " … " (plural(left_out as u64, "more character")) } }
        }
        p class="note" { "With every default written out; " code { "recipe.toml" } " beside this page, with another " code { "output_dir" } ", starts the same run again." }
    }
}

/// What the time went to.
pub(super) fn time(metrics: &Metrics) -> Option<Markup> {
    let mut facts = vec![];
    if let Some(seconds) = metrics.time_to_first_step_s {
        facts.push(Fact::new("To the end of the first step, without the answers before", duration(seconds)));
    }
    if let Some(generation) = metrics.generation.as_ref().filter(|generation| generation.seconds > 0.0) {
        let tokens = plural(generation.new_tokens, "new token");
        facts.push(Fact::new("Answers, last pass", format!("{}, {tokens}", duration(generation.seconds))));
    }
    (!metrics.stages.is_empty() || metrics.time_to_first_step_s.is_some()).then(|| {
        html! {
            @if !metrics.stages.is_empty() { (stages(&metrics.stages)) }
            (list(&facts))
        }
    })
}

/// Versions and the machine.
pub(super) fn environment(report: &Report) -> Option<Markup> {
    let mut facts = report.environment.clone();
    let metrics = &report.metrics;
    if let Some(features) = metrics.cpu_features.as_ref().filter(|features| !features.is_empty()) {
        facts.push(Fact::new("CPU features", features.join(", ")));
    }
    (!facts.is_empty()).then(|| list(&facts))
}

fn list(facts: &[Fact]) -> Markup {
    html! {
        dl class="facts" {
            @for fact in facts {
                div { dt { (Untrusted(&fact.label)) } dd { (Untrusted(&fact.value)) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_mark_what_is_learnt() {
        assert_eq!(marked("a⟦b⟧c⟦d⟧"), [("a", false), ("b", true), ("c", false), ("d", true)]);
        assert_eq!(marked("⟦b"), [("b", true)]);
        assert_eq!(marked("a⟧b"), [("a⟧b", false)]);
        assert_eq!(marked(""), []);
    }
}
