"""Linear maps whose weights are stored in 4 or 8 bits, under adapters that train.

Only what the rest of the package needs to know of them: which they are, whether a gradient passes through,
and that bitsandbytes repacks 4-bit weights for inference on a CPU, after which none passes through any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError

__all__ = ["hold", "quantized", "refuse_without_gradient", "unpacked"]

#: The attribute by which a 4-bit linear map of bitsandbytes says that it repacks its weight in evaluation.
_REPACKS = "support_avx512bf16_for_cpu"
_WEIGHT_ONLY = "quantised weights alone, such as bitsandbytes nf4 or torchao's Int8WeightOnlyConfig"


def quantized(module: nn.Module) -> str | None:
    """What this linear map stores its weight as, in words; None for an ordinary one."""
    weight = _weight(module)
    if not isinstance(weight, Tensor) or not (hasattr(module, "in_features") or hasattr(module, "qweight")):
        return None
    library = _library(type(weight))
    if weight.is_floating_point() and library == "torch":
        return None
    stored = type(weight).__name__
    if library == "torch":  # then the module knows what the numbers mean
        library, stored = _library(type(module)), str(weight.dtype)
    return f"{type(module).__name__} of {library} ({stored})"


def _weight(module: nn.Module) -> Any:
    return module._parameters.get("weight", getattr(module, "qweight", None))


def _library(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def refuse_without_gradient(layers: Sequence[nn.Module]) -> None:
    """Try one quantised linear map of each kind: does a gradient pass through?

    Raises:
        UnsupportedError: of one none does, and adapters below it would not train; by its kind.
    """
    seen: set[Any] = set()
    for layer in layers:
        for name, module in layer.named_modules():
            kind = quantized(module)
            packed = _packed(module)
            if kind is None or (kind, packed) in seen:
                continue
            seen.add((kind, packed))
            if packed:
                raise UnsupportedError(
                    f"{name} is a {kind} that an evaluation pass on the CPU has repacked for inference; "
                    "bitsandbytes passes no gradient through it from then on, in the plain model either, and "
                    "adapters would not train: load the model again, and convert it before it is evaluated"
                )
            _try(name, kind, module)


def _try(name: str, kind: str, module: nn.Module) -> None:
    weight = _weight(module)
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    width = getattr(module, "in_features", weight.shape[-1])
    x = torch.linspace(-1.0, 1.0, 2 * width, device=weight.device).view(2, width).to(dtype).requires_grad_()
    try:
        with torch.enable_grad():
            y = module(x)
        if y.requires_grad:
            torch.autograd.grad(y.sum(), x)
            return
    except (RuntimeError, ValueError, TypeError) as error:
        found = f"{name} is a {kind}, which cannot be differentiated here ({error})"
        raise UnsupportedError(f"{found}; expected {_WEIGHT_ONLY}") from error
    found = f"{name} is a {kind}, which passes no gradient on to its input, in the plain model either"
    raise UnsupportedError(f"{found}: adapters before it would not train; expected {_WEIGHT_ONLY}")


def hold(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """From now on these keep their 4-bit weights as they are in evaluation; returns those that would not."""
    repacking = [module for module in modules if getattr(module, _REPACKS, False)]
    for module in repacking:
        setattr(module, _REPACKS, False)
    return repacking


@contextlib.contextmanager
def unpacked(model: nn.Module) -> Iterator[None]:
    """An evaluation pass inside leaves 4-bit weights as they are."""
    held = hold(model.modules())
    try:
        yield
    finally:
        for module in held:
            setattr(module, _REPACKS, True)


def _packed(module: nn.Module) -> bool:
    state = getattr(_weight(module), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))
