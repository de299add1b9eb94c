"""step and inverse with a choice of rows: against the reference, against Python integers, against the step of
one set.
"""

import kernel_checks as checks
import pytest
import row_checks as rows
import scalar_oracle as oracle
import test_ops_invertibility as general
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revstep import ops
from revstep.ops import reference

BDIA = rows.PAIRS["bdia"]
#: Shorter than a carry word, one, one and a bit, a tile less and more, several tiles, and enough for two
#: threads with seven rows.
LENGTHS = (1, 5, 32, 33, 127, 130, 1000, 5000)


@pytest.mark.parametrize("value", checks.VALUES, ids=str)
@pytest.mark.parametrize("state", checks.STATES, ids=str)
def test_every_level_agrees_with_the_reference(state, value):
    for length in LENGTHS:
        for count in (1, 2, 7):
            operands, launches = (
                checks.operands((count, length), state, value, seed=length),
                checks.launches(),
            )
            for i, pair in enumerate(rows.PAIRS.values()):
                long = length == 5000
                if not long or i == (count + length) % len(rows.PAIRS):
                    views = checks.VIEWS[i:] + checks.VIEWS[:i]
                    rows.check_agreement(
                        *operands,
                        rows.choices(count, length + i),
                        pair,
                        views,
                        on=launches if long else launches[:-2],
                    )


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (1,), (70,), (3, 5, 7), (2, 4, 3, 5)], ids=str)
def test_every_rank_and_empty_states(shape):
    for state in checks.STATES:
        operands = checks.operands(shape, state, torch.float32, seed=1)
        for pair in rows.PAIRS.values():
            rows.check_agreement(*operands, rows.choices(shape[0], 3), pair)


@pytest.mark.parametrize("level", range(len(checks._C.isa_levels())))
@pytest.mark.parametrize("pair", rows.PAIRS.values(), ids=rows.PAIRS)
def test_python_integers(pair, level):
    with checks.launched(level, 1):
        for state in checks.FIXED:
            for shape in ((7, 5), (2, 33), (3, 130), (41, 1)):
                for value in (torch.float32, torch.float64):
                    operands = checks.operands(shape, state, value, seed=level)
                    rows.check_oracle(*operands, rows.choices(shape[0], level), pair, checks.FRAC[state])


@pytest.mark.parametrize("state", checks.STATES, ids=str)
def test_each_row_is_that_of_its_set_alone(state):
    """Rows of such a step are rows of step; the carries are the same words, with planes of zeros where the
    second set needs more.
    """
    prev, cur, f = checks.operands((6, 45), state, torch.bfloat16, seed=2)
    frac = checks.FRAC.get(state, 0)
    for pair in rows.PAIRS.values():
        choice = rows.choices(6, 4)
        alone = [ops.step(prev, cur, f, *c, frac, torch.float16) for c in pair]
        view, nxt, carry, _ = rows.compiled.step(prev, cur, f, choice, *rows.lists(pair), frac, torch.float16)
        for b in range(6):
            one = alone[int(choice[b])]
            assert checks.same(view[b], one[0][b]) and checks.same(nxt[b], one[1][b])
        for w in (0, 1):
            all_w = torch.full((6,), w, dtype=torch.uint8)
            got = rows.compiled.step(prev, cur, f, all_w, *rows.lists(pair), frac, torch.float16)
            assert (
                checks.same(got[0], alone[w][0])
                and checks.same(got[1], alone[w][1])
                and checks.same_stats(got[3], alone[w][3], got[1])
            )
            planes = alone[w][2].shape[1]
            if carry.shape[1] == planes:
                assert torch.equal(got[2], alone[w][2])
            else:
                assert not got[2][:, planes:].any() and (
                    planes == 0 or torch.equal(got[2][:, :planes], alone[w][2])
                )
            if not state.is_floating_point:
                continue
            back = rows.compiled.inverse(nxt, cur, f, carry, all_w, *rows.lists(pair), frac, None)[1]
            assert checks.same(back, ops.inverse(nxt, cur, f, alone[w][2], *pair[w], frac, None)[1])


def test_the_sets_exchanged_and_the_choice_inverted_is_the_same_step():
    for state in checks.STATES:
        operands, choice = checks.operands((5, 77), state, torch.float32, seed=6), rows.choices(5, 1)
        for a, b in rows.PAIRS.values():
            one = rows.compiled.step(
                *operands, choice, *rows.lists((a, b)), checks.FRAC.get(state, 0), torch.float32
            )
            two = rows.compiled.step(
                *operands, 1 - choice, *rows.lists((b, a)), checks.FRAC.get(state, 0), torch.float32
            )
            assert all(checks.same(x, y) for x, y in zip(one[:3], two[:3]))


@pytest.mark.parametrize("name", [n for n in rows.battery() if n != "rows agreement"])
def test_battery(name):
    rows.battery()[name]()


@pytest.mark.parametrize("state", checks.FIXED, ids=str)
def test_a_wrong_choice_does_not_come_back(state):
    """The round trip can fail: undone with another row's coefficients, exactly that row is wrong."""
    prev, cur = (checks.states((3, 200), state, i) // 16 for i in (1, 2))
    f, choice = torch.randn(3, 200), torch.tensor([0, 1, 0], dtype=torch.uint8)
    _, nxt, carry, stats = rows.compiled.step(
        prev, cur, f, choice, *rows.lists(BDIA), checks.FRAC[state], None
    )
    assert ops.read_stats(stats)[0].bad == 0
    choice[2] = 1
    back = rows.compiled.inverse(nxt, cur, f, carry, choice, *rows.lists(BDIA), checks.FRAC[state], None)[1]
    assert (back != prev).any(1).tolist() == [False, False, True]


def test_a_long_chain_comes_back():
    """BDIA through 200 layers, the choice drawn anew in each."""
    first = second = ops.encode(
        torch.randn(7, 31, generator=torch.Generator().manual_seed(0)), torch.int32, 20, None
    )[1]
    kept, prev, cur = [], first, second
    scaled = tuple((a, b, 0.1 * g) for a, b, g in BDIA)
    for layer in range(200):
        f, choice = torch.sin(ops.decode(cur, 20, torch.float32)), rows.choices(7, layer)
        _, nxt, carry, stats = rows.compiled.step(prev, cur, f, choice, *rows.lists(scaled), 20, None)
        assert ops.read_stats(stats)[0].bad == 0
        kept.append((carry, choice))
        prev, cur = cur, nxt
    for carry, choice in reversed(kept):
        f = torch.sin(ops.decode(prev, 20, torch.float32))
        prev, cur = rows.compiled.inverse(cur, prev, f, carry, choice, *rows.lists(scaled), 20, None)[1], prev
    assert torch.equal(prev, first) and torch.equal(cur, second)


@st.composite
def problems(draw):
    prev, cur, f, c, frac_bits = draw(general.problems(max_length=1))
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 12)))
    n = shape[0] * shape[1]
    elements = st.lists(general.state_elements(checks.width(prev.dtype)), min_size=n, max_size=n)
    prev, cur = (torch.tensor(draw(elements), dtype=prev.dtype).view(shape) for _ in range(2))
    f = general.float_tensor(
        draw(st.lists(general.float_bits(f.dtype), min_size=n, max_size=n)), f.dtype
    ).view(shape)
    second = (draw(general.alphas), draw(general.betas), draw(general.gammas))
    choice = torch.tensor(
        draw(st.lists(st.integers(0, 1), min_size=shape[0], max_size=shape[0])), dtype=torch.uint8
    )
    return prev, cur, f, choice, (c, second), frac_bits


@settings(max_examples=120)
@given(problems())
def test_any_bits_step_as_python_integers_say_and_come_back(problem):
    rows.check_oracle(*problem)
    rows.check_round_trip(*problem)


@pytest.mark.parametrize("state", checks.FIXED, ids=str)
def test_memory_order_does_not_matter(state):
    prev, cur, f = checks.operands((3, 4, 50), state, torch.float32, seed=8)
    choice = torch.tensor([1, 9, 0, 9, 1], dtype=torch.uint8)[::2]
    expected = rows.plain.step(prev, cur, f, choice, *rows.lists(BDIA), 20, torch.float32)
    turned = [x.transpose(0, 2).contiguous().transpose(0, 2) for x in (prev, cur, f)]
    got = rows.compiled.step(*turned, choice, *rows.lists(BDIA), 20, torch.float32)
    assert all(checks.same(a, b) for a, b in zip(got[:3], expected[:3])) and got[1].is_contiguous()


def test_the_comparison_can_fail():
    operands, choice = (
        checks.operands((4, 40), torch.int32, torch.float32),
        torch.tensor([0, 1, 1, 0], dtype=torch.uint8),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_by_row", lambda choice, of_set: of_set[0])
        with pytest.raises(AssertionError, match="state differs"):
            rows.check_agreement(*operands, choice, BDIA)


def test_the_oracle_of_the_rows_is_not_that_of_one_set():
    assert rows.of_elements(torch.tensor([1, 0]), (2, 3)) == [1, 1, 1, 0, 0, 0]
    assert oracle.carry_bits(0.25) == 2 and rows.lists(rows.PAIRS["quarter"])[0] == [0.25, -0.5]
