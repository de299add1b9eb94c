"""Live bytes and floating point operations of a training step, operation by operation, without running it;
and what the vocabulary head and the loss cost of them.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .._models.layers import SOFTCAP, decoder_layers, plain_head
from .._models.training import chunked_cross_entropy, has_operator, lacking, options
from ..errors import ConfigError, UnsupportedError
from ..stack._modes import ThreadedMode
from ..stack._tiles import Call, Evaluation, evaluating

#: What the flash kernel of each device is called; torch's own registry of operation counts lacks the CPU's.
_FLASH = {
    "_scaled_dot_product_flash_attention_for_cpu": 4.0,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 10.0,
}


class Meter(ThreadedMode):
    """Counts storages while they live: each once, whatever views look at it, from the operation that made it
    until it is let go.

    Enter it inside a ``FakeTensorMode``, or with ``real`` around a step that is run. In the former operations
    on real tensors alone (a padding mask of ones) are run for real, so that a model's questions about their
    values ("is anything masked?") get the answer that training on full sequences gets; everything else is
    shapes.

    Attributes:
        live: bytes alive now. peak: largest ``live`` since the last :meth:`mark`.
        flops: floating point operations so far: 2 a multiply-add of every matrix product; attention 4 B H T S
            D forwards and 10 B H T S D backwards (two and five products), half of it when causal.
        marks: ``(name, live, peak before it, flops)`` of every :meth:`mark`.
    """

    def __init__(self, real: bool = False) -> None:
        super().__init__()
        self.real = real
        self.live = self.peak = 0
        self.flops = 0.0
        self.marks: list[tuple[str, int, int, float]] = []
        self._alive: dict[int, weakref.ref] = {}

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage if it is not counted yet."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            self.live -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)

    def mark(self, name: str) -> None:
        """A phase of the step ends here."""
        self.marks.append((name, self.live, self.peak, self.flops))
        self.peak = self.live

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = [] if self.real else [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if inputs and not any(isinstance(t, FakeTensor) for t in inputs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self.hold(t)
        self.flops += _operations(func, args, kwargs, out)
        return out


def _operations(func: Any, args: tuple, kwargs: dict, out: Any) -> float:
    packet = func._overloadpacket
    name = packet.__name__
    if name in _FLASH:
        q, k = (args[1], args[2]) if name.endswith("backward") else args[:2]
        causal = kwargs.get("is_causal", any(isinstance(a, bool) and a for a in args))
        return (
            _FLASH[name]
            * q.shape[0]
            * q.shape[1]
            * q.shape[2]
            * k.shape[2]
            * q.shape[3]
            * (0.5 if causal else 1.0)
        )
    count = flop_registry.get(packet)
    return float(count(*args, **kwargs, out_val=out)) if count is not None else 0.0


def nbytes(tensors: Any) -> int:
    """Bytes of the distinct storages behind some tensors."""
    seen = {id(s): s for s in (t.untyped_storage() for t in tensors)}
    return sum(s.nbytes() for s in seen.values())


def autocast(dtype: torch.dtype | None) -> Any:
    """The forward pass's autocast on the CPU, or none."""
    return torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)


# ---- The vocabulary head and the loss: what they cost, and the loss in chunks measured by itself ----


@dataclass(frozen=True)
class Head:
    """Head and loss, in bytes above what was alive before: peaks of their forward and of their backward pass,
    and what is left: the gradients of the last hidden state and of the head."""

    forward: int
    backward: int
    left: int

    @property
    def peak(self) -> int:
        return max(self.forward, self.backward)


def why_not(model: nn.Module) -> str | None:
    """What keeps the chunked loss from serving this model, or None."""
    if getattr(model.config, SOFTCAP, None):
        return f"the model caps its logits ({SOFTCAP}), so they have to exist"
    try:
        missing = lacking(plain_head(model).weight)
    except UnsupportedError as error:
        return str(error).partition(";")[0]
    return f"it needs {missing}" if missing else None


def chunked_head(
    model: nn.Module, tokens: int, chunk: int, device: str, known: dict[int, Head]
) -> Head | None:
    """The loss in chunks that runs on a ``device`` of this type, on (tokens, C) hidden states, ``chunk`` rows
    at once; None where :func:`why_not` has a reason.

    In the weights' own dtype, outside autocast, as revstep's own chunked losses run it. Call under
    FakeTensorMode. Beyond a few chunks every byte is constant or in proportion to the tokens, so at most four
    chunks are measured and the rest is their line. ``known``: measurements so far, by tokens.
    """
    if why_not(model) is not None:
        return None
    chunk = min(chunk, tokens)
    wanted = (tokens,) if tokens <= 4 * chunk else (3 * chunk, 4 * chunk)
    for n in wanted:
        if n not in known:
            known[n] = _measure(model, n, chunk, device)
    if len(wanted) == 1:
        return known[tokens]
    three, four = (known[n] for n in wanted)
    along = tokens / chunk - 4
    return Head(*(round(b + along * (b - a)) for a, b in zip(astuple(three), astuple(four))))


def _measure(model: nn.Module, tokens: int, chunk: int, device: str) -> Head:
    head = model.get_output_embeddings()
    meter = Meter()
    hidden = torch.empty(tokens, head.weight.shape[1], dtype=head.weight.dtype, requires_grad=True)
    labels = torch.zeros(tokens, dtype=torch.long)
    for t in (hidden, labels, *head.parameters()):
        meter.hold(t)
    base = meter.live
    before = head.weight.grad
    with meter:
        if device == "cpu" or not has_operator():
            loss = chunked_cross_entropy(hidden, head.weight, None, labels, chunk)
        else:
            loss = F.linear_cross_entropy(hidden, head.weight, labels, options=options(chunk, "cpu"))
        forward = meter.peak - base
        meter.mark("loss")
        loss.backward()
    del loss
    found = Head(forward, meter.peak - base, meter.live - base)
    head.weight.grad = before
    return found


# ---- MLPs by tiles ----


class _Alone:
    """Differentiates a call by itself, where no reversible pass has the block evaluated again."""

    def differentiate(self, call: Call, g: Tensor, read: Callable[[], Tensor]) -> list[Tensor | None]:
        call.again(read(), g)
        found, call.gradients = call.gradients, None
        return found


def by_tiles(layers: Sequence[nn.Module], tile: int) -> contextlib.AbstractContextManager:
    """Inside, the MLPs of the layers are evaluated and differentiated by tiles.

    Taken for one is, on shapes alone, a child with two matrices or more that is given one tensor.
    """
    found = _mlps(layers)
    if not found:
        raise ConfigError(
            f"{type(layers[0]).__name__} has no MLP that could be taken by tiles: plan without tile"
        )
    return evaluating(Evaluation(_Alone(), 0, found, tile, wanted={}))


def has_mlps(model: nn.Module) -> bool:
    """Whether :func:`by_tiles` finds something in the model's layers."""
    return bool(_mlps(decoder_layers(model)[1]))


def _mlps(layers: Sequence[nn.Module]) -> list[nn.Module]:
    return [
        m
        for layer in layers
        for m in layer.children()
        if sum(p.ndim >= 2 for p in m.parameters()) >= 2 and _takes_one(m)
    ]


def _takes_one(module: nn.Module) -> bool:
    given = inspect.signature(module.forward).parameters.values()
    named = [p for p in given if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return len([p for p in named if p.default is p.empty]) == 1 and "attention_mask" not in {
        p.name for p in named
    }
