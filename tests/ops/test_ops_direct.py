"""The shortest way to a step's kernel: it is taken, it has the bits and the refusals of the long one, and
whatever it does not know takes that.
"""

import itertools
import subprocess
import sys

import kernel_checks as checks
import pytest
import torch

from revstep import _C, ConfigError, ops
from revstep.ops import _direct, _kernels

FIXED, FLOAT = (torch.int32, torch.int64), (torch.float32, torch.float64)
VALUES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STEPS = ((1.0, 0.0, 0.5), (-1.0, 0.5, 1.25), (0.0625, 0.9375, 1.0625), (0.25, -0.5, -0.0))


def operands(state, value, shape=(3, 70)):
    g = torch.Generator().manual_seed(7)
    pair = [torch.randn(shape, generator=g) for _ in range(2)]
    pair = [(x * 2**20).round().to(state) if state in FIXED else x.to(state) for x in pair]
    return *pair, torch.randn(shape, generator=g).to(value)


def both(prev, cur, f, numbers, view, in_place=False, rows=(None, None)):
    """(what the short way gives, what the long one gives), forwards and back."""
    about = (*numbers, 20, view, *rows)
    short = _direct.step(prev.clone() if in_place else prev, cur, f, *about, in_place)
    long = _kernels.step(prev, cur, f, *about)
    back = _direct.inverse(long[1], cur, f, long[2], *about, False)
    return (*short, *back), (*long, *_kernels.inverse(long[1], cur, f, long[2], *about))


def equal(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and bits(a) == bits(b)


def bits(t):
    return t.contiguous().view(torch.uint8).tolist() if t.numel() and t.ndim else t.tolist()


@pytest.mark.parametrize("state, value", list(itertools.product(FIXED + FLOAT, VALUES)))
def test_same_bits(state, value):
    prev, cur, f = operands(state, value)
    for numbers, view, in_place in itertools.product(STEPS, (None, torch.float32, value), (False, True)):
        short, long = both(prev, cur, f, numbers, view, in_place)
        assert all(map(equal, short, long))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (31,), (33,), (1, 5, 1)])
def test_shapes(shape):
    prev, cur, f = operands(torch.int32, torch.float32, shape)
    short, long = both(prev, cur, f, STEPS[2], torch.float32)
    assert all(map(equal, short, long))


@pytest.mark.parametrize("state", FIXED + FLOAT)
@pytest.mark.parametrize("second", [STEPS[0], STEPS[1], STEPS[3]])
def test_rows_that_choose(state, second):
    prev, cur, f = operands(state, torch.float32)
    rows = torch.tensor([1, 0, 1], dtype=torch.uint8), list(second)
    for first, in_place in itertools.product(STEPS, (False, True)):
        short, long = both(prev, cur, f, first, torch.float32, in_place, rows)
        assert all(map(equal, short, long))


@pytest.mark.parametrize("value", VALUES)
def test_encode_decode_scale(value):
    _, _, x = operands(torch.int32, value)
    for state, view in itertools.product(FIXED + FLOAT, (None, *VALUES)):
        short, long = (way.encode(x, state, 20, view) for way in (_direct, _kernels))
        assert all(map(equal, short, long))
        if view is not None:
            assert equal(*(way.decode(short[1], 20, view) for way in (_direct, _kernels)))
    choice = torch.tensor([0, 1, 1], dtype=torch.uint8)
    for last, rows in itertools.product(VALUES, ((None, None), (choice, [0.5, -2.0, 0.0]))):
        short, long = (way.scale(x, [2.0, 0.25, -1.0], last, *rows) for way in (_direct, _kernels))
        assert all(map(equal, short, long)) and len(short) == 3


@pytest.mark.parametrize(
    "choice, second, words",
    [
        (torch.tensor([0, 2, 1], dtype=torch.uint8), STEPS[0], "choice has a value 2"),
        (torch.tensor([0, 1, 1]), STEPS[0], "choice has dtype"),
        (torch.tensor([0, 1], dtype=torch.uint8), STEPS[0], "choice has shape"),
        (torch.tensor([0, 1, 1], dtype=torch.uint8), STEPS[0][:2], "second has 2"),
        (None, STEPS[0], "second is given and choice is not"),
    ],
)
def test_choices_are_refused(choice, second, words):
    prev, cur, f = operands(torch.int32, torch.float32)
    with pytest.raises(ConfigError, match=words):
        ops.step(prev, cur, f, *STEPS[2], 20, None, choice, list(second))
    with pytest.raises(ConfigError, match=words):
        ops.scale(f, [1.0, 2.0, 3.0], torch.float32, choice, list(second))


def test_levels_and_threads_are_asked_for_by_the_long_way():
    """What the tests of instruction set levels rely on."""
    with checks.launched(0, 1):
        assert all(getattr(_direct, name)() is None for name in checks.DIRECT)
    assert ops.step(*operands(torch.int32, torch.float32), *STEPS[2], 20, None) is not None
    assert callable(_direct.kind) and _direct.step.__module__ == _direct.__name__


def test_factors_are_refused():
    x = torch.ones(3)
    with pytest.raises(ConfigError, match="0 factors are given"):
        ops.scale(x, [], torch.float32)
    with pytest.raises(ConfigError, match="the last product has dtype"):
        ops.scale(x, [1.0], torch.int32)


def test_plain_calls_take_it(monkeypatch):
    def long(*_):
        raise AssertionError("the long way")

    for name in ("step", "inverse", "encode", "decode", "scale"):
        monkeypatch.setattr(_kernels, name, long)
    ops.encode(torch.ones(3), torch.int32, 20, torch.float32)
    ops.decode(torch.ones(3, dtype=torch.int32), 20, torch.float32)
    ops.scale(torch.ones(3), [0.5], torch.float32)
    prev, cur, f = operands(torch.int32, torch.float32)
    _, nxt, carry, _ = ops.step(prev, cur, f, *STEPS[2], 20, torch.float32)
    assert torch.equal(ops.inverse(nxt, cur, f, carry, *STEPS[2], 20, None)[1], prev)
    with pytest.raises(AssertionError, match="the long way"):
        ops.step(prev, cur, f.t().contiguous().t(), *STEPS[2], 20, torch.float32)


def strided(t):
    return t.t().contiguous().t()


def negative(t):
    return torch._neg_view(-t)


@pytest.mark.parametrize("change", [strided, negative])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_dense_takes_the_long_way(change, which):
    """``negative``: a tensor that torch negates when it is read."""
    given = list(operands(torch.float32, torch.float32))
    whole = ops.step(*given, *STEPS[2], 20, torch.float32)
    given[which] = change(given[which])
    assert _direct.step(*given, *STEPS[2], 20, torch.float32, None, None, False) is None
    found = ops.step(*given, *STEPS[2], 20, torch.float32)
    assert all(bits(a) == bits(b) for a, b in zip(found, whole, strict=True))


def other(t, **changes):
    return t.to(**changes) if changes else t[:, :-1].contiguous()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda p, c, f: (p, c, other(f)), "increment f has shape"),
        (lambda p, c, f: (p, other(c), f), "two states differ"),
        (lambda p, c, f: (p, c.long(), f), "two states differ"),
        (lambda p, c, f: (p, None, f), "needs the current state"),
        (lambda p, c, f: (p.short(), c.short(), f), "state has dtype"),
        (lambda p, c, f: (p, c, f.int()), "increment f has dtype"),
    ],
)
def test_refusals_are_those_of_the_long_way(change, words):
    given = change(*operands(torch.int32, torch.float32))
    with pytest.raises(ConfigError, match=words):
        ops.step(*given, *STEPS[2], 20, torch.float32)


@pytest.mark.parametrize(
    "numbers, frac_bits, view, words",
    [
        (STEPS[2], 31, torch.float32, "frac_bits = 31"),
        (STEPS[2], 20, torch.int32, "float view has dtype"),
        ((0.0, 1.0, 1.0), 20, None, "not reversible"),
        ((1.0, 99.0, 1.0), 20, None, "beta"),
    ],
)
def test_numbers_are_refused(numbers, frac_bits, view, words):
    with pytest.raises(ConfigError, match=words):
        ops.step(*operands(torch.int32, torch.float32), *numbers, frac_bits, view)


@pytest.mark.parametrize("wrong", [lambda c: c[:-1], lambda c: c.long(), lambda c: c[:, :2].contiguous()])
def test_wrong_carries_are_refused(wrong):
    prev, cur, f = operands(torch.int32, torch.float32)
    _, nxt, carry, _ = ops.step(prev, cur, f, *STEPS[2], 20, None)
    with pytest.raises(ConfigError, match="pass the one the forward step returned"):
        ops.inverse(nxt, cur, f, wrong(carry), *STEPS[2], 20, None)


def test_carries_with_gaps_are_read():
    prev, cur, f = operands(torch.int32, torch.float32)
    _, nxt, carry, _ = ops.step(prev, cur, f, *STEPS[2], 20, None)
    assert torch.equal(ops.inverse(nxt, cur, f, strided(carry), *STEPS[2], 20, None)[1], prev)


def test_a_checksum_is_one_number():
    prev, *_ = operands(torch.int32, torch.float32)
    found = ops.checksum(prev)
    assert found.shape == () and found.dtype == torch.int64 and found.item() == ops.reference.checksum(prev)


def test_factors_in_another_order_are_noticed(monkeypatch):
    real = _direct.scale
    monkeypatch.setattr(_direct, "scale", lambda g, first, *rest: real(g, first[::-1], *rest))
    with pytest.raises(AssertionError):
        test_encode_decode_scale(torch.float32)


@pytest.mark.parametrize("broken", ["strides", "shapes"])
def test_a_fast_way_that_looks_less_is_noticed(monkeypatch, broken):
    """Broken on purpose: gaps, or another shape, are not looked at."""
    fit = {
        "strides": lambda state, cur, f, beta: f.shape == state.shape,
        "shapes": lambda state, cur, f, beta: f.is_contiguous() and cur.is_contiguous(),
    }[broken]
    monkeypatch.setattr(_direct, "_fit", fit)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        if broken == "strides":
            test_what_is_not_dense_takes_the_long_way(strided, 2)
        else:
            test_refusals_are_those_of_the_long_way(lambda p, c, f: (p, c[:1], f), "two states differ")


_LAST = """
import gc, torch, revstep
stack = revstep.ReversibleStack([torch.nn.Linear(8, 8) for _ in range(3)], revstep.Midpoint())
def make(stack):
    def step():
        out = stack(torch.randn(2, 8, requires_grad=True))
        raise RuntimeError("the last word")
    return step
step = make(stack)
stack(torch.randn(2, 8)).sum().backward()
gc.collect()
gc.freeze()
step()
"""


def test_an_exception_that_ends_the_process_has_the_last_word():
    """What its traceback keeps alive was reported as leaked, below it, by nanobind. Others may report theirs,
    as the triton does that torch 2.15 brings.
    """
    run = subprocess.run([sys.executable, "-c", _LAST], capture_output=True, text=True)
    assert run.returncode == 1
    before, found, after = run.stderr.partition("RuntimeError: the last word\n")
    ours = [name for name in dir(_C) if name[0].isupper() and f'{name}"' in after]
    assert found and ours == [] and "leaked" not in before
    assert not after or (after.startswith("nanobind: leaked") and "keep_alive" not in after)
