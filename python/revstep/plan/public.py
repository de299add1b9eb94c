"""Public architectures for worked rows: the values of their config.json that decide about memory."""

from __future__ import annotations

from typing import Any


def _llama3(name: str, hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, Any]:
    return {
        "name": name, "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8,
        "intermediate_size": intermediate, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0, "tie_word_embeddings": False,
    }  # fmt: skip


def _like_llama(name: str, kind: str, shape: tuple[int, int, int, int, int, int], **more: Any) -> dict[str, Any]:
    """``shape``: hidden size, layers, heads, heads of keys and values, intermediate size, vocabulary."""
    hidden, layers, heads, kv, intermediate, vocabulary = shape
    return {
        "name": name, "model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "intermediate_size": intermediate, "vocab_size": vocabulary, **more,
    }  # fmt: skip


_TIED, _LONG = {"tie_word_embeddings": True}, {"max_position_embeddings": 131072, "tie_word_embeddings": False}

#: By the name that ``revstep plan`` knows them by. Sources: the config.json that each was published with; of Llama 3, The
#: Llama 3 Herd of Models, arXiv 2407.21783, table 3. The tests hold the number of parameters against the published one.
PUBLIC = {
    "gpt2": {"name": "GPT-2", "model_type": "gpt2"},
    "llama3-8b": _llama3("Llama-3 8B", 4096, 32, 32, 14336),
    "llama3-70b": _llama3("Llama-3 70B", 8192, 80, 64, 28672),
    "llama3-405b": _llama3("Llama-3 405B", 16384, 126, 128, 53248),
    "llama3.2-1b": _like_llama("Llama-3.2 1B", "llama", (2048, 16, 32, 8, 8192, 128256), head_dim=64, **_TIED),
    "llama3.2-3b": _like_llama("Llama-3.2 3B", "llama", (3072, 28, 24, 8, 8192, 128256), head_dim=128, **_TIED),
    "mistral-7b": _like_llama("Mistral 7B", "mistral", (4096, 32, 32, 8, 14336, 32000), sliding_window=None, **_LONG),
    "qwen2.5-0.5b": _like_llama("Qwen2.5 0.5B", "qwen2", (896, 24, 14, 2, 4864, 151936), **_TIED),
    "qwen2.5-7b": _like_llama("Qwen2.5 7B", "qwen2", (3584, 28, 28, 4, 18944, 152064), **_LONG),
    "smollm2-135m": _like_llama("SmolLM2 135M", "llama", (576, 30, 9, 3, 1536, 49152), **_TIED),
    "smollm2-1.7b": _like_llama("SmolLM2 1.7B", "llama", (2048, 24, 32, 32, 8192, 49152), **_TIED),
    "tinyllama-1.1b": _like_llama("TinyLlama 1.1B", "llama", (2048, 22, 32, 4, 5632, 32000)),
}


def known() -> str:
    """The names, for a sentence."""
    return ", ".join(PUBLIC)
