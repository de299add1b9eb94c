"""Tiny random models of the real transformers classes: 4 layers, width 32, 96 tokens; weights large enough
that layers matter.
"""

from __future__ import annotations

import contextlib

import torch
import transformers
from torch import nn

from revstep import hf
from revstep.schemes import available

WIDTH, LAYERS, VOCAB, BATCH, TIME = 32, 4, 96, 2, 12
_COMMON = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA = _COMMON | _IDS | {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
_GEMMA = _LLAMA | {"head_dim": 8}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)}

#: Name of the model class without ``ForCausalLM``, its config class without ``Config`` where that differs,
#: and the options of the config.
FAMILIES = {
    "GPT2LMHeadModel": (
        "GPT2",
        {
            "vocab_size": VOCAB,
            "n_embd": WIDTH,
            "n_layer": LAYERS,
            "n_head": 4,
            "n_positions": 64,
            **_IDS,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
    "Llama": ("Llama", _LLAMA),
    "Qwen2": ("Qwen2", _LLAMA | _SLIDING | {"use_sliding_window": True}),
    "Qwen3": ("Qwen3", _LLAMA | {"head_dim": 8}),
    "Mistral": ("Mistral", _LLAMA | {"sliding_window": 4}),
    "Gemma": ("Gemma", _GEMMA),
    "Gemma2": ("Gemma2", _GEMMA | _SLIDING | {"query_pre_attn_scalar": 8}),
    "Gemma3": ("Gemma3Text", _GEMMA | _SLIDING | {"query_pre_attn_scalar": 8}),
    "GPTNeoX": (
        "GPTNeoX",
        _COMMON
        | _IDS
        | {"intermediate_size": 48, "max_position_embeddings": 64, "use_parallel_residual": False},
    ),
    "Mixtral": (
        "Mixtral",
        _LLAMA
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": None,
            "output_router_logits": True,
        },
    ),
    "OPT": (
        "OPT",
        _COMMON
        | _IDS
        | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": WIDTH, "dropout": 0.0},
    ),
}
MODELS = list(FAMILIES)

#: Every scheme by its name.
SCHEMES = {name: {"scheme": name if name != "leapfrog" else "leapfrog:h=0.5"} for name in available()}


def two_streams(**options) -> bool:
    return options.get("scheme", "").startswith("hamiltonian")


def model(
    family: str = "Llama",
    *,
    scale: float = 3.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attn: str | None = None,
    experts: str | None = None,
    **changes,
) -> nn.Module:
    """A model in evaluation mode, matrices ``scale`` times as large as initialised; ``changes`` go to the
    config.
    """
    config_name, options = FAMILIES[family]
    config = getattr(transformers, f"{config_name}Config")(**options | changes)
    if attn:
        config._attn_implementation = attn
    if experts:
        config._experts_implementation = experts
    torch.manual_seed(seed)
    made = getattr(transformers, family if family.endswith("HeadModel") else f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    made.generation_config.eos_token_id = None
    made.config.eos_token_id = None
    return made.to(dtype).eval()


def converted(
    family: str = "Llama", scheme: str = "blend", *, convert: dict | None = None, **options
) -> nn.Module:
    """The model converted quietly by the named entry of SCHEMES."""
    return hf.convert(model(family, **options), **SCHEMES[scheme] | (convert or {}), say=None)


def encoder_of_sounds(**options):
    """Whisper's encoder alone, with a head for classes; its config is that of an encoder and a decoder."""
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=48, decoder_layers=3,
        decoder_attention_heads=4, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=20, num_labels=3,
        vocab_size=96, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, dropout=0.0,
        **options,
    )  # fmt: skip
    return transformers.WhisperForAudioClassification(config)


def tokens(batch: int = BATCH, time: int = TIME, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCAB, (batch, time), generator=torch.Generator().manual_seed(seed))


def gradients(
    module: nn.Module,
    seed: int = 3,
    ids: torch.Tensor | None = None,
    context=contextlib.nullcontext,
    **inputs,
) -> dict[str, torch.Tensor]:
    """One training pass on the tokens as their own labels: the loss and every parameter's gradient (None
    where there is none).
    """
    torch.manual_seed(seed)
    module.zero_grad(set_to_none=True)
    ids = tokens() if ids is None else ids
    with context():
        loss = module(input_ids=ids, labels=ids, use_cache=False, **inputs).loss
    loss.backward()
    return {"loss": loss.detach()} | {
        name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()
    }


def differing(a: dict, b: dict) -> list[str]:
    """Names whose tensors differ in any bit, or are missing on one side only; NaN equals nothing."""
    return [
        n for n in a.keys() | b.keys()
        if (a.get(n) is None) != (b.get(n) is None) or (a.get(n) is not None and not torch.equal(a[n], b[n]))
    ]  # fmt: skip


def bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)
