"""What the programs of this folder share: they tell events on standard output, one JSON object a line, and nothing else.

The one who starts them has set the number of threads in the environment (OMP_NUM_THREADS).
"""

import json
import os

_out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what libraries print goes to standard error


def tell(event, **fields):
    _out.write(json.dumps({"event": event, **fields}) + "\n")


def threads():
    return int(os.environ["OMP_NUM_THREADS"])


def examples(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
