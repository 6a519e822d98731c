//! What differs between the parameters of one optimizer.

use tch::{Kind, Tensor};

use crate::gradient::check_parameters;
use crate::{Result, TrainingArguments};

/// How a parameter is treated.
///
/// ```
/// use ferrotune_trainer::{AdamW, AdamWOptions, Optimizer, ParameterGroup, decays};
/// use tch::Tensor;
/// # let head = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
/// # let parameters = vec![("head.weight".to_string(), head)];
/// let mut optimizer = AdamW::new(parameters, AdamWOptions::default())?;
/// optimizer.set_groups(&|name, _parameter| ParameterGroup {
///     learning_rate_factor: if name.starts_with("head.") { 10.0 } else { 1.0 },
///     weight_decay: if decays(name) { 0.01 } else { 0.0 },
/// });
/// # Ok::<(), ferrotune_trainer::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParameterGroup {
    /// What the learning rate of a step is multiplied by.
    pub learning_rate_factor: f64,
    /// The weight decay.
    pub weight_decay: f64,
}

impl ParameterGroup {
    /// The learning rate as it is, and `weight_decay` if the parameter of this name [decays](decays).
    pub fn of(name: &str, weight_decay: f64) -> Self {
        Self { learning_rate_factor: 1.0, weight_decay: if decays(name) { weight_decay } else { 0.0 } }
    }
}

/// The parameters of an optimizer with the group of each.
#[derive(Debug)]
pub(super) struct Grouped {
    pub(super) parameters: Vec<(String, Tensor)>,
    pub(super) groups: Vec<ParameterGroup>,
}

impl Grouped {
    /// Parameters that can be trained, in the groups of [`ParameterGroup::of`].
    pub(super) fn new(parameters: Vec<(String, Tensor)>, weight_decay: f64) -> Result<Self> {
        check_parameters(&parameters, Kind::Float)?;
        let mut grouped = Self { parameters, groups: Vec::new() };
        grouped.set(&|name, _| ParameterGroup::of(name, weight_decay));
        Ok(grouped)
    }

    /// Gives each parameter the group that `rule` finds.
    pub(super) fn set(&mut self, rule: &dyn Fn(&str, &Tensor) -> ParameterGroup) {
        self.groups = self.parameters.iter().map(|(name, parameter)| rule(name, parameter)).collect();
    }
}

/// Whether weight decay acts on a parameter of this name: not if it is a bias or belongs to a norm.
///
/// ```
/// use ferrotune_trainer::decays;
/// assert!(decays("model.layers.0.self_attn.q_proj.lora_A.weight"));
/// assert!(!decays("model.layers.0.input_layernorm.weight"));
/// assert!(!decays("model.norm.weight") && !decays("lm_head.bias"));
/// assert!(decays("model.normalizer.weight"));
/// ```
///
/// # References
/// `transformers.Trainer.get_decay_parameter_names` 5.23, which also leaves out every `torch.nn.LayerNorm`, however it is called.
pub fn decays(name: &str) -> bool {
    let name = name.to_lowercase();
    let holds = ["bias", "layernorm", "rmsnorm"].into_iter().any(|word| name.contains(word));
    !holds && !name.split('.').any(|part| part == "norm" || part.ends_with("_norm"))
}

/// LoRA+: the `B` matrices of adapters, and whatever has one dimension, learn faster than the rest.
///
/// | parameter | learning rate | weight decay |
/// |---|---|---|
/// | adapter of an embedding (`lora_embedding_`) | `loraplus_lr_embedding` | `weight_decay` |
/// | `lora_B`, or one dimension | `learning_rate * loraplus_lr_ratio` | `weight_decay`, 0 for a bias or a norm |
/// | any other | `learning_rate` | `weight_decay` |
///
/// # References
/// Hayou, Ghosh and Yu 2024, arXiv:2402.12354; `peft.optimizers.create_loraplus_optimizer`, where `weight_decay` is called
/// `loraplus_weight_decay`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraPlus {
    learning_rate_ratio: f64,
    embedding_factor: f64,
    weight_decay: f64,
}

impl LoraPlus {
    /// As the arguments say; `None` without `loraplus_lr_ratio`.
    pub fn of(arguments: &TrainingArguments) -> Option<Self> {
        let TrainingArguments { learning_rate, loraplus_lr_embedding, weight_decay, .. } = *arguments;
        Some(Self {
            learning_rate_ratio: arguments.loraplus_lr_ratio?,
            // A rate of 0 stays 0 whatever it is multiplied by.
            embedding_factor: if learning_rate > 0.0 { loraplus_lr_embedding / learning_rate } else { 0.0 },
            weight_decay,
        })
    }

    /// The group of a parameter.
    pub fn group(&self, name: &str, parameter: &Tensor) -> ParameterGroup {
        let Self { learning_rate_ratio, embedding_factor, weight_decay } = *self;
        if name.contains("lora_embedding_") {
            ParameterGroup { learning_rate_factor: embedding_factor, weight_decay }
        } else if name.contains("lora_B") || parameter.dim() == 1 {
            ParameterGroup {
                learning_rate_factor: learning_rate_ratio,
                ..ParameterGroup::of(name, weight_decay)
            }
        } else {
            ParameterGroup { learning_rate_factor: 1.0, weight_decay }
        }
    }
}
