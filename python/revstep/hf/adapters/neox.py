from __future__ import annotations

from .halves import SplitAdapter


class NeoX(SplitAdapter):
    """GPT-NeoX, Pythia (sequential; the parallel form is refused when it is probed)."""

    name = "neox"
    second = ("post_attention_layernorm", "mlp", "post_mlp_dropout")
    absent = ()
