//! The charts of a sweep, drawn as SVG: the objective over a key, and the validation loss of every trial.

use super::super::scale::{Scale, rules};
use super::super::series::{Point, line, range};
use super::{SweepAxis, SweepReport};
use maud::{Markup, html};

/// A size that a chart is drawn for; the wide one has room for the name of each line.
struct Size {
    class: &'static str,
    width: f64,
    right: f64,
}

const SIZES: [Size; 2] = [
    Size { class: "chart wide", width: 960.0, right: 190.0 },
    Size { class: "chart narrow", width: 350.0, right: 14.0 },
];
const LEFT: f64 = 56.0;
const TOP: f64 = 12.0;
const HEIGHT: f64 = 240.0;
/// Names closer than this cannot be read.
const NAME_HEIGHT: f64 = 16.0;
/// So many lines have a name; of more, the best.
const MAX_NAMES: usize = 10;

/// A line of a chart.
struct Series {
    name: String,
    points: Vec<Point>,
}

/// Lines over one axis, the best first.
struct Chart {
    series: Vec<Series>,
    /// Where the axis has a mark, and its text; `None`: round numbers.
    ticks: Option<Vec<(f64, String)>>,
    axis: String,
    label: String,
}

/// The objective over the first key with several values, a line for each setting of the other keys.
pub(super) fn objective(report: &SweepReport) -> Option<Markup> {
    let varied: Vec<&SweepAxis> = report.varied().collect();
    let place = varied.iter().position(|axis| axis.values.len() > 1)?;
    let positions = positions(&varied[place].values);
    let mut series: Vec<Series> = Vec::new();
    for setting in report.settings() {
        let value = setting.values[place];
        let at = varied[place].values.iter().position(|other| other == value);
        let (Some(at), Some(mean)) = (at.and_then(|at| positions.get(at)), setting.mean()) else { continue };
        let others = varied.iter().zip(&setting.values).enumerate().filter(|(index, _)| *index != place);
        let others = others.map(|(_, (axis, value))| format!("{} {value}", short(&axis.key)));
        let name = others.collect::<Vec<_>>().join(", ");
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push((*at, mean)),
            None => series.push(Series { name, points: vec![(*at, mean)] }),
        }
    }
    for series in &mut series {
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let axis = short(&varied[place].key).to_owned();
    let label = format!("{} by {axis}", report.objective.name);
    let ticks = Some(positions.iter().copied().zip(varied[place].values.iter().cloned()).collect());
    Chart { series, ticks, axis, label }.draw(1)
}

/// The validation loss of every trial over its steps.
pub(super) fn losses(report: &SweepReport) -> Option<Markup> {
    #[expect(clippy::cast_precision_loss, reason = "steps are drawn in pixels")]
    let points = |trial: &super::TrialReport| {
        let finite = trial.history.iter().filter(|at| at.loss.is_finite());
        finite.map(|at| (at.step as f64, at.loss)).collect::<Vec<Point>>()
    };
    let settings = report.settings();
    let trials = settings.iter().flat_map(|setting| &setting.trials);
    let series = trials.map(|trial| Series { name: trial.name.replace(',', ", "), points: points(trial) });
    let label = "Validation loss by optimizer step".to_owned();
    Chart { series: series.collect(), ticks: None, axis: "optimizer step".to_owned(), label }.draw(2)
}

/// Where values stand: numbers by their size, or by its logarithm where they span more than a factor of eight; others in their order.
fn positions(values: &[String]) -> Vec<f64> {
    let numbers: Option<Vec<f64>> =
        values.iter().map(|value| value.parse().ok().filter(|number: &f64| number.is_finite())).collect();
    match numbers {
        Some(numbers) => {
            let (low, high) = range(numbers.iter().copied());
            let is_wide = low > 0.0 && high / low > 8.0;
            numbers.into_iter().map(|number| if is_wide { number.log10() } else { number }).collect()
        }
        None => (0_u32..).zip(values).map(|(index, _)| f64::from(index)).collect(),
    }
}

fn short(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

impl Chart {
    /// Nothing where no line has so many points.
    fn draw(mut self, needed: usize) -> Option<Markup> {
        self.series.retain(|series| series.points.len() >= needed);
        let points: usize = self.series.iter().map(|series| series.points.len()).sum();
        (points > 1).then(|| html! { figure { @for size in SIZES { (self.svg(&size)) } } })
    }

    fn svg(&self, size: &Size) -> Markup {
        let (right, bottom) = (size.width - size.right, TOP + HEIGHT);
        let all = || self.series.iter().flat_map(|series| &series.points);
        let (low, high) = range(all().map(|point| point.1));
        let pad = 0.06 * (high - low).max(1e-3);
        let y = Scale::new((low - pad, high + pad), (bottom, TOP));
        let (first, last) = range(all().map(|point| point.0));
        let margin = if self.ticks.is_some() { 0.04 * (last - first).max(1e-9) } else { 0.0 };
        let x = Scale::new((first - margin, last + margin), (LEFT, right));
        let ticks = self.ticks.clone().unwrap_or_else(|| {
            let whole = x.ticks(6).into_iter().filter(|tick| tick.fract() == 0.0);
            whole.map(|tick| (tick, format!("{tick:.0}"))).collect()
        });
        let has_names = size.right > 100.0;
        html! {
            svg class=(size.class) viewBox=(format!("0 0 {} {}", size.width, bottom + 42.0)) role="img" aria-label=(self.label) {
                (rules(y, (LEFT, right)))
                @for (at, text) in &ticks {
                    path class="grid" d=(format!("M{} {bottom}v5", x.at(*at))) {}
                    text class="tick" x=(x.at(*at)) y=(bottom + 18.0) text-anchor="middle" { (text) }
                }
                text class="axis" x=((LEFT + right) / 2.0) y=(bottom + 37.0) text-anchor="middle" { (self.axis) }
                // The best is drawn over the others.
                @for (index, series) in self.series.iter().enumerate().rev() {
                    g {
                        title { (series.name) }
                        path class=(if index == 0 { "line smooth" } else { "line rate" }) d=(line(&series.points, x, y)) {}
                        @if self.ticks.is_some() {
                            @for point in &series.points {
                                circle class=(if index == 0 { "after" } else { "before" }) cx=(x.at(point.0)) cy=(y.at(point.1)) r="4" {
                                    title { (format!("{:.4}", point.1)) }
                                }
                            }
                        }
                    }
                }
                @if has_names {
                    @for (name, at) in self.names(y) {
                        text class="tick" x=(right + 10.0) y=(at + 4.0) { (name) }
                    }
                }
            }
        }
    }

    /// The names of the best lines at their ends, moved apart where they would lie on each other.
    fn names(&self, y: Scale) -> Vec<(String, f64)> {
        let best = self.series.iter().take(MAX_NAMES);
        let mut names: Vec<(String, f64)> = best
            .filter_map(|series| Some((shortened(&series.name), y.at(series.points.last()?.1))))
            .filter(|(name, _)| !name.is_empty())
            .collect();
        names.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut lowest = f64::NEG_INFINITY;
        for (_, at) in &mut names {
            *at = at.max(lowest + NAME_HEIGHT);
            lowest = *at;
        }
        let beyond = (lowest - (TOP + HEIGHT)).max(0.0);
        names.into_iter().map(|(name, at)| (name, at - beyond)).collect()
    }
}

/// As much of a name as there is room for beside a chart.
fn shortened(name: &str) -> String {
    const LIMIT: usize = 30;
    let (start, left_out) = super::super::text::clip(name, LIMIT);
    if left_out > 0 { format!("{start}\u{2026}") } else { start.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn wide_ranges_of_numbers_are_logarithmic_and_words_in_order() {
        let at =
            |values: &[&str]| positions(&values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>());
        assert_eq!(at(&["1e-4", "1e-2"]), [-4.0, -2.0]);
        assert_eq!(at(&["8", "16"]), [8.0, 16.0]);
        assert_eq!(at(&["linear", "cosine"]), [0.0, 1.0]);
        assert_eq!(at(&["0", "0.1"]), [0.0, 0.1]);
    }

    #[test]
    fn a_line_for_each_rank_over_the_rates_and_one_for_each_trial_over_the_steps() {
        let report = example();
        let svg = objective(&report).unwrap().into_string();
        assert!(svg.contains("validation.loss by learning_rate"), "{svg}");
        let wide = svg.split("</svg>").next().unwrap();
        assert!(wide.contains("r 8") && wide.contains("r 16") && wide.contains("learning_rate"), "{wide}");
        assert_eq!(wide.matches("<path class=\"line").count(), 2);
        // Two points for r = 8 and one for r = 16, whose other trials failed.
        assert_eq!(wide.matches("<circle").count(), 3);
        let svg = losses(&report).unwrap().into_string();
        assert_eq!(svg.split("</svg>").next().unwrap().matches("<path class=\"line").count(), 5);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn without_results_nothing_is_drawn() {
        let mut report = example();
        for trial in &mut report.trials {
            trial.objective = None;
            trial.history.clear();
        }
        assert!(objective(&report).is_none() && losses(&report).is_none());
    }

    #[test]
    fn names_do_not_lie_on_each_other() {
        let series =
            (0..12).map(|index| Series { name: format!("{index}"), points: vec![(0.0, 1.0), (1.0, 2.0)] });
        let chart =
            Chart { series: series.collect(), ticks: None, axis: String::new(), label: String::new() };
        let names = chart.names(Scale::new((0.0, 2.0), (TOP + HEIGHT, TOP)));
        assert_eq!(names.len(), MAX_NAMES);
        assert!(names.windows(2).all(|pair| pair[1].1 - pair[0].1 >= NAME_HEIGHT));
        assert!(names.iter().all(|(_, at)| *at <= TOP + HEIGHT));
    }
}
