//! The training loop around any tch model: arguments, AdamW, schedules, accumulation, callbacks.
