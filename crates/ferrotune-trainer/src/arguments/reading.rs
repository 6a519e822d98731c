//! Which names an argument may have where arguments are read.

use std::fmt;

use serde::de::value::StringDeserializer;
use serde::de::{DeserializeSeed, Error as _, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{REPORTERS, TrainingArguments};
use crate::nearest;

/// Older names of arguments, each with the name that transformers gives it now. They are taken, with a warning.
pub const OLDER_NAMES: [(&str, &str); 2] =
    [("evaluation_strategy", "eval_strategy"), ("warmup_ratio", "warmup_steps")];

/// Arguments of transformers that are not offered, and why.
pub const NOT_OFFERED: [(&str, &str); 28] = [
    (
        "logging_nan_inf_filter",
        "a loss that is not finite is an error or a watcher's business, and never hidden in the log",
    ),
    ("auto_find_batch_size", "the memory of a run is predicted before it starts"),
    ("average_tokens_across_devices", "a token always weighs the same, on every rank"),
    ("batch_eval_metrics", "an evaluation keeps no logits"),
    ("dataloader_num_workers", "a batch is made from tokens that are in memory"),
    ("dataloader_pin_memory", "a batch is made from tokens that are in memory"),
    ("dataloader_prefetch_factor", "a batch is made from tokens that are in memory"),
    ("disable_tqdm", "progress is a callback's business"),
    (
        "eval_accumulation_steps",
        "an evaluation keeps no logits, so that there is nothing to move off the device",
    ),
    ("full_determinism", "the same seed gives the same run on the CPU in any case"),
    ("group_by_length", "batches have no padding, so that grouping by length would save nothing"),
    ("ignore_data_skip", "a run that goes on always goes on at its place in the data"),
    ("include_num_input_tokens_seen", "the tokens seen are always counted"),
    ("length_column_name", "batches have no padding, so that grouping by length would save nothing"),
    (
        "logging_dir",
        "each log has a folder of its own in `runs` of `output_dir`, as in transformers, which has dropped the argument",
    ),
    ("log_level", "what is logged is chosen by the subscriber of `tracing`"),
    ("overwrite_output_dir", "it is the program's business which folder it writes to"),
    (
        "prediction_loss_only",
        "an evaluation gives the loss, and what `Trainer::with_compute_metrics` measures besides",
    ),
    ("push_to_hub", "nothing is sent anywhere"),
    ("remove_unused_columns", "a data set makes its own batches"),
    ("skip_memory_metrics", "the peak of the memory is always measured"),
    ("tf32", "products are computed in the type that is asked for"),
    ("torch_compile", "there is no compiler in the loop"),
    ("torch_empty_cache_steps", "memory is reused, not given back between steps"),
    ("train_sampling_strategy", "a data set gives its own order"),
    ("use_cpu", "the device is the model's"),
    ("ddp_backend", "the gradients of other ranks come in through `GradientReducer`"),
    ("deepspeed", "parameters are not sharded"),
];

impl Serialize for TrainingArguments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The function that `remote = "Self"` derives, under the same name.
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for TrainingArguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(Named(deserializer))
    }
}

/// `null`, as Python writes what is not given, is the default.
pub(super) fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A list of names of reporters, or one of them; `none` is no name, and `all` is every one.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let names = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(name) => vec![name],
        OneOrMany::Many(names) => names,
    };
    Ok(chosen_reporters(&names))
}

/// The reporters that `names` in `report_to` choose: `none` is no name, and `all` is every one.
///
/// ```
/// use ferrotune_trainer::chosen_reporters;
/// assert_eq!(chosen_reporters(&["all"]), ["tensorboard", "csv", "jsonl"]);
/// assert_eq!(chosen_reporters(&["none"]), Vec::<String>::new());
/// ```
pub fn chosen_reporters(names: &[impl AsRef<str>]) -> Vec<String> {
    let names = || names.iter().map(AsRef::as_ref);
    if names().any(|name| name == "all") {
        return REPORTERS.map(str::to_owned).to_vec();
    }
    names().filter(|name| *name != "none").map(str::to_owned).collect()
}

/// The known name of an argument, or why there is none.
fn known_name(name: String, known: &[&'static str]) -> Result<String, String> {
    if known.contains(&name.as_str()) {
        return Ok(name);
    }
    if let Some((_, newer)) = OLDER_NAMES.into_iter().find(|(older, _)| *older == name) {
        tracing::warn!("`{name}` is an older name of `{newer}`, which it is taken for");
        return Ok(newer.to_owned());
    }
    if let Some((_, reason)) = NOT_OFFERED.into_iter().find(|(other, _)| *other == name) {
        return Err(format!("training argument `{name}` is not offered: {reason}; remove it"));
    }
    Err(match nearest(&name, known.iter().copied()) {
        Some(near) => format!("unknown training argument `{name}`; did you mean `{near}`?"),
        None => format!("unknown training argument `{name}`; expected one of {}", known.join(", ")),
    })
}

/// Hands a struct to the derived code with the known names of its fields.
struct Named<T>(T);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Named<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        // As a map: a format may check the names of a struct by itself, and gives its own message then.
        self.0.deserialize_map(NamedFields { inner: visitor, fields })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct NamedFields<T> {
    inner: T,
    fields: &'static [&'static str],
}

impl<'de, V: Visitor<'de>> Visitor<'de> for NamedFields<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(NamedFields { inner: map, fields: self.fields })
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for NamedFields<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Some(name) = self.inner.next_key::<String>()? else { return Ok(None) };
        let name = known_name(name, self.fields).map_err(A::Error::custom)?;
        let name: StringDeserializer<A::Error> = name.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IntervalStrategy, ResumeFromCheckpoint};

    fn read(text: &str) -> Result<TrainingArguments, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_nearest() {
        for (text, expected) in [
            (r#"{"learning_rat": 1e-3}"#, "did you mean `learning_rate`?"),
            (r#"{"xyzzy": 1e-3}"#, "expected one of output_dir, "),
            (r#"{"lr_scheduler_type": "greedy"}"#, "inverse_sqrt"),
            (r#"{"eval_strategy": "step"}"#, "did you mean \"steps\"?"),
            (r#"{"optim": "adamw_tourch"}"#, "did you mean \"adamw_torch\"?"),
            (r#"{"group_by_length": true}"#, "is not offered: batches have no padding"),
            (r#"{"warmup_ratio": 0.1, "warmup_steps": 3}"#, "duplicate field `warmup_steps`"),
        ] {
            let message = read(text).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn older_names_and_both_names_of_checkpointing_are_taken() {
        let text =
            r#"{"evaluation_strategy": "epoch", "warmup_ratio": 0.03, "activation_checkpointing": true}"#;
        let arguments = read(text).unwrap();
        assert_eq!((arguments.eval_strategy, arguments.warmup_steps), (IntervalStrategy::Epoch, 0.03));
        assert!(arguments.gradient_checkpointing);
    }

    #[test]
    fn a_name_is_known_or_older_or_not_offered() {
        let own = serde_json::to_value(TrainingArguments::default()).unwrap();
        let own = own.as_object().unwrap();
        assert!(
            OLDER_NAMES.iter().all(|(older, newer)| !own.contains_key(*older) && own.contains_key(*newer))
        );
        assert!(NOT_OFFERED.iter().all(|(name, _)| !own.contains_key(*name)));
    }

    #[test]
    fn values_have_the_forms_that_people_write() {
        let text = r#"{"num_train_epochs": 2, "warmup_steps": 4, "logging_steps": 1, "max_grad_norm": 1,
            "report_to": "tensorboard", "resume_from_checkpoint": true, "lr_scheduler_kwargs": {"num_cycles": 2}}"#;
        let arguments = read(text).unwrap();
        assert_eq!(
            (arguments.num_train_epochs, arguments.warmup_steps, arguments.logging_steps),
            (2.0, 4.0, 1.0)
        );
        assert_eq!(arguments.report_to, ["tensorboard"]);
        assert_eq!(arguments.resume_from_checkpoint, ResumeFromCheckpoint::Newest(true));
        assert_eq!(arguments.lr_scheduler_kwargs, [("num_cycles", 2.0)].into());
        assert_eq!(read(&serde_json::to_string(&arguments).unwrap()).unwrap(), arguments);
        assert_eq!(read(r#"{"report_to": "none"}"#).unwrap(), TrainingArguments::default());
        let folder = read(r#"{"resume_from_checkpoint": "out/checkpoint-3"}"#).unwrap();
        assert_eq!(folder.resume_from_checkpoint, ResumeFromCheckpoint::Folder("out/checkpoint-3".into()));
    }
}
