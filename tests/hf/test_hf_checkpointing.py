"""Gradient checkpointing of a converted model is turned off, in words; some trainers turn it on unasked."""

import pytest
import torch
from models import converted, differing, gradients, tokens
from test_hf_composite import llava

from revstep import hf
from revstep._models.layers import decoder_layers
from revstep.hf._layer_steps import Conversion

#: Family, scheme and adapter; "difference" calls the layer's whole forward, where checkpointing sits.
CASES = [
    ("Llama", "blend", "branches"),
    ("Llama", "blend", "difference"),
    ("GPT2LMHeadModel", "blend", "difference"),
    ("Llama", "hamiltonian", "llama"),
]


def evaluations(made):
    """(how often the last layer's MLP ran in one training pass, the pass's gradients)"""
    calls = []
    handle = decoder_layers(made)[1][-1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    found = gradients(made)
    handle.remove()
    return len(calls), found


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_gradient_checkpointing_is_turned_off(case, reentrant, every, recwarn):
    """It has nothing to save: each layer is evaluated in forward and once more, and the gradients stay."""
    family, scheme, adapter = case
    options = {"convert": {"adapter": adapter}}
    expected = evaluations(converted(family, scheme, **options).train())
    made = converted(family, scheme, **options).train()
    made.activation_checkpointing_enable({"use_reentrant": reentrant}, every_n_layers=every)
    with torch.no_grad():
        made.eval()(input_ids=tokens())
    assert not recwarn.list, "nothing is said, and nothing done, before it trains"
    made.train()
    with pytest.warns(UserWarning, match=r"it has been turned off.* model\.activation_checkpointing_"):
        found = evaluations(made)
    assert found[0] == expected[0] and differing(found[1], expected[1]) == []
    assert hf.conversion(made).report.exact and not made.is_activation_checkpointing
    recwarn.clear()
    gradients(made)
    assert not [w for w in recwarn if "checkpointing" in str(w.message)]
    made.activation_checkpointing_enable({"use_reentrant": reentrant})  # as trl's trainers do between passes
    with pytest.warns(UserWarning, match="turned off"):
        assert evaluations(made)[0] == expected[0]


def test_checkpointing_that_stays_on_evaluates_once_more(monkeypatch):
    """The mutant: what turning it off saves, where a block calls the whole layer."""
    options = {"convert": {"adapter": "difference"}}
    expected = evaluations(converted("Llama", **options).train())[0]
    monkeypatch.setattr(Conversion, "_checkpointing_off", lambda self: None)
    made = converted("Llama", **options).train()
    made.activation_checkpointing_enable({"use_reentrant": False})
    assert evaluations(made)[0] > expected


def test_checkpointing_of_other_parts_stays_on():
    made = llava()
    made.activation_checkpointing_enable()
    conversion = hf.conversion(hf.convert(made, say=None))
    conversion.loop.train()
    with pytest.warns(UserWarning, match="turned off"):
        conversion._checkpointing_off()
    inside = set(map(id, conversion.loop.modules()))
    on = [m for m in made.modules() if getattr(m, "gradient_checkpointing", False)]
    assert on and not inside & set(map(id, on))
