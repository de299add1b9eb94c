"""Logits that are not computed until somebody looks at them.

``LazyLogits`` stands for ``hidden @ weight.T + bias`` with its shape, dtype, device and graph, and holds only
``hidden``: a loss that knows it can work chunk by chunk, and everybody else gets the real logits, with the
right gradient, at the first operation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .._imports import require
from .._models.layers import SOFTCAP, hooked, plain_head, transformer
from .._models.loss import chunked_cross_entropy, too_old
from ..errors import ConfigError, UnsupportedError

__all__ = ["LazyLogits", "Source", "lazy_logits"]


class Source:
    """What logits are made of: ``hidden`` (..., C), ``weight`` (V, C), ``bias`` (V,) or None, computed in
    ``dtype`` and at most once.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        self.hidden, self.weight, self.bias, self.dtype = hidden, weight, bias, dtype
        self.versions = self._versions()
        self.computed: Tensor | None = None

    def _versions(self) -> list[int]:
        return [t._version for t in (self.hidden, self.weight, self.bias) if t is not None]

    def real(self) -> Tensor:
        """The logits (..., V) in ``self.dtype``, attached to the graph of ``hidden`` and ``weight``.

        Raises:
            UnsupportedError: the weights or the hidden states were changed in place since: the logits would
                be those of another model.
        """
        if self.computed is None:
            if self._versions() != self.versions:
                raise UnsupportedError(
                    "these logits were not computed by the forward pass (chunk_loss) and the head's weight or"
                    " its input has changed in place since; expected them to be read before optimizer.step():"
                    " read them earlier, or unchunk_loss(model)"
                )
            # With a graph under no_grad too: the first reader may be a metric, the second the loss.
            with torch.enable_grad(), torch.autocast(self.hidden.device.type, enabled=False):
                self.computed = F.linear(
                    *(None if t is None else t.to(self.dtype) for t in (self.hidden, self.weight, self.bias))
                )
        return self.computed


#: Attributes that are tensors made from the data; all other attributes of a tensor describe it and are
#: answered without the data.
_DATA = {getattr(Tensor, name).__get__ for name in ("data", "T", "mT", "H", "mH", "real", "imag", "grad")}
#: Questions about the shape.
_QUERIES = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.nelement,
    Tensor.ndimension,
    Tensor.element_size,
    Tensor.stride,
    Tensor.is_contiguous,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.__len__,
    torch.numel,
    torch.is_floating_point,
    torch.is_complex,
}
_NAMED_CASTS = {
    Tensor.float: torch.float32,
    Tensor.double: torch.float64,
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
}


def _cast(func: Any, args: tuple, kwargs: dict) -> torch.dtype | None:
    """The dtype asked for by ``.float()``, ``.to(dtype)``, ``.to(dtype=...)``, ``.type(dtype)``, or None: not
    a mere cast.
    """
    if func in _NAMED_CASTS and len(args) == 1 and not kwargs:
        return _NAMED_CASTS[func]
    if func in (Tensor.to, Tensor.type):
        asked = (*args[1:], *kwargs.values())
        if len(asked) == 1 and isinstance(asked[0], torch.dtype):
            return asked[0]
        if (
            func is Tensor.to
            and len(asked) == 1
            and isinstance(asked[0], (str, torch.device))
            and torch.device(asked[0]) == args[0].device
        ):
            return args[0].dtype
    return None


class LazyLogits(Tensor):
    """A tensor without data: ``source`` says how to compute it. Made by ``lazy_logits``, never by hand.

    Lazy stay: questions about shape and dtype, ``detach``, casts to a dtype that holds every value of this
    one. Everything else acts on ``real()``. The object is the output of an autograd node, so that code which
    does not ask ``__torch_function__`` (an autograd.Function) gets its gradient through as well.
    """

    source: Source

    @staticmethod
    def __new__(cls, source: Source, dtype: torch.dtype) -> LazyLogits:
        shape = (*source.hidden.shape[:-1], source.weight.shape[0])
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=source.hidden.device)
        self.source = source
        return self

    def __init__(self, source: Source, dtype: torch.dtype):
        pass

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return (
            f"LazyLogits(shape={tuple(self.shape)}, dtype={self.dtype},"
            f" computed={self.source.computed is not None})"
        )

    def real(self) -> Tensor:
        """The logits as an ordinary tensor, on the graph if this one is."""
        logits = self.source.real()
        return (logits if self.requires_grad else logits.detach()).to(self.dtype)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        described = getattr(func, "__name__", "") == "__get__" and func not in _DATA
        if described or func in _QUERIES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        lazy = args[0] if args and isinstance(args[0], LazyLogits) else None
        if lazy is not None and lazy.source.computed is None:
            if func is Tensor.detach or func is torch.detach:
                return LazyLogits(lazy.source, lazy.dtype)
            dtype = _cast(func, args, kwargs)
            if dtype is not None and torch.promote_types(lazy.dtype, dtype) == dtype:
                return lazy if dtype == lazy.dtype else _attach(lazy.source, dtype, lazy.requires_grad)
        with torch._C.DisableTorchFunctionSubclass():
            args, kwargs = tree_map(_computed, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # Reached only by code that goes past __torch_function__; autograd is above us, so values without a
        # graph are what is wanted.
        args, kwargs = tree_map(
            lambda x: _computed(x).detach() if isinstance(x, LazyLogits) else x, (args, kwargs or {})
        )
        return func(*args, **kwargs)


def _computed(x: Any) -> Any:
    return x.real() if isinstance(x, LazyLogits) else x


class _Head(torch.autograd.Function):
    """The node behind a LazyLogits: forward computes nothing, backward is that of ``hidden @ weight.T +
    bias``.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, source, dtype):
        ctx.save_for_backward(hidden, weight)
        ctx.dtype = source.dtype
        return LazyLogits(source, dtype)

    @staticmethod
    def backward(ctx, grad):
        hidden, weight = ctx.saved_tensors
        grad = grad.to(ctx.dtype)
        rows = grad.reshape(-1, grad.shape[-1])  # (N, V)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        to_hidden = (grad @ weight.to(ctx.dtype)).to(hidden.dtype) if needs_hidden else None
        to_weight = (
            (rows.T @ hidden.reshape(-1, hidden.shape[-1]).to(ctx.dtype)).to(weight.dtype)
            if needs_weight
            else None
        )
        return to_hidden, to_weight, rows.sum(0).to(weight.dtype) if needs_bias else None, None, None


def _attach(source: Source, dtype: torch.dtype, tracked: bool) -> LazyLogits:
    if not (tracked and torch.is_grad_enabled()):
        return LazyLogits(source, dtype)
    return _Head.apply(source.hidden, source.weight, source.bias, source, dtype)


def lazy_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> LazyLogits:
    """``hidden`` (..., C), ``weight`` (V, C), ``bias`` (V,) or None -> the logits (..., V), not computed;
    their dtype is what autocast would give.
    """
    device = hidden.device.type
    dtype = (
        torch.get_autocast_dtype(device)
        if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64
        else hidden.dtype
    )
    return _attach(Source(hidden, weight, bias, dtype), dtype, tracked=True)


# ------------------------------------------------------------------------------------------------------------
# The vocabulary head of a Hugging Face model without ever holding all its logits: ``chunk_loss(model)`` and
# ``unchunk_loss(model)``.
#
#     loss = sum_i CE(W h_i + b, label_{i+1}) / count        h_i: what the head reads
#
# Only this instance changes: its head returns ``LazyLogits`` while gradients are recorded, and its
# ``loss_function`` gives them to torch's chunked op. Class, parameters, state_dict and config stay. Without
# gradients (generation, evaluation) the head returns logits as always.

__all__ = ["ChunkedLoss", "LazyForward", "chunk_loss", "unchunk_loss"]


class LazyForward:
    """The ``forward`` of one head. A plain object and not a closure, so that the model can still be pickled
    and copied.
    """

    def __init__(self, head: nn.Linear):
        self.head = head

    def __call__(self, input: Tensor) -> Tensor:
        head = self.head
        return (
            lazy_logits(input, head.weight, head.bias)
            if torch.is_grad_enabled()
            else type(head).forward(head, input)
        )


class ChunkedLoss:
    """transformers' ``ForCausalLMLoss`` for lazy logits; real ones go to ``original``."""

    def __init__(self, original: Any, chunk: int | str, was_set: bool):
        self.original, self.chunk, self.was_set = original, chunk, was_set

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        # kwargs: models hand all of their forward's own to the loss; transformers' loss ignores them in the
        # same way.
        if not isinstance(logits, LazyLogits) or logits.source.computed is not None:
            real = logits.real() if isinstance(logits, LazyLogits) else logits
            return self.original(
                real, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **kwargs
            )
        if vocab_size != logits.shape[-1]:
            raise ConfigError(
                f"the head has {logits.shape[-1]} outputs, the config says vocab_size={vocab_size}; expected"
                " the same: resize the embeddings"
            )
        if shift_labels is None:
            shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]  # token t predicts t + 1
        source = logits.source
        parts = [source.hidden, source.weight, source.bias]
        if not logits.requires_grad:
            parts = [None if part is None else part.detach() for part in parts]
        targets = shift_labels.reshape(-1).to(source.hidden.device)
        return chunked_cross_entropy(
            *parts, targets, self.chunk, count=num_items_in_batch, ignore_index=ignore_index
        )


class _Reached(Exception):
    """The probe's loss was called."""


class _Probe:
    """Stands for the loss during the probe and looks at what it is given."""

    def __init__(self):
        self.logits: Any = None

    def __call__(self, logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.logits = logits
        raise _Reached


def chunk_loss(model: nn.Module, chunk: int | str = "auto") -> nn.Module:
    """Let ``model``, any ``*ForCausalLM`` of transformers (or a peft model around one), compute its training
    loss in chunks of rows. Returns it.

    Args:
        model: runs one forward pass of two tokens here, to see that nothing reads the logits before the loss.
        chunk: rows (tokens) of logits held at a time, or "auto".

    ``outputs.logits`` stay usable in training: they are computed when touched, before the optimiser's step.

    Raises:
        ConfigError: ``chunk``; torch too old.
        UnsupportedError: no plain linear head, another loss than ForCausalLMLoss, logits that the model
            changes before its loss.
    """
    if chunk != "auto" and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ConfigError(f"chunk is {chunk!r}; expected 'auto' or a positive number of rows")
    if too_old():
        raise ConfigError(f"chunk_loss needs {too_old()}: upgrade torch")
    base = transformer(model)
    if isinstance(base.__dict__.get("_loss_function"), ChunkedLoss):
        raise ConfigError(
            "this model's loss is chunked already; expected a plain one: unchunk_loss(model) first"
        )
    head, original = plain_head(base), base.loss_function
    loss_utils = require("transformers.loss.loss_utils", "chunk_loss", "hf")
    if original is not loss_utils.ForCausalLMLoss:
        name = getattr(original, "__name__", type(original).__name__)
        raise UnsupportedError(
            f"{type(base).__name__} has the loss {name}; expected transformers' ForCausalLMLoss, whose"
            " semantics the chunked loss has"
        )
    was_set = "_loss_function" in base.__dict__
    _install(head)
    try:
        _probe(base)
    except BaseException:
        _remove(head)
        raise
    finally:
        _set_loss(base, original, was_set)
    base.loss_function = ChunkedLoss(original, chunk, was_set)
    return model


def unchunk_loss(model: nn.Module) -> nn.Module:
    """Undo ``chunk_loss``: the head and the loss of the instance as they were. Returns the model.

    Raises:
        ConfigError: its loss is not chunked.
    """
    base = transformer(model)
    loss = base.__dict__.get("_loss_function")
    if not isinstance(loss, ChunkedLoss):
        raise ConfigError("this model's loss is not chunked; expected one that chunk_loss was called on")
    _remove(base.get_output_embeddings())
    _set_loss(base, loss.original, loss.was_set)
    return model


def _set_loss(base: nn.Module, original: Any, was_set: bool) -> None:
    if was_set:
        base.loss_function = original
    else:
        base.__dict__.pop("_loss_function", None)  # the property then looks the loss up by the class again


def _install(head: nn.Linear) -> None:
    """Behind accelerate's hook where there is one: it moves the input, and brings in weights that are
    elsewhere.
    """
    setattr(head, "_old_forward" if hooked(head) else "forward", LazyForward(head))


def _remove(head: nn.Module) -> None:
    if isinstance(head.__dict__.get("_old_forward"), LazyForward):
        head._old_forward = type(head).forward.__get__(head)
    if isinstance(head.__dict__.get("forward"), LazyForward):
        del head.forward


def _probe(base: nn.Module) -> None:
    """Two tokens up to the loss, which must receive the head's logits untouched."""
    name = type(base).__name__
    if getattr(base.config.get_text_config(), SOFTCAP, None) is not None:
        raise UnsupportedError(
            f"{name} caps its logits ({SOFTCAP}) before the loss; expected logits that go from the head to"
            " the loss unchanged"
        )
    device = base.get_input_embeddings().weight.device
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=device)
    probe = _Probe()
    base.loss_function = probe
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=devices):
            base(input_ids=tokens, labels=tokens, use_cache=False)
    except _Reached:
        pass
    if probe.logits is None:
        raise UnsupportedError(
            f"{name} does not call self.loss_function in its forward; expected a model that does: it computes"
            " the loss in a way of its own"
        )
    if not isinstance(probe.logits, LazyLogits) or probe.logits.source.computed is not None:
        raise UnsupportedError(
            f"{name} reads or changes its logits between head and loss (scaling, soft-capping, slicing);"
            " expected them to go to the loss unchanged: train it with all logits"
        )
