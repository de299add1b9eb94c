"""The recurrences once more, in plain float64 autograd without the package: the oracle of the gradient tests.

Each decoder layer of an ordinary model is called by the model's own loop; here its forward is wrapped so that
the loop carries the newest state of the recurrence. Increments are ``layer(x) - x``; for two streams the
halves are written out for Llama and GPT-2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

#: next = step(prev, cur, f), as in the table of schemes (h = 1 unless said).
STEPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "midpoint:h=0.5": lambda prev, cur, f: prev + 2 * 0.5 * f,
    "leapfrog:h=0.5": lambda prev, cur, f: 2 * cur - prev + 0.25 * f,
    "blend:c=0.25": lambda prev, cur, f: 0.25 * prev + 0.75 * cur + 1.25 * f,
    "blend:c=-0.5": lambda prev, cur, f: -0.5 * prev + 1.5 * cur + 0.5 * f,
    "midpoint_blend:a=-0.75": lambda prev, cur, f: -0.75 * prev + 1.75 * cur + f,
}


def _llama_halves(layer: nn.Module, x: Tensor, kwargs: dict) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    attention = layer.self_attn(hidden_states=layer.input_layernorm(x), **kwargs)[0]
    return attention, lambda q: layer.mlp(layer.post_attention_layernorm(q))


def _gpt2_halves(layer: nn.Module, x: Tensor, kwargs: dict) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    return layer.attn(layer.ln_1(x), attention_mask=kwargs.get("attention_mask"))[0], lambda q: layer.mlp(
        layer.ln_2(q)
    )


_HALVES = {"LlamaDecoderLayer": _llama_halves, "GPT2Block": _gpt2_halves}


class Recurrence:
    """Runs ``layers`` as the named recurrence. ``shift``: added to every new state with random signs, to see
    how much a rounding matters.
    """

    def __init__(self, layers: list[nn.Module], scheme: str, start: str = "repeat", shift: float = 0.0):
        self.layers, self.scheme, self.start, self.shift = layers, scheme, start, shift
        self.own = [layer.forward for layer in layers]
        self.random = torch.Generator().manual_seed(9)
        for i, layer in enumerate(layers):
            layer.forward = self._replacing(i)

    def _replacing(self, i: int) -> Callable:
        def forward(x: Tensor, *args, **kwargs) -> Tensor:
            if i == 0:
                x = self._moved(x)
                self.prev = self.cur = x
                # One sign a layer and sample, from torch's generator as the pass begins.
                if self.scheme.startswith("bdia"):
                    signs = (
                        torch.randint(2, (len(self.layers), x.shape[0]), dtype=torch.uint8).to(x.dtype) * -2
                        + 1
                    )
                    self.c = 0.5 * signs[..., None, None]
            if self.scheme == "hamiltonian":
                first, second = _HALVES[type(self.layers[i]).__name__](self.layers[i], self.cur, kwargs)
                self.prev = self._moved(self.prev + first)
                self.cur = self._moved(self.cur + second(self.prev))
                return self.cur
            f, beside = self._increment(i, self.cur, args, kwargs)
            self.prev, self.cur = self.cur, self._moved(self._next(i, f))
            return (self.cur, *beside) if beside else self.cur

        return forward

    def _next(self, i: int, f: Tensor) -> Tensor:
        if i == 0 and self.start == "euler":
            return self.cur + f
        if self.scheme.startswith("bdia"):
            return self.c[i] * self.prev + (1 - self.c[i]) * self.cur + (1 + self.c[i]) * f
        return STEPS[self.scheme](self.prev, self.cur, f)

    def _increment(self, i: int, x: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, tuple]:
        """What a layer adds, and what it returns beside its state."""
        out = self.own[i](x, *args, **kwargs)
        state, *beside = out if isinstance(out, tuple) else (out,)
        return state - x, tuple(beside)

    def _moved(self, x: Tensor) -> Tensor:
        return x + self.shift * (torch.randint(0, 2, x.shape, generator=self.random) * 2 - 1).to(x.dtype)
