from __future__ import annotations

from .halves import SplitAdapter


class Sandwich(SplitAdapter):
    """Gemma 2 and 3: norms before and after each branch."""

    name = "sandwich"
    second = ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm")
    absent = ()
