"""LoRA fine-tuning by TRL and PEFT in f32, on all linear layers."""

import argparse

from events import examples, tell, threads

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--train", required=True, help="JSONL of {prompt, completion}")
parser.add_argument("--output", required=True)
parser.add_argument("--padding-free", action="store_true")
parser.add_argument("--rank", type=int, required=True)
parser.add_argument("--alpha", type=float, required=True)
parser.add_argument("--batch-size", type=int, required=True)
parser.add_argument("--accumulation", type=int, required=True)
parser.add_argument("--learning-rate", type=float, required=True)
parser.add_argument("--weight-decay", type=float, required=True)
parser.add_argument("--seed", type=int, required=True)
arguments = parser.parse_args()

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

torch.set_num_threads(threads())


class Tell(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            tell("stage", name="training")

    def on_step_end(self, args, state, control, **kwargs):
        tell("step", step=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            tell("log", step=state.global_step, loss=float(logs["loss"]))


trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32),
    processing_class=AutoTokenizer.from_pretrained(arguments.model),
    train_dataset=Dataset.from_list(examples(arguments.train)),
    peft_config=LoraConfig(
        task_type="CAUSAL_LM",
        r=arguments.rank,
        lora_alpha=arguments.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
    ),
    args=SFTConfig(
        output_dir=arguments.output,
        num_train_epochs=1,
        per_device_train_batch_size=arguments.batch_size,
        gradient_accumulation_steps=arguments.accumulation,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        lr_scheduler_type="linear",
        warmup_steps=0,
        completion_only_loss=True,
        max_length=None,
        padding_free=arguments.padding_free,
        gradient_checkpointing=False,
        bf16=False,
        fp16=False,
        use_cpu=True,
        seed=arguments.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    ),
    callbacks=[Tell()],
)
real_tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
trainer.train()
tell("done", real_tokens=real_tokens)
