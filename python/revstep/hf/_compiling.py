"""A converted model under torch.compile: its loop and its layers are graph breaks. Imported while tracing."""

from __future__ import annotations

from typing import Any

import torch


def _run_layer(conversion: Any, index: int, x: Any, args: tuple, kwargs: dict) -> Any:
    return conversion.run_layer(index, x, args, kwargs)


outside = torch.compiler.disable(
    _run_layer,
    reason=(
        "a decoder layer of a converted model is one step of a pass that lives outside the graph: compile the"
        " blocks instead, revstep.hf.conversion(model).stack.compile()"
    ),
)


def _run_loop(conversion: Any, args: tuple, kwargs: dict) -> Any:
    return conversion.run_loop(args, kwargs)


loop_outside = torch.compiler.disable(
    _run_loop,
    recursive=False,  # what the loop computes beside the layers is compiled
    reason=(
        "the loop over the decoder layers of a converted model begins and ends a pass that lives outside "
        "the graph: compile the blocks instead, revstep.hf.conversion(model).stack.compile()"
    ),
)
