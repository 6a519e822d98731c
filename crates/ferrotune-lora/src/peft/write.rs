//! Writing an adapter directory.

use super::directory::replace_directory;
use super::{CONFIG_FILE, Half, PICKLE_FILE, WEIGHTS_FILE, tensor_key};
use crate::config::{LoraConfig, TargetModules};
use crate::error::{Error, Result};
use crate::target::{Decision, Matcher};
use safetensors::{Dtype, SafeTensorError, View};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Writes an adapter as Python PEFT does: `adapter_config.json` and `adapter_model.safetensors`, values in f32.
///
/// `tensors` are the paths of the adapted modules with their A and B. The directory appears whole or not at all; an earlier adapter in its
/// place is replaced by the new one in one step. For `target_modules` = `"all-linear"` the paths are written out; a shorter list of
/// names comes from [`effective_target_modules`](crate::effective_target_modules).
///
/// # Shapes
/// - A: `[rank, in_features]`, B: `[out_features, rank]`, with the rank that the configuration gives the module
///
/// # Errors
/// Before anything is written: [`Error::ShapeMismatch`], [`Error::NotFinite`], [`Error::UnexpectedTensor`] for a module that the
/// configuration does not target or that is there twice, whatever [`LoraConfig::validate`] finds, [`Error::InvalidValue`] if there is no
/// tensor, and [`Error::ForeignFile`] if the directory
/// holds other files than an adapter's. [`Error::Io`] if writing fails; the old state is kept.
///
/// ```no_run
/// use ferrotune_lora::{LoraConfig, save_adapter};
/// use tch::{Device, Kind, Tensor};
/// let a = Tensor::randn([8, 64], (Kind::Float, Device::Cpu));
/// let b = Tensor::zeros([32, 8], (Kind::Float, Device::Cpu));
/// save_adapter("adapter", &LoraConfig::default(), &[("model.layers.0.self_attn.q_proj", a, b)])?;
/// # Ok::<(), ferrotune_lora::Error>(())
/// ```
pub fn save_adapter<S: AsRef<str>>(
    dir: impl AsRef<Path>,
    config: &LoraConfig,
    tensors: &[(S, Tensor, Tensor)],
) -> Result<()> {
    config.validate()?;
    check(config, tensors)?;
    let mut written = config.clone();
    if written.target_modules == TargetModules::AllLinear {
        let paths = tensors.iter().map(|(path, ..)| path.as_ref().to_owned());
        written.target_modules = TargetModules::Names(paths.collect());
    }
    let text = written.to_json()?;
    let mut views = Vec::with_capacity(2 * tensors.len());
    for (path, a, b) in tensors {
        for (half, tensor) in [(Half::A, a), (Half::B, b)] {
            let key = tensor_key(path.as_ref(), half);
            let view = Values::new(&key, tensor)?;
            views.push((key, view));
        }
    }

    let (dir, bytes) = (dir.as_ref(), views.iter().map(|(_, view)| view.bytes.len()).sum());
    let names = &[CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE, "README.md"];
    replace_directory(dir, names, |directory| {
        // Errors name the files where the caller wants them.
        fs::write(directory.join(CONFIG_FILE), text).map_err(Error::io("write", dir.join(CONFIG_FILE)))?;
        // transformers looks for the format.
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let written = safetensors::serialize_to_file(views, Some(format), &directory.join(WEIGHTS_FILE));
        written.map_err(|error| match error {
            SafeTensorError::IoError(error) => Error::io("write", dir.join(WEIGHTS_FILE))(error),
            error => Error::Safetensors { reason: error.to_string() }.in_file(dir.join(WEIGHTS_FILE)),
        })?;
        // The library makes its file for the owner alone.
        fs::metadata(directory.join(CONFIG_FILE))
            .and_then(|config| fs::set_permissions(directory.join(WEIGHTS_FILE), config.permissions()))
            .map_err(Error::io("set the permissions of", dir.join(WEIGHTS_FILE)))
    })
    .map_err(|error| error.with_room(dir, bytes))
}

fn check<S: AsRef<str>>(config: &LoraConfig, tensors: &[(S, Tensor, Tensor)]) -> Result<()> {
    if tensors.is_empty() {
        return Err(Error::value("tensors", "empty", "the A and B of at least one module"));
    }
    let matcher = Matcher::new(config)?;
    let mut seen = BTreeSet::new();
    for (path, a, b) in tensors {
        let path = path.as_ref();
        let unexpected =
            |reason: &str| Err(Error::UnexpectedTensor { tensor: path.to_owned(), reason: reason.into() });
        if path.is_empty() {
            return unexpected("the path of its module is empty");
        }
        if !seen.insert(path) {
            return unexpected("its module is there twice");
        }
        if matcher.decide(path) != Decision::Targeted {
            return unexpected(
                "`target_modules` does not name its module, so that PEFT would pass over it; name it",
            );
        }
        check_shapes(config, path, &a.size(), &b.size())?;
    }
    Ok(())
}

/// Holds the shapes of a module's A and B to the configuration and to each other.
pub(super) fn check_shapes(config: &LoraConfig, path: &str, a: &[i64], b: &[i64]) -> Result<()> {
    let rank = i64::try_from(config.rank_for(path)?).unwrap_or(i64::MAX);
    let reason = || format!("the configuration gives `{path}` rank {rank}");
    match a {
        [rows, columns] if *rows == rank && *columns > 0 => {}
        _ => {
            let (tensor, found) = (tensor_key(path, Half::A), a.to_vec());
            return Err(Error::ShapeMismatch { tensor, expected: vec![rank, -1], found, reason: reason() });
        }
    }
    match b {
        [rows, columns] if *columns == rank && *rows > 0 => Ok(()),
        _ => {
            let (tensor, found) = (tensor_key(path, Half::B), b.to_vec());
            Err(Error::ShapeMismatch { tensor, expected: vec![-1, rank], found, reason: reason() })
        }
    }
}

/// The values of a tensor as they lie in a file.
struct Values {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Values {
    fn new(key: &str, tensor: &Tensor) -> Result<Self> {
        let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        if !is_finite(&tensor)? {
            return Err(Error::NotFinite { tensor: key.to_owned() });
        }
        let count = tensor.numel();
        let mut values = vec![0_f32; count];
        tensor.f_copy_data(&mut values, count)?;
        let shape = tensor.size().into_iter().map(|size| size as usize).collect();
        Ok(Self { shape, bytes: values.into_iter().flat_map(f32::to_le_bytes).collect() })
    }
}

pub(super) fn is_finite(tensor: &Tensor) -> Result<bool> {
    Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}

impl View for Values {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
