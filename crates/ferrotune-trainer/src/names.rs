//! Arguments that are one of a few names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, nearest};

/// An enum whose values have the names that transformers gives them: `ALL`, `name`, `Display`, `FromStr` with the nearest name on a
/// mistake, and serde by name.
macro_rules! named {
    (
        $(#[$attribute:meta])*
        pub enum $kind:ident for $argument:literal {
            $($(#[$variant_attribute:meta])* $variant:ident = $name:literal,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum $kind {
            $($(#[$variant_attribute])* $variant,)+
        }

        impl $kind {
            /// Every value.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The name in
            #[doc = concat!("`", $argument, "`.")]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $kind {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self> {
                Self::ALL
                    .into_iter()
                    .find(|value| value.name() == name)
                    .ok_or_else(|| Error::unknown_name($argument, name, &Self::ALL.map(Self::name)))
            }
        }

        impl TryFrom<String> for $kind {
            type Error = Error;

            fn try_from(name: String) -> Result<Self> {
                name.parse()
            }
        }

        impl From<$kind> for String {
            fn from(value: $kind) -> Self {
                value.name().into()
            }
        }
    };
}

impl Error {
    pub(crate) fn unknown_name(argument: &'static str, found: &str, known: &[&str]) -> Self {
        Self::UnknownName {
            argument,
            found: found.to_owned(),
            nearest: nearest(found, known.iter().copied()).map(str::to_owned),
            known: known.join(", "),
        }
    }
}

named! {
    /// `eval_strategy` and `logging_strategy`: after which steps something is done.
    ///
    /// ```
    /// use ferrotune_trainer::{IntervalStrategy, TrainingArguments};
    /// let arguments = TrainingArguments {
    ///     eval_strategy: IntervalStrategy::Steps,
    ///     eval_steps: Some(4.0),
    ///     max_steps: 10,
    ///     ..Default::default()
    /// };
    /// let plan = arguments.plan(1000)?;
    /// let steps: Vec<usize> = (0..=10).filter(|&step| plan.evaluates_after(step)).collect();
    /// assert_eq!(steps, [4, 8, 10]);
    /// assert!("stesp".parse::<IntervalStrategy>().unwrap_err().to_string().contains("did you mean \"steps\"?"));
    /// # Ok::<(), ferrotune_trainer::Error>(())
    /// ```
    ///
    /// # References
    /// `transformers.IntervalStrategy` 5.23.
    pub enum IntervalStrategy for "eval_strategy or logging_strategy" {
        /// Not between the first step and the last.
        #[default]
        No = "no",
        /// Every so many steps.
        Steps = "steps",
        /// At the end of each epoch.
        Epoch = "epoch",
    }
}

named! {
    /// `save_strategy`: after which steps a checkpoint is written.
    ///
    /// # References
    /// `transformers.SaveStrategy` 5.23.
    pub enum SaveStrategy for "save_strategy" {
        /// Never.
        No = "no",
        /// Every `save_steps` steps, and after the last one.
        #[default]
        Steps = "steps",
        /// At the end of each epoch.
        Epoch = "epoch",
        /// Whenever an evaluation is the best so far.
        Best = "best",
    }
}

named! {
    /// `optim`: what turns gradients into an update.
    ///
    /// # References
    /// `transformers.training_args.OptimizerNames` 5.23.
    pub enum OptimizerName for "optim" {
        /// [`AdamW`](crate::AdamW). There is one implementation, all parameters in one pass, under both of its names.
        #[default]
        AdamWTorchFused = "adamw_torch_fused",
        /// [`AdamW`](crate::AdamW).
        AdamWTorch = "adamw_torch",
        /// [`Sgd`](crate::Sgd), with `momentum`, `dampening` and `nesterov` of `optim_args`.
        Sgd = "sgd",
    }
}

named! {
    /// `lr_scheduler_type`: how the learning rate moves. [`Schedule`](crate::Schedule) has the formulas.
    ///
    /// # References
    /// `transformers.SchedulerType` 5.23, without `greedy`.
    #[non_exhaustive]
    pub enum SchedulerType for "lr_scheduler_type" {
        /// Straight down to 0.
        #[default]
        Linear = "linear",
        /// Half a cosine down to 0.
        Cosine = "cosine",
        /// Half a cosine that starts again.
        CosineWithRestarts = "cosine_with_restarts",
        /// A power of what remains.
        Polynomial = "polynomial",
        /// No change, and no warm-up.
        Constant = "constant",
        /// No change after the warm-up.
        ConstantWithWarmup = "constant_with_warmup",
        /// The inverse square root of the step.
        InverseSqrt = "inverse_sqrt",
        /// A fraction of itself whenever the metric of the evaluations has stopped improving; no warm-up.
        ReduceLrOnPlateau = "reduce_lr_on_plateau",
        /// Half a cosine down to a rate above 0.
        CosineWithMinLr = "cosine_with_min_lr",
        /// The same, with a warm-up that does not begin at 0.
        CosineWarmupWithMinLr = "cosine_warmup_with_min_lr",
        /// Up, level, down.
        WarmupStableDecay = "warmup_stable_decay",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_answered_with_the_nearest_name_and_all_known() {
        let message = "cosine_with_restart".parse::<SchedulerType>().unwrap_err().to_string();
        assert!(message.contains("did you mean \"cosine_with_restarts\"?"), "{message}");
        for kind in SchedulerType::ALL {
            assert!(message.contains(kind.name()), "{message}");
            assert_eq!(kind.name().parse::<SchedulerType>().unwrap(), kind);
        }
        let message = "adamw".parse::<OptimizerName>().unwrap_err().to_string();
        assert!(message.contains("adamw_torch"), "{message}");
        let message = "bogus".parse::<SaveStrategy>().unwrap_err().to_string();
        assert_eq!(message, "save_strategy \"bogus\" is not offered: expected one of no, steps, epoch, best");
    }
}
