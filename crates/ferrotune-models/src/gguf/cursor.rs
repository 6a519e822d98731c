//! Bounds-checked reading of the header.

use std::fmt;
use std::path::Path;

use super::value::{Array, Value};
use crate::error::{Error, Result};

/// Lists of lists are legal but unused; deeper ones than this are an attack on the stack.
const MAX_ARRAY_DEPTH: usize = 4;

/// A position in the bytes of a file. Nothing is read, and no list is made, beyond what the bytes hold.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    path: &'a Path,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], path: &'a Path) -> Self {
        Self { bytes, position: 0, path }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The error for something wrong at the current position.
    pub(super) fn malformed(
        &self,
        what: fmt::Arguments<'_>,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Error {
        Error::GgufMalformed {
            path: self.path.to_owned(),
            offset: self.position as u64,
            what: what.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: u64, what: fmt::Arguments<'_>) -> Result<&'a [u8]> {
        let end = usize::try_from(length).ok().and_then(|length| self.position.checked_add(length));
        let Some(bytes) = end.and_then(|end| self.bytes.get(self.position..end)) else {
            return Err(self.malformed(
                what,
                format_args!("{length} bytes"),
                format_args!("the end of the file after {}", self.remaining()),
            ));
        };
        self.position += bytes.len();
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: fmt::Arguments<'_>) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: fmt::Arguments<'_>) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: fmt::Arguments<'_>) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A length-prefixed string.
    pub(super) fn string(&mut self, what: fmt::Arguments<'_>) -> Result<String> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?.to_vec();
        String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            self.malformed(what, "UTF-8 text", format_args!("an invalid byte after {valid} bytes of it"))
        })
    }

    /// A count of items that take at least `item_bytes` each, so that a list of that length may be allocated.
    pub(super) fn count(&mut self, item_bytes: usize, what: fmt::Arguments<'_>) -> Result<usize> {
        let count = self.u64(what)?;
        let most = self.remaining() / item_bytes;
        usize::try_from(count).ok().filter(|&count| count <= most).ok_or_else(|| {
            self.malformed(
                what,
                format_args!("at most {most} items, for no more fit in the rest of the file"),
                count,
            )
        })
    }

    /// A metadata value of the type with number `type_id`.
    pub(super) fn value(&mut self, type_id: u32, what: fmt::Arguments<'_>) -> Result<Value> {
        Ok(match type_id {
            0 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(what)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            7 => Value::Bool(self.bool(what)?),
            8 => Value::String(self.string(what)?),
            9 => Value::Array(self.list(1, what)?),
            10 => Value::U64(u64::from_le_bytes(self.array(what)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            other => return Err(self.malformed(what, "a value type from 0 to 12", other)),
        })
    }

    fn bool(&mut self, what: fmt::Arguments<'_>) -> Result<bool> {
        match self.array::<1>(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.malformed(what, "a truth value, 0 or 1", other)),
        }
    }

    fn list(&mut self, depth: usize, what: fmt::Arguments<'_>) -> Result<Array> {
        if depth > MAX_ARRAY_DEPTH {
            return Err(self.malformed(
                what,
                format_args!("lists nested at most {MAX_ARRAY_DEPTH} deep"),
                "a deeper one",
            ));
        }
        let type_id = self.u32(what)?;
        Ok(match type_id {
            0 => Array::U8(self.numbers(u8::from_le_bytes, what)?),
            1 => Array::I8(self.numbers(i8::from_le_bytes, what)?),
            2 => Array::U16(self.numbers(u16::from_le_bytes, what)?),
            3 => Array::I16(self.numbers(i16::from_le_bytes, what)?),
            4 => Array::U32(self.numbers(u32::from_le_bytes, what)?),
            5 => Array::I32(self.numbers(i32::from_le_bytes, what)?),
            6 => Array::F32(self.numbers(f32::from_le_bytes, what)?),
            10 => Array::U64(self.numbers(u64::from_le_bytes, what)?),
            11 => Array::I64(self.numbers(i64::from_le_bytes, what)?),
            12 => Array::F64(self.numbers(f64::from_le_bytes, what)?),
            7 => Array::Bool(self.items(1, what, |cursor| cursor.bool(what))?),
            8 => Array::String(self.items(8, what, |cursor| cursor.string(what))?),
            9 => Array::Array(self.items(12, what, |cursor| cursor.list(depth + 1, what))?),
            other => return Err(self.malformed(what, "an element type from 0 to 12", other)),
        })
    }

    fn numbers<T, const N: usize>(
        &mut self,
        decode: fn([u8; N]) -> T,
        what: fmt::Arguments<'_>,
    ) -> Result<Vec<T>> {
        self.items(N, what, |cursor| Ok(decode(cursor.array(what)?)))
    }

    fn items<T>(
        &mut self,
        item_bytes: usize,
        what: fmt::Arguments<'_>,
        mut read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.count(item_bytes, what)?;
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(read(self)?);
        }
        Ok(list)
    }
}
