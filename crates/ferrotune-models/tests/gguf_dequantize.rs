//! Every storage type against the reference implementation in Python, bit for bit.

use std::path::Path;

use ferrotune_models::gguf::{GgmlType, dequantize};
use safetensors::SafeTensors;

#[test]
fn blocks_of_every_type_decode_to_the_same_bits_as_in_python() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf_blocks/blocks.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let fixture = SafeTensors::deserialize(&bytes).unwrap();
    for ggml_type in GgmlType::ALL {
        let raw = fixture.tensor(&format!("{ggml_type}.raw")).unwrap();
        let expected: Vec<u32> = fixture
            .tensor(&format!("{ggml_type}.values"))
            .unwrap()
            .data()
            .chunks_exact(4)
            .map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        let mut values = vec![f32::NAN; expected.len()];
        dequantize(ggml_type, raw.data(), &mut values).unwrap();
        for (index, (value, expected)) in values.iter().zip(&expected).enumerate() {
            let expected_value = f32::from_bits(*expected);
            assert_eq!(
                value.to_bits(),
                *expected,
                "{ggml_type} element {index}: {value} instead of {expected_value}"
            );
        }
        assert!(values.iter().any(|value| *value != 0.0), "{ggml_type}");
    }
}
