"""PEFT's LoRA layer on 512 tokens in f32, forward and backward, in eager torch."""

import argparse
import statistics
import time

from events import tell, threads

parser = argparse.ArgumentParser()
parser.add_argument("--size", type=int, required=True, help="rows and columns of the weight")
parser.add_argument("--rank", type=int, default=16)
parser.add_argument("--bf16-weight", action="store_true", help="a weight of bf16 numbers, as in published checkpoints")
parser.add_argument("--passes", type=int, required=True)
arguments = parser.parse_args()

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear

torch.set_num_threads(threads())
torch.manual_seed(0)
TOKENS = 512
size = arguments.size

base = torch.nn.Sequential(torch.nn.Linear(size, size, bias=False))
if arguments.bf16_weight:
    base[0].weight.data = base[0].weight.data.bfloat16().float()
config = LoraConfig(
    r=arguments.rank, lora_alpha=2 * arguments.rank, lora_dropout=0.0, target_modules=["0"], init_lora_weights=False
)
layer = next(it for it in get_peft_model(base, config).modules() if isinstance(it, Linear))
x = (torch.randn(TOKENS, size) / size**0.5).requires_grad_()
grad = torch.randn(TOKENS * size) / size**0.5
wanted = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]


def once():
    start = time.perf_counter()
    # The derivative of the product is `grad`, a dense tensor such as the next layer hands back.
    torch.autograd.grad(layer(x).view(-1).dot(grad), wanted)
    return time.perf_counter() - start


for _ in range(-(-arguments.passes // 10)):
    once()
tell("done", lora_s=statistics.median(once() for _ in range(arguments.passes)))
