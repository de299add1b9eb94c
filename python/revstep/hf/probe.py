"""Two small forward passes over a model before it is converted: does its loop call the layers one by one, and does the adapter give their increments?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RevstepError, UnsupportedError
from ..stack.tape import increment
from .layers import unwrapped


@contextlib.contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; every module's mode and torch's CPU generator as before, afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    random = torch.get_rng_state()
    model.eval()
    try:
        with torch.no_grad():
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


def probe(model: nn.Module, layers: Sequence[nn.Module], blocks: Sequence[nn.Module], own: Sequence[Callable[..., Any]]) -> None:
    """Run ``model`` on a few tokens, each layer beside its block.

    ``own[i](x, ...)`` must equal ``x + f(x)`` with f from ``blocks[i]``, up to the rounding of three sums: 8 eps max(|x|, |out|, |f|).

    Raises:
        UnsupportedError: a layer and its block differ; the layers are not called once each, in order, with a (batch, time, width) state.
    """
    called: list[int] = []

    def beside(i: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            x, rest = (kwargs.pop("hidden_states"), args) if "hidden_states" in kwargs else (args[0], args[1:])
            called.append(i)
            out = own[i](x, *rest, **kwargs)
            _compare(layers[i], x, increment(out)[0], blocks[i], rest, _uncached(kwargs))
            return out

        return forward

    config = unwrapped(model).config.get_text_config()
    tokens = torch.arange(10, device=next(model.parameters()).device).view(2, 5) % config.vocab_size
    with as_it_was(model), forwards(layers, [beside(i) for i in range(len(layers))]):
        try:
            model(input_ids=tokens, use_cache=False)
        except RevstepError:
            raise
        except Exception as error:
            raise UnsupportedError(
                f"{type(unwrapped(model)).__name__} does not run on token ids alone, as a decoder does: {type(error).__name__}: {error}"
            ) from error
    if called != list(range(len(layers))):
        raise UnsupportedError(f"{type(unwrapped(model)).__name__} called its layers as {called[:8]}..., expected each of the {len(layers)} once, in order")


def _uncached(kwargs: dict) -> dict:
    return {name: value for name, value in kwargs.items() if name not in ("cache", "past_key_values", "layer_past")}


def _compare(layer: nn.Module, x: Tensor, out: Any, block: nn.Module, args: tuple, kwargs: dict) -> None:
    if not isinstance(out, Tensor) or out.shape != x.shape:
        raise UnsupportedError(f"{type(layer).__name__} returned {type(out).__name__}, expected the hidden state, a tensor of shape {tuple(x.shape)}")
    if hasattr(block, "halves"):
        F, G = block.halves()
        f = increment(F(x, *args, **kwargs))[0]
        sum_ = x + f
        g = increment(G(sum_, *args, **kwargs))[0]
        sum_, f = sum_ + g, f.abs() + g.abs()
    else:
        f = increment(block(x, *args, **kwargs))[0]
        sum_ = x + f
    size = max(float(t.abs().max()) for t in (x, out, f))
    bound, error = 8 * torch.finfo(x.dtype).eps * size, float((sum_ - out).abs().max())
    if not error <= bound:
        raise UnsupportedError(
            f"{type(layer).__name__} and its {type(block).__name__} differ: |x + f(x) - layer(x)| is {error:.3g}, at most {bound:.3g} was expected. The layer scales "
            "its stream, or its branches are not the ones named; use convert(adapter='difference') or pass an adapter of your own"
        )
