"""Every option of a stack is declared once: it reaches the stack, ``convert``, config.json, the training
configuration and the command line.
"""

import dataclasses
import inspect
import json

import pytest
import torch
from torch import nn

import revstep
from revstep import _cli, hf, lm
from revstep._options import FLAGS, SAME_BITS, StackOptions
from revstep.errors import ConfigError
from revstep.lm._trainer import MAY_CHANGE

NAMES = set(StackOptions.names())


def blocks(n=3):
    return [nn.Linear(4, 4) for _ in range(n)]


def test_they_are_in_every_signature():
    for function in (revstep.ReversibleStack, hf.convert):
        assert set(inspect.signature(function).parameters) >= NAMES, function
    for option in dataclasses.fields(StackOptions):
        shown = inspect.signature(revstep.ReversibleStack).parameters[option.name]
        if option.name not in ("scheme", "state"):  # arguments of their own
            assert shown.kind is inspect.Parameter.KEYWORD_ONLY and shown.default == option.default
    assert {f.name for f in dataclasses.fields(lm.TrainConfig)} >= NAMES
    assert set(inspect.signature(lm.LanguageModel).parameters) >= NAMES


def test_each_is_documented():
    for name in NAMES:
        assert f"{name}: " in StackOptions.__doc__, name


def test_flags_are_on_the_command_lines():
    parser = _cli.make_parser()
    commands = next(
        action.choices for action in parser._actions if action.choices and "train" in action.choices
    )
    for name, expected in (
        ("train", FLAGS),
        ("convert", set(FLAGS) - {"readout"}),
        ("finetune", set(FLAGS) - {"readout"}),
    ):
        assert {action.dest for action in commands[name]._actions} >= set(expected), name
    assert SAME_BITS <= MAY_CHANGE


def test_a_stack_takes_one_object_or_keywords():
    options = StackOptions(
        scheme=revstep.Blend(),
        state=revstep.FixedPoint(64, 24),
        start="euler",
        keep=1,
        readout="mean",
        checks="all",
    )
    one = revstep.ReversibleStack(blocks(), options)
    keywords = revstep.ReversibleStack(
        blocks(),
        revstep.Blend(),
        revstep.FixedPoint(64, 24),
        start="euler",
        keep=1,
        readout="mean",
        checks="all",
    )
    assert one.options == keywords.options == options
    assert revstep.ReversibleStack(blocks(), options, keep=2).options == dataclasses.replace(options, keep=2)
    assert revstep.ReversibleStack(blocks(), revstep.Midpoint()).options.start == "repeat"


def test_a_keyword_that_is_none_goes_before_the_object_too():
    budgeted = StackOptions(scheme=revstep.Blend(), save_ops="attention", keep="auto", memory_budget=10**9)
    stack = revstep.ReversibleStack(blocks(), budgeted, save_ops=None, keep=1, memory_budget=None)
    assert (stack.save_ops, stack.keep, stack.memory_budget) == (None, 1, None)
    wide = StackOptions(scheme=revstep.Blend(), state=revstep.FixedPoint(64, 24))
    assert revstep.ReversibleStack(blocks(), wide).state == wide.state, "the state was not given"


def test_unknown_and_impossible_ones_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'kep'"):
        revstep.ReversibleStack(blocks(), revstep.Blend(), kep=1)
    with pytest.raises(ConfigError, match="keep is -1"):
        StackOptions(keep=-1)
    with pytest.raises(ConfigError, match="readout is 'first'"):
        StackOptions(readout="first")
    with pytest.raises(ConfigError, match="memory_budget is None"):
        StackOptions(keep="auto")
    with pytest.raises(ConfigError, match="keep is 4, expected an integer from 0 to 3"):
        revstep.ReversibleStack(blocks(), revstep.Blend(), keep=4)


@pytest.mark.parametrize(
    "options, scheme, state",
    [
        (StackOptions(), None, None),
        (StackOptions(scheme=revstep.Blend(c=0.5)), "blend:c=0.5", None),
        (StackOptions(scheme=revstep.Midpoint(), state=revstep.FixedPoint(64, 24)), "midpoint", "fixed64:24"),
        (StackOptions(scheme="blend:c=0.5", state="float32", keep=2), "blend:c=0.5", "float32"),
    ],
)
def test_they_are_written_with_what_was_not_given(options, scheme, state):
    written = options.to_dict()
    assert list(written) == list(StackOptions.names()) and json.loads(json.dumps(written)) == written
    assert (written["scheme"], written["state"]) == (scheme, state)
    assert {name: written[name] for name in ("start", "keep", "checks")} == {
        name: getattr(options, name) for name in ("start", "keep", "checks")
    }


def test_a_training_configuration_is_one_too():
    config = lm.TrainConfig(scheme="blend:c=0.5", keep=1, checks=False, out="")
    assert config.stack_options() == StackOptions(
        scheme="blend:c=0.5", state="fixed32", start="repeat", keep=1, checks=False
    )
    assert lm.TrainConfig.from_dict({**config.to_dict(), "save_ops": ""}) == config, (
        "as earlier versions wrote it"
    )
    model = lm.make_model(
        lm.GPTConfig(vocab=9, context=4, layers=2, width=8, heads=2), config.stack_options()
    )
    assert model.trunk.options == StackOptions(
        scheme=revstep.Blend(c=0.5), state=revstep.FixedPoint(), start="repeat", keep=1, checks=False
    )
    assert torch.isfinite(model(torch.zeros(1, 3, dtype=torch.long))).all()
