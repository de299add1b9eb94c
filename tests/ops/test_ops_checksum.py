"""The checksum notices what can go wrong and nothing else; sizes beyond 2**31 elements."""

import kernel_checks as checks
import numpy as np
import pytest
import scalar_oracle as oracle
import torch
from hypothesis import given
from hypothesis import strategies as st

from revstep import _C, ops


@pytest.mark.parametrize("dtype", checks.STATES, ids=str)
def test_corruption_is_found(dtype):
    checks.check_checksum(dtype)


@given(st.data())
def test_any_two_changes_of_one_element_are_found(data):
    """The weight of an element is odd, so one changed element always changes the sum: for any index, any two
    values.
    """
    bits = data.draw(st.sampled_from([32, 64]))
    dtype = torch.int32 if bits == 32 else torch.int64
    n = data.draw(st.integers(1, 50))
    i = data.draw(st.integers(0, n - 1))
    a, b = (data.draw(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)) for _ in range(2))
    sums = []
    for value in (a, b):
        x = torch.zeros(n, dtype=dtype)
        x[i] = value
        sums.append(int(ops.checksum(x)))
        assert sums[-1] == oracle.checksum({i: value}, bits)
    assert (sums[0] == sums[1]) == (a == b)


@pytest.mark.parametrize("dtype", checks.STATES, ids=str)
def test_threads_levels_and_order_do_not_matter(dtype):
    x = (
        checks.states((200_003,), dtype, 1).nan_to_num(0.5)
        if dtype.is_floating_point
        else checks.states((200_003,), dtype, 1)
    )
    found = set()
    for level, threads in [*checks.launches(), (-1, 7)]:
        with checks.launched(level, threads):
            found.add(int(ops.checksum(x)))
    half = x.clone()
    half[100_000:] = 0
    rest = x - half
    parts = int(ops.checksum(half)) + int(ops.checksum(rest))
    assert len(found) == 1
    if not dtype.is_floating_point:  # x - half has no -0.0: parts add up in any order
        assert oracle.wrapped(parts, 64) == found.pop()


def test_step_encode_and_checksum_give_one_number():
    prev, cur, f = checks.operands((5000,), torch.int32, torch.float32)
    _, nxt, carry, stats = ops.step(prev, cur, f, 0.5, 0.5, 1.0, 20, None)
    assert int(stats[0]) == int(ops.checksum(nxt))
    _, back, stats = ops.inverse(nxt, cur, f, carry, 0.5, 0.5, 1.0, 20, None)
    assert int(stats[0]) == int(ops.checksum(back))
    _, state, stats = ops.encode(f, torch.int64, 32, None)
    assert int(stats[0]) == int(ops.checksum(state))


def _free_bytes() -> int:
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    """Zeros are mapped lazily, so only ``next`` (8 GiB) and the carries are real memory. Undone in place
    through the extension.
    """
    need = 14 * 2**30
    if _free_bytes() < need:
        pytest.skip(f"needs 14 GiB of free memory, {_free_bytes() / 2**30:.1f} are known to be available")
    n = 2**31 + 41
    alpha, frac = 0.5, 20
    # NumPy asks for huge pages: far fewer page faults.
    f = torch.from_numpy(np.zeros(n, np.int16)).view(torch.bfloat16)
    values = {0: 1.0, 2**31 - 1: -2.5, 2**31: 3.0, 2**31 + 1: 0.5, 2**31 + 39: 100.0}
    for i, v in values.items():
        f[i] = v
    f[n - 1] = float("nan")
    prev = torch.from_numpy(np.zeros(n, np.int32))
    _, nxt, carry, stats = ops.step(prev, None, f, alpha, 0.0, 1.0, frac, None)
    expected = {i: int(v * 2**frac) for i, v in values.items()}
    s = ops.read_stats(stats)[0]
    assert {i: int(nxt[i]) for i in values} == expected
    assert (s.checksum, s.bad, s.first_bad) == (oracle.checksum(expected, 32), 1, n - 1)
    code = _C.dtypes()
    in_place = _C.StepArgs(
        n=n,
        source=nxt.data_ptr(),
        cur=0,
        value=f.data_ptr(),
        out=nxt.data_ptr(),
        view=0,
        carry=carry.data_ptr(),
        stats=stats.data_ptr(),
        state=code["int32"],
        value_type=code["bfloat16"],
        view_type=code["float32"],
        alpha=alpha,
        beta=0.0,
        gamma=1.0,
        frac_bits=frac,
        carry_bits=1,
    )
    _C.inverse(in_place, threads=2, isa=-1)
    assert int(stats[0]) == 0 and not any(int(nxt[i]) for i in values)
