//! The loss curve, drawn as SVG.

use maud::{Markup, html};
use std::fmt::Write;

use super::metrics::{LoggedStep, ValidationMetrics};
use super::scale::Scale;
use super::text::{Untrusted, grouped};

/// Points that are drawn at most; more of them are averaged in groups.
const MAX_POINTS: usize = 400;
/// From so many points on a smoothed line tells more than the points.
const SMOOTH_FROM: usize = 8;

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
const PANEL_GAP: f64 = 30.0;
const PANEL_HEIGHT: f64 = 44.0;

/// The curve with its legend, or nothing for fewer than two logged steps.
pub(super) fn curve(logged: &[LoggedStep], validation: Option<&ValidationMetrics>) -> Option<Markup> {
    let finite: Vec<LoggedStep> = logged.iter().copied().filter(|step| step.loss.is_finite()).collect();
    if finite.len() < 2 {
        return None;
    }
    let points = thin(&finite);
    let smooth = (points.len() >= SMOOTH_FROM).then(|| smooth(&points));
    let last = smooth.as_ref().and_then(|line| line.last()).or(points.last())?.1;
    let validation = validation.filter(|validation| validation.loss.is_finite());
    let left_out = logged.len() - finite.len();

    Some(html! {
        figure {
            ul class="legend" {
                @if smooth.is_some() {
                    li { (key("raw")) "each logged step" }
                    li { (key("smooth")) "smoothed, at the end " b { (format!("{last:.2}")) } }
                } @else {
                    li { (key("smooth")) "training, at the end " b { (format!("{last:.2}")) } }
                }
                @if let Some(validation) = validation {
                    li {
                        (key("validation")) "validation "
                        @if let Some(before) = validation.loss_before { b { (format!("{before:.2}")) } " \u{2192} " }
                        b { (format!("{:.2}", validation.loss)) }
                    }
                }
            }
            @for size in SIZES {
                (draw(size, &finite, &points, smooth.as_deref(), validation))
            }
            @if left_out > 0 {
                figcaption {
                    (grouped(left_out as u64)) " logged "
                    (if left_out == 1 { "step has" } else { "steps have" })
                    " no finite loss and " (if left_out == 1 { "is" } else { "are" }) " not drawn."
                }
            }
        }
    })
}

/// The sample of a line or mark in the legend.
fn key(kind: &str) -> Markup {
    html! {
        svg class="key" viewBox="0 0 22 10" width="22" height="10" aria-hidden="true" {
            @if kind == "validation" { (diamond(11.0, 5.0, "validation")) }
            @else { path class={ "line " (kind) } d="M1 5H21" {} }
        }
    }
}

fn diamond(x: f64, y: f64, class: &str) -> Markup {
    html! { path class=(class) d=(format!("M{x} {}L{} {y}L{x} {}L{} {y}Z", y - 5.0, x + 5.0, y + 5.0, x - 5.0)) {} }
}

fn draw(
    size: Size,
    logged: &[LoggedStep],
    points: &[(f64, f64)],
    smooth: Option<&[(f64, f64)]>,
    validation: Option<&ValidationMetrics>,
) -> Markup {
    let before = validation.and_then(|validation| validation.loss_before).filter(|loss| loss.is_finite());
    let (first, last) = (points[0].0, points[points.len() - 1].0);
    let x = Scale::new((if before.is_some() { 0.0 } else { first }, last), (LEFT, size.width - RIGHT));
    let values = points.iter().map(|point| point.1).chain(validation.map(|v| v.loss)).chain(before);
    let (low, high) = range(values);
    let pad = 0.05 * (high - low).max(1e-3);
    let y = Scale::new((low - pad, high + pad), (TOP + size.loss_height, TOP));

    let extra = panels(logged);
    #[expect(clippy::cast_precision_loss, reason = "two at most")]
    let below = extra.len() as f64 * (PANEL_GAP + PANEL_HEIGHT);
    let bottom = TOP + size.loss_height + below;
    let height = bottom + 40.0;
    let last_loss = points[points.len() - 1].1;
    let label =
        format!("Training loss from {:.2} at step {first} to {last_loss:.2} at step {last}", points[0].1);

    html! {
        svg class=(size.class) viewBox=(format!("0 0 {} {height}", size.width)) role="img" aria-label=(label) {
            @for tick in y.ticks(5) {
                path class="grid" d=(format!("M{LEFT} {}H{}", y.at(tick), size.width - RIGHT)) {}
                text class="tick" x=(LEFT - 8.0) y=(y.at(tick) + 4.0) text-anchor="end" { (y.label(tick, 5)) }
            }
            @for tick in x.ticks(size.ticks).into_iter().filter(|tick| tick.fract() == 0.0) {
                path class="grid" d=(format!("M{} {bottom}v5", x.at(tick))) {}
                text class="tick" x=(x.at(tick)) y=(bottom + 18.0) text-anchor="middle" { (grouped(whole(tick))) }
            }
            text class="axis" x=((LEFT + size.width - RIGHT) / 2.0) y=(bottom + 36.0) text-anchor="middle" { "optimizer step" }

            @if smooth.is_some() { path class="line raw" d=(line(points, x, y)) {} }
            path class="line smooth" d=(line(smooth.unwrap_or(points), x, y)) {}
            @if let Some(before) = before {
                g { title { (format!("validation loss before training: {before:.3}")) } (diamond(x.at(0.0), y.at(before), "validation hollow")) }
            }
            @if let Some(validation) = validation {
                g { title { (format!("validation loss after training: {:.3}", validation.loss)) } (diamond(x.at(last), y.at(validation.loss), "validation")) }
            }
            @for (index, panel) in extra.iter().enumerate() {
                (small(panel, index, size, x))
            }
        }
    }
}

/// A small chart under the loss.
struct Panel {
    title: &'static str,
    class: &'static str,
    points: Vec<(f64, f64)>,
    /// The largest value, written at the top of its axis.
    top: f64,
    top_label: String,
}

fn panels(logged: &[LoggedStep]) -> Vec<Panel> {
    let series = |value: fn(&LoggedStep) -> f64| -> Vec<LoggedStep> {
        logged
            .iter()
            .map(|step| LoggedStep { loss: value(step), ..*step })
            .filter(|step| step.loss.is_finite())
            .collect()
    };
    let mut panels = vec![];
    let rates = thin(&series(|step| step.learning_rate));
    let norms = thin(&series(|step| step.grad_norm));
    for (title, class, points) in
        [("learning rate", "line rate", rates), ("gradient norm", "line norm", norms)]
    {
        let top = range(points.iter().map(|point| point.1)).1;
        if points.len() > 1 && top > 0.0 {
            let top_label = if class == "line rate" { exponent(top) } else { format!("{top:.1}") };
            panels.push(Panel { title, class, points, top, top_label });
        }
    }
    panels
}

#[expect(clippy::cast_precision_loss, reason = "two at most")]
fn small(panel: &Panel, index: usize, size: Size, x: Scale) -> Markup {
    let top = TOP + size.loss_height + index as f64 * (PANEL_GAP + PANEL_HEIGHT) + PANEL_GAP;
    let y = Scale::new((0.0, panel.top), (top + PANEL_HEIGHT, top));
    html! {
        path class="grid" d=(format!("M{LEFT} {}H{}", top + PANEL_HEIGHT, size.width - RIGHT)) {}
        path class="grid" d=(format!("M{LEFT} {top}H{}", size.width - RIGHT)) {}
        text class="tick" x=(LEFT - 8.0) y=(top + 4.0) text-anchor="end" { (Untrusted(&panel.top_label)) }
        text class="tick" x=(LEFT - 8.0) y=(top + PANEL_HEIGHT + 4.0) text-anchor="end" { "0" }
        text class="axis" x=(LEFT) y=(top - 8.0) { (panel.title) }
        path class=(panel.class) d=(line(&panel.points, x, y)) {}
    }
}

/// `2.5e-4`, of at most two digits.
fn exponent(value: f64) -> String {
    format!("{value:.1e}").replace(".0e", "e")
}

fn line(points: &[(f64, f64)], x: Scale, y: Scale) -> String {
    let mut path = String::new();
    for (index, (step, value)) in points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        // Writing to a string cannot fail.
        let _ = write!(path, "{command}{} {}", x.at(*step), y.at(*value));
    }
    path
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a step")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// Steps and losses; of very many, the means of groups of neighbours.
#[expect(clippy::cast_precision_loss, reason = "steps are drawn in pixels")]
fn thin(logged: &[LoggedStep]) -> Vec<(f64, f64)> {
    let size = logged.len().div_ceil(MAX_POINTS).max(1);
    let mean = |group: &[LoggedStep], value: fn(&LoggedStep) -> f64| {
        group.iter().map(value).sum::<f64>() / group.len() as f64
    };
    let mut points: Vec<(f64, f64)> = logged
        .chunks(size)
        .map(|group| (mean(group, |step| step.step as f64), mean(group, |step| step.loss)))
        .collect();
    // The line starts and ends where the run does.
    if let (Some(point), Some(step)) = (points.first_mut(), logged.first()) {
        point.0 = step.step as f64;
    }
    if let (Some(point), Some(step)) = (points.last_mut(), logged.last()) {
        point.0 = step.step as f64;
    }
    points
}

/// Each point's mean with its neighbours, weighted by a Gaussian of a thirtieth of the line; unlike a running
/// mean it lags behind on neither side.
#[expect(clippy::cast_precision_loss, reason = "400 points")]
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let sigma = (points.len() as f64 / 30.0).max(1.0);
    (0..points.len())
        .map(|center| {
            let (mut sum, mut weights) = (0.0, 0.0);
            for (index, (_, value)) in points.iter().enumerate() {
                let distance = (index as f64 - center as f64) / sigma;
                let weight = (-0.5 * distance * distance).exp();
                sum += weight * value;
                weights += weight;
            }
            (points[center].0, sum / weights)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(steps: u64) -> Vec<LoggedStep> {
        (1..=steps)
            .map(|step| LoggedStep {
                step,
                loss: 4.0 - step as f64 / steps as f64,
                learning_rate: 1e-3,
                grad_norm: 1.0,
            })
            .collect()
    }

    #[test]
    fn nothing_is_drawn_of_less_than_two_points() {
        assert!(curve(&[], None).is_none());
        assert!(curve(&run(1), None).is_none());
        let mut bad = run(3);
        for step in &mut bad {
            step.loss = f64::NAN;
        }
        assert!(curve(&bad, None).is_none());
    }

    #[test]
    fn no_coordinate_is_ever_nan() {
        let flat: Vec<_> = run(50).into_iter().map(|step| LoggedStep { loss: 2.0, ..step }).collect();
        let mut broken = run(50);
        broken[3].loss = f64::NAN;
        broken[4].grad_norm = f64::INFINITY;
        broken[5].learning_rate = f64::NAN;
        for logged in [run(2), flat, broken] {
            let svg = curve(&logged, None).unwrap().into_string();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn a_long_run_stays_small_and_keeps_its_ends() {
        let points = thin(&run(100_003));
        assert!(points.len() <= MAX_POINTS, "{}", points.len());
        assert_eq!((points[0].0, points[points.len() - 1].0), (1.0, 100_003.0));
        assert!(curve(&run(100_003), None).unwrap().into_string().len() < 60_000);
    }

    #[test]
    fn smoothing_keeps_a_flat_line_and_damps_a_spike() {
        let flat: Vec<_> = (0..40).map(|step| (f64::from(step), 2.0)).collect();
        assert!(smooth(&flat).iter().all(|(_, value)| (value - 2.0).abs() < 1e-12));
        let mut spike = flat;
        spike[20].1 = 12.0;
        let smoothed = smooth(&spike);
        assert!(smoothed[20].1 < 7.0 && smoothed[20].1 > 2.5 && smoothed[0].1 < 2.01);
    }

    #[test]
    fn validation_is_marked_and_said() {
        let validation = ValidationMetrics { loss: 2.25, loss_before: Some(3.5), ..Default::default() };
        let svg = curve(&run(20), Some(&validation)).unwrap().into_string();
        assert!(svg.contains("validation loss after training: 2.250"));
        assert!(svg.contains("validation loss before training: 3.500"));
    }
}
