"""Fingerprints of any tensor against their definition, float views against decode, and what both notice."""

import kernel_checks as checks
import look_checks as look
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revstep import _C, ops
from revstep.errors import ConfigError
from revstep.ops import reference

# ---- fingerprints ----


@st.composite
def strided(draw) -> torch.Tensor:
    """A tensor of any dtype and strides: reshaped, sliced, permuted, expanded."""
    dtype = draw(st.sampled_from(look.DTYPES))
    shape = draw(st.lists(st.integers(0, 9), max_size=4)) + draw(st.sampled_from([[], [1], [70], [257]]))
    count = max(1, torch.Size(shape).numel())
    x = look.memory(count * torch.empty((), dtype=dtype).element_size(), dtype, draw(st.integers(0, 99)))
    x = x[: torch.Size(shape).numel()].view(shape)
    for d in range(x.ndim):
        if draw(st.booleans()):
            start = draw(st.integers(0, max(0, x.shape[d] - 1)))
            x = x[(slice(None),) * d + (slice(start, None, draw(st.integers(1, 3))),)]
    x = x.permute(draw(st.permutations(range(x.ndim))))
    if draw(st.booleans()):
        d = draw(st.integers(0, x.ndim))
        x = x.unsqueeze(d).expand(*x.shape[:d], draw(st.integers(1, 4)), *x.shape[d:])
    return x


@given(x=strided(), every=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_any_tensor_has_the_fingerprint_of_the_definition(x, every, seed):
    look.check_definition(x, every, seed)


@pytest.mark.parametrize("dtype", look.DTYPES, ids=str)
def test_tensors_of_several_lines(dtype):
    for name, x in look.tensors(dtype).items():
        for every in look.EVERY:
            look.check_definition(x, every, 2**32 - 7, name)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("dtype", look.DTYPES, ids=str)
def test_a_changed_bit_is_noticed_in_exactly_one_of_so_many_lines(dtype, every):
    look.check_changes(dtype, every)


@given(st.data())
def test_any_two_values_of_a_lone_element_differ(data):
    """Weights are odd: whatever the index and the two values, the sums are different, in every width."""
    dtype = data.draw(st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]))
    bits = 8 * torch.empty((), dtype=dtype).element_size()
    n = data.draw(st.integers(1, 300))
    at = data.draw(st.integers(0, n - 1))
    a, b = (data.draw(st.integers(0, 2**bits - 1)) for _ in range(2))
    sums = []
    for value in (a, b):
        x = torch.zeros(n, dtype=dtype)
        x[at] = value if dtype == torch.uint8 or value < 2 ** (bits - 1) else value - 2**bits
        sums.append(ops.fingerprint(x))
    assert (sums[0] == sums[1]) == (a == b)


def test_the_seed_decides_only_which_lines():
    """A whole tensor has one fingerprint under every seed; a part of it has one for each choice of lines."""
    x = look.memory(64 * 100, torch.float32, 1)
    assert len({ops.fingerprint(x, 1, seed) for seed in (0, 1, 77, 2**32 - 1)}) == 1
    parts = [ops.fingerprint(x, 10, seed) for seed in range(50)]
    assert len(set(parts)) > 45 and parts == [ops.fingerprint(x.clone(), 10, seed) for seed in range(50)]


def test_one_arrangement_in_memory_one_fingerprint():
    """Elements count as they lie: a transposed view is its matrix, a copy that lies otherwise is not."""
    x = look.memory(4 * 35 * 20, torch.float32, 2).view(35, 20)
    whole = ops.fingerprint(x)
    for same in (x.t(), x.view(5, 7, 20).permute(2, 0, 1), x.expand(3, 35, 20)):
        assert ops.fingerprint(same) == whole
    assert whole == ops.fingerprint(x.view(torch.int32)) and whole != ops.fingerprint(x.t().contiguous())
    nchw = look.memory(4 * 2 * 3 * 8 * 8, torch.float32, 3).view(2, 3, 8, 8)
    assert ops.fingerprint(nchw) != ops.fingerprint(nchw.to(memory_format=torch.channels_last))


def test_what_lies_between_the_elements_does_not_matter():
    base = look.memory(4 * 64 * 40, torch.float32, 4).view(64, 40)
    view = base[:, 3:30:2]
    before = ops.fingerprint(view), ops.fingerprint(view, 4, 9)
    base[:, 30:] = 1.0
    base[:, :3] = 2.0
    base[:, 4:30:2] = 3.0
    assert (ops.fingerprint(view), ops.fingerprint(view, 4, 9)) == before
    view.view(torch.int32)[60, 5] ^= 1
    assert ops.fingerprint(view) != before[0]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_lazy_conjugates_and_negatives_are_read_as_they_lie(dtype):
    """The flag is not in the memory: an operator that is run again gives the same view the same flag."""
    x = look.memory(3000 * torch.empty((), dtype=dtype).element_size(), dtype, 5)
    for view in (x.conj(), x.conj()[::3], x.conj().imag, x.conj().real, x.conj().imag[5:]):
        look.check_definition(view, 1, 0)
        look.check_definition(view, 3, 8)
    assert ops.fingerprint(x.conj()) == ops.fingerprint(x)
    assert ops.fingerprint(x.conj().imag) == ops.fingerprint(x.imag)


def test_tensors_without_memory_have_no_fingerprint_and_are_not_read():
    """Forward mode's zeros, and a weight whose storage a sharding engine has let go: nothing is read."""
    zeros = torch._efficientzerotensor((300, 40))
    assert zeros.data_ptr() == 0 and ops.fingerprint(zeros) == 0 and ops.fingerprint(zeros[:, ::2], 3, 1) == 0
    for x in (torch.randn(300, 40), torch.randn(300, 40).t(), torch.randn(300, 40)[:, ::3], torch.randn(9)):
        had = ops.fingerprint(x)
        x.untyped_storage().resize_(0)
        assert ops.fingerprint(x) == 0 != had and ops.fingerprint(x, 2, 5) == 0


def test_a_part_of_a_storage_without_memory_is_not_read():
    """Its address is its offset, not 0: a slice of a weight that was let go, or of such zeros."""
    weight, zeros = torch.randn(300, 40), torch._efficientzerotensor((300, 40))
    parts = [part for x in (weight, zeros) for part in (x[7:], x[:, 3:], x.t()[5:], x[9, 4], x.view(-1)[99:])]
    weight.untyped_storage().resize_(0)
    assert all(part.data_ptr() != 0 for part in parts)
    for part in parts:
        assert ops.fingerprint(part) == 0 == ops.fingerprint(part, 4, 1)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (2, 3, 0, 4)])
def test_no_elements_sum_to_nothing(shape):
    for dtype in look.DTYPES:
        x = torch.empty(shape, dtype=dtype)
        assert ops.fingerprint(x) == 0 == int(reference.fingerprint(x, 1, 0))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.complex128], ids=str)
def test_dimensions_that_do_not_join(dtype):
    """Fifteen of them, the most that a tensor of any dtype may have; seventeen are refused."""
    shape, strides = [2] * 15, [3**d for d in range(15)]
    memory = look.memory(torch.empty((), dtype=dtype).element_size() * (sum(strides) + 1), dtype, 6)
    look.check_definition(memory.as_strided(shape, strides), 64, 3)
    with pytest.raises(ValueError, match="too many dimensions"):
        _C.sample(memory.data_ptr(), 1, [2] * 17, [3**d for d in range(17)], 1, 0)
    with pytest.raises(ValueError, match="every < 1"):
        ops.fingerprint(torch.ones(3), 0)


def test_how_much_is_looked_at():
    """All of a small tensor, 128 lines of a larger one, a 1024th of a very large one; or about 16 lines."""
    for nbytes in (0, 1, 64, ops._look.WHOLE_BYTES):
        assert ops.sparse(nbytes) == 1
    for nbytes in (
        ops._look.WHOLE_BYTES + 1,
        2**15,
        2**20,
        2**22,
        2**23 - 64,
        2**23,
        2**23 + 64,
        2**25,
        2**31,
    ):
        lines = -(-nbytes // 64)
        looked = -(-lines // ops.sparse(nbytes))
        assert looked <= 128 or ops.sparse(nbytes) == 1024, nbytes
        assert looked >= min(64, lines // 1024), nbytes
        assert 1 <= ops.sparse(nbytes) <= 1024
    for nbytes in (0, 1, 63, 64, 4095, 4096, 8192, 2**20, 2**31):
        assert ops.few(nbytes) >= 1 and -(-max(1, -(-nbytes // 64)) // ops.few(nbytes)) <= 32
    assert ops.few(2**20) == 2**20 // 1024


# ---- float views ----


@pytest.mark.parametrize("view", checks.VALUES, ids=str)
@pytest.mark.parametrize("state", checks.STATES, ids=str)
def test_a_view_differs_where_a_bit_does(state, view):
    look.check_differs(state, view)


@pytest.mark.parametrize("n", [0, 1, 4095, 4096, 4097, 65535, 65536, 70_001])
def test_differences_are_counted_once_on_any_number_of_threads(n):
    x = checks.states((n,), torch.int32, 3)
    y = ops.decode(x, 20, torch.float32)
    changed = sorted({0, n // 3, n // 2, n - 1}) if n else []
    for i in changed:
        y.view(torch.int32)[i] ^= 1
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            assert ops.differs(x, y, 20) == len(changed)
    finally:
        torch.set_num_threads(before)


def test_a_view_of_other_strides_goes_by_its_elements():
    x = checks.states((30, 50), torch.int32, 8)
    y = ops.decode(x, 20, torch.float32)
    assert ops.differs(x, y.t().contiguous().t(), 20) == 0 and ops.differs(x.t(), y.t(), 20) == 0
    y[3, 7] = -y[3, 7]
    assert ops.differs(x, y.t().contiguous().t(), 20) == 1


def test_zeros_of_both_signs_and_payloads_of_nan_are_different_bits():
    x = torch.zeros(3, dtype=torch.int32)
    assert ops.differs(x, torch.tensor([0.0, -0.0, 0.0]), 20) == 1
    nan = torch.tensor([float("nan")])
    assert ops.differs(nan, nan.clone(), 0) == 0
    assert ops.differs(nan, (nan.view(torch.int32) ^ 1).view(torch.float32), 0) == 1


def test_what_is_no_view_is_refused():
    whole, short = torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int16)
    good = whole.float()
    wrong = ((short, good, 20), (whole, whole, 20), (whole, good[:2], 20), (whole, good, 99))
    for state, view, frac_bits in wrong:
        with pytest.raises(ConfigError, match="expected"):
            ops.differs(state, view, frac_bits)


def test_a_tensor_without_memory_has_no_fingerprint():
    for device in ("cpu", "meta"):
        assert ops.fingerprint(torch.empty(0, 3, device=device)) == 0
