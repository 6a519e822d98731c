//! Small charts under the loss: the learning rate and the norm of the gradient.

use maud::{Markup, html};

use super::metrics::LoggedStep;
use super::scale::Scale;
use super::series::{Point, line, range, thin};

/// What one small chart takes in height, the gap above it included.
pub(super) const PANEL: f64 = 74.0;
const GAP: f64 = 30.0;

/// A small chart.
pub(super) struct Panel {
    title: &'static str,
    class: &'static str,
    points: Vec<Point>,
    /// The largest value, and how it is written at the top of the axis.
    top: f64,
    top_label: String,
}

/// The charts for which there are numbers.
pub(super) fn panels(logged: &[LoggedStep]) -> Vec<Panel> {
    let panel = |title, class, value: fn(&LoggedStep) -> f64, label: fn(f64) -> String| {
        #[expect(clippy::cast_precision_loss, reason = "steps are drawn in pixels")]
        let points: Vec<Point> = logged
            .iter()
            .map(|step| (step.step as f64, value(step)))
            .filter(|(_, value)| value.is_finite())
            .collect();
        let points = thin(&points);
        let top = range(points.iter().map(|point| point.1)).1;
        (points.len() > 1 && top > 0.0).then(|| Panel { title, class, points, top, top_label: label(top) })
    };
    let rate = panel("learning rate", "line rate", |step| step.learning_rate, exponent);
    let norm = panel("gradient norm", "line norm", |step| step.grad_norm, |top| format!("{top:.1}"));
    [rate, norm].into_iter().flatten().collect()
}

impl Panel {
    /// The chart between `left` and `right`, under `above`.
    pub(super) fn draw(&self, above: f64, (left, right): (f64, f64), x: Scale) -> Markup {
        let (top, bottom) = (above + GAP, above + PANEL);
        let y = Scale::new((0.0, self.top), (bottom, top));
        html! {
            path class="grid" d=(format!("M{left} {bottom}H{right}")) {}
            path class="grid" d=(format!("M{left} {top}H{right}")) {}
            text class="tick" x=(left - 8.0) y=(top + 4.0) text-anchor="end" { (self.top_label) }
            text class="tick" x=(left - 8.0) y=(bottom + 4.0) text-anchor="end" { "0" }
            text class="axis" x=(left) y=(top - 8.0) { (self.title) }
            path class=(self.class) d=(line(&self.points, x, y)) {}
        }
    }
}

/// `2.5e-4`, of at most two digits.
fn exponent(value: f64) -> String {
    format!("{value:.1e}").replace(".0e", "e")
}
