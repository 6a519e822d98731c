//! Reading an adapter directory.

use super::write::{check_shapes, is_finite};
use super::{CONFIG_FILE, Half, PICKLE_FILE, PREFIX, WEIGHTS_FILE, named_parameters, parse_key, tensor_key};
use crate::config::LoraConfig;
use crate::error::{Error, Result};
use crate::target::{Decision, Matcher};
use ferrotune_precision::irregular_file;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use tch::{Kind, Tensor};

/// An adapter as read from its directory.
#[derive(Debug)]
pub struct AdapterFile {
    /// Its configuration.
    pub config: LoraConfig,
    /// A, `[rank, in_features]`, and B, `[out_features, rank]`, of each adapted module, by its path; f32, on the CPU.
    pub tensors: BTreeMap<String, (Tensor, Tensor)>,
}

impl AdapterFile {
    /// Its parameters under PEFT's names in memory (`<path>.lora_A.weight`), as
    /// [`Adapter::named_parameters`](crate::Adapter::named_parameters), in the order of their paths.
    pub fn named_parameters(&self) -> Vec<(String, Tensor)> {
        named_parameters(self.tensors.iter().map(|(path, (a, b))| (path, a, b)))
    }
}

/// Reads the configuration of an adapter alone.
///
/// # Errors
/// As [`load_adapter`], for its first file.
pub fn load_config(dir: impl AsRef<Path>) -> Result<LoraConfig> {
    let dir = dir.as_ref();
    let path = dir.join(CONFIG_FILE);
    if !is_there(&path) {
        return Err(Error::NoAdapter { path: dir.to_owned(), missing: CONFIG_FILE, hint: hint(dir) });
    }
    read_config(&path)
}

/// Reads an adapter that Python PEFT or [`save_adapter`](super::save_adapter) wrote; its tensors may be F32, F16 or BF16.
///
/// Every tensor of the file belongs to a module that the configuration targets, has the rank that the configuration gives that module, and is finite,
/// or the adapter is refused. Pickle files are never read.
///
/// ```no_run
/// let adapter = ferrotune_lora::load_adapter("adapter")?;
/// for (path, (a, b)) in &adapter.tensors {
///     println!("{path}: A {:?}, B {:?}, scaling {}", a.size(), b.size(), adapter.config.scaling_for(path)?);
/// }
/// # Ok::<(), ferrotune_lora::Error>(())
/// ```
///
/// # Errors
/// [`Error::NoAdapter`] or [`Error::PickleRefused`] for the directory; [`Error::Io`] or [`Error::NotAFile`] for a file that cannot be read;
/// [`Error::InFile`] with what is wrong in which of its files.
pub fn load_adapter(dir: impl AsRef<Path>) -> Result<AdapterFile> {
    let dir = dir.as_ref();
    let config = load_config(dir)?;
    let path = dir.join(WEIGHTS_FILE);
    if !is_there(&path) {
        let pickle = dir.join(PICKLE_FILE);
        return Err(if pickle.exists() {
            Error::PickleRefused { path: pickle }
        } else {
            Error::NoAdapter { path: dir.to_owned(), missing: WEIGHTS_FILE, hint: String::new() }
        });
    }
    let tensors = read_tensors(&config, &path).map_err(|error| match error {
        error @ (Error::Io { .. } | Error::NotAFile { .. } | Error::Torch(_)) => error,
        error => error.in_file(&path),
    })?;
    Ok(AdapterFile { config, tensors })
}

/// Whether there is anything of that name, be it a link that leads nowhere: what is there and cannot be read is a mistake.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Opens a regular file, with its length: a pipe would wait for ever, and a device such as `/dev/zero` never ends.
fn open(path: &Path) -> Result<(File, u64)> {
    if let Some(found) = irregular_file(path).map_err(Error::io("read", path))? {
        return Err(Error::NotAFile { path: path.to_owned(), found });
    }
    let file = File::open(path).map_err(Error::io("read", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    Ok((file, length))
}

fn read_config(path: &Path) -> Result<LoraConfig> {
    const LIMIT: u64 = 16 << 20;
    let mut text = String::new();
    let (file, _) = open(path)?;
    let length = file.take(LIMIT + 1).read_to_string(&mut text).map_err(Error::io("read", path))?;
    if length as u64 > LIMIT {
        return Err(Error::value("size", "more than 16 MiB", "a configuration").in_file(path));
    }
    // A byte order mark is no fault of the contents.
    LoraConfig::from_json(text.trim_start_matches('\u{feff}')).map_err(|error| error.in_file(path))
}

/// What the directory is instead. PEFT writes an adapter that is not called `default` into a subdirectory of its name.
fn hint(dir: &Path) -> String {
    if dir.is_file() {
        return "; give a directory, not a file".to_owned();
    }
    if dir.join("config.json").is_file() {
        return "; it is a whole model: give it as the model, without an adapter".to_owned();
    }
    let Ok(entries) = fs::read_dir(dir) else { return String::new() };
    let mut found: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.join(CONFIG_FILE).is_file()).collect();
    found.sort();
    match found.first() {
        Some(path) => format!("; there is one in {}", path.display()),
        None => String::new(),
    }
}

/// The header of a safetensors file, and where the values begin.
fn read_header(file: &mut File, length: u64) -> Result<(Metadata, u64)> {
    const LIMIT: u64 = 100_000_000; // the format's own
    let damaged = |reason: String| Error::Safetensors { reason };
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes).map_err(|_| damaged(format!("it has {length} bytes")))?;
    if &bytes == b"version " {
        return Err(damaged("it is a Git LFS pointer: run `git lfs pull` in its folder".to_owned()));
    }
    let header_length = u64::from_le_bytes(bytes);
    let begin = header_length.saturating_add(8);
    if header_length > LIMIT || begin > length {
        return Err(damaged(format!("its header claims {header_length} bytes in a file of {length}")));
    }
    let mut header = vec![0; header_length as usize];
    file.read_exact(&mut header).map_err(|error| damaged(error.to_string()))?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(error.to_string()))?;
    let end = begin.saturating_add(metadata.data_len() as u64);
    if end != length {
        return Err(damaged(format!("its header describes {end} bytes, and it has {length}")));
    }
    Ok((metadata, begin))
}

fn read_tensors(config: &LoraConfig, path: &Path) -> Result<BTreeMap<String, (Tensor, Tensor)>> {
    let (mut file, length) = open(path)?;
    let (metadata, begin) = read_header(&mut file, length)?;
    let infos: BTreeMap<String, &TensorInfo> = metadata.tensors().into_iter().collect();
    let mut modules: BTreeMap<&str, [Option<&TensorInfo>; 2]> = BTreeMap::new();
    for (key, info) in &infos {
        let Some((module, half)) = parse_key(key) else { return Err(foreign(key)) };
        modules.entry(module).or_default()[half as usize] = Some(info);
    }
    if modules.is_empty() {
        return Err(Error::Safetensors { reason: "it holds no tensors".into() });
    }

    let matcher = Matcher::new(config)?;
    let mut tensors = BTreeMap::new();
    for (module, halves) in modules {
        let [Some(a), Some(b)] = halves else {
            let present = if halves[0].is_some() { Half::A } else { Half::B };
            return Err(Error::MissingTensor {
                present: tensor_key(module, present),
                missing: tensor_key(module, present.other()),
            });
        };
        if matcher.decide(module) != Decision::Targeted {
            return Err(Error::UnexpectedTensor {
                tensor: tensor_key(module, Half::A),
                reason: format!(
                    "`target_modules` of {CONFIG_FILE} does not name its module; name it there, or drop the tensor"
                ),
            });
        }
        check_shapes(config, module, &shape(a), &shape(b))?;
        let mut read = |half: Half, info: &TensorInfo| {
            read_tensor(&mut file, path, begin, &tensor_key(module, half), info)
        };
        tensors.insert(module.to_owned(), (read(Half::A, a)?, read(Half::B, b)?));
    }
    Ok(tensors)
}

fn shape(info: &TensorInfo) -> Vec<i64> {
    info.shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect()
}

fn read_tensor(file: &mut File, path: &Path, begin: u64, key: &str, info: &TensorInfo) -> Result<Tensor> {
    let kind = match info.dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        other => return Err(Error::Dtype { tensor: key.to_owned(), found: format!("{other:?}") }),
    };
    let (start, end) = info.data_offsets;
    let count = info.shape.iter().try_fold(kind.elt_size_in_bytes(), |bytes, &size| bytes.checked_mul(size));
    // libtorch copies as many bytes as the shape asks for: the two have to agree.
    if end.checked_sub(start) != count {
        return Err(Error::Safetensors {
            reason: format!("`{key}` has {start}..{end} for shape {:?}", info.shape),
        });
    }
    let mut bytes = vec![0; end - start];
    file.seek(SeekFrom::Start(begin + start as u64)).map_err(Error::io("read", path))?;
    file.read_exact(&mut bytes).map_err(Error::io("read", path))?;
    let tensor = Tensor::f_from_data_size(&bytes, &shape(info), kind)?.f_to_kind(Kind::Float)?;
    if !is_finite(&tensor)? {
        return Err(Error::NotFinite { tensor: key.to_owned() });
    }
    Ok(tensor)
}

/// Says what a tensor is that is no half of a linear layer's adapter.
fn foreign(key: &str) -> Error {
    let reason = if !key.starts_with(PREFIX) {
        format!("its name does not begin with `{PREFIX}`; save the adapter with PEFT's `save_pretrained`")
    } else if key.contains(".lora_embedding_") {
        "adapters of embeddings are not supported; train without `embed_tokens` in `target_modules`".into()
    } else if key.ends_with(".lora_magnitude_vector") {
        "weights of DoRA are not supported; merge the adapter in Python".into()
    } else if key.contains(".lora_A.") || key.contains(".lora_B.") {
        "its name does not end in `.lora_A.weight` or `.lora_B.weight`; save the adapter with PEFT's `save_pretrained`".into()
    } else {
        "it is a full weight of the model; save the adapter without it (PEFT: `save_embedding_layers=False`, no `modules_to_save`)".into()
    };
    Error::UnexpectedTensor { tensor: key.to_owned(), reason }
}
