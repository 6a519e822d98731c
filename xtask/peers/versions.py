"""Tells the versions of what is measured. It imports all of it, so that the next program finds it compiled and in memory."""

import platform

from events import tell

import accelerate
import datasets
import peft
import torch
import transformers
import trl

modules = [torch, transformers, peft, trl, accelerate, datasets]
versions = {module.__name__: module.__version__ for module in modules}
tell("done", versions={"python": platform.python_version(), **versions}, cpu=torch.backends.cpu.get_cpu_capability())
