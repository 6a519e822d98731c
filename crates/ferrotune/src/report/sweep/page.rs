//! The page of a sweep.

use super::super::html::page;
use super::super::text::{Untrusted, duration, plural};
use super::super::{facts, table::metric_name};
use super::{Setting, SweepReport, plot, table::columns};
use maud::{Markup, html};

/// The sweep as one HTML page beside the folders of its trials, under the same rules as [`render`](super::super::render).
#[must_use]
pub fn render_sweep(report: &SweepReport) -> String {
    let settings = report.settings();
    let done = report.trials.iter().filter(|trial| trial.objective.is_some()).count();
    let failed = report.trials.iter().filter(|trial| trial.error.is_some()).count();
    let title = match settings.first().filter(|best| best.mean().is_some()) {
        Some(best) => format!("Best: {}", in_words(report, best)),
        None => "No trial is done yet".to_owned(),
    };
    let body = html! {
        header class="top" {
            p class="eyebrow" { "Sweep" }
            h1 { (Untrusted(&title)) }
            p class="lede" {
                (done) " of " (plural(report.trials.len() as u64, "trial")) " done"
                @if failed > 0 { ", " (failed) " failed" }
                ". Judged by " code { (report.objective.name) } ": "
                @if report.objective.greater_is_better { "more is better." } @else { "less is better." }
            }
        }
        main {
            section class="part" {
                h2 { "Settings" }
                @if let Some(chart) = plot::objective(report) {
                    p class="note" { code { (report.objective.name) } " of each setting; the line of the best is drawn in colour." }
                    (chart)
                }
                (settings_table(report, &settings))
                @for trial in &report.trials {
                    @if let Some(error) = &trial.error {
                        p class="note" { code { (Untrusted(&trial.name)) } " failed: " (Untrusted(error)) }
                    }
                }
            }
            @if let Some(chart) = plot::losses(report) {
                section class="part" {
                    h2 { "Validation loss" }
                    p class="note" { "Each line is a trial; the best is drawn in colour." }
                    (chart)
                }
            }
            section class="part" {
                h2 { "Recipe" }
                p class="note" { "What the trials have in common." }
                (facts::recipe(&report.recipe))
            }
        }
    };
    page(&title, &body)
}

fn in_words(report: &SweepReport, setting: &Setting<'_>) -> String {
    let keys = columns(report);
    let words: Vec<String> =
        keys.iter().zip(&setting.values).map(|(key, value)| format!("{key} = {value}")).collect();
    words.join(", ")
}

fn settings_table(report: &SweepReport, settings: &[Setting<'_>]) -> Markup {
    let metrics = metrics(report);
    html! {
        div class="scroll" {
            table {
                thead { tr {
                    @for (place, column) in columns(report).iter().enumerate() {
                        th scope="col" class=[(place >= report.varied().count()).then_some("number")] { (Untrusted(column)) }
                    }
                    @for metric in &metrics { th scope="col" class="number" { (metric_name(metric)) } }
                    th scope="col" { "reports" }
                } }
                tbody {
                    @for setting in settings {
                        tr {
                            @for value in &setting.values { td { (Untrusted(value)) } }
                            td class="number" {
                                @if let Some(result) = setting.result() { b { (result) } }
                                @if let Some(missing) = setting.missing() { small { (missing.split(':').next().unwrap_or_default()) } }
                            }
                            td class="number" { @if setting.seconds() > 0.0 { (duration(setting.seconds())) } }
                            @for metric in &metrics { td class="number" { (scores(setting, metric)) } }
                            td { @for trial in setting.trials.iter().filter(|trial| trial.objective.is_some()) {
                                a href=(format!("./{}/report.html", trial.name)) { (Untrusted(seed(report, trial).as_deref().unwrap_or("report"))) } " "
                            } }
                        }
                    }
                }
            }
        }
    }
}

/// The metrics that any trial was scored by, but the objective itself.
fn metrics(report: &SweepReport) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in
        report.trials.iter().filter_map(|trial| trial.after.as_ref()).flat_map(|scores| scores.iter())
    {
        if !names.contains(&name) && report.objective.name.strip_prefix("after.") != Some(name) {
            names.push(name);
        }
    }
    names
}

/// The mean score over the seeds.
fn scores(setting: &Setting<'_>, metric: &str) -> String {
    let values: Vec<f64> =
        setting.trials.iter().filter_map(|trial| Some(trial.after.as_ref()?.get(metric)?.value)).collect();
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    if values.is_empty() { String::new() } else { format!("{mean:.1}") }
}

/// The seeds of a trial in words, where there are several.
fn seed(report: &SweepReport, trial: &super::TrialReport) -> Option<String> {
    let seeds = report.axes.iter().zip(&trial.values).filter(|(axis, _)| axis.is_seed);
    let seeds: Vec<String> = seeds.map(|(axis, value)| format!("{} {value}", axis.key)).collect();
    (!seeds.is_empty()).then(|| seeds.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn the_page_names_the_best_and_leads_to_the_reports() {
        let page = render_sweep(&example());
        assert!(page.contains("Best: learning_rate = 1e-4, r = 16"), "{page}");
        assert!(page.contains("5 of 8 trials done, 2 failed"), "{page}");
        assert!(page.contains("href=\"./learning_rate=1e-4,r=16,seed=2/report.html\""));
        assert!(!page.contains("learning_rate=1e-3,r=16,seed=2/report.html"), "it failed");
        assert!(page.contains("the loss is NaN") && page.contains("Content-Security-Policy"));
    }

    #[test]
    fn what_a_file_says_stays_text() {
        let mut report = example();
        report.trials[7].error = Some("<script>alert(1)</script>".to_owned());
        report.trials[6].error = report.trials[7].error.clone();
        let page = render_sweep(&report);
        assert!(!page.contains("<script") && page.contains("&lt;script"));
    }
}
