//! A set of scores with their intervals, in the order they were asked for.

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A measured value with its confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The value itself.
    pub value: f64,
    /// The lower end of its 95 % interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Scores by metric, on the scale of 0 to 100.
///
/// In JSON each score is a plain number under the metric's own name, and its interval stands beside it:
/// `{"rougeL": 33.4, "rougeL_low": 31.6, "rougeL_high": 35.2}`.
///
/// ```
/// use ferrotune::report::{Interval, Scores};
///
/// let mut scores = Scores::default();
/// scores.push("rougeL", Interval { value: 33.5, low: 31.5, high: 35.25 });
/// let json = serde_json::to_string(&scores)?;
/// assert_eq!(json, r#"{"rougeL":33.5,"rougeL_low":31.5,"rougeL_high":35.25}"#);
/// assert_eq!(serde_json::from_str::<Scores>(&json)?, scores);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    scores: Vec<(String, Interval)>,
}

impl Scores {
    /// Adds a score after the others; one of the same metric is replaced.
    pub fn push(&mut self, metric: impl Into<String>, interval: Interval) {
        let metric = metric.into();
        match self.scores.iter_mut().find(|(name, _)| *name == metric) {
            Some((_, old)) => *old = interval,
            None => self.scores.push((metric, interval)),
        }
    }

    /// The score of a metric.
    #[must_use]
    pub fn get(&self, metric: &str) -> Option<Interval> {
        self.scores.iter().find(|(name, _)| name == metric).map(|(_, interval)| *interval)
    }

    /// The metrics and their scores, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Interval)> {
        self.scores.iter().map(|(name, interval)| (name.as_str(), *interval))
    }

    /// Whether nothing was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scores.is_empty()
    }
}

impl<M: Into<String>> FromIterator<(M, Interval)> for Scores {
    fn from_iter<T: IntoIterator<Item = (M, Interval)>>(scores: T) -> Self {
        let mut all = Self::default();
        for (metric, interval) in scores {
            all.push(metric, interval);
        }
        all
    }
}

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3 * self.scores.len()))?;
        for (metric, interval) in &self.scores {
            map.serialize_entry(metric, &interval.value)?;
            map.serialize_entry(&format!("{metric}_low"), &interval.low)?;
            map.serialize_entry(&format!("{metric}_high"), &interval.high)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Scores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Scores;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of metrics to numbers, with the ends of their intervals")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scores, A::Error> {
                let mut values: Vec<(String, f64)> = vec![];
                while let Some(entry) = map.next_entry()? {
                    values.push(entry);
                }
                let find = |name: &str| values.iter().find(|(key, _)| key == name).map(|(_, value)| *value);
                let mut scores = Scores::default();
                for (name, value) in &values {
                    if name.ends_with("_low") || name.ends_with("_high") {
                        continue;
                    }
                    match (find(&format!("{name}_low")), find(&format!("{name}_high"))) {
                        (Some(low), Some(high)) => scores.push(name, Interval { value: *value, low, high }),
                        _ => {
                            return Err(A::Error::custom(format!(
                                "{name} has no interval ({name}_low, {name}_high)"
                            )));
                        }
                    }
                }
                Ok(scores)
            }
        }
        deserializer.deserialize_map(Map)
    }
}
