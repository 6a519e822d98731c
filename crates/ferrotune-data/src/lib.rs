//! Instruction data for fine-tuning: JSONL to checked examples, chat templates, token ids, labels and packed batches.
