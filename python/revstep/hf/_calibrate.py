"""The user's text and what it says about a model: how large its states become, which state format holds them,
and the loss of the model as it runs and as the plain model it is deployed as.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._models.layers import unwrapped
from ..errors import ConfigError
from ..state import FixedPoint, StateFormat
from ._install import conversion
from ._layer_steps import Conversion
from ._made_up import main_input, what_is_read
from ._probe import as_it_was, until_returned
from ._settings import uncached

#: Rows of token ids that one forward pass of a calibration takes.
ROWS = 4
#: Finest and coarsest grid of a chosen 32-bit format. Blocks' values are rounded to float32 before they
#: enter, so more than 24 bits add little; at 12 the grid is 2.4e-4, below bfloat16's own rounding of any
#: value above 0.06. Beyond, 64 bits are taken.
FINEST, COARSEST = 24, 12


@dataclass(frozen=True)
class Calibration:
    """What the calibration text showed.

    Attributes:
        largest: largest absolute state value.
        layer: after which layer it stood; -1: in the input.
        tokens: how many were read, in ``unit``.
        state: the format.
        unit: "tokens"; where there were no token ids "images", "videos", "sounds", "spectrograms" or "rows".
    """

    largest: float
    layer: int
    tokens: int
    state: StateFormat
    unit: str = "tokens"

    @property
    def headroom(self) -> float:
        """The range of the format over the largest state that was seen."""
        return self.state.limit / self.largest if self.largest else math.inf

    def __str__(self) -> str:
        where = "the input" if self.layer < 0 else f"layer {self.layer}"
        return (
            f"calibrated on {self.tokens:,} {self.unit}: the largest state value is {self.largest:.4g}, "
            f"after {where}; {self.state} holds +-{self.state.limit:.4g}, {self.headroom:.1f} times that"
        )


def as_batches(data: Any, tokenizer: Any, model: nn.Module) -> list[dict[str, Any]]:
    """Calibration data as keyword arguments for the model.

    Args:
        data: ids (B, T) int64; a string or strings (with ``tokenizer``); a mapping as ``model(**batch)``
            takes it; or a list of such.

    Raises:
        ConfigError: none of these, strings without a tokenizer, or no token at all.
    """
    device = next(model.parameters()).device
    batches = list(_batches(data, tokenizer, model))
    if not batches or not sum(_count(b) for b in batches):
        raise ConfigError("the calibration data holds no token: give token ids (B, T), batches or texts")
    return [
        {name: value.to(device) if isinstance(value, Tensor) else value for name, value in b.items()}
        for b in batches
    ]


def _count(batch: Mapping[str, Any]) -> int:
    """Tokens of a batch; of one without token ids the rows of its first tensor."""
    ids = batch.get("input_ids")
    if ids is not None:
        return ids.numel()
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def _batches(data: Any, tokenizer: Any, model: nn.Module) -> Iterable[dict[str, Any]]:
    keys = {"input_ids", main_input(model)}
    if isinstance(data, Tensor) and data.ndim == 2 and not data.is_floating_point():
        yield from ({"input_ids": rows} for rows in data.split(ROWS))
    elif isinstance(data, Mapping) and (keys & {name for name in data if isinstance(data[name], Tensor)}):
        yield {name: value for name, value in data.items() if name != "labels"}
    elif isinstance(data, str) or (
        isinstance(data, Sequence) and data and all(isinstance(x, str) for x in data)
    ):
        if tokenizer is None:
            raise ConfigError("the calibration data is text: pass tokenizer= as well")
        yield from _batches(_tokenised(data, tokenizer, model), None, model)
    elif isinstance(data, Iterable) and not isinstance(data, (Tensor, Mapping, str, bytes)):
        for item in data:
            yield from _batches(item, tokenizer, model)
    else:
        expected = f"token ids (B, T), batches with {' or '.join(sorted(keys))}, or texts"
        raise ConfigError(f"calibration data is {type(data).__name__}, expected {expected}")


def _tokenised(texts: str | Sequence[str], tokenizer: Any, model: nn.Module) -> Tensor:
    """All texts as one row of ids, cut to rows of at most 1024 tokens (or the model's context)."""
    texts = [texts] if isinstance(texts, str) else texts
    ids = torch.tensor([i for text in texts for i in tokenizer(text)["input_ids"]], dtype=torch.int64)
    length = min(
        1024, getattr(model.config.get_text_config(), "max_position_embeddings", 1024), max(1, len(ids))
    )
    return ids[: len(ids) // length * length].view(-1, length)


def calibrate(
    model: nn.Module,
    made: Conversion,
    batches: Sequence[dict],
    headroom: float,
    on_nonfinite: str,
    chosen: StateFormat | None,
) -> Calibration:
    """Run the batches through the converted model and choose its format, or see that the ``chosen`` one holds
    them.

    Raises:
        ConfigError: headroom below 1.
        StateOverflowError: a value outside the chosen format.
    """
    if not headroom >= 1.0:
        raise ConfigError(
            f"headroom is {headroom!r}, expected a factor of at least 1 between the format's range and the"
            " largest state"
        )
    made.stack.state = chosen if chosen is not None else FixedPoint(64, 24)
    seen: list[list[float]] = []
    with as_it_was(model):
        for batch in batches:
            with until_returned(made.loop):
                model(**batch, **uncached(unwrapped(model)))
            seen.append(made.seen)
    by_step = [max(values) for values in zip(*seen)]
    step = max(range(len(by_step)), key=by_step.__getitem__)
    layer = -1 if step < 2 else (step - 2) // made.scheme.halves
    state = chosen if chosen is not None else choose_format(by_step[step], headroom, on_nonfinite)
    unit = "tokens" if all("input_ids" in batch for batch in batches) else what_is_read(model)
    return Calibration(by_step[step], layer, sum(map(_count, batches)), state, unit)


def choose_format(largest: float, headroom: float = 8.0, on_nonfinite: str = "raise") -> FixedPoint:
    """The finest fixed-point format that holds ``headroom`` times ``largest``: 32 bits with at least COARSEST
    bits after the point, else 64.
    """
    if largest == 0.0:
        return FixedPoint(32, FINEST, on_nonfinite)
    # 2^-below is above headroom * largest, which itself would not fit.
    below = math.ceil(-math.log2(headroom * largest)) - 1
    if 31 + below >= COARSEST:
        return FixedPoint(32, min(FINEST, 31 + below), on_nonfinite)
    return FixedPoint(64, max(0, min(32, 62 + below)), on_nonfinite)


def labels_of(batch: Mapping[str, Any]) -> Tensor:
    """A batch's token ids as its labels, -100 where there is padding; transformers shifts them by
    one itself.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    return ids if mask is None or mask.shape != ids.shape else ids.masked_fill(mask == 0, -100)


def mean_loss(model: nn.Module, batches: Sequence[dict[str, Any]]) -> float:
    """Mean next-token loss over the batches, weighted by their tokens, in evaluation mode, with the adapters
    and prompts of a peft model.

    A batch has ``input_ids`` and what else the model takes, but no labels: these are the token ids, without
    padding.

    Raises:
        ConfigError: a model that predicts no next token, or batches without one to predict.
    """
    inner = unwrapped(model)
    if inner.get_output_embeddings() is None or not all("input_ids" in batch for batch in batches):
        raise ConfigError(
            f"{type(inner).__name__} has no next-token loss here (no vocabulary head, or batches without "
            "input_ids); expected a causal language model and token ids: 'auto' compares such losses, so "
            "name a scheme instead, e.g. 'blend:c=0.25'"
        )
    total = count = 0.0
    with as_it_was(model):
        for batch in batches:
            labels = labels_of(batch)
            weight = int((labels[..., 1:] != -100).sum())
            total += weight * float(model(**batch, labels=labels, **uncached(inner)).loss)
            count += weight
    if not count:
        raise ConfigError(
            "the calibration data has no next token to predict: give rows of at least two tokens"
        )
    return total / count


# ------------------------------------------------------------------------------------------------------------
# The loss of a model before, as trained, and as the plain model it is deployed as.


@contextlib.contextmanager
def as_plain(model: nn.Module) -> Iterator[None]:
    """The plain model inside, converted again afterwards; a model that is not converted as it is."""
    made = conversion(model)
    if made is None:
        yield
        return
    made.detach()
    try:
        yield
    finally:
        made.attach()


def both_losses(model: nn.Module, batches: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Mean next-token loss as the model runs, and as the plain model that ``revert`` would give; equal for a
    plain one. ``batches`` as for ``mean_loss``.
    """
    trained = mean_loss(model, batches)
    if conversion(model) is None:
        return trained, trained
    with as_plain(model):
        return trained, mean_loss(model, batches)


def four_losses(losses: dict[str, float]) -> str:
    """The validation losses as four lines, each with its change against the one that it should be compared
    with.
    """
    p, c, t, d = (losses[name] for name in ("plain", "converted", "trained", "deployed"))
    rows = [
        ("plain model, before", p, ""),
        ("converted, before training", c, f"{c / p - 1:+.2%} of the plain model's"),
        ("converted, as trained", t, f"{t / c - 1:+.2%} of that before training"),
        (
            "deployed, the plain model again",
            d,
            f"{d / t - 1:+.2%} of that as trained, {d / p - 1:+.2%} of the plain model's before",
        ),
    ]
    return "\n".join(
        ["validation loss", *(f"  {what:32} {loss:.4f}  {note}".rstrip() for what, loss, note in rows)]
    )
