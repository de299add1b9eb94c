"""Small models of the real transformers classes, trained as any other and saved as a hub would have them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from revstep._imports import require
from revstep.hf._finetune import FineTune, Tuned, finetune

from .settings import Settings, Text


def untrained(family: str, settings: Settings, tokenizer: Any) -> nn.Module:
    """GPT2LMHeadModel or LlamaForCausalLM; the same seed, the same weights."""
    transformers = require("transformers", "the worked example", "hf")
    ids = {name: tokenizer.eos_token_id for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    length = 4 * settings.context
    torch.manual_seed(settings.seed)
    if family == "gpt2":
        off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=length,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=settings.heads,
            **ids,
            **off,
        )
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=length,
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads // 2,
        intermediate_size=8 * settings.width // 3 // 16 * 16,
        tie_word_embeddings=True,
        **ids,
    )
    return transformers.LlamaForCausalLM(config)


def make(family: str, settings: Settings, text: Text, tokenizer: Any, folder: Path) -> Tuned:
    """Train the plain model and save it with its tokenizer in ``folder``."""
    model = untrained(family, settings, tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        how = FineTune(
            out=scratch,
            steps=settings.steps,
            batch=settings.batch,
            lr=settings.lr,
            warmup=settings.steps // 10,
            weight_decay=0.1,
            seed=settings.seed,
            device=settings.device,
            loss_chunk=0,
        )
        tuned = finetune(model, text.train, how, say=None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tuned
