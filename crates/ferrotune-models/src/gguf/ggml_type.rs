//! Storage types of tensors.

use std::fmt;

/// How the numbers of a tensor are stored: plain floats, or blocks of small integers that share scales.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are those of ggml and say all there is to say")]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl GgmlType {
    /// All types that can be decoded.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The type with this number in a file, if it can be decoded.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ggml_type| ggml_type.id() == id)
    }

    /// The number that stands for the type in a file.
    #[must_use]
    pub fn id(self) -> u32 {
        self.facts().0
    }

    /// Name as ggml writes it, `Q4_K` for instance.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().1
    }

    /// Elements in one block; a row of a tensor is a whole number of blocks.
    #[must_use]
    pub fn block_elements(self) -> usize {
        self.facts().2
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        self.facts().3
    }

    /// Number, name, elements of a block, bytes of a block.
    fn facts(self) -> (u32, &'static str, usize, usize) {
        match self {
            Self::F32 => (0, "F32", 1, 4),
            Self::F16 => (1, "F16", 1, 2),
            Self::BF16 => (30, "BF16", 1, 2),
            Self::Q4_0 => (2, "Q4_0", 32, 2 + 16),
            Self::Q4_1 => (3, "Q4_1", 32, 2 + 2 + 16),
            Self::Q5_0 => (6, "Q5_0", 32, 2 + 4 + 16),
            Self::Q5_1 => (7, "Q5_1", 32, 2 + 2 + 4 + 16),
            Self::Q8_0 => (8, "Q8_0", 32, 2 + 32),
            Self::Q2K => (10, "Q2_K", 256, 16 + 64 + 2 + 2),
            Self::Q3K => (11, "Q3_K", 256, 32 + 64 + 12 + 2),
            Self::Q4K => (12, "Q4_K", 256, 2 + 2 + 12 + 128),
            Self::Q5K => (13, "Q5_K", 256, 2 + 2 + 12 + 32 + 128),
            Self::Q6K => (14, "Q6_K", 256, 128 + 64 + 16 + 2),
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A readable name for any type number, for messages about types that cannot be decoded.
pub(super) fn describe(id: u32) -> String {
    let name = match id {
        4 => "Q4_2 (removed from ggml)",
        5 => "Q4_3 (removed from ggml)",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => {
            return GgmlType::from_id(id)
                .map_or_else(|| format!("unknown type {id}"), |known| known.name().to_owned());
        }
    };
    name.to_owned()
}

/// The names of all types that can be decoded, for messages.
pub(super) fn supported() -> String {
    GgmlType::ALL.map(GgmlType::name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_round_trip() {
        for ggml_type in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(ggml_type.id()), Some(ggml_type));
        }
        assert_eq!(GgmlType::from_id(19), None);
        assert_eq!(describe(19), "IQ1_S");
        assert_eq!(describe(8), "Q8_0");
        assert_eq!(describe(1000), "unknown type 1000");
    }
}
