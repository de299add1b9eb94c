"""Saving, loading, copying, reverting: the weights are the plain model's throughout, and the settings come
back.
"""

import copy
import pickle

import pytest
import torch
import transformers
from models import LAYERS, MODELS, SCHEMES, converted, differing, gradients, model, tokens

from revstep import ConfigError, StateOverflowError, hf
from revstep._models.layers import decoder_layers
from revstep._specs import scheme_text, state_text
from revstep.hf import _convert, _settings
from revstep.hf._sources import load_model

CASES = sorted(
    {(f, "blend") for f in MODELS} | {(f, s) for f in ("GPT2LMHeadModel", "Llama") for s in SCHEMES}
)
OPTIONS = {"state": "fixed32:18", "keep": 1, "on_nonfinite": "propagate", "checks": False}


@torch.no_grad()
def logits(module):
    return module(input_ids=tokens(), use_cache=False).logits


def same_weights(a, b):
    return differing(a.state_dict(), b.state_dict()) == []


@pytest.mark.parametrize("family, scheme", CASES)
def test_save_and_load(tmp_path, family, scheme):
    plain, made = model(family), converted(family, scheme, convert=OPTIONS)
    made.save_pretrained(tmp_path)
    again = hf.from_pretrained(tmp_path).eval()
    assert (
        type(again) is type(made) and torch.equal(logits(again), logits(made)) and same_weights(again, made)
    )
    one, two = hf.conversion(again), hf.conversion(made)
    assert str(one) == str(two) and (one.stack.checks, one.state) == (False, two.state)
    assert one.state.on_nonfinite == "propagate"
    without = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(without) is type(plain) and hf.conversion(without) is None
    assert same_weights(without, plain) and torch.equal(logits(without), logits(plain))
    assert not torch.equal(logits(made), logits(plain)), "the scheme should be seen in the logits"


def test_what_config_json_says(tmp_path):
    made = converted("Llama", convert=OPTIONS | {"start": "euler", "save_ops": "attention"})
    made.save_pretrained(tmp_path)
    stored = transformers.AutoConfig.from_pretrained(tmp_path).revstep
    assert stored == {
        "scheme": scheme_text(hf.conversion(made).scheme),
        "state": state_text(hf.conversion(made).state),
        "start": "euler",
        "readout": "last",
        "keep": 1,
        "checks": False,
        "memory_budget": None,
        "save_ops": "attention",
        "tile": None,
        "offload_carries": False,
        "on_nonfinite": "propagate",
        "adapter": "branches",
    }


def test_settings_of_the_first_version(tmp_path):
    """It wrote two entries more; one of them stood for a conversion that there is no more."""
    made = converted("Llama", convert=OPTIONS)
    made.config.revstep |= {"retrofit": False, "used_cache": [True, True]}
    made.save_pretrained(tmp_path)
    assert str(hf.conversion(hf.from_pretrained(tmp_path))) == str(hf.conversion(made))
    made.config.revstep["retrofit"] = True
    made.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="converted with retrofit, which revstep has no more"):
        hf.from_pretrained(tmp_path)
    assert torch.equal(logits(load_model(tmp_path, plain=True)), logits(model("Llama")))


@pytest.mark.parametrize(
    "name, value", [("start", "euler"), ("scheme", "blend:c=0.5"), ("state", "fixed32:8")]
)
def test_settings_that_are_lost_on_the_way_are_seen(tmp_path, monkeypatch, name, value):
    made, read = converted("Llama"), _settings.read
    made.save_pretrained(tmp_path)
    monkeypatch.setattr(_settings, "read", lambda config, **options: read(config, **options) | {name: value})
    assert not torch.equal(logits(hf.from_pretrained(tmp_path).eval()), logits(made))


def test_loading_what_was_not_converted(tmp_path):
    model("Llama").save_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"not saved from a converted model.*revstep\.hf\.convert"):
        hf.from_pretrained(tmp_path / "plain")
    hf.revert(converted("Llama")).save_pretrained(tmp_path / "reverted")
    with pytest.raises(ConfigError, match="not saved from a converted model"):
        hf.from_pretrained(tmp_path / "reverted")
    made = converted("Llama")
    del made.config.revstep["start"]
    made.save_pretrained(tmp_path / "torn")
    with pytest.raises(ConfigError, match=r"expected a dict with .*start"):
        hf.from_pretrained(tmp_path / "torn")


def test_loading_with_options(tmp_path):
    converted("Llama").save_pretrained(tmp_path)
    made = hf.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert (
        made.dtype == torch.bfloat16
        and made.config._attn_implementation == "eager"
        and hf.conversion(made) is not None
    )


@pytest.mark.parametrize("family", MODELS)
def test_state_dict_both_ways(family):
    plain, made = model(family), converted(family)
    assert list(plain.state_dict()) == list(made.state_dict())
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in made.named_modules()] and len(
        list(made.parameters())
    ) == len(list(plain.parameters()))
    other = model(family, seed=5)
    made.load_state_dict(other.state_dict(), strict=True)
    assert same_weights(made, other) and not same_weights(made, plain)
    plain.load_state_dict(made.state_dict(), strict=True)
    assert torch.equal(logits(plain), logits(other))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize(
    "family, scheme", [("Llama", "blend"), ("GPT2LMHeadModel", "hamiltonian"), ("Gemma2", "blend")]
)
def test_copies_are_independent(family, scheme, duplicate):
    made = converted(family, scheme).train()
    before = gradients(made)
    twin = duplicate(made)
    assert (
        hf.conversion(twin) is not hf.conversion(made)
        and hf.conversion(twin).layers[0] is decoder_layers(twin)[1][0]
    )
    assert differing(gradients(twin), before) == []
    ours = {p.data_ptr() for p in hf.conversion(twin).stack.parameters()}
    assert ours <= {p.data_ptr() for p in twin.parameters()} and not ours & {
        p.data_ptr() for p in made.parameters()
    }
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5)
    assert differing(gradients(made), before) == [] and differing(gradients(twin), before) != []
    hf.revert(twin)
    assert hf.conversion(made) is not None and torch.equal(
        logits(made), logits(converted(family, scheme).train())
    )


@pytest.mark.parametrize("family, scheme", CASES)
def test_revert(family, scheme):
    plain, made = model(family), converted(family, scheme)
    assert type(made) is type(plain) and "forward" in decoder_layers(made)[1][0].__dict__
    assert hf.revert(made) is made
    assert (
        made.config.to_dict() == plain.config.to_dict()
        and made.generation_config.to_dict() == plain.generation_config.to_dict()
    )
    assert all("forward" not in m.__dict__ for m in made.modules()) and hf.conversion(made) is None
    assert torch.equal(logits(made), logits(plain)) and same_weights(made, plain)
    assert differing(gradients(made.train()), gradients(plain.train())) == []
    with pytest.raises(ConfigError, match="nothing to revert"):
        hf.revert(made)
    again = hf.convert(made.eval(), **SCHEMES[scheme], say=None)
    assert torch.equal(logits(again), logits(converted(family, scheme)))


def test_twice():
    made = converted("Llama")
    with pytest.raises(ConfigError, match=r"converted already .*revert\(model\) first"):
        hf.convert(made, "blend:c=0.25", say=None)
    assert torch.equal(logits(made), logits(converted("Llama")))


def test_a_forward_that_was_there_before_comes_back():
    """As accelerate's hooks leave one on the instance."""
    plain = model("Llama")
    layer, calls = decoder_layers(plain)[1][1], []
    own = layer.forward

    def hooked(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    layer.forward = hooked
    made = hf.convert(plain, "blend:c=0.25", say=None)
    calls.clear()
    logits(made)
    assert calls == [1]
    hf.revert(made)
    assert layer.__dict__["forward"] is hooked


# ---- what fails on the way leaves the model as it was ----


class Chatter:
    def __call__(self, line):
        raise KeyboardInterrupt


def overflow(plain):
    with torch.no_grad():
        decoder_layers(plain)[1][2].mlp.down_proj.weight.mul_(1e9)
    hf.convert(plain, "blend:c=0.25", state="fixed32:20", calibration=tokens(), say=None)


HALFWAY = {
    "unknown option of the stack": (
        lambda m: hf.convert(m, "blend:c=0.25", keep=LAYERS + 1, say=None),
        ConfigError,
    ),
    "unknown start": (lambda m: hf.convert(m, "blend:c=0.25", start="never", say=None), ConfigError),
    "headroom": (
        lambda m: hf.convert(m, "blend:c=0.25", calibration=tokens(), headroom=0.5, say=None),
        ConfigError,
    ),
    "no token": (lambda m: hf.convert(m, "blend:c=0.25", calibration=[], say=None), ConfigError),
    "tolerance": (
        lambda m: hf.convert(m, "auto", calibration=tokens(), tolerance=0.0, say=None),
        ConfigError,
    ),
    "interrupted": (
        lambda m: hf.convert(m, "blend:c=0.25", calibration=tokens(), say=Chatter()),
        KeyboardInterrupt,
    ),
    "interrupted at the end": (lambda m: hf.convert(m, "midpoint:h=1", say=Chatter()), KeyboardInterrupt),
    "interrupted search": (
        lambda m: hf.convert(m, "auto", calibration=tokens(), say=Chatter()),
        KeyboardInterrupt,
    ),
    "overflow in calibration": (overflow, StateOverflowError),
    "unwritable config": (None, RuntimeError),
}


@pytest.mark.parametrize("way", HALFWAY)
def test_halfway(way, monkeypatch):
    plain = model("Llama").train()
    do, error = HALFWAY[way]
    if do is None:
        monkeypatch.setattr(
            _convert._settings, "write", lambda *args: (_ for _ in ()).throw(RuntimeError("disk"))
        )
        do = lambda m: hf.convert(m, "blend:c=0.25", say=None)  # noqa: E731
    with pytest.raises(error):
        do(plain)
    assert (
        hf.conversion(plain) is None
        and not hasattr(plain.config, "revstep")
        and all("forward" not in m.__dict__ for m in plain.modules())
    )
    assert (
        all(m.training for m in plain.modules())
        and plain.config.use_cache
        and plain.generation_config.use_cache
    )
    if error is not StateOverflowError:
        assert torch.equal(logits(plain), logits(model("Llama").train()))
    monkeypatch.undo()
    hf.convert(plain, "blend:c=0.25", state="fixed64", say=None)


def test_the_random_numbers_are_left_alone():
    plain = model("GPT2LMHeadModel", embd_pdrop=0.1).train()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    hf.convert(plain, "auto", calibration=tokens(), tolerance=1.0, say=None)
    assert torch.equal(torch.rand(1), expected)


def test_models_made_from_one_config_have_settings_of_their_own(tmp_path):
    shared = model("Llama").config
    first, second = (type(model("Llama"))(shared) for _ in range(2))
    hf.convert(first, "blend:c=0.25", say=None)
    assert not hasattr(shared, _settings.KEY) and not hasattr(second.config, _settings.KEY)
    hf.convert(second, "blend:c=0.125", say=None)
    for made, name in ((first, "first"), (second, "second")):
        made.save_pretrained(tmp_path / name)
        assert str(hf.conversion(hf.from_pretrained(tmp_path / name))) == str(hf.conversion(made))
    assert first.config is first.model.config is first.model.layers[0].self_attn.config
    hf.revert(first)
    assert hf.conversion(second) is not None and hasattr(second.config, _settings.KEY)
