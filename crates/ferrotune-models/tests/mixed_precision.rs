//! Products in 16 bits against torch.autocast with transformers and PEFT, and layers computed twice against layers computed once.
#![allow(clippy::unwrap_used)] // also in the helpers of tests

mod common;

use common::{Expected, fixture, relative};
use ferrotune_kernels::{Mode, RandomKey};
use ferrotune_lora::{Adapter, LoraConfig, TargetModules, inject};
use ferrotune_models::{CausalLm, ForwardOptions};
use ferrotune_precision::DtypePolicy;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tch::{Device, Kind, Tensor};

/// One test counts the live functions of the process.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load(case: &str) -> (CausalLm, Adapter) {
    let mut model = CausalLm::load(&fixture(case), Device::Cpu, Kind::Float).unwrap();
    let adapter =
        ferrotune_lora::load(&mut model, "default", 0, fixture(case).join("adapter"), true).unwrap();
    (model, adapter)
}

/// The relative distance of all gradients together, and that of the worst.
fn distances(ours: &[Tensor], reference: &[Tensor]) -> [f64; 2] {
    let one = |tensors: &[Tensor]| {
        Tensor::cat(&tensors.iter().map(|tensor| tensor.flatten(0, -1)).collect::<Vec<_>>(), 0)
    };
    let worst =
        ours.iter().zip(reference).map(|(ours, reference)| relative(ours, reference)).fold(0.0, f64::max);
    [relative(&one(ours), &one(reference)), worst]
}

/// The loss, and the gradient of every parameter by its name.
fn gradients(
    model: &CausalLm,
    adapter: &Adapter,
    case: &str,
    mode: Mode,
    options: ForwardOptions,
) -> (f64, Vec<(String, Tensor)>) {
    let inputs = Expected::read(case).inputs();
    let loss = model.target_losses(&inputs, mode, options).unwrap().sum(Kind::Float);
    let (names, parameters): (Vec<_>, Vec<_>) = adapter.named_parameters().into_iter().unzip();
    let scaled = Tensor::run_backward(&[&loss * 1024.0], &parameters, false, false);
    let gradients = scaled.iter().map(|gradient| {
        assert_eq!(gradient.kind(), Kind::Float);
        gradient / 1024.0
    });
    (loss.double_value(&[]), names.into_iter().zip(gradients).collect())
}

#[test]
fn loss_and_every_gradient_are_those_of_autocast() {
    let _alone = alone();
    for case in ["llama_gqa_untied", "llama_head_dim_bias_mqa", "mistral_window"] {
        let (model, adapter) = load(case);
        let exact = Expected::read(case).0;
        // The distance of numbers of so many bits, after some products.
        for (name, policy, of_loss, of_gradient) in [
            ("bf16", DtypePolicy::from_flags(true, false).unwrap(), 4e-3, 4e-2),
            ("f16", DtypePolicy::from_flags(false, true).unwrap(), 5e-4, 6e-3),
        ] {
            let path = format!(
                "{}/tests/fixtures/mixed_precision/{case}.{name}.safetensors",
                env!("CARGO_MANIFEST_DIR")
            );
            let reference: HashMap<String, Tensor> =
                Tensor::read_safetensors(path).unwrap().into_iter().collect();
            let options = ForwardOptions { policy, ..Default::default() };
            let (loss, gradients) = gradients(&model, &adapter, case, Mode::Eval, options);
            let distance = |reference: &Tensor| (loss / reference.double_value(&[]) - 1.0).abs();
            assert!(
                distance(&reference["loss"]) < of_loss,
                "{case} {name}: loss {}",
                distance(&reference["loss"])
            );
            assert!(distance(&exact["loss"]) > 0.0, "{case} {name}: the loss is that of f32");
            assert_eq!(gradients.len(), 28);
            let keys: Vec<String> = gradients.iter().map(|(name, _)| format!("grad.{name}")).collect();
            let of = |tensors: &HashMap<String, Tensor>| -> Vec<Tensor> {
                keys.iter().map(|key| tensors[key].shallow_clone()).collect()
            };
            let found: Vec<Tensor> = gradients.into_iter().map(|(_, gradient)| gradient).collect();
            let (autocast, exact) = (of(&reference), of(&exact));
            let [between, ours, theirs] =
                [(&found, &autocast), (&found, &exact), (&autocast, &exact)].map(|(a, b)| distances(a, b));
            assert!(between[0] < of_gradient, "{case} {name}: all gradients {between:?}");
            // As far from f32 as autocast is: no nearer, for then it would not have rounded, and no farther.
            for (ours, theirs) in ours.iter().zip(theirs) {
                assert!((0.3..2.0).contains(&(ours / theirs)), "{case} {name}: {ours} and {theirs} from f32");
            }
        }
    }
}

#[test]
fn layers_computed_again_give_the_same_bits_with_dropout_noise_and_any_dtype() {
    let _alone = alone();
    let case = "llama_gqa_untied";
    let mut model = CausalLm::load(&fixture(case), Device::Cpu, Kind::Float).unwrap();
    let names = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"].map(str::to_owned).to_vec();
    let config = LoraConfig {
        rank: 3,
        lora_dropout: 0.2,
        target_modules: TargetModules::Names(names),
        ..LoraConfig::default()
    };
    let adapter = inject(&mut model, "default", 0, &config, RandomKey::from_seed(4)).unwrap();
    for (number, (_, parameter)) in adapter.named_parameters().into_iter().enumerate() {
        let values = RandomKey::from_seed(number as u64).uniform(parameter.numel());
        tch::no_grad(|| {
            parameter.shallow_clone().copy_(&(Tensor::from_slice(&values) - 0.5).reshape(parameter.size()))
        });
    }
    let mode = Mode::Train(RandomKey::from_seed(9));
    for (bf16, fp16) in [(false, false), (true, false), (false, true)] {
        let policy = DtypePolicy::from_flags(bf16, fp16).unwrap();
        let options = ForwardOptions { neftune_alpha: Some(5.0), policy, ..Default::default() };
        let kept = gradients(&model, &adapter, case, mode, options);
        let options = ForwardOptions { gradient_checkpointing: true, ..options };
        let again = gradients(&model, &adapter, case, mode, options);
        assert_eq!(kept, again, "{policy:?}");
        assert!(kept.1.iter().all(|(_, gradient)| gradient.norm().double_value(&[]) > 0.0));
        let other = gradients(&model, &adapter, case, Mode::Train(RandomKey::from_seed(8)), options);
        assert_ne!(other.0, again.0, "dropout is on");
    }
}

#[test]
fn only_the_input_of_each_layer_is_kept() {
    let _alone = alone();
    let case = "llama_gqa_untied";
    let (model, _adapter) = load(case);
    let inputs = Expected::read(case).inputs();
    let recorded = |gradient_checkpointing| {
        let options = ForwardOptions { gradient_checkpointing, ..Default::default() };
        let before = ferrotune_autograd::live_functions();
        let loss = model.target_losses(&inputs, Mode::Train(RandomKey::from_seed(1)), options).unwrap();
        let recorded = ferrotune_autograd::live_functions() - before;
        drop(loss);
        recorded
    };
    // A layer has four products and an attention; beside the layers there are the last norm, and the head with its loss.
    assert_eq!((recorded(false), recorded(true)), (2 * 5 + 2, 2 + 2));
}
