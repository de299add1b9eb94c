"""Bytes of a real training step on the CPU, from the allocator's own events; and the small models that are
measured.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch
import transformers

import revstep
from revstep.plan._source import adapted

VOCAB, SEQUENCE, BATCH = 2048, 128, 3


def configs(hidden: int = 128, layers: int = 4) -> dict:
    """Six decoders at test size; Mistral with a window shorter than the sequence, so that a mask exists."""
    common = dict(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        vocab_size=VOCAB,
        max_position_embeddings=512,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    gpt2 = dict(
        n_embd=hidden,
        n_layer=layers,
        n_head=4,
        vocab_size=VOCAB,
        n_positions=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    return {
        "gpt2": transformers.GPT2Config(**gpt2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        "llama": transformers.LlamaConfig(**common),
        "qwen2": transformers.Qwen2Config(**common),
        "qwen3": transformers.Qwen3Config(**common, head_dim=hidden // 4),
        "mistral": transformers.MistralConfig(**common, sliding_window=SEQUENCE // 2),
        "gemma": transformers.GemmaConfig(**common, head_dim=hidden // 4),
    }


@dataclass(frozen=True)
class Measured:
    """Bytes there before the step (parameters, buffers, optimiser state), and the peak of the step above
    them.
    """

    before: int
    above: int

    @property
    def peak(self) -> int:
        return self.before + self.above


def measure(
    config,
    mode: str,
    *,
    weights=torch.float32,
    autocast=None,
    trainable: str = "all",
    keep: int = 0,
    chunk: int = 0,
    fused_step: bool = False,
    tile: int | None = None,
    batch: int = BATCH,
    sequence: int = SEQUENCE,
) -> Measured:
    """The second training step of a model with this config: forward, backward, fused AdamW."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=weights, attn_implementation="sdpa")
    model = adapted(model, trainable).train()
    if mode == "checkpointed":
        model.gradient_checkpointing_enable()
        if trainable != "all":
            model.enable_input_require_grads()
    elif mode == "reversible":
        revstep.hf.convert(
            model, scheme=revstep.Blend(c=0.0625), state=revstep.FixedPoint(), keep=keep, tile=tile, say=None
        )
    if chunk:
        revstep.hf.chunk_loss(model, chunk)
    ids = torch.randint(0, config.vocab_size, (batch, sequence))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    if fused_step:
        revstep.fused_step(optimizer)

    def step() -> None:
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    state = [t for values in optimizer.state.values() for t in values.values() if isinstance(t, torch.Tensor)]
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in (*model.parameters(), *model.buffers(), *state)
    }
    return Measured(sum(held.values()), allocated(step))


def allocated(step) -> int:
    """Largest sum of the CPU allocator's events during ``step``: what PyTorch asked for and gave back,
    whoever asked.
    """
    gc.collect()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    events = sorted(
        (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    )
    assert len(events) > 100, "the profiler saw no allocations"
    live = peak = 0
    for event in events:
        live += event.nbytes()
        peak = max(peak, live)
    return peak
