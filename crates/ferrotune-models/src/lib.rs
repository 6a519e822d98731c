//! Llama and Mistral decoders on libtorch: Hugging Face checkpoints, GGUF import, loss and generation.
