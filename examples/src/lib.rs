//! Examples of ferrotune: see the files beside this package manifest.
