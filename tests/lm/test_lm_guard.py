"""Steps that are not finite never reach the weights; states that near the end of their range end the run in
time. Each check is seen to fail.
"""

import itertools
import json
import math
import warnings

import pytest
import torch

from revstep import lm
from revstep._specs import parse_state
from revstep.errors import ConfigError, StateOverflowError
from revstep.lm import _guard as module
from revstep.lm import _run

INF, NAN = math.inf, math.nan


class Spoil(torch.autograd.Function):
    """The value as it is, the gradient times something."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.factor, None


def bad_loss(factor):
    return lambda loss: loss * factor


def bad_gradient(factor):
    return lambda loss: Spoil.apply(loss, factor)


SPOILS = {
    "nan loss": bad_loss(NAN),
    "inf loss": bad_loss(INF),
    "nan gradient": bad_gradient(NAN),
    "inf gradient": bad_gradient(INF),
    "huge gradient": bad_gradient(1e30),
}
WORDS = {
    "nan loss": "loss of step 3 is nan",
    "inf loss": "loss of step 3 is inf",
    "nan gradient": "gradient norm of step 3 is nan",
}
WORDS |= {
    "inf gradient": "gradient norm of step 3 is (nan|inf)",
    "huge gradient": "gradient norm of step 3 is inf",
}


@pytest.fixture
def spoiled(config, monkeypatch):
    """``spoiled(kind, at, **changes)``: a config whose steps ``at`` go wrong; batches and weights before each
    forward pass are recorded in ``spoiled.seen``.
    """
    real, real_step = lm.GPT.forward, _run.Run._step
    seen, now = [], [0]

    def make(kind, at, **changes):
        made = config(**changes)

        def forward(self, x, y):
            if self.training:
                seen.append((x.clone(), [p.detach().clone() for p in self.parameters()]))
                if kind == "overflow" and now[0] in at:
                    with torch.no_grad():
                        weights = self.tokens.weight.clone()
                        self.tokens.weight.fill_(1e5)
                    try:
                        return real(self, x, y)
                    finally:
                        self.tokens.weight.data.copy_(weights)
                loss = real(self, x, y)
                return SPOILS[kind](loss) if now[0] in at else loss
            return real(self, x, y)

        def step(self):
            now[0] = self.step + 1
            return real_step(self)

        monkeypatch.setattr(lm.GPT, "forward", forward)
        monkeypatch.setattr(_run.Run, "_step", step)
        return made

    make.seen = seen
    return make


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("scheme", ["plain", "blend:c=0.25", "hamiltonian"])
@pytest.mark.parametrize("kind", SPOILS)
def test_a_step_that_is_not_finite_ends_the_run_before_it_reaches_the_weights(
    spoiled, tmp_path, kind, scheme
):
    with pytest.raises(lm.DivergedError, match=WORDS[kind]) as refused:
        lm.train(spoiled(kind, {3}, scheme=scheme, save_every=1))
    assert "checkpoint-00000002, is intact" in str(refused.value) and "--on-bad-step skip" in str(
        refused.value
    )
    saved = lm.load_checkpoint(tmp_path / "run")
    assert saved.step == 2 and all(value.isfinite().all() for value in saved.weights.values())


def test_a_state_out_of_range_ends_the_run_and_says_where_to_go_on(spoiled, tmp_path):
    with pytest.raises(
        StateOverflowError, match=r"checkpoint-00000002, is intact.*--state fixed32:12"
    ) as refused:
        lm.train(spoiled("overflow", {3}, scheme="blend", save_every=1))
    assert refused.value.layer == -1 and refused.value.largest > refused.value.limit == pytest.approx(2048)


def test_a_state_out_of_range_in_validation_says_where_to_go_on(config, monkeypatch):
    real = _run.evaluate

    def far(model, *args):
        with torch.no_grad():
            model.tokens.weight.fill_(1e5)
        return real(model, *args)

    monkeypatch.setattr(_run, "evaluate", far)
    with pytest.raises(
        StateOverflowError, match=r"validation after step 4: .*checkpoint-00000002, is intact"
    ):
        lm.train(config(scheme="blend", save_every=2, eval_every=4))


#: Options of the library that a training run does not have; its own are --state, --lr and --on-bad-step.
ELSEWHERE = ("FixedPoint(bits=32, frac_bits=1", "GradScaler", "on_nonfinite", "the input down", "padding")


@pytest.mark.parametrize("scheme", ["blend", "leapfrog:h=0.5"])
def test_a_run_advises_its_own_options(spoiled, scheme):
    """The advised format is that of the error underneath."""
    with pytest.raises(StateOverflowError) as refused:
        lm.train(spoiled("overflow", {3}, scheme=scheme, save_every=1))
    assert not [word for word in ELSEWHERE if word in str(refused.value)]
    cause = refused.value.__cause__
    assert f"--state {cause.advised.spec}" in str(refused.value) and cause.advised.limit > cause.largest
    assert (refused.value.fault, refused.value.index) == (cause.fault, cause.index)
    assert [word for word in ELSEWHERE if word in str(cause)]  # the mutant: the stack's message, handed on


def test_no_format_is_advised_where_none_is_the_answer(config, monkeypatch):
    run_evaluate = _run.evaluate

    def nan(model, *args):
        with torch.no_grad():
            model.tokens.weight.fill_(NAN)
        return run_evaluate(model, *args)

    monkeypatch.setattr(_run, "evaluate", nan)
    with pytest.raises(StateOverflowError, match=r"validation after step 4: the stack's input") as refused:
        lm.train(config(scheme="blend", save_every=2, eval_every=4))
    assert not [word for word in (*ELSEWHERE, "--state") if word in str(refused.value)]


def skipping(spoiled, kind, **changes):
    """A run that skips steps 3 and 5 of 6 -> (log entries, result, weights before each step, batches of each
    step).
    """
    entries = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = lm.train(
            spoiled(kind, {3, 5}, out="", steps=6, on_bad_step="skip", **changes), on_step=entries.append
        )
    assert [str(w.message).split(":")[0] for w in said] == ["step 3 was skipped", "step 5 was skipped"]
    return entries, result, [weights for _, weights in spoiled.seen], [x for x, _ in spoiled.seen]


@pytest.mark.parametrize(
    "kind, scheme", [("nan loss", "plain"), ("nan gradient", "blend:c=0.25"), ("overflow", "hamiltonian")]
)
def test_a_skipped_step_leaves_no_trace_in_the_weights(spoiled, config, kind, scheme):
    entries, result, before, batches = skipping(spoiled, kind, scheme=scheme)
    assert [bool(entry["skipped"]) for entry in entries] == [
        False,
        False,
        True,
        False,
        True,
        False,
    ] and result.skipped == 2
    # Step n: before[n - 1] -> before[n].
    assert [equal(a, b) for a, b in itertools.pairwise(before)] == [False, False, True, False, True]
    assert all(p.isfinite().all() for p in result.model.parameters()) and not equal(
        before[-1], result.model.parameters()
    )
    generator = lm.Batches(lm_tokens(config), 2, 16, 0)
    assert equal(batches, [generator.next()[0] for _ in range(6)])  # the data move on as in any other run


def lm_tokens(config):
    made = config()
    corpus = lm.prepare(made.out + "-tokens", made.data, tokenizer="bytes")
    return corpus.split(made.val_fraction, made.context)[0]


def test_an_overflow_in_the_first_of_two_micro_batches_skips_the_second(spoiled, config):
    made = spoiled("overflow", {2}, scheme="blend", out="", steps=3, accumulate=2, on_bad_step="skip")
    with pytest.warns(UserWarning, match="step 2 was skipped"):
        lm.train(made)
    generator = lm.Batches(lm_tokens(config), 2, 16, 0)
    drawn = [generator.next()[0] for _ in range(6)]
    del drawn[3]  # drawn, but never looked at
    assert equal([x for x, _ in spoiled.seen], drawn)


def no_check_at_all(self, step, loss, norm):
    return ""


def loss_alone(self, step, loss, norm):
    return "" if math.isfinite(loss) else "the loss is bad"


@pytest.mark.parametrize("mutant, kind", [(no_check_at_all, "nan loss"), (loss_alone, "nan gradient")])
def test_the_check_notices_a_guard_that_looks_away(spoiled, monkeypatch, mutant, kind):
    monkeypatch.setattr(module.Guard, "fault", mutant)
    result = lm.train(spoiled(kind, {3}, out="", steps=3, on_bad_step="skip"))
    assert result.skipped == 0 and not all(p.isfinite().all() for p in result.model.parameters())


def test_the_check_notices_data_that_stand_still(spoiled, config, monkeypatch):
    real = _run.Run._micro_batches
    monkeypatch.setattr(
        _run.Run, "_micro_batches", lambda self: list(real(self)) and iter([next(real(self))])
    )
    _, _, _, batches = skipping(spoiled, "nan loss")
    generator = lm.Batches(lm_tokens(config), 2, 16, 0)
    assert not equal(batches, [generator.next()[0] for _ in range(6)])


def stopped_after(spoiled, at, stop_at, out, most=3):
    """The last step of a run that is stopped at ``stop_at`` and resumed, and gives up after ``most`` bad
    steps in a row.
    """
    made = spoiled("nan gradient", at, out=str(out), on_bad_step="skip", max_bad_steps=most)
    entries = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if stop_at:
            lm.train(made, stop_at=stop_at, on_step=entries.append)
        try:
            lm.train(made, resume="auto", on_step=entries.append)
        except lm.DivergedError as error:
            assert f"{most} steps in a row were skipped" in str(error)
        return entries[-1]["step"]


def test_skips_in_a_row_end_the_run_also_across_a_restart(spoiled, tmp_path, monkeypatch):
    # The sixth was the third in a row.
    assert stopped_after(spoiled, {2, 4, 5, 6}, 0, tmp_path / "whole") == 5
    assert stopped_after(spoiled, {2, 4, 5, 6}, 4, tmp_path / "parts") == 5
    assert stopped_after(spoiled, {2, 4, 6, 7}, 4, tmp_path / "never") == 8
    monkeypatch.setattr(module.Guard, "load_state_dict", lambda self, saved: None)
    # A restart that forgets the count goes on.
    assert stopped_after(spoiled, {2, 4, 5, 6}, 4, tmp_path / "mutant") == 8


def test_float16_says_which_steps_its_scaler_skipped(spoiled):
    entries = []
    result = lm.train(
        spoiled("inf gradient", {3}, out="", dtype="float16", scheme="blend"), on_step=entries.append
    )
    assert [bool(entry["skipped"]) for entry in entries] == [False, False, True] + [
        False
    ] * 5 and result.skipped == 1


# ---- headroom ----

#: A rate at which the states of this model grow by a tenth a step, in a format of a narrow range: headroom
#: 189 at first, below 2 after ten steps.
GROWING = {"scheme": "blend:c=0.25", "state": "fixed32:27", "lr": 3e-2, "steps": 40, "dropout": 0.0}


def test_a_run_whose_states_grow_stops_before_they_leave_the_range(config, tmp_path):
    entries, free = [], []
    with (
        pytest.warns(UserWarning, match="the run stops at 2"),
        pytest.raises(lm.HeadroomError, match="The checkpoint of this step is written") as stopped,
    ):
        lm.train(config(**GROWING), on_step=entries.append)
    with pytest.raises(StateOverflowError):  # what the guard has spared it; and the guard changes no bit
        lm.train(config(**GROWING, min_headroom=0.0, out=""), on_step=free.append)
    headroom = [entry["headroom"] for entry in entries]
    assert (
        all(h >= 2 for h in headroom[:-1])
        and headroom[-1] == stopped.value.headroom < 2
        and len(free) > len(entries)
    )
    assert [entry["loss"] for entry in entries] == [entry["loss"] for entry in free[: len(entries)]]
    assert lm.load_checkpoint(tmp_path / "run").step == len(entries)
    wider = parse_state(stopped.value.state).make()
    assert wider.limit >= 2 * (16 / headroom[-1]) and f"--state {stopped.value.state}" in str(stopped.value)

    with pytest.warns(UserWarning, match="state changes from 'fixed32:27' to 'fixed32:20'.*not bit for bit"):
        rest = lm.resume(tmp_path / "run", {"state": stopped.value.state}, on_step=entries.append)
    assert (
        rest.step == 40
        and rest.exact is True
        and entries[-1]["headroom"] > 2
        and entries[len(headroom)]["steps_left"] is None
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41)) and all(
        {"headroom", "steps_left", "exact", "skipped"} <= line.keys() for line in lines
    )


def test_without_a_folder_it_says_that_nothing_is_kept(config):
    with pytest.warns(UserWarning), pytest.raises(lm.HeadroomError, match="Nothing is kept"):
        lm.train(config(**GROWING, out=""))


def test_a_run_that_is_over_does_not_stop(config, tmp_path):
    with pytest.warns(UserWarning), pytest.raises(lm.HeadroomError):
        lm.train(config(**GROWING))
    last = lm.load_checkpoint(tmp_path / "run").step
    with pytest.warns(UserWarning):
        assert lm.train(config(**GROWING, out=""), stop_at=last).step == last


@pytest.mark.parametrize(
    "changes",
    [{"scheme": "plain"}, {"scheme": "midpoint", "state": "float32"}],
    ids=["stored trunk", "float states"],
)
def test_nothing_with_a_range_nothing_to_stop(config, changes):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*largest state value")
        assert lm.train(config(**{**GROWING, **changes, "out": "", "steps": 20})).step == 20


def estimates(guard, growth, start=1000.0):
    """(true, estimated) numbers of steps until a headroom that falls by the factor ``growth`` a step is below
    2.
    """
    headrooms = [start / growth**i for i in range(400)]
    last = next(i for i, h in enumerate(headrooms) if h < 2)
    return [(last - i, guard.seen(h)) for i, h in enumerate(headrooms[:last])]


@pytest.mark.parametrize("growth", [1.02, 1.1])
def test_steps_left_is_true_of_steady_growth(config, growth):
    found = estimates(module.Guard(config(), parse_state("fixed32").make()), growth)
    assert (
        all(said is None for _, said in found[:15])
        and all(abs(said - true) <= 1 for true, said in found[15:])
        and len(found) > 40
    )


def test_steps_left_is_silent_without_growth(config):
    guard = module.Guard(config(), parse_state("fixed32").make())
    assert [guard.seen(h) for h in [*range(100, 180), *[500.0] * 64][:80]] == [None] * 80
    assert guard.seen(INF) is None


def test_the_check_notices_an_estimate_from_the_wrong_end(config, monkeypatch):
    class Backwards(module.deque):
        def __iter__(self):
            return reversed(list(super().__iter__()))

    monkeypatch.setattr(module, "deque", Backwards)
    found = estimates(module.Guard(config(), parse_state("fixed32").make()), 1.1)
    assert all(said is None for _, said in found)


def test_what_may_not_be_asked_for(config):
    with pytest.raises(ConfigError, match="on_bad_step"):
        config(on_bad_step="ignore")
    with pytest.raises(ConfigError, match="max_bad_steps"):
        config(max_bad_steps=0)
    with pytest.raises(ConfigError, match="min_headroom"):
        config(min_headroom=-1.0)
