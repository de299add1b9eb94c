"""The loss of a model before, as trained, and as the plain model it is deployed as."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import nn

from ._calibrate import mean_loss
from ._install import conversion


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


def both_losses(model: nn.Module, batches: Sequence[dict]) -> tuple[float, float]:
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
