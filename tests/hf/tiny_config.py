"""A tiny config of any text model of transformers, 4 layers of width 32, from the names of its fields.

A config class is asked for its defaults, and each field whose name one of the rules below knows gets a small
value of the same kind. What a class needs beyond that is in ``SPECIAL``, by model type.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

LAYERS, WIDTH, HEADS, VOCAB = 4, 32, 4, 96

#: (names, value), the first that fits the whole name; they replace numbers only.
_RULES = [
    (re.compile(names), value)
    for names, value in (
        # how many layers
        (r"num_hidden_layers|n_layers?|num_layers|(num_)?decoder_layers|num_blocks", LAYERS),
        (r"(num_)?encoder_layers|num_(mem|random)_blocks|depth", 2),
        # widths
        (r"hidden_size|d_model|n_embd|(input_|output_)?(embedding|emb)_(dim|size)", WIDTH),
        (r"word_embed_proj_dim|lru_width", WIDTH),
        (r"attention_hidden_size", 2 * WIDTH),
        (r"(decoder_|encoder_)?ffn_dim|(prefix_dense_|dense_)?intermediate_size(_mlp)?|n_inner|d_inner", 48),
        (r"dff|dim_ff|(expert_)?ffn_hidden_size|feed_forward_size", 48),
        (r"(moe_)?(shared_|shared_expert_|shared_experts_)?(moe_)?(shared_expert_)?intermediate_size", 16),
        (r"(swa_|global_|linear_|qk_nope_|v_)?head_dim|dim_head|d_head|kv_channels|attention_head_size", 8),
        (r"attention_head_dim|(q|kv|o)_lora_rank", 16),
        (r"qk_rope_head_dim|rotary_dim|adapter_rank|laurel_rank|gated_norm_rank|d_rel", 4),
        (r"qk_head_dim", 12),
        (r"hidden_size_per_layer_input|loop_gate_rank|block_multiple_of", 8),
        (r"router_hidden_size|rel_extent", 16),
        # heads
        (r"(swa_|decoder_|encoder_|num_decoder_|num_encoder_|linear_)?(num_)?attention_heads", HEADS),
        (r"n_heads?|num_heads|linear_num_(value_)?heads", HEADS),
        (r"swa_num_key_value_heads|linear_num_key_heads|num_query_groups", 2),
        (r"n_mamba_heads|o_groups|index_n_heads", 2),
        # experts
        (r"(moe_)?num_(local_)?experts|n_routed_experts", 4),
        (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts|zero_expert_num", 2),
        (r"n_group|topk_group|num_expert_group|(moe_)?(n|num)_shared_experts", 1),
        (r"first_k_dense_replace|num_dense_layers|decoder_sparse_step|interleave_moe_layer_step", 1),
        (r"moe_layer_(start_index|interval)", 1),
        (r"moe_layer_end_index", LAYERS - 1),
        # positions and windows
        (r"(original_)?max_(position_embeddings|seq_len|target_positions|source_positions)", 128),
        (r"n_positions|n_ctx|model_max_length|context_length", 128),
        (r"sliding_window(_size)?|(attention_)?window_size|time_step_rank|index_(topk|block_size)", 4),
        (r"attention_chunk_size|local_attention|chunk_size|index_head_dim", 8),
        (r"max_window_layers|index_topk_blocks|layer_group_size|global_attn_every_n_layers", 2),
        (r"keep_window_size", 64),
        # state spaces and linear attention
        (r"(mamba_|ssm_)?(d_)?state(_size)?|mamba_chunk_size|linear_(key|value)_head_dim", 8),
        (r"mamba_(n_heads|num_heads|dt_rank)|linear_num_value_heads", 4),
        (r"mamba_(d_head|head_dim)", 16),
        (r"mamba_headdim", 32),
        (r"mamba_d_ssm", 64),
        (r"(mamba_)?n_groups|pretraining_tp", 1),
        (r"linear_num_key_heads|altup_num_inputs|type_vocab_size", 2),
        # vocabulary, pictures, and what only adds to the loss
        (r"(decoder_|unpadded_|output_)?vocab_size(_per_layer_input)?", VOCAB),
        (r"image_size", 28),
        (r"patch_size", 14),
        (r"num_channels", 3),
        (r"num_nextn_predict_layers", 0),
    )
]  # fmt: skip
_ZERO = re.compile(r".*(dropout|pdrop|jitter|layerdrop).*")
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_SKIPPED = {
    "transformers_version",
    "model_type",
    "architectures",
    "id2label",
    "label2id",
    "dtype",
    "return_dict",
}
_PER_LAYER = {"layer_types", "mlp_layer_types", "layers_block_type"}

_SLIDING = ["sliding_attention", "full_attention"] * (LAYERS // 2)
_BARTS = "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart".split()
_MAMBAS = {"layer_types": ["mamba", "attention"] * (LAYERS // 2)}
_MLA = {"head_dim": 4}  # the part of a head that is rotated
_ROTATED = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_QWEN4 = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64,
    "indexer_compress_ratio": 2, "hc_lowrank": 8, "ple_embed_dim": 16,
}  # fmt: skip
_GEMMA4 = {"num_kv_shared_layers": 2, "layer_types": _SLIDING, "global_head_dim": 8, "per_layer_config": None}

#: What the rules get wrong, by model type. None: the field is left to the class's default.
SPECIAL: dict[str, dict[str, Any]] = {
    **{name: {"encoder_layers": LAYERS} for name in _BARTS},  # which the mapping's class takes for its own
    **dict.fromkeys(("axk1", "deepseek_v3", "longcat_flash", "youtu"), _MLA),
    **{name: {"head_dim": 8} for name in ("hunyuan_v1_dense", "ministral")},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _ROTATED}, "layer_types": ["full_attention"] * LAYERS,
    },
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cpmant": {"init_std": 0.1},  # with 1.0 float32 has three digits
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": _MLA | {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_routed_experts": 4},
    "dory": {
        "n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2, "n_recurrent_loops": 2,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"],
    },
    "dots3_note_text": {"per_layer_config": {}, "head_dim": 12},
    "dots1": {"head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma3n_text": {
        "num_kv_shared_layers": 2, "layer_types": _SLIDING,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0], "intermediate_size": [48] * LAYERS,
    },
    "gemma4_text": _GEMMA4 | {"num_global_key_value_heads": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "granitemoehybrid": _MAMBAS,
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    },
    "laguna": {"num_attention_heads_per_layer": [HEADS] * LAYERS},
    **{name: {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)} for name in ("lfm2", "lfm2_moe")},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "prophetnet": {"num_encoder_layers": LAYERS},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "num_hidden_layers": LAYERS},
    "reformer": {
        "axial_pos_embds": False, "attn_layers": ["local", "lsh"] * (LAYERS // 2), "num_buckets": 4,
        "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "axial_norm_std": 1.0,
    },
    "roc_bert": {
        "shape_vocab_size": VOCAB, "pronunciation_vocab_size": VOCAB,
        "shape_embed_dim": 16, "pronunciation_embed_dim": 16,
    },
    # xLSTM itself does not train with its cache
    "xlstm": {
        "use_cache": False, "chunk_size": 4, "mode": "inference", "hidden_size": 128, "embedding_dim": 128,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["mamba", "hybrid"] * (LAYERS // 2),
        "attn_layer_period": 2, "attn_layer_offset": 1,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * (LAYERS // 2)},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def small(config_class: type, special: dict[str, Any] | None = None) -> Any:
    """A tiny config of this class; ``special``: fields to set otherwise, dicts for the configs inside it."""
    special = dict(special or {})
    defaults = _defaults(config_class)
    inner = getattr(config_class, "sub_configs", None) or {}
    fields: dict[str, Any] = {}
    heads = defaults.get("num_attention_heads") or defaults.get("n_head")
    depths = (defaults.get(name) for name in ("num_hidden_layers", "n_layer", "num_layers"))
    depth = next(filter(None, depths), None)
    for name, value in defaults.items():
        if name in _SKIPPED or name in inner:
            continue
        found = _field(name, value, heads, depth)
        if found is not None:
            fields[name] = found
    for name, kind in inner.items():
        held = defaults.get(name)
        if isinstance(special.get(name), dict) or held is not None:
            cls = _class_of(kind, held)
            if cls is not None:
                fields[name] = small(cls, special.pop(name, None))
    for name, value in special.items():
        fields.pop(name, None)
        if value is not None:
            fields[name] = value
    return config_class(**fields)


def _defaults(config_class: type) -> dict[str, Any]:
    """The fields of the class with their defaults; of one that cannot be built so, the names alone."""
    try:
        made = config_class()
    except Exception:
        return dict.fromkeys(list(inspect.signature(config_class.__init__).parameters)[1:])
    inner = getattr(config_class, "sub_configs", None) or {}
    return made.to_dict() | {name: getattr(made, name, None) for name in inner}


def _class_of(kind: type, held: Any) -> type | None:
    """The class of a config inside another one, where the outer one leaves it open."""
    if hasattr(held, "to_dict"):
        return type(held)
    return None if kind.__name__ == "AutoConfig" else kind


def _field(name: str, value: Any, heads: int | None, depth: int | None) -> Any:
    """The small value of one field, or None: its default serves."""
    if value is None or isinstance(value, bool):
        return None
    if name in ("num_key_value_heads", "num_kv_heads"):
        return {heads: HEADS, 1: 1}.get(value, 2)
    if name in _TOKENS:
        return _TOKENS[name]
    if re.fullmatch(r".*_token_(id|ids|index)", name):
        return VOCAB - 1 - sum(map(ord, name)) % 12 if isinstance(value, int) else None
    if _ZERO.fullmatch(name):
        return 0.0 if isinstance(value, float) else None
    if isinstance(value, (list, tuple)) and value and (name in _PER_LAYER or len(value) == depth):
        kinds = list(dict.fromkeys(map(str, value)))
        first = {str(v): v for v in reversed(value)}
        return [first[kinds[i % len(kinds)]] for i in range(LAYERS)]  # each kind of layer in turn
    if isinstance(value, (int, float)):
        return next((v for names, v in _RULES if names.fullmatch(name)), None)
    return None
