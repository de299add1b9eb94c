"""What can be another one in backward of a converted model with adapters: each pass gives the gradients
of one in which nothing was changed, behind a fresh LoRA's zero as well."""

import pytest
import torch
from models import differing, model, tokens
from torch import nn

from revstep import ReconstructionError, hf
from revstep.stack import _surroundings

peft = pytest.importorskip("peft")
FACTOR = 0.5


def adapted(fresh=True):
    torch.manual_seed(4)
    targets = ["q_proj", "v_proj"]
    config = peft.LoraConfig(r=4, target_modules=targets, lora_dropout=0.3, init_lora_weights=fresh)
    made = peft.get_peft_model(model("Llama"), config)
    return hf.convert(made, "blend:c=0.25", say=None).train()


def loss(made):
    torch.manual_seed(3)
    return made(input_ids=tokens(), labels=tokens(), use_cache=False).loss


def gradients(made):
    assert hf.conversion(made).report.exact
    return {name: p.grad for name, p in made.named_parameters()}


def undisturbed(fresh, factor=1.0):
    made = adapted(fresh)
    with peft.helpers.rescale_adapter_scale(made, factor):
        loss(made).backward()
    return gradients(made)


def rescaled(made):
    with peft.helpers.rescale_adapter_scale(made, FACTOR):
        return loss(made)


def without_dropout(made):
    value = loss(made)
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return value


def other_dropout(made):
    value = loss(made)
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.7
    return value


def disabled_between(made):
    value = loss(made)
    with made.disable_adapter(), torch.no_grad():
        made(input_ids=tokens(seed=2), use_cache=False)
    return value


def generated_between(made):
    value = loss(made)
    made.eval()
    made.generate(input_ids=tokens(), max_new_tokens=2, do_sample=False)
    made.train()
    return value


CASES = {
    "rescaled": rescaled,
    "no dropout": without_dropout,
    "other dropout": other_dropout,
    "disabled": disabled_between,
    "generated": generated_between,
}


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_forward_pass(name, fresh):
    made = adapted(fresh)
    CASES[name](made).backward()
    assert not differing(gradients(made), undisturbed(fresh, FACTOR if name == "rescaled" else 1.0))


@pytest.mark.parametrize("name", ["rescaled", "no dropout", "other dropout"])
def test_rates_and_factors_that_are_not_recorded_are_a_refusal(name, monkeypatch):
    record = _surroundings.record

    def less(modules):
        return [r._replace(rate=None, adapters=()) for r in record(modules)]

    monkeypatch.setattr(_surroundings, "record", less)
    made = adapted(fresh=False)
    value = CASES[name](made)
    with pytest.raises(ReconstructionError):
        value.backward()
