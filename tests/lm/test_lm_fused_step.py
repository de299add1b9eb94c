"""Training with the optimiser inside backward: the run is that of ordinary steps, and a bad step says what it
left.
"""

import pytest
import torch

from revstep import _cli, lm
from revstep.errors import ConfigError
from revstep.lm import _run

RUNS = [
    {"scheme": "plain"},
    {"scheme": "checkpoint"},
    {"scheme": "blend:c=0.25"},
    {"scheme": "hamiltonian", "model": "llama", "dtype": "bfloat16"},
]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


@pytest.mark.parametrize("changes", RUNS, ids=lambda changes: ",".join(map(str, changes.values())))
def test_the_run_is_that_of_ordinary_steps(config, changes):
    ordinary, fused = (lm.train(config(**changes, clip=0.0, fused_step=on, out="")) for on in (False, True))
    assert ordinary.losses == fused.losses and same(ordinary, fused)
    clipped = lm.train(config(**changes, clip=0.1, fused_step=True, out=""))
    assert clipped.losses[:2] == fused.losses[:2] and not same(clipped, fused)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"accumulate": 2}, "accumulate = 2: every backward pass would be an optimiser step"),
        ({"dtype": "float16"}, "dtype = float16: gradients would be used with the loss's scale"),
        ({"parallel": "ddp"}, "parallel = ddp: each process would step by the gradients of its own rows"),
        ({"on_bad_step": "skip"}, "on_bad_step = skip: when a bad gradient is found, others have been used"),
    ],
)
def test_what_does_not_go_with_it(config, changes, words):
    with pytest.raises(ConfigError, match=words):
        config(fused_step=True, **changes)
    config(**changes)  # by itself it does


def test_a_bad_step_ends_the_run_and_says_what_was_done(config, monkeypatch):
    real = _run.Run._gradients

    def spoiled(self, batches):
        if self.step == 2:  # the head's gradient is fine, that of the first layers is not
            self.model.trunk.blocks[0].register_full_backward_pre_hook(
                lambda m, g: tuple(x * float("nan") for x in g)
            )
        return real(self, batches)

    monkeypatch.setattr(_run.Run, "_gradients", spoiled)
    with pytest.warns(UserWarning, match="parameters were not finite"):
        with pytest.raises(
            lm.DivergedError, match="gradient norm of step 3 is nan; weights whose gradient was"
        ):
            lm.train(config(scheme="plain", fused_step=True, out=""))


def test_the_command(tmp_path, config):
    words = (
        "--tokenizer bytes --layers 2 --width 16 --heads 2 --context 16 --batch 2 --steps 2 --eval-batches 1"
    )
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 50)
    out = tmp_path / "run"
    assert _cli.main(["train", "--data", str(text), *words.split(), "--out", str(out), "--fused-step"]) == 0
    assert lm.load_checkpoint(out).config["fused_step"] is True
    assert _cli.main(["train", "--data", str(text), *words.split(), "--out", str(out) + "2"]) == 0
    assert lm.load_checkpoint(str(out) + "2").config["fused_step"] is False
