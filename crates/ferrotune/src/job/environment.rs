//! What a run was made with, and when.

use crate::{recipe::Recipe, report::Fact};
use std::time::SystemTime;
use time::OffsetDateTime;

/// Versions, machine and dates, for the report.
pub(super) fn environment(recipe: &Recipe, started: SystemTime) -> Vec<Fact> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let libtorch = ferrotune_autograd::libtorch_version().unwrap_or_else(|| "unknown".to_owned());
    let mut facts = vec![
        Fact::new("Started", utc(started)),
        Fact::new("Finished", utc(SystemTime::now())),
        Fact::new("ferrotune", env!("CARGO_PKG_VERSION")),
        Fact::new("libtorch", libtorch),
        Fact::new("Device", &recipe.runtime.device),
        Fact::new("Compute dtype", compute_dtype(recipe)),
        Fact::new("Threads", format!("{} of {cores} cores", tch::get_num_threads())),
        Fact::new("System", format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH)),
    ];
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    facts.extend(processor(&cpuinfo).map(|name| Fact::new("Processor", name)));
    facts
}

/// The types that the model is computed in.
fn compute_dtype(recipe: &Recipe) -> String {
    let answers = &recipe.runtime.compute_dtype;
    match (recipe.training.bf16, recipe.training.fp16) {
        (true, _) => format!("bf16 in training, {answers} for answers"),
        (_, true) => format!("f16 in training, {answers} for answers"),
        _ => answers.clone(),
    }
}

/// The processor's name, which Linux says once for each core.
fn processor(cpuinfo: &str) -> Option<&str> {
    let (_, name) = cpuinfo.lines().find(|line| line.starts_with("model name"))?.split_once(':')?;
    Some(name.trim()).filter(|name| !name.is_empty())
}

/// `2026-11-24 12:04:05 UTC`.
fn utc(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let (hour, minute, second) = time.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02} UTC", time.date())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (1_735_689_600, "2025-01-01 00:00:00 UTC"),
            (1_795_521_840, "2026-11-24 12:04:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn the_dtype_of_training_is_told_apart_from_that_of_answers() {
        let mut recipe = Recipe::new("out", "model", "train");
        assert_eq!(compute_dtype(&recipe), "f32");
        recipe.training.bf16 = true;
        assert_eq!(compute_dtype(&recipe), "bf16 in training, f32 for answers");
        (recipe.training.bf16, recipe.training.fp16) = (false, true);
        assert_eq!(compute_dtype(&recipe), "f16 in training, f32 for answers");
    }

    #[test]
    fn the_processor_is_named_where_the_system_says_it() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2.0: fast\nflags\t: avx\nmodel name\t: A CPU\n";
        assert_eq!(processor(text), Some("A CPU @ 2.0: fast"));
        assert_eq!(processor("Features : neon"), None);
    }
}
