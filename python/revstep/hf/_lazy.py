"""Logits that are not computed until somebody looks at them.

``LazyLogits`` stands for ``hidden @ weight.T + bias`` with its shape, dtype, device and graph, and holds only
``hidden``: a loss that knows it can work chunk by chunk, and everybody else gets the real logits, with the
right gradient, at the first operation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from ..errors import UnsupportedError


class Source:
    """What logits are made of: ``hidden`` (..., C), ``weight`` (V, C), ``bias`` (V,) or None, computed in
    ``dtype`` and at most once.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        self.hidden = hidden
        self.weight = weight
        self.bias = bias
        self.dtype = dtype
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
