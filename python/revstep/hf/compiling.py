"""A converted model under torch.compile: each decoder layer is a graph break. Imported while tracing only."""

from __future__ import annotations

from typing import Any

import torch


def _run_layer(conversion: Any, index: int, x: Any, args: tuple, kwargs: dict) -> Any:
    return conversion.run_layer(index, x, args, kwargs)


outside = torch.compiler.disable(
    _run_layer,
    reason="a decoder layer of a converted model is one step of a pass that lives outside the graph: compile the blocks instead, "
    "revstep.hf.conversion(model).stack.compile()",
)
