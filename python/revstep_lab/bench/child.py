"""The process in which :func:`.peaks.in_children` measures one variant: reads what to do from stdin, writes
one line of JSON. ``python -m revstep_lab.bench.child``
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings

import torch

from .peaks import measured


def main() -> None:
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    module, name, options = job["case"]
    case = getattr(importlib.import_module(module), name)(**options)
    steps = getattr(importlib.import_module(job["steps"][0]), job["steps"][1])
    warnings.simplefilter("ignore")
    print(json.dumps(measured(*steps(case, job["name"]), case.device)))


if __name__ == "__main__":
    main()
