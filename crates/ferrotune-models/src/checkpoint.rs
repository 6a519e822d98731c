//! Weights of a Hugging Face model directory: one safetensors file, or shards with an index.

use crate::{
    error::{Error, Result},
    identify::check_directory,
    regular_file::{self, is_there},
};
use ferrotune_autograd::parallel_for;
use ferrotune_kernels::filled_tensor;
use safetensors::{Dtype, tensor::Metadata};
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tch::{Kind, Tensor};

/// Where one tensor lies.
#[derive(Clone, Debug)]
struct Entry {
    file: PathBuf,
    start: u64,
    bytes: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// The tensors of a model directory, read one at a time.
///
/// Only headers are held; a tensor's bytes are read when it is asked for and converted to the wanted kind, so that loading never
/// holds the file twice.
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
        self.entries.values().map(|entry| entry.shape.iter().map(|&size| size as u64).product())
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
                path: entry.file.clone(),
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
                    path: entry.file.clone(),
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
        if is_read_in_place(stored, kind) {
            return filled_tensor(shape, |bytes| entry.read_numbers(name, bytes));
        }
        let mut bytes = vec![0; entry.bytes];
        entry.read(&mut entry.open_at(entry.start)?, &mut bytes)?;
        let tensor = Tensor::f_from_data_size(&bytes, shape, stored)?.f_to_kind(kind)?;
        if !is_finite(&tensor)? {
            return Err(entry.not_finite(name));
        }
        Ok(tensor)
    }

    /// Matrices of one width, by name and number of rows, below each other in one tensor.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub(crate) fn stacked(&self, parts: &[(String, i64)], columns: i64, kind: Kind) -> Result<Tensor> {
        let found = parts.iter().map(|(name, rows)| self.find(name, &[*rows, columns]));
        let found: Vec<(&Entry, Kind)> = found.collect::<Result<_>>()?;
        if !found.iter().all(|(_, stored)| is_read_in_place(*stored, kind)) {
            let parts = parts.iter().map(|(name, rows)| self.tensor(name, &[*rows, columns], kind));
            return Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 0)?);
        }
        let rows: i64 = parts.iter().map(|(_, rows)| rows).sum();
        filled_tensor(&[rows, columns], |mut bytes| {
            for ((entry, _), (name, rows)) in found.iter().zip(parts) {
                let (part, rest) = bytes.split_at_mut((rows * columns) as usize * size_of::<f32>());
                entry.read_numbers(name, part)?;
                bytes = rest;
            }
            Ok(())
        })
    }
}

/// Whether numbers of a file go into the tensor that keeps them one by one: those of f32 and bf16 into f32.
fn is_read_in_place(stored: Kind, kind: Kind) -> bool {
    kind == Kind::Float && matches!(stored, Kind::Float | Kind::BFloat16)
}

impl Entry {
    /// Reads all of its numbers as f32, on libtorch's threads where they are many.
    fn read_numbers(&self, name: &str, numbers: &mut [u8]) -> Result<()> {
        const PART: usize = 8 << 20;
        let count = numbers.len().div_ceil(PART);
        let parts = Mutex::new(numbers.chunks_mut(PART).enumerate());
        let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        parallel_for(count, 1, |own| {
            for _ in own {
                let Some((index, part)) = lock(&parts).next() else { return };
                if let Err(error) = self.read_part(name, index * PART / size_of::<f32>(), part) {
                    // That of the first part, whichever thread was faster.
                    let mut failed = lock(&failed);
                    if failed.as_ref().is_none_or(|(first, _)| index < *first) {
                        *failed = Some((index, error));
                    }
                    return;
                }
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Reads the numbers from `first` on, through a buffer that stays in a core's cache: into memory that nobody has touched yet the
    /// system reads slowly.
    fn read_part(&self, name: &str, first: usize, numbers: &mut [u8]) -> Result<()> {
        const BUFFER: usize = 256 << 10;
        let halves = self.dtype == Dtype::BF16;
        let width = if halves { 2 } else { 4 };
        let mut file = self.open_at(self.start + (first * width) as u64)?;
        let mut buffer = vec![0; BUFFER.min(numbers.len() / 4 * width)];
        for part in numbers.chunks_mut(BUFFER / width * 4) {
            let stored = &mut buffer[..part.len() / 4 * width];
            self.read(&mut file, stored)?;
            let part = part.as_chunks_mut::<4>().0;
            let are_finite = match halves {
                true => write_finite(part, stored.as_chunks::<2>().0, |half| {
                    u32::from(u16::from_le_bytes(half)) << 16
                }),
                false => write_finite(part, stored.as_chunks::<4>().0, u32::from_le_bytes),
            };
            if !are_finite {
                return Err(self.not_finite(name));
            }
        }
        Ok(())
    }

    fn open_at(&self, start: u64) -> Result<File> {
        let (mut file, _) = regular_file::open(&self.file)?;
        file.seek(SeekFrom::Start(start)).map_err(Error::io("read", &self.file))?;
        Ok(file)
    }

    fn read(&self, file: &mut File, bytes: &mut [u8]) -> Result<()> {
        file.read_exact(bytes).map_err(Error::io("read", &self.file))
    }

    fn not_finite(&self, name: &str) -> Error {
        Error::TensorNotFinite { path: self.file.clone(), tensor: name.to_owned() }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes numbers by their bits as f32; whether there is neither NaN nor infinity among them, whose exponents are all ones.
fn write_finite<const N: usize>(
    target: &mut [[u8; 4]],
    stored: &[[u8; N]],
    bits: impl Fn([u8; N]) -> u32,
) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let mut found = 0;
    for (target, stored) in target.iter_mut().zip(stored) {
        let bits = bits(*stored);
        found |= u32::from(bits & EXPONENT == EXPONENT);
        *target = bits.to_ne_bytes();
    }
    found == 0
}

/// Whether there is neither NaN nor infinity. Either of them spoils the sum, which is far cheaper than a look at each number.
fn is_finite(tensor: &Tensor) -> Result<bool> {
    let sum = tensor.f_sum(Kind::Float)?.f_double_value(&[])?;
    Ok(sum.is_finite() || tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
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
                file: path.to_owned(),
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
                _ => Vec::from_iter(numbers.iter().flat_map(|&n| half::bf16::from_f32(n).to_le_bytes())),
            };
            let view = TensorView::new(dtype, vec![numbers.len(), 1], &bytes).unwrap();
            let file = folder.path().join("model.safetensors");
            fs::write(file, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
            Checkpoint::open(folder.path()).unwrap().tensor("w", &[numbers.len() as i64, 1], Kind::Float)
        };
        for dtype in [Dtype::F32, Dtype::BF16] {
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
            checkpoint.stacked(&parts, 3, Kind::Float)
        };
        let counted = |count: i64| Tensor::arange(count, (Kind::Float, tch::Device::Cpu)).reshape([-1, 3]);
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
