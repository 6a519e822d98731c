//! The libtorch that the program runs on.

/// The version of the libtorch that is loaded, which need not be the one that the program was built with; `None` if it does not say.
///
/// ```
/// let version = ferrotune_autograd::libtorch_version().unwrap_or_default();
/// assert!(version.starts_with("2."), "{version}");
/// ```
pub fn libtorch_version() -> Option<String> {
    version_in(&crate::shim::libtorch_configuration()?)
}

/// The value of `TORCH_VERSION=` in a list that commas divide.
fn version_in(configuration: &str) -> Option<String> {
    let (_, rest) = configuration.split_once("TORCH_VERSION=")?;
    let version = rest.split([',', '\n']).next()?.trim();
    (!version.is_empty()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_stands_among_the_settings() {
        let text = "PyTorch built with:\n  - GCC 13.3\n  - Build settings: A=1, TORCH_VERSION=2.13.0, USE_CUDA=0, \n";
        assert_eq!(version_in(text).as_deref(), Some("2.13.0"));
        assert_eq!(version_in("A=1, TORCH_VERSION=, B=2"), None);
        assert_eq!(version_in("A=1"), None);
    }

    #[test]
    fn the_library_that_is_loaded_says_its_version() {
        let version = libtorch_version().unwrap();
        assert!(version.split('.').count() >= 3 && version.starts_with("2."), "{version}");
    }
}
