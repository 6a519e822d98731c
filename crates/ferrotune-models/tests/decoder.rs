//! The decoder against transformers and PEFT: logits, loss and the gradient of every LoRA weight, on packed sequences.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also in the helpers of tests

mod common;

use common::{Expected, fixture, relative};
use ferrotune_kernels::{Mode, RandomKey, SequenceLayout};
use ferrotune_models::{CausalLm, ForwardOptions, GenerationConfig, ProductWork, UsualBatch, generate};
use tch::{Device, Kind};

const CASES: [&str; 5] = [
    "llama_gqa_untied",
    "llama3_rope_tied",
    "llama_head_dim_bias_mqa",
    "mistral_window",
    "llama_sharded_bf16",
];

/// The formula by hand, for a model with two layers and an adapter on q and v alone.
#[test]
fn the_arithmetic_of_a_training_step_is_that_of_its_products() {
    use ferrotune_lora::{LoraConfig, TargetModules, inject};
    let mut model = CausalLm::load(&fixture("llama_gqa_untied"), Device::Cpu, Kind::Float).unwrap();
    let targets = TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]);
    let config = LoraConfig { rank: 3, target_modules: targets, ..LoraConfig::default() };
    inject(&mut model, "default", 0, &config, RandomKey::from_seed(1)).unwrap();
    let shape = model.config().clone();
    let (hidden, head_dim) = (shape.hidden_size, shape.head_dim);
    let (q, kv) = (shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim);
    let (layers, t, r) = (shape.num_hidden_layers as i64, 5 + 3, 2);
    assert!(layers > 1);
    let qkv = (q + 2 * kv) * hidden;
    let rest = q * hidden + 3 * shape.intermediate_size * hidden;
    let mut expected = 4 * (layers * t * qkv + ((layers - 1) * t + r) * rest) - 2 * t * qkv;
    expected += 6 * layers * t * 3 * (q + hidden + kv + hidden);
    expected += 14 * layers * q * (15 + 6);
    expected += 4 * r * shape.vocab_size * hidden;
    let layout = SequenceLayout::from_cu_seqlens(&[0, 5, 8]).unwrap();
    let work = model.training_work(&layout, 2);
    assert_eq!(work.total(), expected as f64);
    assert_eq!(work.adapters, (4 * layers * t * 3 * (q + hidden + kv + hidden)) as f64);
    assert_eq!(work.attention, (14 * layers * q * (15 + 6)) as f64);
    assert_eq!(work.head, (4 * r * shape.vocab_size * hidden) as f64);
    let mut twice = work;
    twice.add(&work);
    assert!(model.product_rate(4, Kind::Float).unwrap().unwrap() > 0.0);
    let batch = UsualBatch { tokens: 8, length: 4, targets: 2, rank: 3 };
    let rates = model.product_rates(batch, Kind::Float).unwrap().unwrap();
    let seconds = rates.seconds(&work);
    assert!(seconds > 0.0 && seconds.is_finite());
    assert!((rates.seconds(&twice) / seconds - 2.0).abs() < 1e-9);
    // Each kind counts.
    for kind in [0, 1, 2, 3] {
        let ProductWork { linear, adapters, attention, head } = work;
        let mut parts = [linear, adapters, attention, head];
        parts[kind] = 0.0;
        let [linear, adapters, attention, head] = parts;
        assert!(rates.seconds(&ProductWork { linear, adapters, attention, head }) < seconds, "{kind}");
    }
}

fn load(case: &str) -> CausalLm {
    CausalLm::load(&fixture(case), Device::Cpu, Kind::Float).unwrap()
}

#[test]
fn logits_equal_transformers_with_and_without_an_adapter() {
    for case in CASES {
        let (mut model, expected) = (load(case), Expected::read(case));
        let inputs = expected.inputs();
        let error =
            relative(&model.logits(&inputs.input_ids, &inputs.layout, None).unwrap(), &expected.0["logits"]);
        assert!(error < 2e-6, "{case}: base logits {error}");
        ferrotune_lora::load(&mut model, "default", 0, fixture(case).join("adapter"), false).unwrap();
        let adapted = model.logits(&inputs.input_ids, &inputs.layout, None).unwrap();
        let error = relative(&adapted, &expected.0["adapted_logits"]);
        assert!(error < 2e-6, "{case}: adapted logits {error}");
        let bare = inputs.layout.with_adapter(None);
        let error = relative(&model.logits(&inputs.input_ids, &bare, None).unwrap(), &expected.0["logits"]);
        assert!(error < 2e-6, "{case}: base logits beside an adapter {error}");
    }
}

#[test]
fn a_merged_adapter_computes_what_it_computed_beside_the_weights() {
    for case in CASES {
        let (mut model, expected) = (load(case), Expected::read(case));
        let inputs = expected.inputs();
        let folder = fixture(case).join("adapter");
        let merged = ferrotune_lora::load(&mut model, "merged", 0, &folder, false).unwrap();
        ferrotune_lora::load(&mut model, "other", 1, &folder, false).unwrap();
        let other = inputs.layout.clone().with_adapter(Some(1));
        ferrotune_lora::merge(&mut model, merged).unwrap();
        for adapter in [None, Some(0)] {
            let layout = inputs.layout.clone().with_adapter(adapter);
            let logits = model.logits(&inputs.input_ids, &layout, None).unwrap();
            let error = relative(&logits, &expected.0["adapted_logits"]);
            assert!(error < 2e-6, "{case}: {adapter:?}: {error}");
        }
        // Another adapter stays, and its update comes on top.
        let twice = model.logits(&inputs.input_ids, &other, None).unwrap();
        assert!(relative(&twice, &expected.0["adapted_logits"]) > 1e-3, "{case}");
    }
}

#[test]
fn loss_and_every_gradient_equal_peft() {
    for case in CASES {
        let (mut model, expected) = (load(case), Expected::read(case));
        let adapter =
            ferrotune_lora::load(&mut model, "default", 0, fixture(case).join("adapter"), true).unwrap();
        let loss = model.target_nll(&expected.inputs(), Mode::Eval).unwrap().sum(Kind::Float);
        loss.backward();
        assert!(relative(&loss, &expected.0["loss"]) < 1e-6, "{case}: loss");
        let parameters = adapter.named_parameters();
        assert_eq!(parameters.len(), 2 * 2 * 7, "{case}: two halves of seven modules in two layers");
        for (name, parameter) in parameters {
            let reference = &expected.0[&format!("grad.{name}")];
            assert!(reference.norm().double_value(&[]) > 0.0, "{case}: {name} is zero in the reference");
            let error = relative(&parameter.grad(), reference);
            assert!(error < 1e-5, "{case}: {name}: {error}");
        }
    }
}

#[test]
fn noise_on_embeddings_acts_in_training_alone_and_follows_the_key() {
    let (mut model, inputs) = (load("llama_gqa_untied"), Expected::read("llama_gqa_untied").inputs());
    let folder = fixture("llama_gqa_untied").join("adapter");
    let adapter = ferrotune_lora::load(&mut model, "default", 0, folder, true).unwrap();
    let options = ForwardOptions { neftune_alpha: Some(5.0), ..Default::default() };
    let noisy = |mode| model.target_losses(&inputs, mode, options).unwrap();
    let train = |seed| Mode::Train(RandomKey::from_seed(seed));
    assert_eq!(noisy(Mode::Eval), model.target_nll(&inputs, Mode::Eval).unwrap());
    assert_eq!(noisy(train(1)), noisy(train(1)));
    let plain = model.target_nll(&inputs, train(1)).unwrap();
    for seed in [1, 2] {
        let moved = relative(&noisy(train(seed)), &plain);
        assert!((1e-3..0.5).contains(&moved), "{moved}");
    }
    assert_ne!(noisy(train(1)), noisy(train(2)));
    noisy(train(1)).sum(Kind::Float).backward();
    for (name, parameter) in adapter.named_parameters() {
        assert!(parameter.grad().norm().double_value(&[]) > 0.0, "{name}");
    }
}

/// The answer to a prompt by running all of it for each token, and whether it ended with `stop`.
fn naive(
    model: &CausalLm,
    prompt: &[i64],
    adapter: Option<usize>,
    stop: i64,
    most: usize,
) -> (Vec<i64>, bool) {
    let mut ids = prompt.to_vec();
    loop {
        let layout = SequenceLayout::from_cu_seqlens(&[0, ids.len() as i64]).unwrap().with_adapter(adapter);
        let logits = model.logits(&ids, &layout, Some(&[ids.len() as i64 - 1])).unwrap();
        let next = logits.argmax(-1, false).int64_value(&[0]);
        if next == stop {
            return (ids[prompt.len()..].to_vec(), true);
        }
        ids.push(next);
        if ids.len() == prompt.len() + most {
            return (ids[prompt.len()..].to_vec(), false);
        }
    }
}

#[test]
fn generation_with_a_cache_equals_running_the_whole_sequence_each_time() {
    let begun = |own: &[i64]| [&[12, 3, 40, 7].repeat(5), own].concat();
    let prompts: Vec<Vec<i64>> = vec![
        vec![5, 7, 9],
        vec![11],
        begun(&[4, 1]),
        vec![4, 4, 8, 20, 31, 6, 5],
        begun(&[30, 2, 9]),
        begun(&[]),
        vec![9; 12],
        begun(&[[6, 8].repeat(9), vec![1]].concat()),
        begun(&[4, 1]),
        begun(&[[6, 8].repeat(9), vec![2, 3]].concat()),
    ];
    for case in ["llama_gqa_untied", "mistral_window", "llama_head_dim_bias_mqa"] {
        let mut model = load(case);
        ferrotune_lora::load(&mut model, "default", 0, fixture(case).join("adapter"), false).unwrap();
        for adapter in [None, Some(0)] {
            // A stop token that some answers reach early makes sequences leave and enter the batch.
            let stop = naive(&model, &prompts[0], adapter, -1, 14).0[2];
            let expected: Vec<_> =
                prompts.iter().map(|prompt| naive(&model, prompt, adapter, stop, 14)).collect();
            for batch_size in [1, 2, 5, 19] {
                let config =
                    GenerationConfig { max_new_tokens: 14, batch_size, eos_token_ids: vec![stop], adapter };
                let mut streamed = vec![Vec::new(); prompts.len()];
                let answers = generate(&model, &prompts, &config, &mut |prompt, token| {
                    streamed[prompt].push(token);
                    true
                })
                .unwrap();
                for (answer, expected) in answers.into_iter().zip(&expected) {
                    assert_eq!(streamed[answer.prompt], answer.token_ids);
                    assert_eq!(
                        &(answer.token_ids, answer.finished),
                        expected,
                        "{case} {adapter:?} {batch_size} {}",
                        answer.prompt
                    );
                }
            }
        }
    }
}

#[test]
fn prompts_beyond_one_pass_are_computed_in_several() {
    let model = load("mistral_window");
    // 60 prompts of 45 tokens: more than 2048, and the border of a pass falls inside a prompt.
    let prompts: Vec<Vec<i64>> = (0..60)
        .map(|prompt| {
            (0..45).map(|place| (prompt * (place + 3) + place * place + prompt / 50) % 50).collect()
        })
        .collect();
    let config = GenerationConfig { max_new_tokens: 4, batch_size: 60, eos_token_ids: vec![], adapter: None };
    let mut begun = Vec::new();
    let answers = generate(&model, &prompts, &config, &mut |prompt, _| {
        begun.push(prompt);
        true
    })
    .unwrap();
    for (answer, prompt) in answers.into_iter().zip(&prompts) {
        assert_eq!((answer.token_ids, answer.finished), naive(&model, prompt, None, -1, 4));
    }
    // Those of the first pass go on while the others are computed.
    assert_eq!(begun[..45], *(0..45).collect::<Vec<_>>());
    assert_eq!(begun[45..47], [0, 1]);
}

#[test]
fn inputs_that_do_not_fit_the_model_are_refused() {
    let model = load("llama_gqa_untied");
    let layout = SequenceLayout::from_cu_seqlens(&[0, 2]).unwrap();
    let message =
        |ids: &[i64], layout: &SequenceLayout| model.logits(ids, layout, None).unwrap_err().to_string();
    assert!(message(&[1, 50], &layout).contains("token id 50"));
    assert!(message(&[1], &layout).contains("1 ids"));
    let long = SequenceLayout::from_cu_seqlens(&[0, 65]).unwrap();
    assert!(message(&[1; 65], &long).contains("max_position_embeddings = 64"));
    let config = GenerationConfig { max_new_tokens: 60, batch_size: 1, eos_token_ids: vec![], adapter: None };
    let refused = |prompts: &[Vec<i64>]| generate(&model, prompts, &config, &mut |_, _| true).is_err();
    assert!(refused(&[vec![1; 5]]) && refused(&[vec![]]));
}

#[test]
fn config_and_weights_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("llama_gqa_untied");
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    std::fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let load_with = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        std::fs::write(folder.path().join("config.json"), config.replace(from, to)).unwrap();
        CausalLm::load(folder.path(), Device::Cpu, Kind::Float).unwrap_err().to_string()
    };
    let error = load_with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    assert!(error.contains("model.layers.2.input_layernorm.weight"), "{error}");
    let error = load_with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    assert!(error.contains("model.layers.1."), "{error}");
    let error = load_with("\"vocab_size\": 50", "\"vocab_size\": 51");
    assert!(error.contains("[50, 24]") && error.contains("[51, 24]"), "{error}");
}
