//! The order of examples against torch.randperm.

#[test]
fn equals_torch_randperm() {
    let fixture: serde_json::Value =
        serde_json::from_str(include_str!("fixtures/epoch_order/orders.json")).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 10);
    for case in cases {
        let examples = case["examples"].as_u64().unwrap() as usize;
        let seed: u64 = case["seed"].as_str().unwrap().parse().unwrap();
        let order: Vec<usize> = serde_json::from_value(case["order"].clone()).unwrap();
        assert_eq!(ferrotune_data::epoch_order(examples, seed), order, "{examples} examples, seed {seed}");
    }
}
