//! Errors that no other test names, reached.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the allowance for tests does not reach their helpers")]

mod common;

use common::{Batch, Examples, ModelError, TokenModel};
use ferrotune_precision::{DtypePolicy, GradScalerState};
use ferrotune_trainer::{
    AdamW, AdamWOptions, BoxError, Callback, Error, GradientReducer, Gradients, Mode, Optimizer,
    OptimizerState, ResumeFromCheckpoint, StepRecord, TrainableModel, Trainer, TrainingArguments,
};
use tch::{Device, Kind, Tensor};

fn arguments() -> TrainingArguments {
    TrainingArguments { max_steps: 1, ..TrainingArguments::default() }
}

#[test]
fn arguments_that_no_run_can_use_are_named() {
    let wrong = TrainingArguments { per_device_train_batch_size: 0, ..arguments() };
    let field = "per_device_train_batch_size";
    assert!(matches!(wrong.validate(), Err(Error::InvalidArgument { field: found, .. }) if found == field));
    let schedule = "spiral".parse::<ferrotune_trainer::SchedulerType>();
    assert!(matches!(schedule, Err(Error::UnknownName { found, .. }) if found == "spiral"));
}

#[test]
fn an_argument_that_the_model_does_not_carry_out_is_refused() {
    let data = Examples::patterned(4);
    for (field, arguments) in [
        ("label_smoothing_factor", TrainingArguments { label_smoothing_factor: 0.1, ..arguments() }),
        ("neftune_noise_alpha", TrainingArguments { neftune_noise_alpha: Some(5.0), ..arguments() }),
        ("gradient_checkpointing", TrainingArguments { gradient_checkpointing: true, ..arguments() }),
    ] {
        let refusal = Trainer::new(&TokenModel::small(), arguments, &data).err();
        assert!(matches!(refusal, Some(Error::ForwardArgument { field: found, .. }) if found == field));
    }
}

#[test]
fn a_scale_that_no_scaler_can_use_is_refused_when_a_run_goes_on() {
    let (data, arguments) = (Examples::patterned(4), TrainingArguments { fp16: true, ..arguments() });
    let policy = DtypePolicy::from_flags(false, true).unwrap();
    let model = TokenModel { policy, ..TokenModel::small() };
    let mut trainer = Trainer::new(&model, arguments, &data).unwrap();
    let mut state = trainer.state().clone();
    state.grad_scaler = Some(GradScalerState { scale: 0.0, ..GradScalerState::default() });
    let optimizer = trainer.optimizer().state().unwrap();
    let error = trainer.resume(state, &optimizer).unwrap_err();
    assert!(matches!(&error, Error::Precision(_)), "{error}");
    assert!(error.to_string().contains("the gradient scaler's scale is 0"), "{error}");
}

#[test]
fn an_argument_that_nobody_carries_out_is_refused() {
    let data = Examples::patterned(4);
    for (field, arguments) in [
        ("report_to", TrainingArguments { report_to: vec!["csv".into()], ..arguments() }),
        ("run_name", TrainingArguments { run_name: Some("first".into()), ..arguments() }),
        ("output_dir", TrainingArguments { output_dir: Some("out".into()), ..arguments() }),
        ("save_total_limit", TrainingArguments { save_total_limit: Some(2), ..arguments() }),
        ("save_only_model", TrainingArguments { save_only_model: true, ..arguments() }),
        (
            "resume_from_checkpoint",
            TrainingArguments { resume_from_checkpoint: ResumeFromCheckpoint::Newest(true), ..arguments() },
        ),
    ] {
        let model = TokenModel::small();
        let refusal = Trainer::new(&model, arguments, &data).unwrap().train().err();
        assert!(
            matches!(refusal, Some(Error::InvalidArgument { field: found, .. }) if found == field),
            "{field}"
        );
    }
}

struct Refuses;

impl Callback for Refuses {
    fn on_step_end(&mut self, _: &StepRecord) -> Result<(), BoxError> {
        Err("no more".into())
    }
}

impl GradientReducer for Refuses {
    fn sum_targets(&mut self, _: usize) -> Result<usize, BoxError> {
        Err("nobody answers".into())
    }

    fn sum_gradients(&mut self, _: &mut Gradients) -> Result<(), BoxError> {
        Ok(())
    }

    fn sum_loss(&mut self, loss: f64) -> Result<f64, BoxError> {
        Ok(loss)
    }
}

struct Fails(TokenModel);

impl TrainableModel for Fails {
    type Batch = Batch;
    type Error = ModelError;

    fn target_tokens(&self, batch: &Batch) -> usize {
        self.0.target_tokens(batch)
    }

    fn tokens(&self, batch: &Batch) -> usize {
        self.0.tokens(batch)
    }

    fn loss(&self, _: &Batch, _: Mode) -> Result<Tensor, ModelError> {
        Err(ModelError)
    }

    fn trainable_parameters(&self) -> Vec<(String, Tensor)> {
        self.0.trainable_parameters()
    }

    fn sources(&self, batch: &Batch) -> Vec<String> {
        self.0.sources(batch)
    }
}

#[test]
fn errors_of_what_the_trainer_calls_come_with_their_place() {
    let (model, data) = (TokenModel::small(), Examples::patterned(4));
    let trainer = || Trainer::new(&model, arguments(), &data).unwrap();
    assert!(matches!(trainer().with_callback(Refuses).train(), Err(Error::Callback { .. })));
    assert!(matches!(trainer().with_reducer(Refuses).train(), Err(Error::Reducer { .. })));
    let failing = Fails(TokenModel::small());
    let error = Trainer::new(&failing, arguments(), &data).unwrap().train().unwrap_err();
    assert!(matches!(&error, Error::Model { place, .. } if place.step == Some(1)), "{error}");
}

#[test]
fn parameters_that_the_last_update_spoils_are_named_with_the_step() {
    let (model, data) = (TokenModel::small(), Examples::patterned(4));
    // Every gradient is finite, and the step is larger than an f32 can be.
    let arguments = TrainingArguments { learning_rate: 1e39, ..arguments() };
    let error = Trainer::new(&model, arguments, &data).unwrap().train().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("step 1") && text.contains("lower the learning rate"), "{text}");
    let Error::NonFiniteParameter { parameters, place } = error else { panic!("{text}") };
    assert!(parameters.iter().any(|name| name == "output.weight") && place.step == Some(1), "{text}");
}

#[test]
fn states_and_gradients_that_do_not_belong_are_refused() {
    let model = TokenModel::small();
    let optimizer = AdamW::new(model.trainable_parameters(), AdamWOptions::default()).unwrap();
    let spoilt = |change: fn(&mut OptimizerState)| {
        let mut state = optimizer.state().unwrap();
        change(&mut state);
        AdamW::new(model.trainable_parameters(), AdamWOptions::default())
            .unwrap()
            .load_state(&state)
            .unwrap_err()
    };
    for (change, tensor) in [
        ((|state| drop(state.tensors.pop())) as fn(&mut OptimizerState), "output.weight.exp_avg_sq"),
        (|state| state.tensors[0].0.push('x'), "embedding.weight.exp_avgx"),
        (
            |state| state.tensors[0].1 = Tensor::zeros([1], (Kind::Float, Device::Cpu)),
            "embedding.weight.exp_avg",
        ),
        (|state| state.tensors[0].1 = state.tensors[0].1.to_kind(Kind::Double), "embedding.weight.exp_avg"),
    ] {
        let error = spoilt(change);
        assert!(matches!(&error, Error::StateMismatch { tensor: found, .. } if found == tensor), "{error}");
    }
    let parameter = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let mut gradients = Gradients::new(&[("p".to_owned(), parameter)]);
    for (_, gradient) in gradients.iter_mut() {
        // Truth values have no norm.
        *gradient = Some(Tensor::ones([2], (Kind::Bool, Device::Cpu)));
    }
    assert!(matches!(gradients.norm(), Err(Error::Torch { .. })));
}
