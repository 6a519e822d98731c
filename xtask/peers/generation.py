"""Greedy answers by transformers in f32, with or without an adapter of PEFT that is not merged.

End tokens end nothing, so that every program generates the same number of tokens.
"""

import argparse
import time

from events import examples, tell, threads

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--adapter")
parser.add_argument("--prompts", required=True, help="JSONL of {prompt, completion}; all are answered in one batch")
parser.add_argument("--new-tokens", type=int, required=True)
arguments = parser.parse_args()

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(threads())
tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
model.generation_config.eos_token_id = None
model.generation_config.pad_token_id = tokenizer.pad_token_id
if arguments.adapter:
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, arguments.adapter)
model.eval()


def rendered(prompt):
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


prompts = [example["prompt"] for example in examples(arguments.prompts)]
plain = isinstance(prompts[0], str)
batch = tokenizer([rendered(it) for it in prompts], return_tensors="pt", padding=True, add_special_tokens=plain)


def answer(new_tokens):
    start = time.perf_counter()
    with torch.inference_mode():
        ids = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False)
    seconds = time.perf_counter() - start
    answers = ids[:, batch["input_ids"].shape[1] :].tolist()
    assert all(len(it) == new_tokens for it in answers), "an answer ended early"
    return seconds, answers


answer(2)  # the first call prepares
seconds, answers = answer(arguments.new_tokens)
seconds_one_more, _ = answer(arguments.new_tokens + 1)
seconds_one, _ = answer(1)
tell(
    "done",
    prompt_tokens=int(batch["attention_mask"].sum()),
    answers=answers,
    seconds=seconds,
    seconds_one_more=seconds_one_more,
    seconds_one=seconds_one,
)
