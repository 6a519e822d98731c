//! Weights of a Hugging Face model directory: one safetensors file, or shards with an index.

use crate::{
    error::{Error, Result},
    identify::check_directory,
    regular_file::{self, SharedFile, is_there},
};
use entry::{BUFFER, Entry, narrows};
use safetensors::{Dtype, tensor::Metadata};
use stack::Stack;
use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tch::{Kind, Tensor};

mod entry;
mod stack;

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
    /// [`Error::NotAModel`] and [`Error::GitLfsPointer`] say what the directory is instead; [`Error::NoWeights`] if there is neither file;
    /// [`Error::Io`], [`Error::NotAFile`] or [`Error::TooLarge`] for one that cannot be read; [`Error::Weights`] for a file that is not whole
    /// or an index that leads outside the directory or names what is not there.
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
        let found = entry.size();
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
        let tensor = entry.tensor(name, stored)?.f_to_kind(kind)?;
        if narrows(stored, kind) {
            entry.demand_finite(name, &tensor)?;
        }
        Ok(tensor)
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

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A directory with tensors of 64 columns, of these numbers and dtypes.
    pub(super) fn matrices(tensors: &[(&str, Dtype, &[f32])]) -> (tempfile::TempDir, Checkpoint) {
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
