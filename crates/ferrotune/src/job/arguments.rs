//! The arguments of trainer and adapter that a recipe stands for.

use crate::{
    Result,
    recipe::{Recipe, TargetModules},
};
use ferrotune_lora::LoraConfig;
use ferrotune_trainer::TrainingArguments;
use std::path::Path;

/// What the trainer is told.
pub(crate) fn training_arguments(recipe: &Recipe) -> Result<TrainingArguments> {
    let training = &recipe.training;
    Ok(TrainingArguments {
        num_train_epochs: training.num_train_epochs,
        max_steps: training.max_steps,
        per_device_train_batch_size: training.per_device_train_batch_size,
        per_device_eval_batch_size: training.per_device_train_batch_size,
        gradient_accumulation_steps: training.gradient_accumulation_steps,
        dataloader_drop_last: training.dataloader_drop_last,
        learning_rate: training.learning_rate,
        weight_decay: training.weight_decay,
        adam_beta1: training.adam_beta1,
        adam_beta2: training.adam_beta2,
        adam_epsilon: training.adam_epsilon,
        max_grad_norm: training.max_grad_norm,
        label_smoothing_factor: training.label_smoothing_factor,
        neftune_noise_alpha: training.neftune_noise_alpha,
        bf16: training.bf16,
        fp16: training.fp16,
        gradient_checkpointing: training.gradient_checkpointing,
        optim: training.optim.parse()?,
        optim_args: training.optim_args.clone(),
        loraplus_lr_ratio: training.loraplus_lr_ratio,
        lr_scheduler_type: training.lr_scheduler_type.parse()?,
        lr_scheduler_kwargs: training.lr_scheduler_kwargs.clone(),
        warmup_steps: training.warmup_steps,
        logging_strategy: training.logging_strategy.parse()?,
        logging_steps: training.logging_steps as f64,
        logging_first_step: training.logging_first_step,
        eval_strategy: training.eval_strategy.parse()?,
        eval_steps: training.eval_steps,
        eval_delay: training.eval_delay,
        save_strategy: training.save_strategy.parse()?,
        save_steps: training.save_steps,
        load_best_model_at_end: training.load_best_model_at_end,
        metric_for_best_model: training.metric_for_best_model.clone(),
        greater_is_better: training.greater_is_better,
        early_stopping_patience: training.early_stopping_patience,
        early_stopping_threshold: training.early_stopping_threshold,
        report_to: training.report_to.clone(),
        run_name: training.run_name.clone(),
        eval_on_start: recipe.data.validation.is_some(),
        seed: recipe.seed,
        data_seed: recipe.data_seed,
        ..TrainingArguments::default()
    })
}

pub(super) fn lora_config(recipe: &Recipe, base: &Path) -> LoraConfig {
    let lora = &recipe.lora;
    LoraConfig {
        rank: lora.r,
        lora_alpha: lora.lora_alpha,
        lora_dropout: lora.lora_dropout,
        target_modules: match &lora.target_modules {
            TargetModules::AllLinear => ferrotune_lora::TargetModules::AllLinear,
            TargetModules::Named(names) => ferrotune_lora::TargetModules::Names(names.clone()),
        },
        base_model_name_or_path: Some(base.display().to_string()),
        ..LoraConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{ResumeFromCheckpoint, TrainingSection};

    #[test]
    fn every_key_of_training_reaches_the_trainer() {
        let mut recipe = Recipe::new("o", "m", "t");
        recipe.data_seed = Some(8);
        recipe.training = TrainingSection {
            num_train_epochs: 2.5,
            per_device_train_batch_size: 3,
            gradient_accumulation_steps: 2,
            dataloader_drop_last: true,
            learning_rate: 1e-3,
            weight_decay: 0.2,
            adam_beta1: 0.8,
            adam_beta2: 0.99,
            adam_epsilon: 1e-6,
            warmup_steps: 3.0,
            lr_scheduler_type: "cosine".to_owned(),
            max_steps: 9,
            logging_strategy: "epoch".to_owned(),
            logging_steps: 7,
            logging_first_step: true,
            eval_strategy: "steps".to_owned(),
            eval_steps: Some(5.0),
            eval_delay: 2.0,
            max_grad_norm: 0.5,
            label_smoothing_factor: 0.1,
            neftune_noise_alpha: Some(5.0),
            bf16: true,
            fp16: true,
            gradient_checkpointing: true,
            optim: "adamw_torch".to_owned(),
            optim_args: Some(String::new()),
            loraplus_lr_ratio: Some(16.0),
            save_strategy: "epoch".to_owned(),
            save_steps: 7.0,
            save_total_limit: None,
            load_best_model_at_end: true,
            predict_with_generate: true,
            metric_for_best_model: Some("eval_perplexity".to_owned()),
            greater_is_better: Some(false),
            early_stopping_patience: Some(3),
            early_stopping_threshold: 0.1,
            resume_from_checkpoint: ResumeFromCheckpoint::Newest(false),
            lr_scheduler_kwargs: [("num_cycles", 2.0)].into(),
            report_to: vec!["csv".to_owned()],
            run_name: Some("first".to_owned()),
        };
        let arguments = training_arguments(&recipe).unwrap();
        assert_eq!(arguments.data_seed, Some(8));
        let arguments = serde_json::to_value(arguments).unwrap();
        let [training, defaults] = [&recipe.training, &TrainingSection::default()]
            .map(|section| serde_json::to_value(section).unwrap());
        // What reads and writes checkpoints, and what answers prompts, reads these itself.
        let others = ["save_total_limit", "resume_from_checkpoint", "predict_with_generate"];
        let keys = training.as_object().unwrap().iter().filter(|(key, _)| !others.contains(&key.as_str()));
        for (key, value) in keys {
            assert_ne!(*value, defaults[key], "{key} is not tried");
            let number = |value: &serde_json::Value| value.as_f64();
            let same = arguments[key] == *value
                || number(value).is_some() && number(&arguments[key]) == number(value);
            assert!(same, "{key}: {value} in the recipe, {} in the trainer", arguments[key]);
        }
    }
}
