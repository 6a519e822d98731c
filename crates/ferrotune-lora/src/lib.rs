//! LoRA layers, injection by module name and PEFT adapter files for tch.
