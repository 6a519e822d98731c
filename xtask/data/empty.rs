//! Intentionally empty: the manifest beside this file only lists crates.
