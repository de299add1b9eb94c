"""Bytes kept for the backward pass of a transformers model's trunk, by the meter of the other demo."""

from __future__ import annotations

from torch import Tensor, nn

from revstep import hf
from revstep.models.layers import unwrapped

from ..meter import Kept, saved_by


def kept(model: nn.Module, ids: Tensor) -> Kept:
    """What the pass from token ids to the last hidden state leaves for backward: the model without its vocabulary head, in training mode."""
    inner = unwrapped(model)
    trunk = getattr(inner, inner.base_model_prefix)
    made = hf.conversion(model)
    model.train()
    try:
        return saved_by(
            lambda: trunk(input_ids=ids, use_cache=False).last_hidden_state,
            list(inner.parameters()),
            lambda: None if made is None else made.report,
            reversible=made is not None,
        )
    finally:
        model.eval()
