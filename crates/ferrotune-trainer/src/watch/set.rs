//! All watchers of a run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Action, Alarm, DeadParameter, Finding, LearningRate, LossSpike, NonFinite, Observation, Overfitting,
    Plateau, Watcher, WatcherKind,
};
use crate::{Error, Result};

const QUIET_STEPS: usize = 50;

/// What is done about each fault; `None`: nobody looks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchActions {
    /// See [`NonFinite`]; it can only skip, roll back or stop, and `None` stops with the error.
    pub non_finite: Option<Action>,
    /// See [`LossSpike`].
    pub loss_spike: Option<Action>,
    /// See [`Plateau`].
    pub plateau: Option<Action>,
    /// See [`Overfitting`].
    pub overfitting: Option<Action>,
    /// See [`DeadParameter`].
    pub dead_parameter: Option<Action>,
    /// See [`LearningRate`].
    pub learning_rate: Option<Action>,
}

impl Default for WatchActions {
    /// A number that is not finite stops the run; everything else is said.
    fn default() -> Self {
        Self {
            non_finite: Some(Action::Stop),
            loss_spike: Some(Action::Say),
            plateau: Some(Action::Say),
            overfitting: Some(Action::Say),
            dead_parameter: Some(Action::Say),
            learning_rate: Some(Action::Say),
        }
    }
}

impl WatchActions {
    /// Nobody looks for anything.
    pub fn none() -> Self {
        Self {
            non_finite: None,
            loss_spike: None,
            plateau: None,
            overfitting: None,
            dead_parameter: None,
            learning_rate: None,
        }
    }

    /// Refuses an action that a watcher cannot take: a step can be left out for its own loss or gradients alone, and a number that is
    /// not finite cannot be gone on with.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the first such field.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field, action: &str, expected| {
            Err(Error::InvalidArgument { field, found: format!("{action:?}"), expected })
        };
        if self.non_finite == Some(Action::Say) {
            return refuse("watch.non_finite", "say", "\"skip\", \"roll_back\" or \"stop\"");
        }
        let not_of_one_step = [
            ("watch.plateau", self.plateau),
            ("watch.overfitting", self.overfitting),
            ("watch.dead_parameter", self.dead_parameter),
            ("watch.learning_rate", self.learning_rate),
        ];
        for (field, action) in not_of_one_step {
            if action == Some(Action::Skip) {
                let expected = "\"say\", \"roll_back\" or \"stop\": it is not the fault of one step";
                return refuse(field, "skip", expected);
            }
        }
        Ok(())
    }
}

/// What every watcher remembers: it goes into a checkpoint, and comes back from it.
///
/// ```
/// use ferrotune_trainer::{Action, Observation, StepSignals, WatchActions, WatcherKind, Watchers};
///
/// let actions = WatchActions { loss_spike: Some(Action::Skip), ..Default::default() };
/// actions.validate()?;
/// let mut watchers = Watchers::default();
/// for step in 1..=41 {
///     let noise = if step % 2 == 0 { 0.1 } else { -0.1 };
///     let loss = if step == 41 { 9.0 } else { 2.0 + noise };
///     let seen = StepSignals { step, max_steps: 500, loss, grad_norm: 1.0, learning_rate: 1e-4 };
///     let findings = watchers.observe(Observation::Step(seen), &actions);
///     assert_eq!(findings.len(), usize::from(step == 41), "{findings:?}");
///     if let [finding] = findings.as_slice() {
///         assert_eq!((finding.watcher, finding.action), (WatcherKind::LossSpike, Action::Skip));
///     }
/// }
/// let saved = serde_json::to_string(&watchers)?;
/// assert_eq!(serde_json::from_str::<Watchers>(&saved)?, watchers);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Watchers {
    non_finite: NonFinite,
    loss_spike: LossSpike,
    plateau: Plateau,
    overfitting: Overfitting,
    dead_parameter: DeadParameter,
    learning_rate: LearningRate,
    /// The step at which each last said something.
    last_said: BTreeMap<WatcherKind, usize>,
}

impl Watchers {
    /// Shows an observation to every watcher, and returns what they found with what is to be done about it. What was just said is not
    /// said again for 50 steps.
    pub fn observe(&mut self, observation: Observation<'_>, actions: &WatchActions) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut ask = |kind, action: Option<Action>, alarm: Option<Alarm>| {
            if let (Some(action), Some(Alarm { what, advice })) = (action, alarm) {
                found.push(Finding { watcher: kind, step: observation.step(), action, what, advice });
            }
        };
        ask(NonFinite::KIND, actions.non_finite, self.non_finite.observe(observation));
        ask(LossSpike::KIND, actions.loss_spike, self.loss_spike.observe(observation));
        ask(Plateau::KIND, actions.plateau, self.plateau.observe(observation));
        ask(Overfitting::KIND, actions.overfitting, self.overfitting.observe(observation));
        ask(DeadParameter::KIND, actions.dead_parameter, self.dead_parameter.observe(observation));
        ask(LearningRate::KIND, actions.learning_rate, self.learning_rate.observe(observation));
        for finding in &mut found {
            if finding.watcher == WatcherKind::NonFinite
                && finding.action == Action::Skip
                && self.non_finite.is_hopeless()
            {
                finding.action = Action::Stop;
            }
        }
        found.retain(|finding| {
            let last = self.last_said.get(&finding.watcher);
            finding.action != Action::Say || last.is_none_or(|last| finding.step >= last + QUIET_STEPS)
        });
        self.last_said.extend(found.iter().map(|finding| (finding.watcher, finding.step)));
        found
    }
}
