//! The matrix products of this machine, measured by a program of the benches: nothing here depends on libtorch.

use std::fmt;
use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{process, workspace};

pub struct Speed {
    threads: u64,
    f32: f64,
    bf16: f64,
}

/// Builds the program, which takes minutes where the bindings have never been built and seconds after that, and runs it
/// for two seconds.
pub fn measure() -> Result<Speed> {
    eprintln!("measuring matrix products (minutes where `tch` has not been built yet, seconds else)");
    let mut command =
        workspace::cargo(["run", "--quiet", "--package", "ferrotune-benches", "--bin", "matrix_products"]);
    command.stderr(Stdio::inherit()); // what a compiler says is not for one line
    read(&process::output(&mut command).context("not measured")?)
}

fn read(text: &str) -> Result<Speed> {
    let value: Value = serde_json::from_str(text).context("the measurement printed no JSON")?;
    let number = |key: &str| value[key].as_f64().with_context(|| format!("the measurement has no {key}"));
    Ok(Speed { threads: number("threads")? as u64, f32: number("f32")?, bf16: number("bf16")? })
}

impl Speed {
    pub fn as_json(&self) -> Value {
        json!({ "threads": self.threads, "f32": self.f32, "bf16": self.bf16 })
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { threads, f32, bf16 } = self;
        write!(f, "matrix products with {threads} threads: f32 {f32:.0} GFLOP/s, bf16 {bf16:.0} GFLOP/s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measurement_is_read_or_named_as_missing() {
        let speed = read("{\"threads\": 2, \"f32\": 100.4, \"bf16\": 250.0}\n").unwrap();
        assert_eq!(speed.to_string(), "matrix products with 2 threads: f32 100 GFLOP/s, bf16 250 GFLOP/s");
        assert!(read("{\"threads\": 2, \"f32\": 1}").is_err_and(|error| error.to_string().contains("bf16")));
        assert!(read("").is_err());
    }
}
