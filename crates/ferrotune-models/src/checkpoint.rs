//! Weights of a Hugging Face model directory: one safetensors file, or shards with an index.

use crate::{
    error::{Error, Result},
    identify::check_directory,
    regular_file::{self, is_there},
};
use safetensors::{Dtype, tensor::Metadata};
use std::{
    collections::{BTreeMap, HashMap},
    io::{Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
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
        self.tensor_through(&mut Vec::new(), name, shape, kind)
    }

    /// The same through a buffer, whose memory serves for one tensor after another.
    pub(crate) fn tensor_through(
        &self,
        buffer: &mut Vec<u8>,
        name: &str,
        shape: &[i64],
        kind: Kind,
    ) -> Result<Tensor> {
        let (entry, stored) = self.find(name, shape)?;
        let (mut file, _) = regular_file::open(&entry.file)?;
        if buffer.len() < entry.bytes {
            buffer.resize(entry.bytes, 0);
        }
        let data = &mut buffer[..entry.bytes];
        file.seek(SeekFrom::Start(entry.start)).map_err(Error::io("read", &entry.file))?;
        file.read_exact(data).map_err(Error::io("read", &entry.file))?;
        let tensor = Tensor::f_from_data_size(data, shape, stored)?.f_to_kind(kind)?;
        if !is_finite(&tensor)? {
            return Err(Error::TensorNotFinite { path: entry.file.clone(), tensor: name.to_owned() });
        }
        Ok(tensor)
    }
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
