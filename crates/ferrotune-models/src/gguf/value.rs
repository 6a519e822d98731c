//! Metadata values.

/// Value of a metadata key.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are the format's types by name")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// A list of metadata values of one type, as compact in memory as in the file.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are the format's types by name")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
}

impl Value {
    /// The value as an unsigned number, whichever integer type stores it.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a float. A number stored as f32 becomes the decimal number that it was rounded from (`1e-5`, not
    /// `0.0000099999997`): the shortest decimal that rounds to the same f32.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) if value.is_finite() => value.to_string().parse().ok(),
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The value as text.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(value) = self { Some(value) } else { None }
    }

    /// The value as a truth value.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// The value as a list.
    #[must_use]
    pub fn as_array(&self) -> Option<&Array> {
        if let Self::Array(value) = self { Some(value) } else { None }
    }

    /// Type, and the value where it is short, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        const SHOWN_CHARS: usize = 60;
        match self {
            Self::String(text) if text.chars().count() > SHOWN_CHARS => {
                format!(
                    "string of {} bytes starting {:?}",
                    text.len(),
                    text.chars().take(SHOWN_CHARS).collect::<String>()
                )
            }
            Self::Array(array) => format!("list of {} {}", array.len(), array.type_name()),
            short => format!("{short:?}"),
        }
    }
}

impl Array {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::U8(list) => list.len(),
            Self::I8(list) => list.len(),
            Self::U16(list) => list.len(),
            Self::I16(list) => list.len(),
            Self::U32(list) => list.len(),
            Self::I32(list) => list.len(),
            Self::U64(list) => list.len(),
            Self::I64(list) => list.len(),
            Self::F32(list) => list.len(),
            Self::F64(list) => list.len(),
            Self::Bool(list) => list.len(),
            Self::String(list) => list.len(),
            Self::Array(list) => list.len(),
        }
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `index` as a value of its own.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Value> {
        match self {
            Self::U8(list) => list.get(index).copied().map(Value::U8),
            Self::I8(list) => list.get(index).copied().map(Value::I8),
            Self::U16(list) => list.get(index).copied().map(Value::U16),
            Self::I16(list) => list.get(index).copied().map(Value::I16),
            Self::U32(list) => list.get(index).copied().map(Value::U32),
            Self::I32(list) => list.get(index).copied().map(Value::I32),
            Self::U64(list) => list.get(index).copied().map(Value::U64),
            Self::I64(list) => list.get(index).copied().map(Value::I64),
            Self::F32(list) => list.get(index).copied().map(Value::F32),
            Self::F64(list) => list.get(index).copied().map(Value::F64),
            Self::Bool(list) => list.get(index).copied().map(Value::Bool),
            Self::String(list) => list.get(index).cloned().map(Value::String),
            Self::Array(list) => list.get(index).cloned().map(Value::Array),
        }
    }

    /// Name of the element type.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::Bool(_) => "bool",
            Self::String(_) => "string",
            Self::Array(_) => "list",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_that_went_through_f32_comes_back() {
        assert_eq!(Value::F32(1e-5).as_f64(), Some(1e-5));
        assert_eq!(Value::F32(500_000.0).as_f64(), Some(500_000.0));
        assert_eq!(Value::F32(f32::INFINITY).as_f64(), Some(f64::INFINITY));
        assert_eq!(Value::U32(1).as_f64(), None);
    }

    #[test]
    fn integers_of_any_type_are_numbers_if_not_negative() {
        assert_eq!(Value::I32(7).as_u64(), Some(7));
        assert_eq!(Value::I32(-1).as_u64(), None);
        assert_eq!(Value::U64(u64::MAX).as_u64(), Some(u64::MAX));
        assert_eq!(Value::String("7".into()).as_u64(), None);
    }
}
