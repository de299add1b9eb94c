"""The training loop: resumed = uninterrupted, bit for bit, by a check that notices each thing a resume could
forget.
"""

import dataclasses
import itertools
import json
import math
import os
import signal

import pytest
import torch

from revstep import lm
from revstep.errors import ConfigError
from revstep.lm import _run

RUNS = [
    {"scheme": "plain"},
    {"scheme": "checkpoint", "accumulate": 2},
    {"scheme": "blend:c=0.25"},
    {"scheme": "midpoint_blend:a=paper,seed=3", "dtype": "bfloat16"},
    {"scheme": "hamiltonian", "dtype": "float16"},
    {"scheme": "leapfrog", "keep": 1},
    {"scheme": "midpoint", "tokenizer": "bpe:300"},
    {"model": "llama", "scheme": "plain"},
    {"model": "llama", "scheme": "blend:c=0.25", "dtype": "bfloat16", "heads": 4, "kv_heads": 2},
    {"model": "llama", "scheme": "hamiltonian", "tied": False, "hidden": 24},
    {"model": "llama", "scheme": "bdia", "accumulate": 2},
    {"scheme": "blend:c=0.25", "fused_step": True, "clip": 0.1},
]


def differences(config, tmp_path, at=4):
    """Names of what differs between a whole run and one stopped at step ``at`` and resumed: "losses", "val",
    or parameter names.
    """
    whole = lm.train(config(out=str(tmp_path / "whole")))
    first = lm.train(config(out=str(tmp_path / "parts")), stop_at=at)
    torch.manual_seed(12345)  # what a new process would not share with the old one
    second = lm.resume(tmp_path / "parts")
    found = [] if first.losses + second.losses == whole.losses else ["losses"]
    found += [] if whole.val_losses == second.val_losses else ["val"]
    pairs = zip(whole.model.named_parameters(), second.model.parameters(), strict=True)
    return found + [name for (name, a), b in pairs if not torch.equal(a, b)]


@pytest.mark.parametrize("changes", RUNS, ids=lambda changes: ",".join(map(str, changes.values())))
def test_resumed_equals_uninterrupted(config, tmp_path, changes):
    assert differences(lambda **more: config(**changes, **more), tmp_path) == []


MUTANTS = {
    "random state forgotten": (_run, "restore_random", lambda states, device: None),
    "place in the data forgotten": (_run.Batches, "load_state_dict", lambda self, state: None),
    "optimiser forgotten": (torch.optim.AdamW, "load_state_dict", lambda self, state: None),
    "step count forgotten": (
        _run.Run,
        "restore",
        lambda self, saved, real=_run.Run.restore: (real(self, saved), setattr(self, "step", saved.step - 1)),
    ),
    "weights rounded": (_run, "save_checkpoint", None),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_resume_check_notices(config, tmp_path, monkeypatch, name):
    owner, attribute, mutant = MUTANTS[name]
    if mutant is None:
        real = owner.save_checkpoint

        def mutant(folder, saved):
            weights = {k: v.bfloat16().float() for k, v in saved.weights.items()}
            return real(folder, dataclasses.replace(saved, weights=weights))

    monkeypatch.setattr(owner, attribute, mutant)
    assert differences(config, tmp_path) != []


def test_equal_seeds_equal_runs_other_seeds_other_runs(config):
    runs = [lm.train(config(out="", seed=seed)).losses for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_micro_batches_add_up_to_the_batch(config):
    """With the same windows, 2 x 2 sequences give the gradient of 4: the first step's norm and loss agree to
    rounding.
    """
    entries = []
    for batch, accumulate in ((4, 1), (2, 2)):
        lm.train(
            config(out="", batch=batch, accumulate=accumulate, dropout=0.0, steps=1, loss_chunk=0),
            on_step=entries.append,
        )
    assert entries[0]["loss"] == pytest.approx(entries[1]["loss"], rel=1e-6)
    assert entries[0]["grad_norm"] == pytest.approx(entries[1]["grad_norm"], rel=1e-5)


def test_loss_falls_and_the_result_says_what_happened(config, tmp_path):
    result = lm.train(config(scheme="blend", steps=40, eval_every=20))
    assert sum(result.losses[-5:]) < 0.9 * sum(result.losses[:5])
    assert [step for step, _ in result.val_losses] == [20, 40] and all(
        math.isfinite(loss) for _, loss in result.val_losses
    )
    assert result.exact is True and result.max_error == 0.0 and result.reconstruction.startswith("exact")
    assert (
        result.step == 40
        and not result.interrupted
        and result.tokens_per_second > 0
        and result.peak_memory > 0
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41)) and [
        line["loss"] for line in lines
    ] == result.losses
    assert {"lr", "grad_norm", "tokens_per_second", "peak_memory", "exact", "reconstruction"} <= set(lines[0])


def test_validation_disturbs_nothing(config):
    often, never = (lm.train(config(out="", eval_every=every)).losses for every in (1, 0))
    assert often == never


def test_schedule_warms_up_and_ends_at_min_lr(config):
    from revstep.lm._run import learning_rate

    c = config(steps=100, warmup=10)
    rates = [learning_rate(c, step) for step in range(101)]
    assert (
        rates[9] == c.lr == pytest.approx(rates[10])
        and rates[0] == c.lr / 10
        and rates[100] == pytest.approx(c.min_lr)
    )
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_biases_and_layernorms_do_not_decay(config):
    from revstep.lm._run import make_optimizer

    model = lm.GPT(lm.GPTConfig(vocab=9, layers=1, width=8, heads=2, context=4))
    decayed, kept = make_optimizer(model, config()).param_groups
    assert (
        all(p.ndim >= 2 for p in decayed["params"])
        and all(p.ndim < 2 for p in kept["params"])
        and kept["weight_decay"] == 0
    )
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_clipping_bounds_the_gradient_that_is_used(config, monkeypatch):
    seen = []
    real = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, closure=None: (seen.append(norm(self)), real(self, closure))[1],
    )

    def norm(optimizer):
        return (
            torch.stack([p.grad.norm() for group in optimizer.param_groups for p in group["params"]])
            .norm()
            .item()
        )

    lm.train(config(out="", clip=1e-3, steps=2))
    assert all(value <= 1e-3 * (1 + 1e-5) for value in seen) and len(seen) == 2
    lm.train(config(out="", clip=0.0, steps=1))
    assert seen[-1] > 1e-2


@pytest.mark.parametrize("moment", ["within the step", "after it"])
def test_sigint_finishes_the_step_saves_and_returns(config, tmp_path, monkeypatch, moment):
    before = signal.getsignal(signal.SIGINT)

    def press(entry):
        if entry["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    if moment == "within the step":
        real = _run.learning_rate
        monkeypatch.setattr(
            _run, "learning_rate", lambda c, step: (press({"step": step + 1}), real(c, step))[1]
        )
    result = lm.train(config(), on_step=press if moment == "after it" else None)
    monkeypatch.undo()
    assert result.interrupted and signal.getsignal(signal.SIGINT) is before
    assert result.step == lm.load_checkpoint(tmp_path / "run").step == len(result.losses) == 3
    whole = lm.train(config(out=""))
    assert result.losses + lm.resume(tmp_path / "run").losses == whole.losses


def test_second_sigint_stops_at_once(config):
    def twice(entry):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        lm.train(config(out=""), on_step=twice)


def test_log_lines_after_the_checkpoint_are_done_again(config, tmp_path):
    class Crash(Exception):
        pass

    def crash(entry):
        if entry["step"] == 6:
            raise Crash

    with pytest.raises(Crash):
        lm.train(config(save_every=4), on_step=crash)
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')
    result = lm.resume(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert result.first_step == 4 and [line["step"] for line in lines] == list(range(1, 9))


def test_a_folder_with_a_run_is_not_overwritten_and_not_turned_into_another(config, tmp_path):
    lm.train(config(), stop_at=2)
    with pytest.raises(ConfigError, match="already holds a run"):
        lm.train(config())
    with pytest.raises(ConfigError, match=r"width is 32, but the run in .* has 16"):
        lm.resume(tmp_path / "run", {"width": 32})
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        lm.resume(tmp_path / "run", {"widht": 32})
    assert lm.resume(tmp_path / "run", {"steps": 5}).step == 5


def test_a_checkpoint_from_before_there_was_a_choice_of_models_is_a_gpt(config, tmp_path):
    whole = lm.train(config(out=str(tmp_path / "whole"), scheme="blend"))
    first = lm.train(config(scheme="blend"), stop_at=4)
    manifest = first.checkpoint / "manifest.json"
    stored = json.loads(manifest.read_text())
    for name in ("model", "tied", "kv_heads", "hidden", "rope_theta", "norm_eps"):
        del stored["config"][name]
    del stored["checksum"]
    manifest.write_text(json.dumps(stored | {"format": 1}))
    with pytest.warns(UserWarning, match="written by an earlier revstep, without a checksum"):
        assert type(lm.load_model(tmp_path / "run")[0]) is lm.GPT
    with pytest.warns(UserWarning, match="written by an earlier revstep"):
        second = lm.resume(tmp_path / "run")
    assert first.losses + second.losses == whole.losses and type(second.model) is lm.GPT


def test_a_run_does_not_change_its_model(config, tmp_path):
    lm.train(config(), stop_at=1)
    with pytest.raises(ConfigError, match=r"model is 'llama', but the run in .* has 'gpt'"):
        lm.resume(tmp_path / "run", {"model": "llama"})


def test_a_loss_that_is_not_finite_ends_the_run_before_it_spoils_the_weights(config, monkeypatch):
    real, calls = lm.GPT.forward, []

    def poisoned(self, *args):
        calls.append(None)
        return real(self, *args) * (math.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(lm.GPT, "forward", poisoned)
    with pytest.raises(lm.DivergedError, match="loss of step 3 is nan"):
        lm.train(config(out=""))


def test_float16_skips_a_step_that_overflows(config, monkeypatch):
    entries, real = [], lm.GPT.forward
    monkeypatch.setattr(
        lm.GPT, "forward", lambda self, *args: real(self, *args) * (math.inf if len(entries) == 2 else 1.0)
    )
    result = lm.train(config(out="", dtype="float16", scheme="blend"), on_step=entries.append)
    scales = [entry["loss_scale"] for entry in entries]
    assert scales[2] == scales[1] / 2 and all(p.isfinite().all() for p in result.model.parameters())


def test_other_threads_are_warned_about_on_resuming(config, tmp_path, monkeypatch):
    lm.train(config(), stop_at=2)
    monkeypatch.setattr(
        _run.Run,
        "environment",
        lambda self: {"torch": str(torch.__version__), "device": "cpu", "threads": 99},
    )
    with pytest.warns(UserWarning, match="-> 99.*not bit for bit"):
        lm.resume(tmp_path / "run")


def test_bad_device_and_too_little_text(config, tmp_path):
    with pytest.raises(ConfigError, match="device 'warp'"):
        lm.train(config(device="warp", out=""))
    with pytest.raises(ConfigError, match="give more text"):
        lm.train(config(context=20_000, out=""))
    with pytest.raises(ConfigError, match="nothing to resume"):
        lm.train(config(out=""), resume=True)


def test_a_shared_corpus_is_not_read_again(config, text, tmp_path):
    corpus = lm.prepare(tmp_path / "shared", [text], tokenizer="bytes")
    assert (
        lm.train(config(out="", data=("nowhere",)), corpus=corpus).losses == lm.train(config(out="")).losses
    )
    with pytest.raises(ConfigError, match="exclude each other"):
        lm.train(config(), corpus=corpus)
