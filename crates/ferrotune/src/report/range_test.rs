//! The curve of a learning-rate range test, drawn as SVG of its own.

use ferrotune_trainer::RangeOutcome;
use maud::html;

use super::scale::Scale;
use super::series::{Point, line, range};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 740.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 360.0;
/// The run-away is cut off here, above the highest loss before it: what counts is the descent.
const HEADROOM: f64 = 0.3;

/// The losses of a range test over the logarithm of the rate, with the suggested rates, as an SVG file. `None` of fewer than two points.
///
/// ```
/// use ferrotune::report::range_test_svg;
/// use ferrotune::trainer::RangeOutcome;
/// assert_eq!(range_test_svg(&RangeOutcome::default()), None);
/// ```
pub fn range_test_svg(found: &RangeOutcome) -> Option<String> {
    let raw: Vec<Point> =
        found.points.iter().map(|point| (point.learning_rate.log10(), point.loss)).collect();
    let smooth: Vec<Point> =
        found.points.iter().map(|point| (point.learning_rate.log10(), point.smoothed_loss)).collect();
    let (first, last) = range(smooth.iter().map(|point| point.0));
    let start = smooth.first()?.1;
    let lowest = range(smooth.iter().map(|point| point.1)).0;
    let high = start.max(lowest) + HEADROOM * (start - lowest).max(0.1);
    let low = lowest - 0.05 * (high - lowest);
    if smooth.len() < 2 {
        return None;
    }
    let (x, y) = (Scale::new((first, last), (LEFT, RIGHT)), Scale::new((low, high), (BOTTOM, TOP)));
    let below =
        |points: Vec<Point>| -> Vec<Point> { points.into_iter().filter(|point| point.1 <= high).collect() };
    let (raw, smooth) = (below(raw), below(smooth));
    let marks = [("steepest descent", found.steepest), ("a tenth of the minimum", found.minimum_tenth)];
    let marks: Vec<(f64, String)> = marks
        .into_iter()
        .filter_map(|(name, rate)| rate.map(|rate| (rate.log10(), format!("{name}: {rate:.1e}"))))
        .filter(|(at, _)| (first..=last).contains(at))
        .collect();
    let decades = x.ticks(10).into_iter().filter(|tick| tick.fract() == 0.0);
    let markup = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) width=(WIDTH) height=(HEIGHT)
            font-family="sans-serif" font-size="12" fill="#1d1b19" {
            rect width="100%" height="100%" fill="#fbfaf8" {}
            text x=(LEFT) y="22" { "Learning-rate range test: loss by learning rate" @if found.diverged { ", until it diverged" } }
            @for tick in y.ticks(5) {
                path stroke="#e4dfd8" d=(format!("M{LEFT} {}H{RIGHT}", y.at(tick))) {}
                text x=(LEFT - 8.0) y=(y.at(tick) + 4.0) text-anchor="end" { (y.label(tick, 5)) }
            }
            @for tick in decades {
                path stroke="#6a645d" d=(format!("M{} {BOTTOM}v5", x.at(tick))) {}
                text x=(x.at(tick)) y=(BOTTOM + 20.0) text-anchor="middle" { "1e" (tick) }
            }
            text x=((LEFT + RIGHT) / 2.0) y=(BOTTOM + 42.0) text-anchor="middle" { "learning rate" }
            // A single step may fall far below the smoothed curve, for which the axis is made.
            clipPath id="plot" { rect x=(LEFT) y=(TOP) width=(RIGHT - LEFT) height=(BOTTOM - TOP) {} }
            path clip-path="url(#plot)" fill="none" stroke="#c9a893" d=(line(&raw, x, y)) {}
            path fill="none" stroke="#a8400f" stroke-width="2" d=(line(&smooth, x, y)) {}
            @for ((at, text), row) in marks.iter().zip(0_u32..) {
                path stroke="#2f6f9f" stroke-dasharray="4 4" d=(format!("M{} {TOP}V{BOTTOM}", x.at(*at))) {}
                text x=(x.at(*at) + 6.0) y=(TOP + 14.0 + 16.0 * f64::from(row)) fill="#2f6f9f" { (text) }
            }
        }
    };
    Some(markup.into_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_trainer::RangePoint;

    #[test]
    fn the_descent_and_both_suggestions_are_drawn_and_the_run_away_is_cut_off() {
        let point = |(index, loss): (i32, f64)| RangePoint {
            learning_rate: 10f64.powi(index - 6),
            loss,
            smoothed_loss: loss,
        };
        let mut found = RangeOutcome::default();
        found.points = (0..).zip([3.0, 2.9, 2.2, 1.5, 1.4, 900.0]).map(point).collect();
        found.steepest = Some(1e-4);
        found.minimum_tenth = Some(1e-3);
        let svg = range_test_svg(&found).unwrap();
        for expected in ["steepest descent: 1.0e-4", "a tenth of the minimum: 1.0e-3", ">1e-6<", ">1e-1<"] {
            assert!(svg.contains(expected), "{expected} in {svg}");
        }
        let smooth = svg.split("stroke-width=\"2\" d=\"").nth(1).unwrap();
        let smooth = smooth.split('"').next().unwrap();
        assert_eq!(smooth.matches('L').count(), 4, "{smooth}");
        assert!(svg.contains("clip-path=\"url(#plot)\" fill=\"none\" stroke=\"#c9a893\""), "{svg}");
        found.points.truncate(1);
        assert_eq!(range_test_svg(&found), None);
    }
}
