//! What this machine computes fast, and which dtypes a run uses.
