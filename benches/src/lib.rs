//! Benchmarks of ferrotune.
