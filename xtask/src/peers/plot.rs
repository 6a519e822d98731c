//! Curves with logarithmic axes, as SVG that is readable on light and on dark pages.

use std::fmt::Write as _;

use super::samples::number;

/// One diagram of an image.
pub struct Diagram<'a> {
    pub title: &'a str,
    pub x: &'a str,
    /// All above zero.
    pub points: &'a [(f64, f64)],
}

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 54.0;

const STYLE: &str = "\
text{font:12px sans-serif;fill:#24292f}\
.title{font-weight:600}\
.axis{stroke:#57606a;fill:none}\
.grid{stroke:#d0d7de}\
.guide{stroke:#8c959f;stroke-dasharray:4 4;fill:none}\
.line{stroke:#0969da;stroke-width:2;fill:none}\
.point{fill:#0969da}\
@media(prefers-color-scheme:dark){\
text{fill:#e6edf3}\
.axis{stroke:#9198a1}\
.grid{stroke:#3d444d}\
.guide{stroke:#7d8590}\
.line{stroke:#4493f8}\
.point{fill:#4493f8}}";

/// Diagrams side by side. The dashed line in each is what is proportional to x, through the first point.
pub fn svg(diagrams: &[Diagram]) -> String {
    let width = WIDTH * diagrams.len() as f64;
    let mut text = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"><style>{STYLE}</style>"#
    );
    for (index, diagram) in diagrams.iter().enumerate() {
        text += &format!("\n<g transform=\"translate({} 0)\">\n", WIDTH * index as f64);
        draw(diagram, &mut text);
        text += "</g>";
    }
    text + "\n</svg>\n"
}

/// A logarithmic axis from pixel to pixel.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let (low, high) =
            values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        // Some room beyond the points, and more of it where there is but one value.
        let room = if low < high { 1.15 } else { 2.0 };
        Self { low: low / room, high: high * room, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        self.from + share * (self.to - self.from)
    }

    /// 1, 2 and 5 times the powers of ten.
    fn ticks(&self) -> Vec<f64> {
        let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let ticks = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(power)));
        ticks.filter(|tick| (self.low..=self.high).contains(tick)).collect()
    }
}

fn draw(diagram: &Diagram, text: &mut String) {
    let Diagram { title, x: x_title, points } = diagram;
    let [left, right, top, bottom] = [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM];
    let inset = 24.0; // numbers over the outer points are as wide
    let x = Axis::new(points.iter().map(|point| point.0), left + inset, right);
    let y = Axis::new(points.iter().map(|point| point.1), bottom, top);
    let mut add = |line: String| _ = writeln!(text, "{line}");
    add(format!(r#"<text class="title" x="{left}" y="20">{}</text>"#, escaped(title)));
    add(format!(r#"<text x="{right}" y="20" text-anchor="end">dashed: in proportion</text>"#));
    for tick in y.ticks() {
        let at = y.at(tick);
        add(format!(r#"<line class="grid" x1="{left}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/>"#));
        add(format!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            left - 8.0,
            at + 4.0,
            plain(tick)
        ));
    }
    for point in *points {
        let at = x.at(point.0);
        add(format!(r#"<line class="axis" x1="{at:.1}" x2="{at:.1}" y1="{bottom}" y2="{}"/>"#, bottom + 5.0));
        add(format!(
            r#"<text x="{at:.1}" y="{}" text-anchor="middle">{}</text>"#,
            bottom + 20.0,
            plain(point.0)
        ));
    }
    add(format!(
        r#"<text x="{}" y="{}" text-anchor="middle">{}</text>"#,
        (left + right) / 2.0,
        HEIGHT - 12.0,
        escaped(x_title)
    ));
    add(format!(r#"<path class="axis" d="M{left} {top}V{bottom}H{right}"/>"#));
    if let Some((guide_x, guide_y)) = guide(points, &y) {
        let places = [(points[0].0, points[0].1), (guide_x, guide_y)];
        add(format!(r#"<path class="guide" d="{}"/>"#, path(&places, &x, &y)));
    }
    add(format!(r#"<path class="line" d="{}"/>"#, path(points, &x, &y)));
    for point in *points {
        let (at_x, at_y) = (x.at(point.0), y.at(point.1));
        add(format!(r#"<circle class="point" cx="{at_x:.1}" cy="{at_y:.1}" r="3.5"/>"#));
        add(format!(
            r#"<text x="{at_x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            at_y - 9.0,
            number(point.1)
        ));
    }
}

/// The end of the line of proportion: at the last x, or where the line leaves the diagram.
fn guide(points: &[(f64, f64)], y: &Axis) -> Option<(f64, f64)> {
    let (first, last) = (points.first()?, points.last()?);
    let reach = (last.0 / first.0).min(y.high / first.1);
    (reach > 1.0).then_some((first.0 * reach, first.1 * reach))
}

fn path(points: &[(f64, f64)], x: &Axis, y: &Axis) -> String {
    let places: Vec<String> =
        points.iter().map(|point| format!("{:.1} {:.1}", x.at(point.0), y.at(point.1))).collect();
    format!("M{}", places.join("L"))
}

/// A place on an axis as it is read: no digits that say nothing.
fn plain(tick: f64) -> String {
    if tick >= 1.0 {
        number(tick.round()).trim_end_matches(".00").trim_end_matches(".0").to_owned()
    } else {
        format!("{tick}")
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTS: [(f64, f64); 3] = [(256.0, 1.5), (512.0, 3.0), (1024.0, 9.0)];

    #[test]
    fn an_image_shows_every_point_with_its_number() {
        let text = svg(&[
            Diagram { title: "Seconds a step", x: "tokens", points: &POINTS },
            Diagram { title: "a < b & c", x: "tokens", points: &POINTS[..1] },
        ]);
        assert_eq!(text.matches("<circle").count(), 4);
        assert_eq!(text.matches("<g ").count(), text.matches("</g>").count());
        for shown in
            [">1.50<", ">9.00<", ">1,024<", "Seconds a step", "a &lt; b &amp; c", "prefers-color-scheme:dark"]
        {
            assert!(text.contains(shown), "{shown} is not in {text}");
        }
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn equal_factors_are_equal_lengths() {
        let axis = Axis::new([1.0, 100.0].into_iter(), 0.0, 200.0);
        let (a, b, c) = (axis.at(2.0), axis.at(8.0), axis.at(32.0));
        assert!((b - a - (c - b)).abs() < 1e-9);
        assert!(axis.at(1.0) > 0.0 && axis.at(100.0) < 200.0);
        let upwards = Axis::new([1.0, 100.0].into_iter(), 200.0, 0.0);
        assert!(upwards.at(100.0) < upwards.at(1.0));
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::new([0.03, 25.0].into_iter(), 0.0, 1.0);
        let shown: Vec<String> = axis.ticks().into_iter().map(plain).collect();
        assert_eq!(shown, ["0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20"]);
        assert_eq!([plain(500.0), plain(2000.0)], ["500", "2,000"]);
    }

    #[test]
    fn the_line_of_proportion_stays_inside() {
        let y = Axis::new(POINTS.iter().map(|point| point.1), 0.0, 1.0);
        assert_eq!(guide(&POINTS, &y), Some((1024.0, 6.0)));
        let flat = [(1.0, 1.0), (1000.0, 1.1)];
        let y = Axis::new(flat.iter().map(|point| point.1), 0.0, 1.0);
        assert!(guide(&flat, &y).is_some_and(|end| end.1 <= y.high * 1.0001));
        assert_eq!(guide(&POINTS[..1], &y), None);
    }
}
