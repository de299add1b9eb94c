"""Compiled kernels against the pure-torch reference, bit for bit: dtypes, coefficients, shapes, layouts,
threads, levels.
"""

import kernel_checks as checks
import pytest
import torch

from revstep import _C, ops
from revstep.ops import reference

PAIRS = [
    pytest.param(s, v, id=f"{s}-{v}".replace("torch.", "")) for s in checks.STATES for v in checks.VALUES
]
LENGTHS = (0, 1, 31, 32, 33, 1023, 1024, 1025, 70001)
SHAPES = [(), *((n,) for n in LENGTHS), (3, 5, 7), (2, 0, 4)]


@pytest.mark.parametrize("state, value", PAIRS)
def test_every_coefficient_view_and_level(state, value):
    operands, launches = checks.operands((1061,), state, value), checks.launches()[:-2] * 2
    for i, c in enumerate(checks.COEFFICIENTS):
        checks.check_agreement(*operands, c, checks.VIEWS[i % 5 :] + checks.VIEWS[: i % 5], on=launches)


@pytest.mark.parametrize("state", checks.STATES, ids=str)
def test_every_view_dtype_and_point_position(state):
    operands = checks.operands((999,), state, torch.float32, seed=4)
    for frac_bits in {torch.int32: (0, 11, 20, 30), torch.int64: (0, 20, 40, 61)}.get(state, (0,)):
        for c in ((ops.snap(0.7), ops.snap(0.3), 0.25), (1.0, 0.0, 1.0)):
            checks.check_agreement(*operands, c, checks.VIEWS, frac_bits, on=[(-1, 1)] * len(checks.VIEWS))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("state", checks.STATES, ids=str)
def test_every_shape_thread_count_and_level(state, shape):
    n = torch.Size(shape).numel()
    cases = [
        (torch.bfloat16, (ops.snap(-0.3), ops.snap(1.3), 1.0)),
        (torch.float32, (1.0, 0.0, 0.5)),
        (torch.float64, (0.25, 0.75, 1.0)),
    ]
    for value, c in cases[:1] if n > 70000 else cases:
        checks.check_agreement(
            *checks.operands(shape, state, value, seed=n), c, (value,), on=checks.launches()
        )


@pytest.mark.parametrize("c", [(1.0, 0.0, 1.0), (0.25, 0.75, 1.5)], ids=str)
def test_large_outputs_are_those_of_small_ones(c):
    """From 16 MB of outputs on they are written past the cache: every element, in tiles with values at the
    limits and in a last one that is not whole too.
    """
    shape = (3 * 2**20 + 77,)
    prev, cur, f = checks.operands(shape, torch.int32, torch.float32)
    prev[-60:-40] = 2**31 - 1
    prev[2**20 + 5] = -(2**31) + 1
    found = []
    for level, threads in ((0, 1), (-1, 1), (-1, 2)):
        with checks.launched(level, threads):
            view, nxt, carry, stats = ops.step(prev, cur, f, *c, 20, torch.float32)
            back = ops.inverse(nxt, cur, f, carry, *c, 20, torch.bfloat16)
            ends = *ops.encode(f, torch.int32, 20, torch.float32), ops.decode(nxt, 20, torch.float64)
        found.append((view, nxt, carry, stats, *back, *ends))
    for others in found[1:]:
        assert all(checks.same(a, b) for a, b in zip(found[0], others))
    # One wrong element would be seen.
    assert not checks.same(found[0][1], found[0][1].clone().index_fill_(0, torch.tensor([2**20 + 5]), 0))


@pytest.mark.parametrize("threads", (1, 2))
def test_torchs_thread_count_is_obeyed_and_changes_nothing(threads, monkeypatch):
    seen = []
    for name in ("step_of", "inverse_of"):
        launch = getattr(_C, name)
        monkeypatch.setattr(_C, name, lambda *args, launch=launch: seen.append(args[-1]) or launch(*args))
    torch.set_num_threads(threads)
    checks.check_agreement(*checks.operands((70001,), torch.int32, torch.float32), (0.5, 0.5, 1.0))
    assert seen == [threads, threads]


def _layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values (3, 4, 6, 5) in other memory orders."""
    negative = torch._neg_view(-x) if x.is_floating_point() else x.flip(0).flip(0)
    wide = torch.zeros((3, 4, 6, 10), dtype=x.dtype)
    wide[..., ::2] = x
    return {
        "transposed": x.transpose(0, 3).contiguous().transpose(0, 3),
        "strided": wide[..., ::2],
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "negative view": negative,
        "offset": torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape),
        "graph": x.clone().requires_grad_() if x.is_floating_point() else x,
    }


@pytest.mark.parametrize("state", checks.STATES, ids=str)
def test_memory_order_does_not_matter(state):
    c = (ops.snap(0.7), ops.snap(0.3), 1.0)
    prev, cur, f = checks.operands((3, 4, 6, 5), state, torch.float32, seed=8)
    frac = checks.FRAC.get(state, 0)
    expected = reference.step(prev, cur, f, *c, frac, torch.float16)
    undone = reference.inverse(expected[1], cur, f, expected[2], *c, frac, torch.float16)
    for name in _layouts(prev):
        p, q, g, n = (_layouts(x)[name] for x in (prev, cur, f, expected[1]))
        got = ops.step(p, q, g, *c, frac, torch.float16)
        assert all(checks.same(a.detach(), b) for a, b in zip(got[:3], expected[:3])), name
        assert got[0].is_contiguous() and got[1].is_contiguous(), name
        got = ops.inverse(n, q, g, expected[2], *c, frac, torch.float16)
        assert all(checks.same(a.detach(), b) for a, b in zip(got[:2], undone[:2])), name
        assert int(ops.checksum(n.detach())) == reference.checksum(expected[1]), name
        assert checks.same(
            ops.decode(p, frac, torch.float32).detach(), reference.decode(prev, frac, torch.float32)
        ), name
        assert checks.same(
            ops.encode(g, state, frac, None)[1].detach(), reference.encode(f, state, frac, None)[1]
        ), name


def test_expanded_operands_serve_as_if_copied():
    row = checks.states((1, 40), torch.int32, 3)
    f = checks.floats((1, 40), torch.float32, 4)
    expanded = ops.step(
        row.expand(50, 40), row.expand(50, 40), f.expand(50, 40), 0.5, 0.5, 1.0, 20, torch.float32
    )
    copied = reference.step(
        row.repeat(50, 1), row.repeat(50, 1), f.repeat(50, 1), 0.5, 0.5, 1.0, 20, torch.float32
    )
    assert all(checks.same(a, b) for a, b in zip(expanded[:3], copied[:3]))


@pytest.mark.parametrize("state, value", PAIRS)
def test_encode_and_decode(state, value):
    frac = checks.FRAC.get(state, 0)
    for n in (0, 1, 33, 1025, 33_000):
        x, s = checks.floats((n,), value, n), checks.states((n,), state, n + 1)
        for view in checks.VIEWS if n == 1025 else (value,):
            theirs, decoded, total = (
                reference.encode(x, state, frac, view),
                reference.decode(s, frac, value),
                reference.checksum(s),
            )
            for level, threads in checks.launches():
                with checks.launched(level, threads):
                    ours = ops.encode(x, state, frac, view)
                    assert checks.same(ours[0], theirs[0]) and checks.same(ours[1], theirs[1])
                    assert checks.same_stats(ours[2], theirs[2], theirs[1]), (
                        ours[2].tolist(),
                        theirs[2].tolist(),
                    )
                    assert checks.same(ops.decode(s, frac, value), decoded)
                    assert int(ops.checksum(s)) == total


def test_the_comparison_itself_can_fail():
    nan, one = torch.tensor([float("nan")]), torch.tensor([1.0])
    assert checks.same(nan, -nan)
    assert not checks.same(nan, one) and not checks.same(one, nan)
    assert not checks.same(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not checks.same(one, one.double()) and not checks.same(one, torch.ones(1, 1))
    operands = checks.operands((64,), torch.int32, torch.float32)
    with checks.launched(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_HALF", 0)  # truncation instead of rounding
        with pytest.raises(AssertionError, match="state differs"):
            checks.check_agreement(*operands, (ops.snap(0.7), ops.snap(0.3), 1.0))
