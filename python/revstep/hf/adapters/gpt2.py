from __future__ import annotations

from .halves import SplitAdapter


class GPT2(SplitAdapter):
    """GPT-2 and others with the same names."""

    name = "gpt2"
    second = ("ln_2", "mlp")
    absent = ("crossattention",)
