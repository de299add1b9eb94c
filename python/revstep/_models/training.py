"""What every training of a language model can use: the loss of a large vocabulary in parts, and the sum of
what the backward passes of a run reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..stack._report import Report, combined

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


# ------------------------------------------------------------------------------------------------------------
# What the backward passes of a run reported, added up.


@dataclass(kw_only=True)
class Tally:
    """Over the backward passes that were looked at.

    Attributes:
        passes: how many rebuilt states; states: how many they rebuilt; matched: how many of those had the
            forward pass's bits.
        exact: all of them were exact; None: nothing was rebuilt.
        max_error, headroom: the worst of the reports, as :class:`~revstep.stack.Report` has them; an error
        that was not measured once stays unknown.
        checksum: of the reports, in their order; None: nothing was rebuilt.
        bytes_saved: what the stack kept for the last pass; None: nothing was rebuilt.
    """

    passes: int = 0
    states: int = 0
    matched: int = 0
    exact: bool | None = None
    max_error: float | None = 0.0
    headroom: float = math.inf
    checksum: int | None = None
    bytes_saved: int | None = None

    def add(self, report: Report | None) -> None:
        """One more pass; None: it rebuilt nothing."""
        if report is None:
            return
        self.passes = self.passes + 1
        self.states = self.states + report.layers
        self.matched = self.matched + report.matched
        self.exact = report.exact and self.exact is not False
        self.max_error = worst(self.max_error, report.max_error)
        self.headroom = min(self.headroom, report.headroom)
        self.checksum = (
            report.checksum if self.checksum is None else combined((self.checksum, report.checksum))
        )
        self.bytes_saved = report.bytes_saved

    @property
    def reconstruction(self) -> str:
        """In words, for a log."""
        if not self.passes:
            return "nothing to rebuild"
        return (
            f"{'exact' if self.states == self.matched else 'NOT EXACT'} ({self.matched:,} of {self.states:,}"
            f" states bit-equal in {self.passes:,} passes)"
        )


def worst(a: float | None, b: float | None) -> float | None:
    """The larger error; one that was not measured stays unknown."""
    return None if a is None or b is None else max(a, b)
