//! Held to PyTorch: the fixture has the script that wrote it beside it.

use ferrotune_precision::tch::Tensor;
use ferrotune_precision::{GradScaler, GradScalerState};
use serde::Deserialize;

#[derive(Deserialize)]
struct Step {
    loss: f32,
    scaled_loss: f32,
    /// The bits of the gradients of each group.
    gradients: Vec<Vec<i32>>,
    unscaled: Vec<Vec<i32>>,
    found_inf: bool,
    scale: f32,
    #[serde(rename = "_growth_tracker")]
    growth_tracker: u32,
}

#[derive(Deserialize)]
struct Run {
    start: GradScalerState,
    steps: Vec<Step>,
    end: GradScalerState,
}

#[derive(Deserialize)]
struct Fixture {
    runs: Vec<Run>,
}

fn floats(bits: &[i32]) -> Vec<f32> {
    bits.iter().map(|bits| f32::from_bits(bits.cast_unsigned())).collect()
}

/// The bits, with one NaN for all of them: which one a product gives is the processor's own.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }).collect()
}

#[test]
fn the_grad_scaler_equals_torch_step_by_step() {
    let Fixture { runs } =
        serde_json::from_str(include_str!("fixtures/grad_scaler/grad_scaler.json")).unwrap();
    assert_eq!(runs[0].start, GradScalerState::default(), "torch's constants");
    let (mut grown, mut shrunk) = (0, 0);
    for (number, run) in runs.iter().enumerate() {
        assert_eq!(run.steps.len(), 50);
        let mut scaler = GradScaler::from_state(run.start).unwrap();
        for (index, step) in run.steps.iter().enumerate() {
            let place = format!("run {number}, step {index}");
            if index == 25 {
                // Halfway a new scaler takes over the state, as from a checkpoint.
                let saved = serde_json::to_string(&scaler.state()).unwrap();
                scaler = GradScaler::from_state(serde_json::from_str(&saved).unwrap()).unwrap();
            }
            let before = scaler.state().scale;
            let scaled = scaler.scale(&Tensor::from(step.loss)).unwrap();
            assert_eq!(f32::try_from(scaled).unwrap(), step.scaled_loss, "{place}");
            for (gradient, expected) in step.gradients.iter().zip(&step.unscaled) {
                let gradient = Tensor::from_slice(&floats(gradient));
                scaler.unscale([&gradient]).unwrap();
                let found = Vec::<f32>::try_from(&gradient).unwrap();
                assert_eq!(bits(&found), bits(&floats(expected)), "{place}");
            }
            assert_eq!(scaler.found_inf(), step.found_inf, "{place}");
            scaler.update().unwrap();
            let state = scaler.state();
            assert_eq!((state.scale, state.growth_tracker), (step.scale, step.growth_tracker), "{place}");
            grown += usize::from(state.scale > before);
            shrunk += usize::from(state.scale < before);
        }
        assert_eq!(scaler.state(), run.end);
    }
    assert!(grown > 20 && shrunk > 20, "{grown} {shrunk}");
}

#[test]
fn a_state_has_the_names_of_torch() {
    let saved = serde_json::to_value(GradScaler::default().state()).unwrap();
    let expected = serde_json::json!({
        "scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0
    });
    assert_eq!(saved, expected);
}
