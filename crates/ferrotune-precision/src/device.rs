//! From the name of a device to a device that is there.

use tch::{Cuda, Device};

use crate::{Error, Result};

/// The device called `name`: `"cpu"`, `"cuda"` (the first one) or `"cuda:N"`.
///
/// # Errors
/// [`Error::UnknownDevice`] for another name; [`Error::DeviceNotAvailable`] when libtorch sees no such device.
///
/// ```
/// use ferrotune_precision::parse_device;
/// assert_eq!(parse_device("cpu")?, tch::Device::Cpu);
/// assert!(parse_device("gpu").is_err());
/// # Ok::<(), ferrotune_precision::Error>(())
/// ```
pub fn parse_device(name: &str) -> Result<Device> {
    let unknown = || Error::UnknownDevice { found: name.into() };
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        _ => {
            let digits = name.strip_prefix("cuda:").ok_or_else(unknown)?;
            // `parse` alone would accept a sign.
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(unknown());
            }
            digits.parse::<usize>().map_err(|_| unknown())?
        }
    };
    let not_available = |reason: String| Error::DeviceNotAvailable { found: name.into(), reason };
    if !Cuda::is_available() {
        return Err(not_available("this libtorch sees no CUDA device (or was built without CUDA)".into()));
    }
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    if index >= count {
        return Err(not_available(format!("libtorch sees {count} CUDA device(s), numbered from 0")));
    }
    Ok(Device::Cuda(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_names_are_unknown() {
        for name in
            ["", "CPU", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda:99999999999999999999999", "cpu:0"]
        {
            assert!(
                matches!(parse_device(name), Err(Error::UnknownDevice { found }) if found == name),
                "{name}"
            );
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_refused_with_the_reason() {
        let message = parse_device("cuda:4096").unwrap_err().to_string();
        assert!(message.contains("CUDA device") && message.contains("cuda:4096"), "{message}");
    }
}
