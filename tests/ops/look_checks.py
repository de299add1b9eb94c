"""The properties of the kernels that only look, as functions that raise AssertionError."""

import torch
from kernel_checks import FRAC, STATES, VALUES, states

from revstep import ops
from revstep.ops import reference

#: Every width of an element, and each kind of number.
DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
EVERY = (1, 2, 3, 8, 256)


def memory(nbytes: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bytes as a tensor of one dimension: NaN with any payload, signed zeros, subnormals."""
    raw = torch.randint(256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (raw & 1).bool() if dtype == torch.bool else raw.view(dtype)


def tensors(dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Of about four thousand elements each: one run in memory, and not."""
    x = memory(4160 * torch.empty((), dtype=dtype).element_size(), dtype, seed)
    matrix = x.view(64, 65)
    return {
        "one run": x, "a run with a tail": x[3:-5], "matrix": matrix, "transposed": matrix.t(),
        "columns": matrix[:, 7:50], "every other": x[::2],
        "heads": x.view(4, 10, 8, 13).transpose(1, 2)[..., :8],
        "expanded": matrix.unsqueeze(1).expand(64, 3, 65), "planes": x.view(16, 20, 13)[:, 2:17, ::3],
        "scalar": x[17], "empty": matrix[:, :0],
    }  # fmt: skip


def check_definition(x: torch.Tensor, every: int, seed: int, where: str = "") -> int:
    """The compiled fingerprint is the reference's. Returns it."""
    found, expected = int(ops.fingerprint(x, every, seed)), int(reference.fingerprint(x, every, seed))
    where = f"{where} {x.dtype}, shape {tuple(x.shape)}, strides {x.stride()}, every {every}, seed {seed}"
    assert found == expected, f"the fingerprint differs from the reference: {where}"
    return found


def flip(memory: torch.Tensor, element: int, bit: int) -> None:
    """One bit of one element of a tensor of one dimension, in place."""
    width = memory.element_size()
    memory.view(torch.uint8)[element * width + bit // 8] ^= 1 << bit % 8


def check_changes(dtype: torch.dtype, every: int) -> None:
    """A flipped bit is noticed in one unit of so many; over the seeds every unit has its turn."""
    x = memory(1000 * torch.empty((), dtype=dtype).element_size(), dtype, 3)
    bits, group = 1 if dtype == torch.bool else 8 * x.element_size(), 64 // x.element_size()
    units = -(-1000 // group)
    reached: set[int] = set()
    for seed in range(6 * every):
        before, seen = ops.fingerprint(x, every, seed), set()
        for unit in range(units):
            element = min(unit * group + seed % group, 999)
            flip(x, element, seed % bits)
            seen |= {unit} if ops.fingerprint(x, every, seed) != before else set()
            flip(x, element, seed % bits)
        groups = [unit // every for unit in sorted(seen)]
        expected = list(range(-(-units // every)))
        assert groups == expected, f"of {every} units not exactly one was looked at: {dtype}, seed {seed}"
        reached |= seen
    assert len(reached) == units, f"{len(reached)} of {units} units were looked at: {dtype}, every {every}"


def check_differs(state: torch.dtype, view: torch.dtype, n: int = 5000) -> None:
    """A view as decode gives it differs in nothing; with changed bits, in as many elements."""
    x, frac_bits = states((n,), state, 4), FRAC.get(state, 0)
    x = x.nan_to_num(0.5) if state.is_floating_point else x
    y = ops.decode(x, frac_bits, view)
    assert ops.differs(x, y, frac_bits) == 0, f"decode's own view differs from its state: {state}, {view}"
    for k, element in enumerate((0, n // 2, n - 1), 1):
        flip(y, element, k)
        assert ops.differs(x, y, frac_bits) == k, f"{k} changed elements were miscounted: {state}, {view}"


def battery() -> dict:
    """Name of every property to a function of no arguments, for broken builds."""

    def definition(names) -> None:
        for dtype in DTYPES:
            found = tensors(dtype)
            for name, every in ((name, every) for name in names(found) for every in EVERY):
                check_definition(found[name], every, 12345, name)

    some = (torch.float32, torch.bfloat16, torch.bool)
    return {
        "fingerprint of a run": lambda: definition(lambda found: [n for n in found if "run" in n]),
        "fingerprint of any strides": lambda: definition(lambda found: [n for n in found if "run" not in n]),
        "fingerprint sees changes": lambda: [check_changes(d, every) for d in some for every in (1, 3)],
        "view differs": lambda: [check_differs(state, view) for state in STATES for view in VALUES],
    }
