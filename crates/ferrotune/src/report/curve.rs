//! The loss curve, drawn as SVG.

use maud::{Markup, html};

use super::metrics::{LoggedStep, ValidationStep, WatcherMark};
use super::panels::{PANEL, Panel, panels};
use super::scale::{Scale, rules};
use super::series::{Point, dots, line, range, smooth, thin};
use super::text::{grouped, plural};

/// From so many points on a smoothed line tells more than the points.
const SMOOTH_FROM: usize = 8;
/// So many measurements of the validation loss have a mark each; more are a line alone.
const MAX_MARKS: usize = 40;
/// So many findings of watchers are drawn and said.
const MAX_FINDINGS: usize = 12;

/// A size that the chart is drawn for; each has legible text at its own width.
#[derive(Clone, Copy)]
struct Size {
    class: &'static str,
    width: f64,
    loss_height: f64,
    ticks: usize,
}

const SIZES: [Size; 2] = [
    Size { class: "chart wide", width: 960.0, loss_height: 270.0, ticks: 8 },
    Size { class: "chart narrow", width: 350.0, loss_height: 210.0, ticks: 4 },
];
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;

/// What is drawn.
struct Curve {
    /// The training loss of the steps, thinned.
    training: Vec<Point>,
    smooth: Option<Vec<Point>>,
    /// The validation loss, thinned.
    validation: Vec<Point>,
    panels: Vec<Panel>,
    /// What watchers found, at its step.
    findings: Vec<(f64, String)>,
    label: String,
}

/// The curve with its legend; a sentence where neither loss has two points to draw, and nothing of nothing.
pub(super) fn curve(
    steps: &[LoggedStep],
    validation: &[ValidationStep],
    findings: &[WatcherMark],
) -> Option<Markup> {
    #[expect(clippy::cast_precision_loss, reason = "steps are drawn in pixels")]
    let finite = |step: u64, loss: f64| loss.is_finite().then_some((step as f64, loss));
    let training: Vec<Point> = steps.iter().filter_map(|step| finite(step.step, step.loss)).collect();
    let measured: Vec<Point> = validation.iter().filter_map(|step| finite(step.step, step.loss)).collect();
    let left_out = steps.len() - training.len();
    if training.len() < 2 && measured.len() < 2 {
        return too_little(&training, &measured, steps.is_empty() && validation.is_empty());
    }
    let points = thin(&training);
    let curve = Curve {
        smooth: (points.len() >= SMOOTH_FROM).then(|| smooth(&points)),
        label: label(&training, &measured),
        panels: panels(steps),
        findings: marks(findings),
        training: points,
        validation: thin(&measured),
    };
    Some(html! {
        figure {
            (legend(&curve, &measured))
            @for size in SIZES { (curve.draw(size)) }
            @if let Some(note) = overfit(&measured) { figcaption { (note) } }
            @for (_, text) in &curve.findings { figcaption { (text) } }
            @if findings.len() > MAX_FINDINGS {
                figcaption { (plural((findings.len() - MAX_FINDINGS) as u64, "further finding")) " not shown." }
            }
            @if left_out > 0 {
                figcaption {
                    (plural(left_out as u64, "step")) " without a finite loss "
                    (if left_out == 1 { "is" } else { "are" }) " not drawn."
                }
            }
        }
    })
}

/// The first findings, each at its step and in words.
fn marks(findings: &[WatcherMark]) -> Vec<(f64, String)> {
    #[expect(clippy::cast_precision_loss, reason = "steps are drawn in pixels")]
    let mark = |finding: &WatcherMark| {
        let done = match finding.action.as_str() {
            "skip" => " The step was left out.",
            "roll_back" => " The run went back to a checkpoint, and on with half the learning rate.",
            "stop" => " The training ended here.",
            _ => "",
        };
        let WatcherMark { step, watcher, what, .. } = finding;
        let text = format!("Step {step}, {}: {what}.{done}", watcher.replace('_', " "));
        (finding.step as f64, text)
    };
    findings.iter().take(MAX_FINDINGS).map(mark).collect()
}

/// The points in words; a curve needs two.
fn too_little(training: &[Point], measured: &[Point], nothing: bool) -> Option<Markup> {
    let said = [("training", training), ("validation", measured)].map(|(name, points)| {
        points.first().map(|(step, loss)| format!("the {name} loss was {loss:.2} at step {step}"))
    });
    let said: Vec<String> = said.into_iter().flatten().collect();
    match said.as_slice() {
        [] if nothing => None,
        [] => Some(html! { p { "No step has a finite loss." } }),
        said => Some(html! { p { "There is too little to draw: " (said.join(", and ")) "." } }),
    }
}

fn legend(curve: &Curve, measured: &[Point]) -> Markup {
    let last = curve.smooth.as_ref().unwrap_or(&curve.training).last();
    html! {
        ul class="legend" {
            @if curve.smooth.is_some() { li { (key("raw")) "training, each step" } }
            @if let Some((_, loss)) = last {
                li {
                    (key("smooth"))
                    @if curve.smooth.is_some() { "smoothed, at the end " } @else { "training, at the end " }
                    b { (format!("{loss:.2}")) }
                }
            }
            @if let [first, .., last] = measured {
                li { (key("validation")) "validation " b { (format!("{:.2}", first.1)) } " \u{2192} " b { (format!("{:.2}", last.1)) } }
            } @else if let [only] = measured {
                li { (key("validation")) "validation " b { (format!("{:.2}", only.1)) } }
            }
            @if !curve.findings.is_empty() { li { (key("finding")) "found by a watcher" } }
        }
    }
}

/// The sample of a line or mark in the legend.
fn key(kind: &str) -> Markup {
    html! {
        svg class="key" viewBox="0 0 22 10" width="22" height="10" aria-hidden="true" {
            @match kind {
                "validation" => { path class="line validation" d="M1 5H21" {} (diamond(11.0, 5.0)) }
                "finding" => path class="finding" d="M11 0V10" {},
                "raw" => path class="line raw" d="M3 7h0M9 3h0M14 6h0M19 4h0" {},
                _ => path class={ "line " (kind) } d="M1 5H21" {},
            }
        }
    }
}

fn diamond(x: f64, y: f64) -> Markup {
    html! { path class="mark" d=(format!("M{x} {}L{} {y}L{x} {}L{} {y}Z", y - 5.0, x + 5.0, y + 5.0, x - 5.0)) {} }
}

/// What the chart shows, for those who do not see it.
fn label(training: &[Point], validation: &[Point]) -> String {
    let mut label = "Loss by optimizer step.".to_owned();
    for (name, points) in [("Training", training), ("Validation", validation)] {
        match points {
            [first, .., last] => label.push_str(&format!(
                " {name}: {:.2} at step {}, {:.2} at step {}.",
                first.1, first.0, last.1, last.0
            )),
            [only] => label.push_str(&format!(" {name}: {:.2} at step {}.", only.1, only.0)),
            [] => {}
        }
    }
    label
}

/// Says if the validation loss was clearly lower before the end.
fn overfit(measured: &[Point]) -> Option<String> {
    let last = measured.last()?.1;
    let (step, lowest) = measured.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let when = if step > 0.0 { format!("after step {step}") } else { "before training".to_owned() };
    let advice = if step > 0.0 { ": fewer steps may serve better" } else { "" };
    (last - lowest > 0.005).then(|| {
        format!("The validation loss was lowest {when}, {lowest:.2}, and is {last:.2} at the end{advice}.")
    })
}

impl Curve {
    fn draw(&self, size: Size) -> Markup {
        let right = size.width - RIGHT;
        let all = || self.training.iter().chain(&self.validation);
        let (first, last) = range(all().map(|point| point.0));
        let x = Scale::new((first, last), (LEFT, right));
        let (low, high) = range(all().map(|point| point.1));
        let pad = 0.05 * (high - low).max(1e-3);
        let y = Scale::new((low - pad, high + pad), (TOP + size.loss_height, TOP));
        #[expect(clippy::cast_precision_loss, reason = "two at most")]
        let bottom = TOP + size.loss_height + self.panels.len() as f64 * PANEL;
        let view_box = format!("0 0 {} {}", size.width, bottom + 40.0);
        html! {
            svg class=(size.class) viewBox=(view_box) role="img" aria-label=(self.label) {
                (rules(y, (LEFT, right)))
                @for tick in x.ticks(size.ticks).into_iter().filter(|tick| tick.fract() == 0.0) {
                    path class="grid" d=(format!("M{} {bottom}v5", x.at(tick))) {}
                    text class="tick" x=(x.at(tick)) y=(bottom + 18.0) text-anchor=(anchor(x.at(tick), right)) { (grouped(whole(tick))) }
                }
                text class="axis" x=((LEFT + right) / 2.0) y=(bottom + 36.0) text-anchor="middle" { "optimizer step" }
                @match &self.smooth {
                    Some(smooth) => {
                        path class="line raw" d=(dots(&self.training, x, y)) {}
                        path class="line smooth" d=(line(smooth, x, y)) {}
                    }
                    None if self.training.len() == 1 => path class="line smooth dot" d=(dots(&self.training, x, y)) {},
                    None => path class="line smooth" d=(line(&self.training, x, y)) {},
                }
                path class="line validation" d=(line(&self.validation, x, y)) {}
                @if self.validation.len() <= MAX_MARKS {
                    @for (step, loss) in &self.validation {
                        g { title { "validation loss after step " (step) ": " (format!("{loss:.3}")) } (diamond(x.at(*step), y.at(*loss))) }
                    }
                }
                @for (step, text) in self.findings.iter().filter(|(step, _)| (first..=last).contains(step)) {
                    g { title { (text) } path class="finding" d=(format!("M{} {TOP}V{bottom}", x.at(*step))) {} }
                }
                @for (panel, index) in self.panels.iter().zip(0_u32..) {
                    (panel.draw(TOP + size.loss_height + f64::from(index) * PANEL, (LEFT, right), x))
                }
            }
        }
    }
}

/// A label at the right edge must not reach beyond it.
fn anchor(at: f64, right: f64) -> &'static str {
    if at > right - RIGHT { "end" } else { "middle" }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a step")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(steps: u64) -> Vec<LoggedStep> {
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let loss = |step: u64| 4.0 - step as f64 / steps as f64;
        (1..=steps)
            .map(|step| LoggedStep { step, loss: loss(step), learning_rate: 1e-3, grad_norm: 1.0 })
            .collect()
    }

    fn measured(losses: &[(u64, f64)]) -> Vec<ValidationStep> {
        losses.iter().map(|&(step, loss)| ValidationStep::new(step, loss)).collect()
    }

    fn text(logged: &[LoggedStep], validation: &[ValidationStep]) -> String {
        curve(logged, validation, &[]).unwrap().into_string()
    }

    #[test]
    fn where_no_line_has_two_points_there_is_a_sentence() {
        assert!(curve(&[], &[], &[]).is_none());
        assert!(text(&run(1), &[]).contains("too little to draw: the training loss was 3.00 at step 1."));
        let one_of_each = text(&run(1), &measured(&[(1, 3.25)]));
        assert!(
            one_of_each.contains("loss was 3.00 at step 1, and the validation loss was 3.25 at step 1."),
            "{one_of_each}"
        );
        assert!(!one_of_each.contains("<svg"));
        let mut bad = run(3);
        for step in &mut bad {
            step.loss = f64::NAN;
        }
        assert!(text(&bad, &[]).contains("No step has a finite loss."));
        // Two of validation are a line, and the one of training is a dot beside it.
        let svg = text(&run(1), &measured(&[(0, 3.5), (1, 2.0)]));
        let dot = svg.split("class=\"line smooth dot\" d=\"").nth(1).unwrap();
        assert!(dot.starts_with('M') && dot.split('"').next().unwrap().ends_with("h0"), "{dot}");
        assert!(!text(&run(2), &[]).contains("dot"));
    }

    #[test]
    fn no_coordinate_is_ever_nan() {
        let flat: Vec<_> = run(50).into_iter().map(|step| LoggedStep { loss: 2.0, ..step }).collect();
        let mut broken = run(50);
        broken[3].loss = f64::NAN;
        broken[4].grad_norm = f64::INFINITY;
        broken[5].learning_rate = f64::NAN;
        for logged in [run(2), flat, broken] {
            let svg = text(&logged, &measured(&[(0, f64::NAN), (9, f64::INFINITY), (50, 2.0)]));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn a_long_run_stays_small() {
        let validation: Vec<_> = (0..=10_000).map(|step| ValidationStep::new(step, 2.0)).collect();
        let svg = text(&run(100_003), &validation);
        assert!(svg.len() < 80_000 && !svg.contains("<title>"), "{}", svg.len());
    }

    #[test]
    fn validation_is_marked_and_said() {
        let svg = text(&run(20), &measured(&[(0, 3.5), (10, 2.5), (20, 2.25)]));
        assert!(svg.contains("<title>validation loss after step 0: 3.500</title>"), "{svg}");
        assert_eq!(svg.matches("<title>").count(), 2 * 3, "three marks in two sizes");
        assert!(svg.contains("Validation: 3.50 at step 0, 2.25 at step 20."));
        assert!(!svg.contains("lowest"));
        let overfitted = text(&run(20), &measured(&[(0, 3.5), (10, 2.25), (20, 2.5)]));
        assert!(overfitted.contains("lowest after step 10, 2.25, and is 2.50 at the end"));
        let never_better = text(&run(20), &measured(&[(0, 2.25), (20, 2.5)]));
        assert!(never_better.contains("lowest before training, 2.25, and is 2.50 at the end."));
    }

    #[test]
    fn what_watchers_found_is_marked_at_its_step_and_said() {
        let finding = |step| WatcherMark {
            step,
            watcher: "loss_spike".into(),
            action: "skip".into(),
            what: "the loss is <9>".into(),
        };
        let svg = curve(&run(20), &[], &[finding(7)]).unwrap().into_string();
        assert_eq!(
            svg.matches("<title>Step 7, loss spike: the loss is &lt;9&gt;. The step was left out.</title>")
                .count(),
            2
        );
        assert!(svg.contains("<figcaption>Step 7, loss spike"), "{svg}");
        assert_eq!(svg.matches("class=\"finding\"").count(), 2 + 1, "two sizes and the legend");
        let many: Vec<_> = (0..20).map(|step| finding(step % 20)).collect();
        let svg = curve(&run(20), &[], &many).unwrap().into_string();
        assert!(svg.contains("8 further findings not shown"), "{svg}");
        assert!(!text(&run(20), &[]).contains("finding"));
    }
}
