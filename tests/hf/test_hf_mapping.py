"""Every class of transformers' causal-LM mapping does what the table beside this file says, which is true.

The table is architectures.json, by ``python tests/hf/mapping.py``; docs/architectures.md is made of it.
"""

import json
from collections import Counter

import mapping
import pytest
import torch
import transformers
from mapping import TABLE, Outcome, carried, names, outcome

from revstep import hf
from revstep._models import layers
from revstep.hf import _layer_steps, _probe
from revstep.stack import _stream

DATA = json.loads(TABLE.read_text(encoding="utf-8"))
KNOWN = {name: Outcome(row["outcome"], row["why"]) for name, row in DATA["classes"].items()}
REFUSED = [name for name, row in KNOWN.items() if row.outcome == "refused"]
#: The sentence of a layer whose output is not its input plus branches.
NO_SUM = "does not return its input plus what its branches add"
#: Refused for another reason, and what makes it true.
OTHERWISE = {
    "blt": "four stacks of bytes and patches, two of them with cross attention between",
    "gemma4_unified_assistant": "reads the keys and values of another model",
    "git": "a stack of the picture and one of the text, each as deep as the config says",
    "hrm_text": "two stacks that are run in turn, several times",
    "mllama": "leaves its layers of cross attention out where there is no picture",
    "reformer": "is a reversible network of two streams itself",
    "xlm": "keeps attentions, norms and MLPs in lists of their own",
}
SAME = DATA["transformers"] == transformers.__version__


def as_known(found: Outcome, known: Outcome | None, same: bool) -> bool:
    """What was found is what the table says; nothing got worse, of another version of transformers.

    Nor where the class could not be built when the table was made: another library may be there now.
    """
    if same and known is not None and known.outcome != "not built":
        return found == known
    worse = known is not None and known.outcome == "right" != found.outcome
    return found.outcome not in ("wrong", "crash") and not worse


@pytest.mark.parametrize("name", names())
def test_outcome(name):
    found, known = outcome(name), KNOWN.get(name)
    assert as_known(found, known, SAME), f"{name}: {found}, the table (by tests/hf/mapping.py) says {known}"


def test_counts():
    counts = Counter(row.outcome for row in KNOWN.values())
    assert counts["right"] >= 145 and set(counts) == {"right", "refused", "not built"}, counts
    assert counts["not built"] <= 5, "few enough to look at"
    if SAME:
        assert set(KNOWN) == set(names()), "the table has a row for every class"


def test_reasons():
    assert {name for name in REFUSED if NO_SUM not in KNOWN[name].why} == set(OTHERWISE)


@pytest.mark.parametrize("name", [name for name in REFUSED if NO_SUM in KNOWN[name].why])
def test_a_refusal_is_true(name):
    """The layer does not carry a large input through, which x + f(norm(x)) does."""
    if name not in names():
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    assert carried(name) > 0.02


@pytest.mark.parametrize("name", "gpt2 llama falcon bloom mamba falcon_h1 ctrl longcat_flash".split())
def test_layers_that_convert_carry_their_input(name):
    assert carried(name) < 0.005


# ---- the same check sees what is broken on purpose ----


def untold(self, index, y, aux, args, kwargs):
    return (y, *aux) if aux else y


def unscaled(out):
    return None if not isinstance(out, _stream.Stream) else out.delta


MUTANTS = {
    "a cast ends the stream": ("mamba", _stream, "_cast", lambda *_: None, "refused"),
    "a factor ends the stream": ("gemma4_text", _stream, "_is_factor", lambda *_: False, "refused"),
    "a factor is forgotten": (
        "gemma4_text",
        _stream.Stream,
        "factor",
        property(lambda s: None, lambda s, v: None),
        "refused",
    ),
    "a tuple of one is unpacked": ("falcon_h1", _layer_steps.Conversion, "_as_it_returns", untold, "refused"),
    "names of positions are not known": (
        "recurrent_gemma",
        _layer_steps,
        "parameters_of",
        lambda _: (),
        "refused",
    ),
    "only checkpointing layers": ("ctrl", layers, "_alike", lambda *_: [], "refused"),
    "one name for the depth": ("longcat_flash", layers, "_DEPTHS", ("num_hidden_layers",), "refused"),
    "the encoder's depth": ("whisper", layers, "_DEPTHS", ("num_hidden_layers",), "refused"),
    "a text among pictures": (
        "phi4_multimodal",
        layers,
        "_of_the_text",
        lambda model, found, depths: found,
        "refused",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_kind_that_is_not_served_any_more(mutant, monkeypatch):
    name, where, attribute, value, expected = MUTANTS[mutant]
    if name not in names():
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    monkeypatch.setattr(where, attribute, value, raising=False)
    found = outcome(name)
    assert found.outcome == expected and not as_known(found, Outcome("right"), SAME), found


def test_a_wrong_increment(monkeypatch):
    """A factor that is lost, where the probe does not look: only the gradients tell."""
    monkeypatch.setattr(_stream.Stream, "factor", property(lambda s: None, lambda s, v: None), raising=False)
    monkeypatch.setattr(_probe, "_compare", lambda *_: None)
    found = outcome("gemma4_text")
    assert found.outcome == "wrong" and "from the stored recurrence's" in found.why, found


@pytest.mark.parametrize("c", [0.0, mapping.C + 2.0**-8, -mapping.C])
def test_another_recurrence(c, monkeypatch):
    real = mapping.reference
    monkeypatch.setattr(mapping, "reference", lambda plain, given: real(plain, c if given else given))
    assert outcome("llama").outcome == "wrong"


def test_a_gradient_that_is_missing(monkeypatch):
    real = mapping.trained

    def without(model):
        found = real(model)
        ours = hf.conversion(model) is not None
        return {n: g for n, g in found.items() if not (ours and "layers.2" in n)}

    monkeypatch.setattr(mapping, "trained", without)
    assert outcome("llama").outcome == "wrong"


def test_an_error_that_is_none_of_the_packages(monkeypatch):
    def convert(*_, **__):
        raise AttributeError("use_cache")

    monkeypatch.setattr(mapping.hf, "convert", convert)
    assert outcome("llama") == Outcome("crash", "AttributeError: use_cache")


def test_another_version_of_transformers():
    right, refused = Outcome("right", "4 x Layer"), Outcome("refused", "because")
    assert as_known(Outcome("right", "5 x Layer"), right, same=False)
    assert not as_known(refused, right, same=False)
    assert as_known(right, refused, same=False) and as_known(refused, None, same=False)
    assert not as_known(Outcome("crash", "x"), None, same=False)
    assert not as_known(right, refused, same=True)
    unbuilt = Outcome("not built", "ImportError: a library")
    assert as_known(right, unbuilt, same=True) and not as_known(Outcome("wrong", "x"), unbuilt, same=True)
    assert not as_known(Outcome("refused", "other"), refused, same=True)


def test_the_models_tell_a_step_that_is_slightly_off():
    """Weights of one seed, one step: the same twice, and far from the plain network's."""
    plain = mapping.build("llama")
    a, b = mapping.reference(plain, mapping.C), mapping.reference(plain, mapping.C)
    assert mapping.apart(a, b) == 0.0 and mapping.apart(a, mapping.reference(plain, 0.0)) > mapping.OTHER
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), mapping.build("llama").parameters()))
