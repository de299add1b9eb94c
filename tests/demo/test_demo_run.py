"""``revstep demo`` from the command line: what it prints, what it writes, and that it says so when something
does not hold.
"""

import itertools
import json
import random
import re
import sys

import pytest
import torch

from revstep import _cli, schemes, stack
from revstep.lm import _architectures
from revstep_lab.demo import Settings, race, record, session

FIGURES = {"curves.png", "memory_depth.png", "reconstruction.png"}


def printed_table(said):
    """The rows under the header of the printed table, as tuples of cells."""
    lines = said.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("---"))
    rows = itertools.takewhile(lambda line: line and not line.startswith("("), lines[at + 1 :])
    return [tuple(re.split(r"\s{2,}", line.strip())) for line in rows]


def last_paragraph(said):
    return said.strip().split("\n\n")[-2]


def test_end_to_end(demo):
    """Every stack of the registry, one table, three figures, and the same numbers in both."""
    code, said, out = demo()
    found = json.loads((out / "demo.json").read_text())
    assert code == 0 == found["exit_code"]
    assert {path.name for path in out.iterdir()} == FIGURES | {"demo.json"} and all(
        name in said.splitlines()[-1] for name in FIGURES
    )
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    table = printed_table(said)
    assert [row[0] for row in table] == ["plain", *schemes.available()]
    for cells, stack_found in zip(table, found["stacks"], strict=True):
        assert (
            cells[0] == stack_found["stack"]
            and cells[1] == f"{stack_found['validation_loss']:.3f}"
            and cells[2] == f"{stack_found['tokens_per_second']:,.0f}"
        )
        assert cells[3] == record.size(stack_found["kept_for_backward"]["total"])
        if stack_found["reversible"]:
            assert (
                cells[4] == f"exact ({stack_found['training']['states_rebuilt']:,})"
                and stack_found["gradients_equal_stored"] is True
            )
            assert cells[5] == record.drift(stack_found["float_states"]["worst_error"]) and cells[
                5
            ].startswith("off by ")
            assert cells[6] == f"cosine {stack_found['float_states']['gradient_cosine']:.4f}"
            assert (
                stack_found["trained"]["measured"] == 0.0
                and stack_found["training"]["states_bit_equal"]
                == stack_found["training"]["states_rebuilt"]
                > 0
            )
    assert found["table"]["rows"] == [list(row) for row in table]
    assert (
        last_paragraph(said) == found["summary"]
        and "bit for bit" in found["summary"]
        and "NOT" not in found["summary"]
    )
    assert {"device", "date", "torch", "revstep", "python", "threads"} <= found[
        "environment"
    ].keys() and re.match(r"revstep demo --steps \d+ .*--dtype float32 --device cpu", found["command"])


def test_the_same_seed_and_steps_give_the_same_losses(demo):
    options = ["--steps", "3", "--schemes", "midpoint", "blend:c=0.5"]
    runs = []
    for seed in ("1", "1", "2"):
        code, _, out = demo(*options, "--seed", seed)
        found = json.loads((out / "demo.json").read_text())
        assert code == 0 and [s["stack"] for s in found["stacks"]] == ["plain", "midpoint", "blend:c=0.5"]
        runs.append([c["training_loss"] for c in found["curves"]])
    assert runs[0] == runs[1] != runs[2]


def test_all_stacks_start_alike():
    settings = Settings(layers=2, width=16, out="unused")
    first, *others = (dict(race.build(name, settings, 257).named_parameters()) for name in settings.stacks())
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def noisy(forward):
    return lambda self, x: forward(self, x) * (1 + 1e-3 * random.random())


def test_a_random_block_fails_the_run(demo, monkeypatch):
    """Noise from outside torch's generators: every reversible stack must notice in its first backward pass;
    the plain one cannot.
    """
    monkeypatch.setattr(_architectures.MLP, "forward", noisy(_architectures.MLP.forward))
    code, said, out = demo("--steps", "2", "--schemes", "midpoint", "hamiltonian")
    found = json.loads((out / "demo.json").read_text())
    assert code == 1 == found["exit_code"]
    assert found["summary"] == last_paragraph(said) and found["summary"].startswith(
        "NOT everything held: 2 of 3 stacks failed. midpoint: ReconstructionError"
    )
    assert [s["exact"] for s in found["stacks"]] == [None, False, False] and said.count(
        "NOT EXACT"
    ) + said.count("FAILED") >= 2


def test_a_state_that_comes_back_wrong_after_training_fails_the_run(demo, monkeypatch):
    """The training is sound, its checksums agree; only the comparison of every state on the trained weights
    can see this.
    """
    right = stack.ReversibleStack.reconstruct

    def one_bit_off(self, last_two):
        states = right(self, last_two)
        if self.state.exact and self.scheme.name == "leapfrog":
            states[1] = states[1].clone()
            states[1].view(-1)[7] ^= 1
        return states

    monkeypatch.setattr(stack.ReversibleStack, "reconstruct", one_bit_off)
    code, said, out = demo("--steps", "2", "--schemes", "midpoint", "leapfrog")
    found = json.loads((out / "demo.json").read_text())
    assert (
        code == 1
        and "1 of 3 stacks failed" in found["summary"]
        and "leapfrog: NOT EXACT (error" in found["summary"]
    )
    assert [s["exact"] for s in found["stacks"]] == [None, True, False] and "exact (" in said


def test_wrong_gradients_fail_the_run(demo, monkeypatch):
    """States right, gradients not: the comparison with stored autograd must see it."""
    right = stack._nodes.Step.backward

    def forgets(ctx, g):
        prev, cur, f, rest = right(ctx, g)
        return prev, cur, None if f is None else f * 1.001, rest

    monkeypatch.setattr(stack._nodes.Step, "backward", staticmethod(forgets))
    code, _, out = demo("--steps", "2", "--schemes", "midpoint")
    assert code == 1 and "gradients differ" in json.loads((out / "demo.json").read_text())["summary"]


def test_a_stack_that_diverges_drops_out_and_the_others_go_on(demo, monkeypatch):
    step = race.Racer.step

    def breaks(self, *args):
        if self.name == "midpoint" and len(self.losses) == 1:
            raise FloatingPointError("the loss of step 2 is nan")
        step(self, *args)

    monkeypatch.setattr(race.Racer, "step", breaks)
    code, said, out = demo("--steps", "4", "--schemes", "midpoint", "leapfrog")
    found = {s["stack"]: s for s in json.loads((out / "demo.json").read_text())["stacks"]}
    assert code == 1 and "midpoint: FloatingPointError: the loss of step 2 is nan" in said
    assert (
        found["midpoint"]["validation_loss"] is None
        and found["leapfrog"]["exact"]
        and found["leapfrog"]["steps"] == 4
    )


def test_ctrl_c_writes_what_there_is(demo, monkeypatch):
    step = race.Racer.step

    def interrupted(self, *args):
        if len(self.losses) == 3:
            raise KeyboardInterrupt
        step(self, *args)

    monkeypatch.setattr(race.Racer, "step", interrupted)
    code, said, out = demo("--steps", "9", "--schemes", "midpoint")
    found = json.loads((out / "demo.json").read_text())
    assert code == 130 and found["interrupted"] and max(s["steps"] for s in found["stacks"]) == 3
    written = {path.name for path in out.iterdir()}
    assert (
        "memory_depth.png" in written
        and all(name in said.splitlines()[-1] for name in written)
        and "interrupted" in said
    )


@pytest.mark.parametrize(
    "options, words",
    [
        (["--minutes", "0"], ["minutes"]),
        (["--layers", "0"], ["layers"]),
        (["--width", "0"], ["width"]),
        (["--schemes", "midpont"], ["unknown scheme", "midpoint"]),
        (["--dtype", "int8"], ["dtype", "float32"]),
        (["--device", "warp"], ["warp", "try cpu"]),
        (["--steps", "-1"], ["steps"]),
    ],
)
def test_errors_are_one_sentence(demo, options, words):
    code, said, _ = demo(*options)
    assert (
        code == 2
        and said.startswith("revstep: ")
        and said.count("\n") == 1
        and all(word in said for word in words)
    )


def test_no_folder_is_refused_by_the_parser(demo):
    code, said, _ = demo("--out", "")
    assert code == 2 and said.splitlines()[-1].startswith("revstep demo: error: ") and "--out" in said


@pytest.mark.parametrize("package", ["matplotlib", "tqdm"])
def test_a_missing_package_is_named_before_anything_runs(tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(session, "choose", lambda *_: pytest.fail("the demo began to compute"))
    assert _cli.main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "pip install 'revstep[lm]'" in capsys.readouterr().err and not (tmp_path / "demo").exists()


def test_progress_bars_show_losses_and_reconstruction(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # without a terminal there is no bar
    options = "--steps 2 --layers 2 --width 16 --device cpu --dtype float32 --schemes midpoint".split()
    assert _cli.main(["demo", *options, "--out", str(tmp_path)]) == 0
    bar = capfd.readouterr().err
    assert all(
        word in bar for word in ("training", "plain ", "midpoint ", "4 of 4 states exact", "examining")
    )


def test_help_shows_examples(capsys):
    assert _cli.main(["demo", "--help"]) == 0
    said = capsys.readouterr().out
    assert "examples:" in said and "revstep demo" in said.split("examples:")[1]
