"""Every class of transformers' causal-LM mapping: a tiny random model, converted as Blend, one training step.

Its loss and gradients are compared with those of the same recurrence in ordinary autograd, in float64, where
the layers' own forward is wrapped and the model's loop carries the states. Nothing of the package is used
there but the list of layers.

Usage: python tests/hf/mapping.py   (writes tests/hf/architectures.json; docs/architectures.md is made of it)
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

sys.path.insert(0, str(Path(__file__).parent))
from tiny_config import SPECIAL, small

from revstep import RevstepError, hf
from revstep._models.layers import decoder_layers

TABLE = Path(__file__).with_name("architectures.json")
C = 0.25
#: Relative errors of the whole gradient that count as right, and that the plain network's must exceed.
#: float32 rounds to 6e-8, a hundred operations deep and through gates and softmaxes that magnify it; the
#: recurrence without its memory, the plain network, is a percent or more away.
RIGHT, OTHER = 2e-4, 5e-3


class Outcome(NamedTuple):
    """What became of a class: ``right``, ``wrong``, ``refused``, ``crash`` or ``not built``, and why."""

    outcome: str
    why: str = ""


def names() -> list[str]:
    """The model types of the mapping."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tokens(model: nn.Module | None = None) -> Tensor:
    """Token ids of two samples: two rows, or one of each codebook where a sample of the model is a sound."""
    rows = 2 * (getattr(getattr(model, "config", None), "num_codebooks", None) or 1)
    return torch.randint(3, 80, (rows, 12), generator=torch.Generator().manual_seed(0))


def labels(model: nn.Module, ids: Tensor) -> Tensor:
    """The ids as labels; MusicGen wants (samples, time, codebooks)."""
    codebooks = getattr(model.config, "num_codebooks", None)
    return ids.view(-1, codebooks, ids.shape[-1]).transpose(1, 2) if codebooks else ids


def build(name: str) -> nn.Module:
    """The tiny model of a type, training; matrices twice as large as initialised, so that layers matter."""
    cls = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])
    config = small(CONFIG_MAPPING[name], SPECIAL.get(name))
    text = config.get_text_config(decoder=True)
    if type(config) is not cls.config_class and isinstance(text, cls.config_class):
        config = text  # of a model of several parts the mapping names the decoder
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    torch.manual_seed(0)
    made = cls(config)
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in made.parameters():
            if p.is_floating_point():
                p.mul_(2.0 if p.ndim > 1 else 1.0)
                p.add_(0.03 * torch.randn(p.shape, generator=noise).to(p.dtype))
        for b in made.buffers():
            if b.is_floating_point() and b.numel() == 1:
                b.mul_(0.9)  # Gemma 4 scales its stream by one
    return made.train()


class Stored:
    """The layers as Blend's recurrence, every activation stored: the increment is ``layer(x) - x``."""

    def __init__(self, layers: list[nn.Module], c: float):
        self.c = c
        for i, layer in enumerate(layers):
            layer.forward = self._step(i, layer.forward)

    def _step(self, i: int, own: Callable) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if args:
                x, args = args[0], args[1:]
            else:
                x = kwargs.pop("hidden_states" if "hidden_states" in kwargs else next(iter(kwargs)))
            before = x if i == 0 else self.before
            out = own(x, *args, **kwargs)
            f = (out[0] if isinstance(out, tuple) else out) - x
            self.before = x
            y = self.c * before + (1 - self.c) * x + (1 + self.c) * f
            return (y, *out[1:]) if isinstance(out, tuple) else y

        return forward


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The loss of one training step and every gradient, in float64."""
    torch.manual_seed(3)
    ids = tokens(model)
    loss = model(input_ids=ids, labels=labels(model, ids)).loss
    loss.backward()
    grads = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().double()} | grads


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The larger of the relative errors of the loss and of the gradient as a whole."""
    named = {n: g for n, g in b.items() if n != "loss"}
    whole = sum(float(g.square().sum()) for g in named.values()) ** 0.5
    error = sum(float((a.get(n, torch.zeros_like(g)) - g).square().sum()) for n, g in named.items()) ** 0.5
    extra = sum(float(g.square().sum()) for n, g in a.items() if n not in b) ** 0.5
    return max(float(abs(a["loss"] - b["loss"]) / abs(b["loss"])), (error + extra) / whole)


def outcome(name: str) -> Outcome:
    """Build the class of this type, convert it, train a step, compare."""
    try:
        plain = build(name)
    except Exception as error:  # the class itself, without the package
        return Outcome("not built", f"{type(error).__name__}: {_sentence(error)}")
    try:
        options = {"start": "repeat", "calibration": tokens(plain), "say": None}
        ours = hf.convert(copy.deepcopy(plain), f"blend:c={C}", **options)
        found = trained(ours)
        if not hf.conversion(ours).report.exact:
            return Outcome("wrong", "the states were not rebuilt to the bit")
    except RevstepError as error:
        return Outcome("refused", _sentence(error))
    except Exception as error:
        return Outcome("crash", f"{type(error).__name__}: {_sentence(error)}")
    expected, other = (reference(plain, c) for c in (C, 0.0))
    error, far = apart(found, expected), apart(found, other)
    if not error <= RIGHT:
        return Outcome(
            "wrong",
            f"the gradient is {error:.1e} from the stored recurrence's, {far:.1e} from the plain one's",
        )
    if not far >= OTHER:
        return Outcome("wrong", f"the plain network's gradient is only {far:.1e} away: it tells nothing")
    layers = hf.conversion(ours).layers
    return Outcome("right", f"{len(layers)} x {type(layers[0]).__name__}")


def carried(name: str, scale: float = 1e4, dtype: torch.dtype = torch.float64) -> float:
    """How far ``layer(s x) / s`` is from x for a large s, relative to x: the largest over the layers.

    Branches behind a norm do not grow with their input, so a layer x + f(norm(x)) carries its input through,
    and the distance is about 1 / s. One that normalises, scales, mixes or replaces its stream does not.
    """
    found = []
    model = build(name).to(dtype).eval()

    def looking(layer: nn.Module) -> Callable:
        own = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            key = "hidden_states" if "hidden_states" in kwargs else 0
            x = kwargs[key] if key else args[0]
            large = (args, kwargs | {key: x * scale}) if key else ((x * scale, *args[1:]), kwargs)
            y = own(*large[0], **large[1])
            y = y[0] if isinstance(y, (tuple, list)) else y
            found.append(float((y / scale - x).norm() / x.norm()))
            return own(*args, **kwargs)

        return forward

    for layer in decoder_layers(model)[1]:
        layer.forward = looking(layer)
    try:
        with torch.no_grad():
            model(input_ids=tokens(model), use_cache=False)
    except RuntimeError:  # parts of some models are float32 whatever the model is
        if dtype == torch.float32:
            raise
        return carried(name, scale, torch.float32)
    return max(found)


def reference(plain: nn.Module, c: float) -> dict[str, Tensor]:
    """Loss and gradients of the stored recurrence, in float64; in float32 where the model does not run so."""
    for dtype in (torch.float64, torch.float32):
        model = copy.deepcopy(plain).to(dtype)
        Stored(decoder_layers(model)[1], c)
        try:
            return trained(model)
        except RuntimeError:
            if dtype == torch.float32:
                raise


def _sentence(error: Exception) -> str:
    """The first sentence of an error, on one line."""
    text = " ".join(str(error).split())
    return text.split(". ")[0][:300]


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    table = {}
    for name in sys.argv[1:] or names():
        found = outcome(name)
        print(name, *found, flush=True)
        table[name] = {"class": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name], **found._asdict()}
    print(Counter(row["outcome"] for row in table.values()))
    if not sys.argv[1:]:
        data = {"transformers": transformers.__version__, "classes": table}
        TABLE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
