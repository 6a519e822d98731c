"""Writes a copy of a model's directory whose weights are rounded to bf16 and stored so, as most models are published."""

import argparse
import json
import shutil
from pathlib import Path

from events import tell

parser = argparse.ArgumentParser()
parser.add_argument("--model", type=Path, required=True)
parser.add_argument("--output", type=Path, required=True)
arguments = parser.parse_args()

import torch
from safetensors.torch import load_file, save_file

shutil.rmtree(arguments.output, ignore_errors=True)
shutil.copytree(arguments.model, arguments.output, ignore=shutil.ignore_patterns("*.safetensors"))
for path in arguments.model.glob("*.safetensors"):
    tensors = load_file(path)
    rounded = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }
    save_file(rounded, arguments.output / path.name, metadata={"format": "pt"})
path = arguments.output / "config.json"
config = json.loads(path.read_text(encoding="utf-8"))
path.write_text(json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n", encoding="utf-8")
tell("done")
