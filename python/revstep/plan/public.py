"""Public architectures for worked rows: the values of their config.json that decide about memory."""

from __future__ import annotations

from typing import Any


def _llama3(name: str, hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, Any]:
    return {
        "name": name, "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8,
        "intermediate_size": intermediate, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0, "tie_word_embeddings": False,
    }  # fmt: skip


#: By the name that ``revstep plan`` knows them by. Source: The Llama 3 Herd of Models, arXiv 2407.21783, table 3.
PUBLIC = {
    "llama3-8b": _llama3("Llama-3 8B", 4096, 32, 32, 14336),
    "llama3-70b": _llama3("Llama-3 70B", 8192, 80, 64, 28672),
    "llama3-405b": _llama3("Llama-3 405B", 16384, 126, 128, 53248),
}
