//! Time and memory of one training step of ours, against the length of a sequence and against the size of the model.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::figures::Bench;
use super::plot::{Diagram, svg};
use super::samples::Samples;
use crate::files;

/// Tokens of one sequence; the last is the demo model's context.
const LENGTHS: [usize; 6] = [256, 512, 1024, 2048, 4096, 8192];
const QUICK_LENGTHS: [usize; 2] = [64, 128];
/// Tokens of the sequence that the sizes are compared with.
const TOKENS: usize = 512;
const QUICK_TOKENS: usize = 64;
/// One step to prepare, one that counts.
const STEPS: usize = 2;
/// The demo model's.
const VOCABULARY: usize = 49_152;

/// A Llama-shaped model to make: 64 numbers a head, three query heads for one of keys and values.
struct Shape {
    name: &'static str,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    key_value_heads: usize,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "0.5B", hidden_size: 1152, intermediate_size: 3072, layers: 32, key_value_heads: 6 },
    Shape { name: "1B", hidden_size: 1536, intermediate_size: 4096, layers: 36, key_value_heads: 8 },
];
const QUICK_SHAPES: [Shape; 1] =
    [Shape { name: "tiny", hidden_size: 192, intermediate_size: 512, layers: 2, key_value_heads: 1 }];

/// A point of both curves: x, the seconds of the step, the peak memory in MiB.
struct Point {
    x: f64,
    seconds: Samples,
    peak_mib: Samples,
}

/// Measures both curves, writes their images into `out` and returns the numbers.
pub fn measure(bench: &Bench, repeats: usize, quick: bool) -> Result<Value> {
    let (lengths, shapes, tokens): (&[usize], &[Shape], usize) = match quick {
        true => (&QUICK_LENGTHS, &QUICK_SHAPES, QUICK_TOKENS),
        false => (&LENGTHS, &SHAPES, TOKENS),
    };
    let demo = &bench.programs.model;
    let mut by_length = Vec::new();
    for length in lengths {
        by_length.push(point(bench, "demo model", demo, *length, repeats)?.1.at(*length as f64));
    }
    let mut by_size = Vec::new();
    let (parameters, sizes) = point(bench, "demo model", demo, tokens, repeats)?;
    by_size.push(sizes.at(parameters / 1e6));
    for shape in shapes {
        let folder = tempfile::tempdir_in(bench.out.join("work"))?;
        write_model(bench, shape, folder.path())?;
        let (parameters, sizes) = point(bench, shape.name, folder.path(), tokens, repeats)?;
        by_size.push(sizes.at(parameters / 1e6));
    }
    by_size.sort_by(|one, other| one.x.total_cmp(&other.x));
    plot(&bench.out.join("scaling-length.svg"), "tokens of one sequence", &by_length)?;
    plot(&bench.out.join("scaling-model.svg"), &format!("million parameters, {tokens} tokens"), &by_size)?;
    Ok(json!({
        "by_tokens": as_json(&by_length),
        "by_million_parameters": as_json(&by_size),
        "tokens_of_by_million_parameters": tokens,
    }))
}

struct Sizes {
    seconds: Samples,
    peak_mib: Samples,
}

impl Sizes {
    fn at(self, x: f64) -> Point {
        Point { x, seconds: self.seconds, peak_mib: self.peak_mib }
    }
}

/// The model's number of parameters, and what a step takes.
fn point(bench: &Bench, name: &str, model: &Path, tokens: usize, repeats: usize) -> Result<(f64, Sizes)> {
    let mut sizes: Option<Sizes> = None;
    let mut parameters = 0.0;
    for _ in 0..repeats {
        let mut command = bench.programs.measure("step");
        command.arg("--model").arg(model);
        command.args(["--tokens", &tokens.to_string(), "--steps", &STEPS.to_string()]);
        let finished = bench.run(&format!("a step of {tokens} tokens on {name}"), &mut command)?;
        let last = finished.all("step").next_back().context("the program told no step")?;
        let seconds = last.value["seconds"].as_f64().context("a step has no `seconds`")?;
        let peak_mib = finished.peak_mib()?;
        parameters = finished.number("/parameters")?;
        match &mut sizes {
            Some(sizes) => {
                sizes.seconds.add(seconds);
                sizes.peak_mib.add(peak_mib);
            }
            None => {
                sizes = Some(Sizes { seconds: Samples::of(seconds), peak_mib: Samples::of(peak_mib) });
            }
        }
    }
    Ok((parameters, sizes.context("nothing was repeated")?))
}

fn write_model(bench: &Bench, shape: &Shape, folder: &Path) -> Result<()> {
    let mut command = bench.programs.measure("random-model");
    for (option, value) in [
        ("--hidden-size", shape.hidden_size),
        ("--intermediate-size", shape.intermediate_size),
        ("--layers", shape.layers),
        ("--key-value-heads", shape.key_value_heads),
        ("--vocabulary", VOCABULARY),
    ] {
        command.arg(option).arg(value.to_string());
    }
    command.arg("--output").arg(folder);
    bench.run(&format!("writing random weights of {}", shape.name), &mut command).map(|_| ())
}

fn plot(path: &Path, x: &str, points: &[Point]) -> Result<()> {
    let curve = |of: fn(&Point) -> &Samples| -> Vec<(f64, f64)> {
        points.iter().map(|point| (point.x, of(point).median())).collect()
    };
    let (seconds, memory) = (curve(|point| &point.seconds), curve(|point| &point.peak_mib));
    let image = svg(&[
        Diagram { title: "Time of one training step, s", x, points: &seconds },
        Diagram { title: "Peak resident memory, MiB", x, points: &memory },
    ]);
    files::write(path, image.as_bytes())
}

fn as_json(points: &[Point]) -> Value {
    let one = |point: &Point| json!({ "x": point.x, "seconds": point.seconds.as_json(), "peak_mib": point.peak_mib.as_json() });
    points.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters of a Llama with tied embeddings.
    fn parameters(shape: &Shape) -> usize {
        let (hidden, key_value) = (shape.hidden_size, 64 * shape.key_value_heads);
        let layer =
            2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * shape.intermediate_size + 2 * hidden;
        VOCABULARY * hidden + hidden + shape.layers * layer
    }

    #[test]
    fn the_shapes_have_the_sizes_that_they_are_named_after() {
        assert!((480_000_000..540_000_000).contains(&parameters(&SHAPES[0])), "{}", parameters(&SHAPES[0]));
        assert!((950_000_000..1_050_000_000).contains(&parameters(&SHAPES[1])), "{}", parameters(&SHAPES[1]));
        for shape in SHAPES.iter().chain(&QUICK_SHAPES) {
            assert_eq!(shape.hidden_size % 64, 0);
            assert_eq!((shape.hidden_size / 64) % shape.key_value_heads, 0);
        }
    }
}
