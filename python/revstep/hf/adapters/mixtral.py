from __future__ import annotations

from .halves import SplitAdapter


class Mixtral(SplitAdapter):
    """Mixture of experts with the names of early Mixtral."""

    name = "mixtral"
    second = ("post_attention_layernorm", "block_sparse_moe")
    absent = ("pre_feedforward_layernorm",)
