"""Cross entropy of a head over a large vocabulary, with the logits of a few rows at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError

#: Rows of a chunk of the loss on CPU. torch 2.13's own choice there is too small when the vocabulary is large: 2048 rows, width
#: 256, 32,768 ids, one x86 core, float32, loss and gradients: all logits 1.9 s and 783 MB, torch's choice 4.4 s and 181 MB,
#: 256 rows 1.0 s and 182 MB.
CPU_CHUNK = 256


def chunked_loss(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | str) -> Tensor:
    """Mean cross entropy of ``hidden @ weight.T`` against ``targets`` without ever holding all logits.

    ``hidden`` (N, C), ``weight`` (V, C), ``targets`` (N,) int64 -> scalar float32 (float64 for float64 models). Negative targets
    of -100 are ignored, as in ``cross_entropy``.

    torch 2.13's chunked op computes the gradients in the forward pass, so a second derivative (create_graph=True) and
    torch.func are not available: set loss_chunk=0 for those. It also returns the loss in its inputs' dtype and rounds the
    gradients there before a GradScaler has scaled them, so we leave autocast and run the head in the weights' own dtype.
    """
    if chunk == "auto" and hidden.device.type == "cpu":
        chunk = CPU_CHUNK
    try:
        from torch.nn import LinearCrossEntropyOptions
    except ImportError:
        raise ConfigError(f"the chunked loss needs torch 2.13 or newer, this is {torch.__version__}: upgrade, or set loss_chunk=0 to hold all logits") from None
    sizes = {} if chunk == "auto" else {"batch_chunk_size": int(chunk), "chunking_method": None}
    options = LinearCrossEntropyOptions(allow_retain_graph=torch.compiler.is_compiling(), **sizes)  # forced there, by a warning that breaks the graph
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear_cross_entropy(hidden.to(weight.dtype), weight, targets, options=options)
