"""A model looked at before it is converted: a small forward pass over it, which tries its loop and its
layers, and what becomes of linear maps whose weights are quantised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._models.layers import unwrapped
from ..errors import RevstepError, UnsupportedError
from ..stack._arguments import increment
from ._forwards import parameters_of, stream_first
from ._made_up import made_up
from ._settings import uncached

__all__ = [
    "as_it_was", "forwards", "hold", "probe", "quantized", "refuse_without_gradient",
    "unpacked", "until_returned",
]  # fmt: skip

# ------------------------------------------------------------------------------------------------------------
# Linear maps whose weights are stored in 4 or 8 bits, under adapters that train.
#
# Only what the rest of the package needs to know of them: which they are, whether a gradient passes through,
# and that bitsandbytes repacks 4-bit weights for inference on a CPU, after which none passes through any
# more.

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


# ---- A small forward pass over a model before it is converted ----
#
# Does its loop call the layers one by one, and does the adapter give their increments? The pass ends where
# the module that calls the layers returns: what a model's head needs (a padding token, labels) is not asked
# for.


@contextlib.contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside, and the autocast that the model needs.

    Afterwards every module's mode and torch's CPU generator are as before.
    """
    modes = [(m, m.training) for m in model.modules()]
    random = torch.get_rng_state()
    model.eval()
    try:
        with torch.no_grad(), unpacked(model), _autocast_needed(model):
            yield
    finally:
        torch.set_rng_state(random)
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def forwards(layers: Sequence[nn.Module], made: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """These callables in the layers' ``forward``, what was there before afterwards."""
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer, forward in zip(layers, made):
            layer.forward = forward
        yield
    finally:
        for layer, forward in zip(layers, before):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward


class _Returned(Exception):
    """The module that calls the layers has returned."""


def _stop(*_: Any) -> None:
    raise _Returned


@contextlib.contextmanager
def until_returned(loop: nn.Module) -> Iterator[None]:
    """A forward pass inside ends where ``loop``, the module that calls the layers, returns; no head runs."""
    handle = loop.register_forward_hook(_stop)
    try:
        yield
    except _Returned:
        pass
    finally:
        handle.remove()


def probe(
    model: nn.Module, loop: nn.Module, layers: Sequence[nn.Module], blocks: Sequence[nn.Module],
    own: Sequence[Callable[..., Any]],
) -> list[int]:  # fmt: skip
    """Run ``model`` on a few tokens, images or sounds until ``loop`` returns, each layer beside its block.

    ``own[i](x, ...)`` must equal ``x + f(x)`` with f from ``blocks[i]``, up to the rounding of three sums:
    8 eps max(|x|, |out|, |f|), eps of the coarsest dtype among the three. The pass is made outside autocast;
    where the model does not run so (norms in float32, matrices in bfloat16), under the autocast it needs.

    Returns:
        for each layer the length of the tuple that it returned, 0 where it was the state alone.

    Raises:
        UnsupportedError: a layer and its block differ; the layers are not called once each, in order, with a
            (batch, time, width) state.
    """
    called: list[int] = []
    returns = [0] * len(layers)

    def beside(i: int) -> Callable[..., Any]:
        names = parameters_of(layers[i])

        def forward(*args: Any, **kwargs: Any) -> Any:
            before = names[0] if names and (args or names[0] in kwargs) else "hidden_states"
            if "hidden_states" in kwargs and before != "hidden_states":
                raise UnsupportedError(
                    f"{type(layers[i]).__name__} reads {before} beside its hidden_states, as a layer of two "
                    "streams does: its increment is no function of one state"
                )
            x, *rest = stream_first(names, args, kwargs)
            called.append(i)
            out = own[i](x, *rest, **kwargs)
            returns[i] = len(out) if isinstance(out, (tuple, list)) else 0
            _compare(layers[i], x, increment(out)[0], blocks[i], tuple(rest), _uncached(kwargs))
            return out

        return forward

    inner = unwrapped(model)
    given, what = made_up(inner)
    failed: Exception | None = None
    with as_it_was(model), forwards(layers, [beside(i) for i in range(len(layers))]):
        for precision in _precisions(inner):
            called.clear()
            try:
                with precision, until_returned(loop):
                    model(**given, **uncached(inner))
                failed = None
                break
            except RevstepError:
                raise
            except Exception as error:
                failed = error
    if failed is not None:
        name = type(inner).__name__
        reason = f"as a decoder does: {type(failed).__name__}: {failed}"
        raise UnsupportedError(f"{name} does not run on {what} alone, {reason}") from failed
    if called != list(range(len(layers))):
        order = f"called its layers as {called[:8]}..., expected each of the {len(layers)} once, in order"
        raise UnsupportedError(f"{type(inner).__name__} {order}")
    return returns


def _autocast_needed(model: nn.Module) -> contextlib.AbstractContextManager:
    """The autocast under which a model of several dtypes runs, where it does not run without; else nothing.

    peft's prepare_model_for_kbit_training, for one, leaves norms in float32 among matrices in bfloat16.
    """
    inner = unwrapped(model)
    kind = next(inner.parameters()).device.type
    narrow = _narrow(inner)
    if narrow is None or torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    try:
        given, _ = made_up(inner)
        inner(**given, **uncached(inner))
    except (RevstepError, ValueError):  # of a head that wants more than token ids: the layers have run
        pass
    except RuntimeError:  # torch's word for operands of two dtypes
        return torch.autocast(kind, dtype=narrow)
    return contextlib.nullcontext()


def _narrow(inner: nn.Module) -> torch.dtype | None:
    """The 16-bit dtype among several of a model's parameters."""
    found = {p.dtype for p in inner.parameters() if p.is_floating_point()}
    return next((n for n in (torch.bfloat16, torch.float16) if n in found and len(found) > 1), None)


def _precisions(inner: nn.Module) -> Iterator[contextlib.AbstractContextManager]:
    """How to try it: without autocast; else under the caller's, or that of the narrowest of its dtypes."""
    kind = next(inner.parameters()).device.type
    narrow = _narrow(inner)
    yield torch.autocast(kind, enabled=False)
    if torch.is_autocast_enabled(kind):
        yield contextlib.nullcontext()
    elif narrow is not None:
        yield torch.autocast(kind, dtype=narrow)


def _uncached(kwargs: dict) -> dict:
    return {
        name: value
        for name, value in kwargs.items()
        if name not in ("cache", "past_key_values", "layer_past")
    }


def _compare(layer: nn.Module, x: Tensor, out: Any, block: nn.Module, args: tuple, kwargs: dict) -> None:
    if not isinstance(out, Tensor) or out.shape != x.shape:
        raise UnsupportedError(
            f"{type(layer).__name__} returned {type(out).__name__}, expected the hidden state, a tensor of"
            f" shape {tuple(x.shape)}"
        )
    if hasattr(block, "halves"):
        F, G = block.halves()
        f = increment(F(x, *args, **kwargs))[0]
        sum_ = x + f
        g = increment(G(x if getattr(block, "parallel", False) else sum_, *args, **kwargs))[0]
        coarse = (f.dtype, g.dtype)
        sum_, f = sum_ + g, f.abs() + g.abs()
    else:
        f = increment(block(x, *args, **kwargs))[0]
        coarse = (f.dtype,)
        sum_ = x + f
    size = max(float(t.abs().max()) for t in (x, out, f))
    eps = max(torch.finfo(dtype).eps for dtype in (x.dtype, out.dtype, *coarse))
    bound, error = 8 * eps * size, float((sum_ - out).abs().max())
    if not error <= bound:
        raise UnsupportedError(
            f"{type(layer).__name__} and its {type(block).__name__} differ: |x + f(x) - layer(x)| is"
            f" {error:.3g}, at most {bound:.3g} was expected. The layer scales its stream, or its branches"
            " are not the ones named; use convert(adapter='difference') or pass an adapter of your own"
        )
