"""The vocabulary head and the loss: what they cost, and torch's chunked loss measured by itself."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UnsupportedError
from ..models.head import SOFTCAP, plain_head
from ..models.loss import options, too_old
from .meter import Meter


@dataclass(frozen=True)
class Head:
    """Head and loss, in bytes above what was alive before: peaks of their forward and of their backward pass, and what is left: the gradients of
    the last hidden state and of the head."""

    forward: int
    backward: int
    left: int

    @property
    def peak(self) -> int:
        return max(self.forward, self.backward)


def why_not(model: nn.Module) -> str | None:
    """What keeps the chunked loss from serving this model, or None."""
    if too_old():
        return f"it needs {too_old()}"
    if getattr(model.config, SOFTCAP, None):
        return f"the model caps its logits ({SOFTCAP}), so they have to exist"
    try:
        plain_head(model)
    except UnsupportedError as error:
        return str(error).partition(";")[0]
    return None


def chunked_head(model: nn.Module, tokens: int, chunk: int, known: dict[int, Head]) -> Head | None:
    """``linear_cross_entropy`` on (tokens, C) hidden states, ``chunk`` rows at once; None where :func:`why_not` has a reason.

    In the weights' own dtype, outside autocast, as revstep's own chunked losses run it. Call under FakeTensorMode. Beyond a few chunks every byte
    is constant or in proportion to the tokens, so at most four chunks are measured and the rest is their line.
    ``known``: measurements so far, by tokens.
    """
    if why_not(model) is not None:
        return None
    chunk = min(chunk, tokens)
    wanted = (tokens,) if tokens <= 4 * chunk else (3 * chunk, 4 * chunk)
    for n in wanted:
        if n not in known:
            known[n] = _measure(model, n, chunk)
    if len(wanted) == 1:
        return known[tokens]
    three, four = (known[n] for n in wanted)
    along = tokens / chunk - 4
    return Head(*(round(b + along * (b - a)) for a, b in zip(astuple(three), astuple(four))))


def _measure(model: nn.Module, tokens: int, chunk: int) -> Head:
    head, meter = model.get_output_embeddings(), Meter()
    hidden = torch.empty(tokens, head.weight.shape[1], dtype=head.weight.dtype, requires_grad=True)
    labels = torch.zeros(tokens, dtype=torch.long)
    for t in (hidden, labels, *head.parameters()):
        meter.hold(t)
    base, kept = meter.live, head.weight.grad
    with meter:
        loss = F.linear_cross_entropy(hidden, head.weight, labels, options=options(chunk, "cpu"))
        forward = meter.peak - base
        meter.mark("loss")
        loss.backward()
    del loss
    found = Head(forward, meter.peak - base, meter.live - base)
    head.weight.grad = kept
    return found
