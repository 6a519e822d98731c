//! All watchers of a run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Action, Alarm, DeadParameter, Finding, LearningRate, LossSpike, NonFinite, Observation, Overfitting,
    Plateau, Watcher, WatcherKind,
};
use crate::{Error, Result};

const QUIET_STEPS: usize = 50;

/// What is done about each fault; `None`, read and written as `"off"`: nobody looks for it.
///
/// ```
/// use ferrotune_trainer::{Action, WatchActions};
/// let actions: WatchActions = serde_json::from_str(r#"{"loss_spike": "skip", "plateau": "off"}"#)?;
/// assert_eq!((actions.loss_spike, actions.plateau), (Some(Action::Skip), None));
/// assert_eq!(actions.overfitting, Some(Action::Say)); // the default
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchActions {
    /// See [`NonFinite`]; it can only skip, roll back or stop, and `None` stops with the error.
    #[serde(with = "or_off")]
    pub non_finite: Option<Action>,
    /// See [`LossSpike`].
    #[serde(with = "or_off")]
    pub loss_spike: Option<Action>,
    /// See [`Plateau`].
    #[serde(with = "or_off")]
    pub plateau: Option<Action>,
    /// See [`Overfitting`].
    #[serde(with = "or_off")]
    pub overfitting: Option<Action>,
    /// See [`DeadParameter`].
    #[serde(with = "or_off")]
    pub dead_parameter: Option<Action>,
    /// See [`LearningRate`].
    #[serde(with = "or_off")]
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
    /// What stands in place of an action where nobody looks.
    pub const OFF: &'static str = "off";

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

    /// What is done about the fault that a watcher looks for.
    pub const fn of(&self, watcher: WatcherKind) -> Option<Action> {
        match watcher {
            WatcherKind::NonFinite => self.non_finite,
            WatcherKind::LossSpike => self.loss_spike,
            WatcherKind::Plateau => self.plateau,
            WatcherKind::Overfitting => self.overfitting,
            WatcherKind::DeadParameter => self.dead_parameter,
            WatcherKind::LearningRate => self.learning_rate,
        }
    }

    /// Says what is done about the fault that a watcher looks for.
    pub const fn set(&mut self, watcher: WatcherKind, action: Option<Action>) {
        *match watcher {
            WatcherKind::NonFinite => &mut self.non_finite,
            WatcherKind::LossSpike => &mut self.loss_spike,
            WatcherKind::Plateau => &mut self.plateau,
            WatcherKind::Overfitting => &mut self.overfitting,
            WatcherKind::DeadParameter => &mut self.dead_parameter,
            WatcherKind::LearningRate => &mut self.learning_rate,
        } = action;
    }

    /// What can be done about a fault: a step can be left out for its own loss or gradients alone, and a number that is not finite
    /// cannot be gone on with.
    pub const fn choices(watcher: WatcherKind) -> &'static [Action] {
        match watcher {
            WatcherKind::NonFinite => &[Action::Skip, Action::RollBack, Action::Stop],
            WatcherKind::LossSpike => &Action::ALL,
            _ => &[Action::Say, Action::RollBack, Action::Stop],
        }
    }

    /// Refuses an action that is not among the [`choices`](Self::choices).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the first such field.
    pub fn validate(&self) -> Result<()> {
        let chosen = |watcher: WatcherKind| self.of(watcher).map(|action| (watcher, action));
        let unfit = WatcherKind::ALL
            .into_iter()
            .filter_map(chosen)
            .find(|(watcher, action)| !Self::choices(*watcher).contains(action));
        let Some((watcher, action)) = unfit else { return Ok(()) };
        let (field, expected) = match watcher {
            WatcherKind::NonFinite => ("watch.non_finite", "\"skip\", \"roll_back\" or \"stop\""),
            WatcherKind::Plateau => ("watch.plateau", NOT_OF_ONE_STEP),
            WatcherKind::Overfitting => ("watch.overfitting", NOT_OF_ONE_STEP),
            WatcherKind::DeadParameter => ("watch.dead_parameter", NOT_OF_ONE_STEP),
            WatcherKind::LearningRate | WatcherKind::LossSpike => ("watch.learning_rate", NOT_OF_ONE_STEP),
        };
        Err(Error::InvalidArgument { field, found: format!("{:?}", action.name()), expected })
    }

    /// Whether a fault makes the run go back.
    pub(crate) fn roll_back(&self) -> bool {
        WatcherKind::ALL.into_iter().any(|watcher| self.of(watcher) == Some(Action::RollBack))
    }
}

const NOT_OF_ONE_STEP: &str = "\"say\", \"roll_back\" or \"stop\": it is not the fault of one step";

/// An action by its name, or `off`.
mod or_off {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

    use crate::{Action, Error, WatchActions};

    pub fn serialize<S: Serializer>(action: &Option<Action>, serializer: S) -> Result<S::Ok, S::Error> {
        action.map_or(WatchActions::OFF, Action::name).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Action>, D::Error> {
        let name = String::deserialize(deserializer)?;
        let action = Action::ALL.into_iter().find(|action| action.name() == name);
        if action.is_none() && name != WatchActions::OFF {
            let [say, skip, roll_back, stop] = Action::ALL.map(Action::name);
            let known = [say, skip, roll_back, stop, WatchActions::OFF];
            return Err(D::Error::custom(Error::unknown_name("action of a watcher", &name, &known)));
        }
        Ok(action)
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
            if let (Some(action), Some(Alarm { what, advice, since })) = (action, alarm) {
                let step = observation.step();
                // The loss of a step is of the parameters before it: another rate changes nothing if it is the next one.
                let is_of_step = matches!(observation, Observation::Step(_) | Observation::NonFinite { .. });
                let since = since.unwrap_or(step.saturating_sub(usize::from(is_of_step)));
                found.push(Finding { watcher: kind, step, since, action, what, advice });
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
