//! Points of a chart: made few, made smooth, made a path.

use std::fmt::Write;

use super::scale::Scale;

/// Points that are drawn at most; more of them are averaged in groups.
pub(super) const MAX_POINTS: usize = 400;

/// A step and a value.
pub(super) type Point = (f64, f64);

/// The points; of very many, the means of groups of neighbours. The first and the last keep their steps.
#[expect(clippy::cast_precision_loss, reason = "a group is small")]
pub(super) fn thin(points: &[Point]) -> Vec<Point> {
    let size = points.len().div_ceil(MAX_POINTS).max(1);
    let mean =
        |group: &[Point], pick: fn(&Point) -> f64| group.iter().map(pick).sum::<f64>() / group.len() as f64;
    let mut thinned: Vec<Point> = points
        .chunks(size)
        .map(|group| (mean(group, |point| point.0), mean(group, |point| point.1)))
        .collect();
    if let (Some(thinned), Some(point)) = (thinned.first_mut(), points.first()) {
        thinned.0 = point.0;
    }
    if let (Some(thinned), Some(point)) = (thinned.last_mut(), points.last()) {
        thinned.0 = point.0;
    }
    thinned
}

/// Each point's mean with its neighbours, weighted by a Gaussian of a twentieth of the line; unlike a running mean it lags behind
/// on neither side.
#[expect(clippy::cast_precision_loss, reason = "400 points")]
pub(super) fn smooth(points: &[Point]) -> Vec<Point> {
    let sigma = (points.len() as f64 / 20.0).max(1.0);
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

/// The least and the largest; infinities the wrong way round of none.
pub(super) fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// The path of a line through the points.
pub(super) fn line(points: &[Point], x: Scale, y: Scale) -> String {
    let mut path = String::new();
    for (index, (step, value)) in points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        // Writing to a string cannot fail.
        let _ = write!(path, "{command}{} {}", x.at(*step), y.at(*value));
    }
    path
}

/// A path of lines without length: with round ends they are dots.
pub(super) fn dots(points: &[Point], x: Scale, y: Scale) -> String {
    let mut path = String::new();
    for (step, value) in points {
        let _ = write!(path, "M{} {}h0", x.at(*step), y.at(*value));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_stays_small_and_keeps_its_ends() {
        let long: Vec<Point> = (1..=100_003).map(|step| (f64::from(step), 2.0)).collect();
        let points = thin(&long);
        assert!(points.len() <= MAX_POINTS, "{}", points.len());
        assert_eq!((points[0].0, points[points.len() - 1].0), (1.0, 100_003.0));
        assert_eq!(thin(&long[..7]), long[..7]);
        assert_eq!(thin(&[]), []);
    }

    #[test]
    fn smoothing_keeps_a_flat_line_and_damps_a_spike() {
        let flat: Vec<Point> = (0..40).map(|step| (f64::from(step), 2.0)).collect();
        assert!(smooth(&flat).iter().all(|(_, value)| (value - 2.0).abs() < 1e-12));
        let mut spike = flat;
        spike[20].1 = 12.0;
        let smoothed = smooth(&spike);
        assert!(smoothed[20].1 < 7.0 && smoothed[20].1 > 2.5 && smoothed[0].1 < 2.01);
    }

    #[test]
    fn paths_are_lines_and_dots() {
        let (x, y) = (Scale::new((0.0, 10.0), (0.0, 100.0)), Scale::new((0.0, 1.0), (50.0, 0.0)));
        let points = [(0.0, 0.0), (5.0, 1.0)];
        assert_eq!(line(&points, x, y), "M0 50L50 0");
        assert_eq!(dots(&points, x, y), "M0 50h0M50 0h0");
    }
}
