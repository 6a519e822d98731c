//! The trainer asks libtorch for the gradients of the named parameters alone. Functions with a backward of their own must answer
//! that as they answer a plain `backward()`.
#![allow(clippy::unwrap_used, reason = "a helper of a test panics as the test does")]

use ferrotune_kernels::{FrozenWeight, LowRank, linear_cross_entropy, lora_linear};
use ferrotune_trainer::{Error, Gradients, Mode, RandomKey};
use tch::{Kind, Tensor};

const HIDDEN: i64 = 6;
const VOCAB: i64 = 11;

fn numbers(name: &str, shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    (Tensor::from_slice(&RandomKey::from_seed(5).fold_name(name).uniform(count)) - 0.5).reshape(shape)
}

/// Two LoRA layers and the head; `skip` leaves the second layer's update out.
fn loss(parameters: &[(String, Tensor)], skip: bool) -> Tensor {
    let mode = Mode::Train(RandomKey::from_seed(1));
    let update = |index: usize| LowRank {
        a: &parameters[2 * index].1,
        b: &parameters[2 * index + 1].1,
        scaling: 2.0,
        dropout: 0.0,
        layer: index as u64,
    };
    let frozen = |name: &str, rows: i64| FrozenWeight::new(&numbers(name, &[rows, HIDDEN])).unwrap();
    let x = numbers("x", &[5, HIDDEN]);
    let x = lora_linear(&x, &frozen("first", HIDDEN), None, Some(update(0)), mode).unwrap().tanh();
    let second = (!skip).then(|| update(1));
    let x = lora_linear(&x, &frozen("second", HIDDEN), None, second, mode).unwrap();
    let targets = Tensor::from_slice(&[0i64, 10, 3, 3, 7]);
    linear_cross_entropy(&x, &frozen("head", VOCAB), &targets).unwrap().sum(Kind::Float)
}

fn parameters() -> Vec<(String, Tensor)> {
    let names = ["first.lora_A", "first.lora_B", "second.lora_A", "second.lora_B"];
    let shape = |name: &str| if name.ends_with('A') { [2, HIDDEN] } else { [HIDDEN, 2] };
    names.map(|name| (name.to_string(), numbers(name, &shape(name)).set_requires_grad(true))).into()
}

#[test]
fn gradients_of_fused_functions_are_those_of_a_plain_backward() {
    let parameters = parameters();
    let mut asked = Gradients::new(&parameters);
    asked.backward(&loss(&parameters, false), &parameters).unwrap();
    assert!(
        parameters.iter().all(|(_, parameter)| !parameter.grad().defined()),
        "nothing is left in the parameters"
    );
    loss(&parameters, false).backward();
    let plain = Gradients::of(&parameters).unwrap();
    for ((name, asked), (_, plain)) in asked.iter().zip(plain.iter()) {
        let (asked, plain) = (asked.unwrap(), plain.unwrap());
        assert!((asked - plain).norm().double_value(&[]) <= 1e-6 * plain.norm().double_value(&[]), "{name}");
        assert!(plain.norm().double_value(&[]) > 1e-3, "{name}");
    }
}

#[test]
fn an_update_that_is_left_out_is_missed() {
    let parameters = parameters();
    let mut gradients = Gradients::new(&parameters);
    gradients.backward(&loss(&parameters, true), &parameters).unwrap();
    let Err(Error::MissingGradient { parameters, .. }) = gradients.norm() else { panic!("not missed") };
    assert_eq!(parameters, ["second.lora_A", "second.lora_B"]);
}
