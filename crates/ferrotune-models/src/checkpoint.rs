//! Weights of a Hugging Face model directory: one safetensors file, or shards with an index.

use crate::{
    error::{Error, Result},
    identify::check_directory,
    regular_file::{self, SharedFile, is_there},
};
use ferrotune_kernels::{FrozenWeight, filled_tensor};
use safetensors::{Dtype, tensor::Metadata};
use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tch::{Kind, Tensor};

/// Where one tensor lies.
#[derive(Clone, Debug)]
struct Entry {
    path: PathBuf,
    file: Arc<SharedFile>,
    start: u64,
    bytes: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// The tensors of a model directory, read one at a time.
///
/// Only headers are held; a tensor's bytes are read when it is asked for, into the tensor itself, so that loading never holds the file
/// twice.
#[derive(Debug)]
pub struct Checkpoint {
    directory: PathBuf,
    entries: BTreeMap<String, Entry>,
}

/// Bytes that are read at a time.
const BUFFER: usize = 256 << 10;
/// A header larger than this is not a header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

impl Checkpoint {
    /// Reads the headers of a directory's `model.safetensors`, or of the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// [`Error::NotAModel`] and [`Error::GitLfsPointer`] say what the directory is instead; [`Error::NoWeights`] if there is neither file; [`Error::Weights`] for a file that is not whole or an index that leads outside the
    /// directory or names what is not there.
    pub fn open(directory: &Path) -> Result<Self> {
        check_directory(directory)?;
        let (single, index) =
            (directory.join("model.safetensors"), directory.join("model.safetensors.index.json"));
        let entries = if is_there(&single) {
            read_header(&single)?
        } else if is_there(&index) {
            read_shards(directory, &index)?
        } else {
            return Err(Error::NoWeights { path: directory.to_owned() });
        };
        Ok(Self { directory: directory.to_owned(), entries })
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Number of elements of each tensor.
    pub(crate) fn elements(&self) -> impl Iterator<Item = u64> {
        self.entries.values().map(Entry::elements)
    }

    /// Demands that a tensor is there, with a shape and a dtype that can be read.
    ///
    /// # Errors
    /// [`Error::TensorMissing`], [`Error::TensorShape`] with both shapes, [`Error::TensorDtype`].
    pub(crate) fn check(&self, name: &str, shape: &[i64]) -> Result<()> {
        self.find(name, shape).map(|_| ())
    }

    fn find(&self, name: &str, shape: &[i64]) -> Result<(&Entry, Kind)> {
        let Some(entry) = self.entries.get(name) else {
            return Err(Error::TensorMissing { path: self.directory.clone(), tensor: name.to_owned() });
        };
        let found: Vec<i64> = entry.shape.iter().map(|&size| size as i64).collect();
        if found != shape {
            return Err(Error::TensorShape {
                path: entry.path.clone(),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found,
            });
        }
        let stored = match entry.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => {
                return Err(Error::TensorDtype {
                    path: entry.path.clone(),
                    tensor: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        };
        Ok((entry, stored))
    }

    /// Reads a tensor, demands its shape and converts it to `kind`.
    ///
    /// # Errors
    /// [`Error::TensorMissing`], [`Error::TensorShape`] with both shapes, [`Error::TensorDtype`], [`Error::TensorNotFinite`], and
    /// [`Error::Io`] if the file was cut since it was opened.
    pub fn tensor(&self, name: &str, shape: &[i64], kind: Kind) -> Result<Tensor> {
        let (entry, stored) = self.find(name, shape)?;
        entry.in_kind(name, &self.stored(name, shape)?, stored, kind)
    }

    /// Whether two tensors of that shape hold the same numbers.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub(crate) fn are_equal(&self, names: [&str; 2], shape: &[i64]) -> Result<bool> {
        let [(first, first_kind), (second, second_kind)] =
            [self.find(names[0], shape)?, self.find(names[1], shape)?];
        if first_kind != second_kind {
            let [first, second] = names.map(|name| self.tensor(name, shape, Kind::Float));
            return Ok(first?.f_equal(&second?)?);
        }
        let [mut these, mut those] = [(); 2].map(|()| vec![0; BUFFER.min(first.bytes)]);
        for place in (0..first.bytes).step_by(BUFFER) {
            let count = BUFFER.min(first.bytes - place);
            let (these, those) = (&mut these[..count], &mut those[..count]);
            first.read_numbers(names[0], place, these)?;
            second.read_numbers(names[1], place, those)?;
            if these != those {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a tensor in the kind in which it is stored, and demands its shape.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub(crate) fn stored(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let (entry, kind) = self.find(name, shape)?;
        filled_tensor(shape, kind, |first, bytes| entry.read_numbers(name, first, bytes))
    }

    /// Matrices of one width, by name and number of rows, that are to lie below each other.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub(crate) fn stack<'a>(&'a self, parts: &'a [(String, i64)], columns: i64) -> Result<Stack<'a>> {
        let found = parts.iter().map(|(name, rows)| Ok((name.as_str(), self.find(name, &[*rows, columns])?)));
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        Ok(Stack { parts: found.collect::<Result<_>>()?, shape: [rows, columns] })
    }
}

/// Matrices of one width, to be read as one.
pub(crate) struct Stack<'a> {
    parts: Vec<(&'a str, (&'a Entry, Kind))>,
    pub(crate) shape: [i64; 2],
}

impl Stack<'_> {
    /// The kind in which all parts are stored, if it is one.
    pub(crate) fn kind(&self) -> Option<Kind> {
        let mut kinds = self.parts.iter().map(|(_, (_, kind))| *kind);
        let first = kinds.next()?;
        kinds.all(|kind| kind == first).then_some(first)
    }

    /// Writes the numbers from byte `first` on, of parts in one kind.
    ///
    /// # Errors
    /// [`Error::TensorNotFinite`], and [`Error::Io`] if the file was cut since it was opened.
    pub(crate) fn read_numbers(&self, mut first: usize, mut bytes: &mut [u8]) -> Result<()> {
        for (name, (entry, _)) in &self.parts {
            let here = entry.bytes.saturating_sub(first).min(bytes.len());
            let (target, rest) = bytes.split_at_mut(here);
            entry.read_numbers(name, first, target)?;
            (first, bytes) = ((first + here).saturating_sub(entry.bytes), rest);
        }
        Ok(())
    }

    /// Whether a part is held in another kind for a while, if products are in f32 on the CPU.
    pub(crate) fn converts_to_f32(&self) -> bool {
        match self.kind() {
            Some(Kind::Float) => false,
            Some(Kind::BFloat16) => !FrozenWeight::keeps_bf16(),
            _ => true,
        }
    }

    /// Bytes of memory of a row for products in f32 on the CPU, in the fewest bits: judged by two rows of each part, since weights are
    /// of one kind throughout, and not by long ones as a whole.
    ///
    /// # Errors
    /// [`Error::TensorNotFinite`] and [`Error::Io`].
    pub(crate) fn fewest_row_bytes(&self) -> Result<u64> {
        const COLUMNS: usize = 4096;
        let columns = self.shape[1] as usize;
        let all = (columns as u64).saturating_mul(size_of::<f32>() as u64);
        match self.kind() {
            Some(Kind::BFloat16) if !self.converts_to_f32() => return Ok(all / 2),
            Some(Kind::Float) => {}
            _ => return Ok(all),
        }
        let judged = columns.min(COLUMNS);
        let mut found = None;
        for (name, (entry, _)) in self.parts.iter().filter(|(_, (entry, _))| entry.bytes > 0) {
            for row in [0, entry.shape[0] / 2] {
                let fill = |first: usize, bytes: &mut [u8]| {
                    entry.read_numbers(name, row * columns * size_of::<f32>() + first, bytes)
                };
                let bytes = FrozenWeight::filled([1, judged as i64], fill)?.stored_bytes() as u64;
                // What one form does not hold is dense.
                if *found.get_or_insert(bytes) != bytes {
                    return Ok(all);
                }
            }
        }
        Ok(found.map_or(all, |bytes| all.min(bytes.saturating_mul(columns as u64) / judged.max(1) as u64)))
    }

    /// All of it in `kind`.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub(crate) fn tensor(&self, kind: Kind) -> Result<Tensor> {
        let tensor = self.stored()?.f_to_kind(kind)?;
        let mut first = 0;
        for (name, (entry, stored)) in &self.parts {
            let rows = entry.shape[0] as i64;
            if narrows(*stored, kind) {
                entry.demand_finite(name, &tensor.f_narrow(0, first, rows)?)?;
            }
            first += rows;
        }
        Ok(tensor)
    }

    /// All of it, in the kind in which it is stored, or, if the parts differ, in one that holds all of them.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub(crate) fn stored(&self) -> Result<Tensor> {
        if let Some(kind) = self.kind() {
            return filled_tensor(&self.shape, kind, |first, bytes| self.read_numbers(first, bytes));
        }
        let parts = self.parts.iter().map(|(name, (entry, kind))| {
            let shape = Vec::from_iter(entry.shape.iter().map(|&size| size as i64));
            filled_tensor(&shape, *kind, |first, bytes| entry.read_numbers(name, first, bytes))
        });
        Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

impl Entry {
    fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// Its numbers in another kind, if all of them are finite there, too.
    fn in_kind(&self, name: &str, tensor: &Tensor, stored: Kind, kind: Kind) -> Result<Tensor> {
        let tensor = tensor.f_to_kind(kind)?;
        if narrows(stored, kind) {
            self.demand_finite(name, &tensor)?;
        }
        Ok(tensor)
    }

    fn demand_finite(&self, name: &str, tensor: &Tensor) -> Result<()> {
        // Either NaN or infinity spoils the sum, which is far cheaper than a look at each number.
        let sum = tensor.f_sum(Kind::Float)?.f_double_value(&[])?;
        if sum.is_finite() || tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0 {
            return Ok(());
        }
        Err(self.not_finite(name))
    }

    fn not_finite(&self, name: &str) -> Error {
        Error::TensorNotFinite { path: self.path.clone(), tensor: name.to_owned() }
    }

    /// Writes its numbers from byte `first` on in the machine's order, if all of them are finite.
    ///
    /// Many numbers go through a buffer that stays in a core's cache: into memory that nobody has touched yet the system reads slowly.
    fn read_numbers(&self, name: &str, first: usize, numbers: &mut [u8]) -> Result<()> {
        let read = |place: usize, bytes: &mut [u8]| {
            let place = self.start + place as u64;
            self.file.read_at(place, bytes).map_err(Error::io("read", &self.path))?;
            let are_finite = match self.dtype {
                Dtype::BF16 => are_finite_halves(bytes, 0x7f80),
                Dtype::F16 => are_finite_halves(bytes, 0x7c00),
                _ => are_finite(bytes),
            };
            if are_finite { Ok(()) } else { Err(self.not_finite(name)) }
        };
        if numbers.len() <= BUFFER {
            return read(first, numbers);
        }
        let mut buffer = vec![0; BUFFER];
        for (index, part) in numbers.chunks_mut(BUFFER).enumerate() {
            let buffer = &mut buffer[..part.len()];
            read(first + index * BUFFER, buffer)?;
            part.copy_from_slice(buffer);
        }
        Ok(())
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether there are finite numbers of `stored` that are infinite in `kind`.
fn narrows(stored: Kind, kind: Kind) -> bool {
    match kind {
        Kind::Half => stored != Kind::Half,
        Kind::BFloat16 => stored == Kind::Float,
        _ => false,
    }
}

/// Puts numbers of f32 into the machine's order; whether there is neither NaN nor infinity among them, whose exponents are all ones.
fn are_finite(numbers: &mut [u8]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let mut found = 0;
    for number in numbers.as_chunks_mut::<4>().0 {
        let bits = u32::from_le_bytes(*number);
        found |= u32::from(bits & EXPONENT == EXPONENT);
        *number = bits.to_ne_bytes();
    }
    found == 0
}

/// The same of numbers of 16 bits, of which those of `exponent` are the exponent.
fn are_finite_halves(numbers: &mut [u8], exponent: u16) -> bool {
    let mut found = 0;
    for number in numbers.as_chunks_mut::<2>().0 {
        let bits = u16::from_le_bytes(*number);
        found |= u16::from(bits & exponent == exponent);
        *number = bits.to_ne_bytes();
    }
    found == 0
}

/// The entries of one safetensors file, every offset checked against the file's length.
fn read_header(path: &Path) -> Result<BTreeMap<String, Entry>> {
    let damaged = |reason: String| Error::Weights { path: path.to_owned(), reason };
    let (mut file, length) = regular_file::open(path)?;
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(|_| damaged(format!("{length} bytes are no safetensors file")))?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES || header_bytes.saturating_add(8) > length {
        return Err(damaged(format!(
            "its header should have {header_bytes} bytes, the whole file has {length}"
        )));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(Error::io("read", path))?;
    // Reading the header through this type checks that the tensors cover the data without gap or overlap, each by its own size.
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(error.to_string()))?;
    let file = Arc::new(SharedFile::new(file));
    let data_start = 8 + header_bytes;
    let expected = data_start.saturating_add(metadata.data_len() as u64);
    if expected != length {
        return Err(damaged(format!(
            "its header describes {expected} bytes, the file has {length}; fetch it again"
        )));
    }
    Ok(metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let entry = Entry {
                path: path.to_owned(),
                file: Arc::clone(&file),
                start: data_start + start as u64,
                bytes: end - start,
                dtype: info.dtype,
                shape: info.shape.clone(),
            };
            (name, entry)
        })
        .collect())
}

fn read_shards(directory: &Path, index: &Path) -> Result<BTreeMap<String, Entry>> {
    let damaged = |reason: String| Error::Weights { path: index.to_owned(), reason };
    let text = regular_file::read_json(index)?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| damaged("expected an object `weight_map` from tensor to file".to_owned()))?;
    let mut shards: HashMap<&str, BTreeMap<String, Entry>> = HashMap::new();
    let mut entries = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| damaged(format!("`weight_map.{tensor}` is no file name")))?;
        // An index must not lead out of its directory.
        let mut parts = Path::new(file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(damaged(format!(
                "`weight_map.{tensor}` = {file:?} is not a file in the same directory"
            )));
        }
        if !shards.contains_key(file) {
            let path = directory.join(file);
            if !path.exists() {
                return Err(damaged(format!("it names the shard {file}, which is missing; fetch it again")));
            }
            shards.insert(file, read_header(&path)?);
        }
        let entry = shards.get(file).and_then(|shard| shard.get(tensor));
        let entry = entry
            .ok_or_else(|| damaged(format!("it says that {file} holds `{tensor}`, which it does not")))?;
        entries.insert(tensor.clone(), entry.clone());
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;
    use std::fs;

    fn write(path: &Path, name: &str, dtype: Dtype, data: &[u8]) {
        let view = TensorView::new(dtype, vec![2, 3], data).unwrap();
        fs::write(path, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
    }

    fn floats() -> Vec<u8> {
        (0..6).flat_map(|number| (number as f32 / 2.0).to_le_bytes()).collect()
    }

    #[test]
    fn a_single_file_and_shards_read_alike_in_every_float_kind() {
        let folder = tempfile::tempdir().unwrap();
        let expected = Tensor::from_slice(&[0.0f32, 0.5, 1.0, 1.5, 2.0, 2.5]).reshape([2, 3]);
        write(&folder.path().join("model.safetensors"), "w", Dtype::F32, &floats());
        let read = |directory: &Path, name: &str| {
            Checkpoint::open(directory).unwrap().tensor(name, &[2, 3], Kind::Float).unwrap()
        };
        assert_eq!(read(folder.path(), "w"), expected);
        let sharded = tempfile::tempdir().unwrap();
        let half: Vec<u8> = (0..6).flat_map(|i| half::f16::from_f32(i as f32 / 2.0).to_le_bytes()).collect();
        let brain: Vec<u8> =
            (0..6).flat_map(|i| half::bf16::from_f32(i as f32 / 2.0).to_le_bytes()).collect();
        write(&sharded.path().join("a.safetensors"), "a", Dtype::F16, &half);
        write(&sharded.path().join("b.safetensors"), "b", Dtype::BF16, &brain);
        let index = r#"{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}"#;
        fs::write(sharded.path().join("model.safetensors.index.json"), index).unwrap();
        assert_eq!(read(sharded.path(), "a"), expected);
        assert_eq!(read(sharded.path(), "b"), expected);
    }

    #[test]
    fn a_large_tensor_is_read_in_parts_and_no_number_of_it_may_be_infinite() {
        let folder = tempfile::tempdir().unwrap();
        let read = |dtype: Dtype, numbers: &[f32]| {
            let bytes = match dtype {
                Dtype::F32 => Vec::from_iter(numbers.iter().flat_map(|number| number.to_le_bytes())),
                Dtype::F16 => {
                    Vec::from_iter(numbers.iter().flat_map(|&n| half::f16::from_f32(n).to_le_bytes()))
                }
                _ => Vec::from_iter(numbers.iter().flat_map(|&n| half::bf16::from_f32(n).to_le_bytes())),
            };
            let view = TensorView::new(dtype, vec![numbers.len(), 1], &bytes).unwrap();
            let file = folder.path().join("model.safetensors");
            fs::write(file, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
            Checkpoint::open(folder.path()).unwrap().tensor("w", &[numbers.len() as i64, 1], Kind::Float)
        };
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let mut numbers = Vec::from_iter((0..2_300_001u32).map(|number| (number % 251) as f32 * 0.5));
            assert_eq!(read(dtype, &numbers).unwrap().reshape([-1]), Tensor::from_slice(&numbers));
            for place in [0, 70_000, 2_300_000] {
                let finite = std::mem::replace(&mut numbers[place], f32::NEG_INFINITY);
                assert!(matches!(read(dtype, &numbers), Err(Error::TensorNotFinite { .. })), "{place}");
                numbers[place] = finite;
            }
        }
    }

    #[test]
    fn matrices_are_stacked_in_order_whatever_their_kinds() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = |first: u8| Vec::from_iter((first..first + 6).map(f32::from));
        let full = |numbers: &[f32]| Vec::from_iter(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let brain = Vec::from_iter(numbers(6).iter().flat_map(|&n| half::bf16::from_f32(n).to_le_bytes()));
        let half = Vec::from_iter(numbers(12).iter().flat_map(|&n| half::f16::from_f32(n).to_le_bytes()));
        let mut spoiled = numbers(0);
        spoiled[5] = f32::NAN;
        let (first, spoiled) = (full(&numbers(0)), full(&spoiled));
        let view = |dtype, data| TensorView::new(dtype, vec![2, 3], data).unwrap();
        let tensors = [
            ("a", view(Dtype::F32, &first)),
            ("b", view(Dtype::BF16, &brain)),
            ("c", view(Dtype::F16, &half)),
            ("d", view(Dtype::F32, &spoiled)),
        ];
        let file = safetensors::serialize(tensors, None).unwrap();
        fs::write(folder.path().join("model.safetensors"), file).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let stacked = |names: &[&str]| {
            let parts = Vec::from_iter(names.iter().map(|name| ((*name).to_owned(), 2)));
            checkpoint.stack(&parts, 3)?.stored()
        };
        let counted = |count: i64| Tensor::arange(count, (Kind::Float, tch::Device::Cpu)).reshape([-1, 3]);
        assert_eq!(stacked(&["a", "a"]).unwrap().narrow(0, 2, 2), counted(6));
        assert_eq!(stacked(&["b"]).unwrap().kind(), Kind::BFloat16);
        assert_eq!(stacked(&["a", "b"]).unwrap(), counted(12));
        assert_eq!(stacked(&["a", "b", "c"]).unwrap(), counted(18));
        let error = stacked(&["a", "d"]).unwrap_err();
        assert!(matches!(error, Error::TensorNotFinite { tensor, .. } if tensor == "d"));
    }

    /// A directory with tensors of 64 columns, of these numbers and dtypes.
    fn matrices(tensors: &[(&str, Dtype, &[f32])]) -> (tempfile::TempDir, Checkpoint) {
        let folder = tempfile::tempdir().unwrap();
        let bytes = Vec::from_iter(tensors.iter().map(|(_, dtype, numbers)| match dtype {
            Dtype::F32 => Vec::from_iter(numbers.iter().flat_map(|number| number.to_le_bytes())),
            _ => Vec::from_iter(numbers.iter().flat_map(|&n| half::bf16::from_f32(n).to_le_bytes())),
        }));
        let views = tensors.iter().zip(&bytes).map(|((name, dtype, numbers), bytes)| {
            (*name, TensorView::new(*dtype, vec![numbers.len() / 64, 64], bytes).unwrap())
        });
        let file = safetensors::serialize(views, None).unwrap();
        fs::write(folder.path().join("model.safetensors"), file).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        (folder, checkpoint)
    }

    #[test]
    fn numbers_that_are_infinite_in_another_kind_are_refused() {
        let mut large = vec![1.0; 128];
        large[100] = 70_000.0;
        let (_folder, checkpoint) = matrices(&[("a", Dtype::F32, &[1.0; 64]), ("b", Dtype::BF16, &large)]);
        let parts = [("a".to_owned(), 1), ("b".to_owned(), 2)];
        let stack = checkpoint.stack(&parts, 64).unwrap();
        let refused = |read: Result<Tensor>| matches!(read, Err(Error::TensorNotFinite { tensor, .. }) if tensor == "b");
        assert!(refused(checkpoint.tensor("b", &[2, 64], Kind::Half)) && refused(stack.tensor(Kind::Half)));
        for kind in [Kind::BFloat16, Kind::Float] {
            assert_eq!(
                checkpoint.tensor("b", &[2, 64], kind).unwrap(),
                stack.tensor(kind).unwrap().narrow(0, 1, 2)
            );
        }
    }

    #[test]
    fn tensors_are_compared_by_their_numbers() {
        let numbers = Vec::from_iter((0..70_400u32).map(|number| f32::from((number % 251) as u8)));
        let mut other = numbers.clone();
        other[70_399] += 1.0;
        let (_folder, checkpoint) = matrices(&[
            ("a", Dtype::F32, &numbers),
            ("b", Dtype::BF16, &numbers),
            ("c", Dtype::F32, &other),
            ("d", Dtype::F32, &numbers),
        ]);
        let are_equal = |first, second| checkpoint.are_equal([first, second], &[1100, 64]).unwrap();
        assert!(are_equal("a", "d") && are_equal("a", "b") && !are_equal("a", "c") && !are_equal("b", "c"));
    }

    #[test]
    fn the_bytes_of_a_row_are_those_that_its_stack_will_take() {
        let nibbles = Vec::from_iter((0..192u16).map(|number| f32::from(number * 7 % 16) * 0.5 - 3.0));
        let bytes = Vec::from_iter((0..192u8).map(|number| f32::from(number) * 0.25));
        let noise = Vec::from_iter((0..192u16).map(|number| f32::from(number).sin()));
        let padded = [&[0.0; 64][..], &noise[64..]].concat();
        let (_folder, checkpoint) = matrices(&[
            ("nibbles", Dtype::F32, &nibbles),
            ("bytes", Dtype::F32, &bytes),
            ("noise", Dtype::F32, &noise),
            ("padded", Dtype::F32, &padded),
            ("brain", Dtype::BF16, &bytes),
        ]);
        for (names, fewest) in [
            (&["nibbles", "nibbles"][..], 48),
            (&["bytes"], 72),
            (&["nibbles", "bytes"], 256),
            (&["noise"], 256),
            (&["padded"], 256),
            (&["brain", "brain"], 128),
            (&["brain", "bytes"], 256),
        ] {
            let parts = Vec::from_iter(names.iter().map(|name| ((*name).to_owned(), 3)));
            let stack = checkpoint.stack(&parts, 64).unwrap();
            let found = stack.fewest_row_bytes().unwrap();
            let dense = !FrozenWeight::keeps_bf16();
            // Where libtorch's products are the best, forms of fewer bits may be dense, too.
            assert!(found == fewest || found == 256 && (dense || names == ["bytes"]), "{names:?} {found}");
            assert_eq!(
                stack.converts_to_f32(),
                names.contains(&"brain") && (dense || names.len() == 2 && names[0] != names[1])
            );
        }
    }

    #[test]
    fn wrong_shape_kind_and_name_are_told() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("model.safetensors"), "w", Dtype::I32, &floats());
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let message =
            |name, shape: &[i64]| checkpoint.tensor(name, shape, Kind::Float).unwrap_err().to_string();
        assert!(message("w", &[3, 2]).contains("[3, 2]") && message("w", &[3, 2]).contains("[2, 3]"));
        assert!(message("w", &[2, 3]).contains("I32"));
        assert!(message("v", &[2, 3]).contains("`v`"));
    }

    #[test]
    fn damaged_files_and_straying_indices_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Checkpoint::open(folder.path()), Err(Error::NoWeights { .. })));
        let path = folder.path().join("model.safetensors");
        write(&path, "w", Dtype::F32, &floats());
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(Checkpoint::open(folder.path()), Err(Error::Weights { .. })), "{length}");
        }
        let mut absurd = whole.clone();
        absurd[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(&path, absurd).unwrap();
        assert!(Checkpoint::open(folder.path()).is_err());
        fs::remove_file(&path).unwrap();
        for file in ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "gone.safetensors", ""] {
            let index = format!(r#"{{"weight_map": {{"w": "{file}"}}}}"#);
            fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
            assert!(matches!(Checkpoint::open(folder.path()), Err(Error::Weights { .. })), "{file}");
        }
    }

    proptest::proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let folder = tempfile::tempdir().unwrap();
            let mut file = (bytes.len() as u64 / 2).to_le_bytes().to_vec();
            file.extend(bytes);
            fs::write(folder.path().join("model.safetensors"), file).unwrap();
            let _ = Checkpoint::open(folder.path());
        }
    }
}
