//! The page: one file that asks the network for nothing and runs no script.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::summary::cut_answers;
use super::table::{metric_name, rows};
use super::text::Untrusted;
use super::{Report, comparison, curve, examples, facts, headline};

/// All styling, in the page itself.
pub(super) const STYLE: &str = include_str!("style.css");

/// The page may apply this one style sheet and nothing else: no script, image, font, frame, form or request,
/// whatever a model wrote. A test holds the hash to the sheet.
pub(super) const STYLE_SHA256: &str = "QaciabMArhQTJd6+3kI94mdrjmvnHMzRjU8js9fOMKo=";

/// The report as one HTML page that needs no other file: to open, to print, to send on.
///
/// It follows the reader's choice of light or dark and fits a phone. All text of models and data is shown as
/// text: markup is escaped, invisible characters are written as codes, and a content security policy forbids
/// scripts and requests besides.
#[must_use]
pub fn render(report: &Report) -> String {
    let title = headline::title(report);
    let both = report.metrics.before.is_some() && report.metrics.after.is_some();
    let score_title = if both { "Before and after" } else { "Scores" };
    let sections: [(&str, Option<Markup>); 7] = [
        (score_title, comparison::scores(report)),
        ("Training", loss(report)),
        ("Outputs", outputs(report)),
        ("Data", facts::data(report)),
        ("Recipe", report.recipe.as_deref().map(facts::recipe)),
        ("Time", facts::time(&report.metrics)),
        ("Environment", facts::environment(report)),
    ];
    let body = html! {
        (headline::top(report))
        main {
            (headline::tiles(&report.metrics))
            @for (title, content) in &sections {
                @if let Some(content) = content {
                    section class="part" {
                        h2 { (title) }
                        (content)
                    }
                }
            }
        }
    };
    page(&title, &body)
}

/// A whole page: its head with the rules that it keeps, the body, and who made it.
pub(super) fn page(title: &str, body: &Markup) -> String {
    let policy =
        format!("default-src 'none'; style-src 'sha256-{STYLE_SHA256}'; base-uri 'none'; form-action 'none'");
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                meta name="generator" content="ferrotune";
                title { (Untrusted(title)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (body)
                footer { p { "Made by ferrotune " (env!("CARGO_PKG_VERSION")) "." } }
            }
        }
    };
    page.into_string()
}

fn loss(report: &Report) -> Option<Markup> {
    let train = report.metrics.train.as_ref()?;
    let validation = report.metrics.validation.as_ref().map_or(&[][..], |validation| &validation.history);
    let steps = if report.steps.is_empty() { &train.loss } else { &report.steps };
    let curve = curve::curve(steps, validation, &train.findings)?;
    Some(html! {
        p class="note" { "Loss: the mean negative log-likelihood of a target token, in nats." }
        (curve)
    })
}

fn outputs(report: &Report) -> Option<Markup> {
    let file = report.outputs_file.as_deref();
    let cut = report.metrics.generation.as_ref().and_then(cut_answers);
    let metric = rows(&report.metrics).first().map(|row| metric_name(row.metric)).unwrap_or_default();
    (!report.outputs.is_empty()).then(|| examples::examples(&report.outputs, &metric, cut.as_deref(), file))
}
