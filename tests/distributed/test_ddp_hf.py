"""Converted Hugging Face models under DDP: the model's own loop over its layers, on two gloo processes, as
one process trains it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from ddp_trace import complaints, traced
from ddp_training import DDP, MODES, differing
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "hf"))  # for `models`

from models import LAYERS, converted, tokens

from revstep import hf

peft = pytest.importorskip("peft")

STEPS = 5
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
CASES = {
    "llama": ("Llama", "blend", {}),
    "llama, two streams": ("Llama", "hamiltonian", {}),
    "llama, signs drawn": ("Llama", "bdia", {}),
    "llama, last layer kept": ("Llama", "blend", {"convert": {"keep": 1}}),
    "gpt2 with dropout and tied embeddings": ("GPT2LMHeadModel", "blend", DROPOUT),
    "lora": ("Llama", "blend", {}),
}


def _made(case: str) -> nn.Module:
    family, scheme, options = CASES[case]
    model = converted(family, scheme, **options)
    if case == "lora":
        torch.manual_seed(4)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            target_modules=["q_proj", "down_proj"],
            lora_dropout=0.1,
            init_lora_weights=False,
        )
        model = peft.get_peft_model(model, config)
    return model.train()


def _loss(model: nn.Module, step: int, half: int) -> torch.Tensor:
    torch.manual_seed(100 * step + half)
    ids = tokens(seed=10 * step + half)
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def _train(model: nn.Module, halves: tuple[int, ...]) -> tuple[list, dict]:
    plain = model.module if isinstance(model, DDP) else model
    opt, losses = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2), []
    for step in range(STEPS):
        for half in halves:
            loss = _loss(model, step, half)
            (loss / len(halves)).backward()
            report = hf.conversion(plain).report
            assert report.exact and report.layers > 0, report
            losses.append(float(loss.detach()))
        opt.step()
        opt.zero_grad()
    return losses, {name: p.detach().clone() for name, p in plain.named_parameters()}


def _trained(rank: int, case: str, modes: tuple[str, ...], wrong: bool = False) -> list:
    return [_train(DDP(_made(case), **MODES[mode]), (0 if wrong else rank,)) for mode in modes]


@pytest.mark.parametrize("case", CASES)
def test_training_is_that_of_one_process(ranks, case):
    """Losses and weights to the bit: those of one process that adds the gradients of the two halves, each
    loss halved.
    """
    losses, weights = _train(_made(case), (0, 1))
    modes = ("default", "unused", "static") if case == "llama" else ("default", "unused")
    zero, one = ranks(_trained, case, modes)
    for (losses_0, weights_0), (losses_1, weights_1) in zip(zero, one, strict=True):
        assert [losses_0, losses_1] == [losses[::2], losses[1::2]]
        assert not differing(weights_0, weights) and not differing(weights_1, weights)
    assert differing(weights, dict(_made(case).named_parameters()))


def test_what_that_comparison_rejects(ranks):
    (_, found), (_, other) = (answer[0] for answer in ranks(_trained, "llama", ("default",), True))
    assert not differing(found, other) and differing(found, _train(_made("llama"), (0, 1))[1])


def _traced(rank: int, options: dict) -> list[tuple]:
    model = _made("llama")
    return traced(
        model,
        [layer.mlp for layer in model.model.layers],
        lambda engine, step: _loss(engine, step, rank),
        options,
    )


def test_buckets_leave_while_backward_runs(ranks):
    """By the check of test_ddp_overlap; it rejects one bucket for all."""
    for events in ranks(_traced, {"bucket_cap_mb": 0.01}):
        assert complaints(events, LAYERS) == []
    for events in ranks(_traced, {}):
        assert any("no bucket" in wrong for wrong in complaints(events, LAYERS))
