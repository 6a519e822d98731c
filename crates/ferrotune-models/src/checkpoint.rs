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

    /// Bytes of memory of all tensors for products in f32 on the CPU, with the matrices in the fewest bits: judged by the first row of
    /// each, since weights are of one kind throughout.
    pub(crate) fn fewest_bytes(&self) -> Result<u64> {
        let of = |(name, entry): (&String, &Entry)| -> Result<u64> {
            let [rows, columns] = entry.shape[..] else {
                return Ok(entry.elements() * size_of::<f32>() as u64);
            };
            let of_a_row = match entry.dtype {
                Dtype::BF16 if FrozenWeight::keeps_bf16() => columns * size_of::<u16>(),
                Dtype::F32 if rows > 0 => {
                    let fill = |first: usize, bytes: &mut [u8]| entry.read_numbers(name, first, bytes);
                    FrozenWeight::filled([1, columns as i64], fill)?.stored_bytes()
                }
                _ => columns * size_of::<f32>(),
            };
            Ok(rows as u64 * of_a_row as u64)
        };
        self.entries.iter().map(of).sum()
    }

    /// Whether a matrix is held in another kind for a while, if products are in f32 on the CPU.
    pub(crate) fn converts_to_f32(&self) -> bool {
        let stays = |entry: &Entry| match entry.dtype {
            Dtype::F32 => true,
            Dtype::BF16 => FrozenWeight::keeps_bf16(),
            _ => false,
        };
        !self.entries.values().filter(|entry| entry.shape.len() == 2).all(stays)
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
        Ok(self.stored(name, shape)?.f_to_kind(kind)?)
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

    /// Writes its numbers from byte `first` on in the machine's order, if all of them are finite.
    ///
    /// Many numbers go through a buffer that stays in a core's cache: into memory that nobody has touched yet the system reads slowly.
    fn read_numbers(&self, name: &str, first: usize, numbers: &mut [u8]) -> Result<()> {
        const BUFFER: usize = 256 << 10;
        let read = |place: usize, bytes: &mut [u8]| {
            let place = self.start + place as u64;
            self.file.read_at(place, bytes).map_err(Error::io("read", &self.path))?;
            let are_finite = match self.dtype {
                Dtype::BF16 => are_finite_halves(bytes, 0x7f80),
                Dtype::F16 => are_finite_halves(bytes, 0x7c00),
                _ => are_finite(bytes),
            };
            let not_finite = || Error::TensorNotFinite { path: self.path.clone(), tensor: name.to_owned() };
            if are_finite { Ok(()) } else { Err(not_finite()) }
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
