//! Parameters that do not learn, or run away.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::robust::median;
use super::{Alarm, Observation, ParameterNorm, Watcher, WatcherKind};
use crate::error::Listed;

const STEPS: usize = 20;
const TIMES_MEDIAN: f64 = 30.0;
const FEWEST: usize = 4;
const DOUBLINGS: usize = 5;
const SHOWN: usize = 4;

/// Finds trainable parameters that are still zero, as the `B` of an adapter that never learns, and those whose norm explodes.
///
/// At each logged step it fires for a parameter
/// - whose norm is 0 after 20 steps with a rate above 0 (a `B` starts at zero, and moves with the first step that it has a gradient in),
/// - whose root mean square is more than 30 times the median of the parameters with the same last name (`lora_B.weight`), of which there
///   must be 4,
/// - whose norm has at least doubled from each of the last 6 logged steps to the next: exponential growth, where a healthy parameter
///   grows like the number of steps or slower.
///
/// It names each parameter once.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DeadParameter {
    steps_with_rate: usize,
    last: BTreeMap<String, Growth>,
    named: Vec<String>,
}

/// How the norm of a parameter went.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Growth {
    norm: f64,
    /// Doublings in a row.
    doublings: usize,
}

impl DeadParameter {
    fn look(&mut self, norms: &[ParameterNorm]) -> Option<Alarm> {
        let root_mean_square = |norm: &ParameterNorm| norm.norm / (norm.elements.max(1) as f64).sqrt();
        let mut groups: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for norm in norms {
            groups.entry(last_name(&norm.name)).or_default().push(root_mean_square(norm));
        }
        let medians: BTreeMap<&str, f64> = groups
            .into_iter()
            .filter(|(_, values)| values.len() >= FEWEST)
            .map(|(name, values)| (name, median(values)))
            .collect();
        let (mut dead, mut exploding) = (Vec::new(), Vec::new());
        for norm in norms {
            let growth = self.last.entry(norm.name.clone()).or_default();
            let doubled = growth.norm > 0.0 && norm.norm >= 2.0 * growth.norm;
            growth.doublings = if doubled { growth.doublings + 1 } else { 0 };
            growth.norm = norm.norm;
            let usual = medians.get(last_name(&norm.name)).copied().unwrap_or(0.0);
            let far = usual > 0.0 && root_mean_square(norm) > TIMES_MEDIAN * usual;
            let bad = if norm.norm == 0.0 && self.steps_with_rate >= STEPS {
                &mut dead
            } else if far || growth.doublings >= DOUBLINGS {
                &mut exploding
            } else {
                continue;
            };
            if !self.named.contains(&norm.name) {
                self.named.push(norm.name.clone());
                bad.push(norm.name.clone());
            }
        }
        match (dead.is_empty(), exploding.is_empty()) {
            (false, _) => Some(Alarm {
                what: format!("{} of {} trainable parameters are still zero after {} steps: {}", dead.len(), norms.len(), self.steps_with_rate, Listed(&dead, SHOWN)),
                advice: "nothing reaches them: check the target modules, that the layers are used in the forward pass, and that the \
                         rate of their group is not 0"
                    .into(),
                since: None,
            }),
            (true, false) => Some(Alarm {
                what: format!("the norm of {} of {} trainable parameters explodes: {}", exploding.len(), norms.len(), Listed(&exploding, SHOWN)),
                advice: "lower the learning rate, or max_grad_norm, or lora_alpha".into(),
                since: None,
            }),
            (true, true) => None,
        }
    }
}

impl Watcher for DeadParameter {
    const KIND: WatcherKind = WatcherKind::DeadParameter;

    fn observe(&mut self, observation: Observation<'_>) -> Option<Alarm> {
        match observation {
            Observation::Step(signals) => {
                self.steps_with_rate += usize::from(signals.learning_rate > 0.0);
                None
            }
            Observation::Norms { norms, .. } => self.look(norms),
            _ => None,
        }
    }
}

/// `lora_B.weight` of `layers.0.q_proj.lora_B.weight`.
pub(crate) fn last_name(name: &str) -> &str {
    name.rmatch_indices('.').nth(1).map_or(name, |(dot, _)| &name[dot + 1..])
}
