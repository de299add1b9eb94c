"""keep="auto" and save_ops in a converted model: the same gradients to the bit, fewer evaluations, remembered
in the folder.
"""

import pytest

pytest.importorskip("transformers")
import torch
from models import VOCAB, converted

from operator_calls import Count
from revstep import hf

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def step(model):
    batch = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))
    model.train()
    with Count() as count:
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
    return (
        [loss.detach(), *(p.grad for p in model.parameters())],
        count.calls[ATTENTION],
        hf.conversion(model).report,
    )


def same(a, b):
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b))


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "Llama", "Qwen3"])
@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
def test_the_same_bits(name, scheme):
    expected, evaluations, report = step(converted(name, scheme))
    layers = len(hf.conversion(converted(name, scheme)).layers)
    assert report.kept == 0 and evaluations == 2 * layers
    got, evaluations, report = step(converted(name, scheme, convert={"save_ops": "attention"}))
    assert same(got, expected) and report.exact and evaluations == layers
    seen = set()
    for budget in (0, 150_000, 10**9):
        got, evaluations, report = step(
            converted(name, scheme, convert={"keep": "auto", "memory_budget": budget})
        )
        kept = layers if report is None else report.kept
        assert same(got, expected) and evaluations == 2 * layers - kept
        seen.add(kept)
    assert {0, layers} <= seen


def test_remembered_in_the_folder(tmp_path):
    made = converted("Llama", convert={"keep": "auto", "memory_budget": 0.25, "save_ops": "attention"})
    made.save_pretrained(tmp_path)
    stack = hf.conversion(hf.from_pretrained(tmp_path)).stack
    assert (stack.keep, stack.memory_budget, stack.save_ops) == ("auto", 0.25, "attention")


def test_settings_of_an_earlier_version_are_read(tmp_path):
    made = converted("Llama")
    made.config.revstep = {
        name: value
        for name, value in made.config.revstep.items()
        if name not in ("memory_budget", "save_ops")
    }
    made.save_pretrained(tmp_path)
    assert hf.conversion(hf.from_pretrained(tmp_path)).stack.keep == 0
