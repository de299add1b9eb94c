from __future__ import annotations

from .halves import SplitAdapter


class Llama(SplitAdapter):
    """Llama, Mistral, Qwen2, Qwen3, Gemma and others with the same names."""

    name = "llama"
    second = ("post_attention_layernorm", "mlp")
    absent = ("pre_feedforward_layernorm", "post_feedforward_layernorm", "post_mlp_dropout")
