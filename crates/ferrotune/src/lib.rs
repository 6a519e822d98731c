//! LoRA fine-tuning of Llama and Mistral models on libtorch: data in, an evaluated PEFT adapter out.
