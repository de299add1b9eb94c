"""Cross entropy of a head over a large vocabulary, with the logits of a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Rows of a chunk of the loss on CPU. torch 2.13's own choice there is too small when the vocabulary is
#: large: 2048 rows, width 256, 32,768 ids, one x86 core, float32, loss and gradients: all logits 1.9 s and
#: 783 MB, torch's choice 4.4 s and 181 MB, 256 rows 1.0 s and 182 MB.
CPU_CHUNK = 256


def too_old() -> str:
    """What the loss in chunks needs and this torch does not have; empty where it has it."""
    if hasattr(F, "linear_cross_entropy") and hasattr(nn, "LinearCrossEntropyOptions"):
        return ""
    return f"torch.nn.functional.linear_cross_entropy of torch 2.13, this is torch {torch.__version__}"


def options(chunk: int | str, device: str) -> Any:
    """Of ``linear_cross_entropy``: rows of logits at a time, or "auto"."""
    if chunk == "auto" and device == "cpu":
        chunk = CPU_CHUNK
    sizes = {} if chunk == "auto" else {"batch_chunk_size": int(chunk), "chunking_method": None}
    # Forced there, by a warning that breaks the graph.
    return nn.LinearCrossEntropyOptions(allow_retain_graph=torch.compiler.is_compiling(), **sizes)


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    chunk: int | str,
    *,
    count: Tensor | int | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Cross entropy of ``hidden @ weight.T + bias``, summed and divided by ``count`` (None: by the number of
    targets that count).

    ``hidden`` (..., C), ``weight`` (V, C), ``bias`` (V,), ``targets`` (N,) int64 -> scalar float32 (float64
    for float64 models).

    torch 2.13's op returns the loss in its inputs' dtype and computes the gradients of "mean" and "sum" in
    the forward pass, rounded to it before any loss scale: we leave autocast and use the weights' own dtype.
    For 16-bit weights we ask for the loss of each token, whose gradients are computed in backward from the
    incoming one (one product with the head more), and add those up in float32. No second derivative.
    """
    rows = hidden.reshape(-1, hidden.shape[-1]).to(weight.dtype)  # (N, C)
    narrow = weight.dtype in (torch.float16, torch.bfloat16)
    reduction = "none" if narrow else "mean" if count is None else "sum"
    with torch.autocast(hidden.device.type, enabled=False):
        loss = F.linear_cross_entropy(
            rows,
            weight,
            targets,
            linear_bias=bias,
            reduction=reduction,
            ignore_index=ignore_index,
            options=options(chunk, hidden.device.type),
        )
        if narrow:
            loss = loss.float().sum()
            count = (targets != ignore_index).sum() if count is None else count
    if count is None:
        return loss
    return loss / (count.to(loss.device) if isinstance(count, Tensor) else count)
