//! The file as a whole.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::cursor::Cursor;
use super::dequantize::dequantize_blocks;
use super::ggml_type::{self, GgmlType};
use super::value::Value;
use crate::error::{Error, Result};
use crate::mapped_file::MappedFile;

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMENSIONS: usize = 4;
const REMEDY: &str =
    "convert it with a current version of llama.cpp, or use the model's own Hugging Face directory";

/// An open GGUF file, its header read and checked.
#[derive(Debug)]
pub struct GgufFile {
    file: MappedFile,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

/// Name, shape, storage type and place of a tensor.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    name: String,
    shape: Vec<usize>,
    ggml_type: GgmlType,
    /// From the start of the file.
    start: usize,
    bytes: usize,
}

impl TensorInfo {
    /// Name in the file, such as `blk.0.attn_q.weight`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Dimensions, outermost first as in PyTorch: `[out_features, in_features]` for the weight of a linear layer. (The file
    /// itself lists them innermost first.)
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How the elements are stored.
    #[must_use]
    pub fn ggml_type(&self) -> GgmlType {
        self.ggml_type
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.bytes / self.ggml_type.block_bytes() * self.ggml_type.block_elements()
    }
}

impl GgufFile {
    /// Opens a GGUF file and reads its metadata and its tensor list. Tensor data is not touched.
    ///
    /// The file must not be changed in place or truncated while it is open.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::NotAFile`] if it cannot be read, [`Error::GgufKeyInvalid`] for an alignment that cannot be,
    /// [`Error::GgufMalformed`] if it is not a sound GGUF file (with the offset of what is
    /// wrong), [`Error::GgufUnsupported`] for another version, byte order or tensor type, or one part of a split model.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let mut cursor = Cursor::new(&file, path);
        read_version(&mut cursor, path)?;
        let tensor_count = cursor.u64(format_args!("number of tensors"))?;
        let key_count = cursor.u64(format_args!("number of metadata keys"))?;
        let metadata = read_metadata(&mut cursor, key_count)?;
        refuse_parts(&metadata, path)?;
        let alignment = alignment(&metadata, path)?;
        let tensors = read_tensors(&mut cursor, tensor_count, alignment, path)?;
        check_overlap(&tensors, path)?;
        let by_name =
            tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.clone(), index)).collect();
        tracing::debug!(path = %path.display(), keys = metadata.len(), tensors = tensors.len(), "opened a GGUF file");
        Ok(Self { file, metadata, tensors, by_name })
    }

    /// The path that was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The value of a metadata key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All metadata, sorted by key.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// All tensors in the order of the file.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor with this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).and_then(|&index| self.tensors.get(index))
    }

    /// The tensor with this name, decoded to f32 in row-major order.
    ///
    /// # Shapes
    /// - returns the elements of a tensor of shape [`TensorInfo::shape`]
    ///
    /// # Errors
    /// [`Error::GgufTensorMissing`] if there is none.
    pub fn dequantize(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name).ok_or_else(|| Error::GgufTensorMissing {
            path: self.path().to_owned(),
            tensor: name.to_owned(),
        })?;
        let mut values = vec![0.0; tensor.elements()];
        dequantize_blocks(tensor.ggml_type, self.raw(tensor), &mut values);
        Ok(values)
    }

    /// The stored bytes of a tensor of this file.
    pub(crate) fn raw(&self, tensor: &TensorInfo) -> &[u8] {
        // The range was checked when the file was opened; an info of another file gives nothing rather than a panic.
        self.file.get(tensor.start..tensor.start + tensor.bytes).unwrap_or_default()
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.file
    }
}

fn unsupported(path: &Path, what: &str, found: impl ToString, supported: &str) -> Error {
    Error::GgufUnsupported {
        path: path.to_owned(),
        what: what.to_owned(),
        found: found.to_string(),
        supported: supported.to_owned(),
        remedy: REMEDY,
    }
}

fn read_version(cursor: &mut Cursor<'_>, path: &Path) -> Result<()> {
    let magic = cursor.take(4, format_args!("start of the file"))?;
    if magic != MAGIC {
        return Err(cursor.malformed(
            format_args!("start of the file"),
            "the letters GGUF",
            format_args!("{magic:02x?}"),
        ));
    }
    match cursor.u32(format_args!("format version"))? {
        2 | 3 => Ok(()),
        // A big-endian file shows its small version number in the upper bytes.
        swapped if swapped.swap_bytes() < 0x1_0000 && swapped > 0xffff => {
            Err(unsupported(path, "byte order", "big-endian", "little-endian"))
        }
        other => Err(unsupported(path, "GGUF version", other, "2, 3")),
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, Value>> {
    let mut metadata = BTreeMap::new();
    // A false count ends at the end of the file: nothing is allocated for it in advance.
    for index in 0..count {
        let key = cursor.string(format_args!("metadata key {index}"))?;
        let type_id = cursor.u32(format_args!("type of metadata key `{key}`"))?;
        let value = cursor.value(type_id, format_args!("metadata key `{key}`"))?;
        if metadata.contains_key(&key) {
            return Err(cursor.malformed(
                format_args!("metadata"),
                "every key once",
                format_args!("`{key}` a second time"),
            ));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn refuse_parts(metadata: &BTreeMap<String, Value>, path: &Path) -> Result<()> {
    match metadata.get("split.count").and_then(Value::as_u64) {
        Some(parts) if parts > 1 => Err(unsupported(
            path,
            "split.count",
            parts,
            "a model in one file; `llama-gguf-split --merge` joins the parts",
        )),
        _ => Ok(()),
    }
}

fn alignment(metadata: &BTreeMap<String, Value>, path: &Path) -> Result<u64> {
    let key = "general.alignment";
    let Some(value) = metadata.get(key) else { return Ok(DEFAULT_ALIGNMENT) };
    value
        .as_u64()
        .filter(|alignment| alignment.is_power_of_two() && *alignment <= u64::from(u32::MAX))
        .ok_or_else(|| Error::GgufKeyInvalid {
            path: path.to_owned(),
            key: key.to_owned(),
            expected: "a power of two".to_owned(),
            found: value.describe(),
        })
}

/// A tensor before the start of the data section is known.
struct TensorEntry {
    name: String,
    shape: Vec<usize>,
    ggml_type: GgmlType,
    offset: u64,
    bytes: u64,
}

fn read_tensors(cursor: &mut Cursor<'_>, count: u64, alignment: u64, path: &Path) -> Result<Vec<TensorInfo>> {
    let mut entries: Vec<TensorEntry> = Vec::new();
    let mut names = HashMap::new();
    for index in 0..count {
        let entry = read_tensor_entry(cursor, index, alignment, path)?;
        if names.insert(entry.name.clone(), ()).is_some() {
            return Err(cursor.malformed(
                format_args!("tensor list"),
                "every tensor once",
                format_args!("`{}` a second time", entry.name),
            ));
        }
        entries.push(entry);
    }
    let data_start = (cursor.position() as u64).next_multiple_of(alignment);
    let file_end = (cursor.position() + cursor.remaining()) as u64;
    let mut tensors = Vec::with_capacity(entries.len());
    for TensorEntry { name, shape, ggml_type, offset, bytes } in entries {
        let range = data_start
            .checked_add(offset)
            .and_then(|start| Some((start, start.checked_add(bytes)?)))
            .filter(|&(_, end)| end <= file_end)
            .and_then(|(start, _)| Some((usize::try_from(start).ok()?, usize::try_from(bytes).ok()?)));
        let Some((start, bytes)) = range else {
            return Err(cursor.malformed(
                format_args!("tensor `{name}`"),
                format_args!("{bytes} bytes of data at offset {offset} of the data section, which starts at {data_start}"),
                format_args!("a file of {file_end} bytes"),
            ));
        };
        tensors.push(TensorInfo { name, shape, ggml_type, start, bytes });
    }
    Ok(tensors)
}

fn read_tensor_entry(
    cursor: &mut Cursor<'_>,
    index: u64,
    alignment: u64,
    path: &Path,
) -> Result<TensorEntry> {
    let name = cursor.string(format_args!("name of tensor {index}"))?;
    let what = format_args!("tensor `{name}`");
    let dimensions = cursor.u32(what)? as usize;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(cursor.malformed(what, format_args!("1 to {MAX_DIMENSIONS} dimensions"), dimensions));
    }
    let mut shape = Vec::with_capacity(dimensions);
    let mut elements = 1_u64;
    for _ in 0..dimensions {
        let dimension = cursor.u64(what)?;
        let product =
            elements.checked_mul(dimension).filter(|&product| product > 0 && product <= isize::MAX as u64);
        elements = product
            .ok_or_else(|| cursor.malformed(what, "a dimension above 0 that fits in memory", dimension))?;
        shape.push(dimension as usize);
    }
    let row = shape[0];
    shape.reverse();
    let type_id = cursor.u32(what)?;
    let ggml_type = GgmlType::from_id(type_id).ok_or_else(|| {
        unsupported(
            path,
            &format!("type of tensor `{name}`"),
            ggml_type::describe(type_id),
            &ggml_type::supported(),
        )
    })?;
    if !row.is_multiple_of(ggml_type.block_elements()) {
        return Err(cursor.malformed(
            what,
            format_args!("rows in whole {ggml_type} blocks of {} elements", ggml_type.block_elements()),
            format_args!("rows of {row}"),
        ));
    }
    let blocks = elements / ggml_type.block_elements() as u64;
    let bytes = blocks.checked_mul(ggml_type.block_bytes() as u64).ok_or_else(|| {
        cursor.malformed(what, "a size that fits in memory", format_args!("{blocks} blocks"))
    })?;
    let offset = cursor.u64(what)?;
    if !offset.is_multiple_of(alignment) {
        return Err(cursor.malformed(
            what,
            format_args!("an offset that is a multiple of {alignment}"),
            offset,
        ));
    }
    Ok(TensorEntry { name, shape, ggml_type, offset, bytes })
}

fn check_overlap(tensors: &[TensorInfo], path: &Path) -> Result<()> {
    let mut in_order: Vec<&TensorInfo> = tensors.iter().collect();
    in_order.sort_by_key(|tensor| tensor.start);
    for pair in in_order.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if first.start + first.bytes > second.start {
            return Err(Error::GgufMalformed {
                path: path.to_owned(),
                offset: second.start as u64,
                what: format!("data of tensor `{}`", second.name),
                expected: "bytes of its own".to_owned(),
                found: format!("bytes that belong to tensor `{}` as well", first.name),
            });
        }
    }
    Ok(())
}
