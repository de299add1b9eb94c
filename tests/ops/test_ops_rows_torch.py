"""step and inverse with a choice of rows as torch operators: what they refuse, fake kernels, gradients,
compilation.
"""

import re

import kernel_checks as checks
import pytest
import row_checks as rows
import torch

from revstep import ops
from revstep.errors import ConfigError
from revstep.ops import _registration

BDIA = rows.PAIRS["bdia"]

# ---- errors ----

STATE, F, CHOICE = (
    torch.zeros(4, 3, dtype=torch.int32),
    torch.zeros(4, 3),
    torch.tensor([0, 1, 1, 0], dtype=torch.uint8),
)
ERRORS = {
    "dtype": (
        dict(choice=CHOICE.bool()),
        "choice has dtype torch.bool, expected torch.uint8: use choice.to(torch.uint8)",
    ),
    "too few": (
        dict(choice=CHOICE[:3]),
        "choice has shape (3,), expected (4,): one value for each row of the state (4, 3)",
    ),
    "one for all": (dict(choice=CHOICE[:1]), "choice has shape (1,), expected (4,)"),
    "rank": (dict(choice=CHOICE.view(4, 1)), "choice has shape (4, 1), expected (4,)"),
    "device": (dict(choice=CHOICE.to("meta")), "choice is on meta, the state on cpu: move choice there"),
    "value": (
        dict(choice=CHOICE * 2),
        "choice has a value 2, expected 0 or 1: the index of the row's set of coefficients",
    ),
    "no rows": (
        dict(state=STATE[0, 0], f=F[0, 0], choice=CHOICE[:0]),
        "the state has no rows: its shape is (), expected (rows, ...); leave out choice and second",
    ),
    "two numbers": (
        dict(second=[0.5, 1.0]),
        "second has 2 values, expected 3: alpha, beta and gamma of the rows with choice 1",
    ),
    "second without choice": (
        dict(choice=None),
        (
            "second is given and choice is not: rows take second where their choice is 1, so pass both or"
            " neither"
        ),
    ),
    "choice without second": (dict(second=None), "choice is given and second is not"),
    "second alpha 0": (dict(alpha=[0.5, 0.0]), "alpha = 0 is not reversible: the step would forget prev"),
    "second alpha off the grid": (dict(alpha=[0.5, 0.1]), "alpha = 0.1 is not a multiple of 2**-24"),
    "second beta large": (dict(beta=[0.5, 5.0], cur=STATE), "|beta| = 5.0 is above 4.0"),
    "second beta needs cur": (dict(beta=[0.0, 0.5]), "beta = 0.5 needs the current state, got None"),
    "increment": (dict(f=F[:, :2]), "the increment f has shape (4, 2), the state (4, 3)"),
    "view": (dict(view=torch.int32), "the float view has dtype torch.int32"),
}


def call(
    inverse=False,
    state=STATE,
    cur=None,
    f=F,
    choice=CHOICE,
    alpha=(1.0, 0.5),
    beta=(0.0, 0.0),
    gamma=(1.0, 1.0),
    view=None,
    carry=None,
    **given,
):
    first, second = zip(alpha, beta, gamma)
    tail = (*first, 20, view, choice, given.get("second", list(second)))
    if not inverse:
        return ops.step(state, cur, f, *tail)
    return ops.inverse(state, cur, f, torch.zeros(1, 1, dtype=torch.int32) if carry is None else carry, *tail)


@pytest.mark.parametrize("inverse", (False, True), ids=("step", "inverse"))
@pytest.mark.parametrize("change, message", ERRORS.values(), ids=ERRORS)
def test_misuse(inverse, change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        call(inverse, **change)
    # The reference on other devices stands behind the same contract.
    with pytest.raises(ConfigError, match=re.escape(message)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_registration, "_warn_reference", lambda device: None)
            name = "inverse" if inverse else "step"
            patch.setattr(ops, name, _registration._checked_reference(name))
            call(inverse, **change)


def test_a_carry_that_is_not_the_forward_one():
    call(True)
    for carry in (
        torch.empty((0, 0), dtype=torch.int32),
        torch.zeros(1, 2, dtype=torch.int32),
        torch.zeros(1, 1, dtype=torch.int64),
    ):
        with pytest.raises(
            ConfigError,
            match=re.escape("expected (1, 1) torch.int32 cpu: pass the one the forward step returned"),
        ):
            call(True, carry=carry)


def test_the_extension_refuses_a_row_length_that_does_not_divide(monkeypatch):
    rows = checks._C.Rows
    monkeypatch.setattr(checks._C, "Rows", lambda choice, length: rows(choice=choice, length=5))
    with pytest.raises(RuntimeError, match="row_length is not a positive divisor of n"):
        call()


# ---- torch ----


def _arguments(name: str, state: torch.dtype):
    g = torch.Generator().manual_seed(0)
    prev, cur = (
        torch.randn(4, 12, generator=g, dtype=torch.float64)
        .mul(2.0 ** (0 if state.is_floating_point else 16))
        .to(state)
        for _ in range(2)
    )
    f = torch.randn(4, 12, generator=g).requires_grad_()
    prev, cur = (x.requires_grad_(state.is_floating_point) for x in (prev, cur))
    tail = (*BDIA[0], checks.FRAC.get(state, 0), torch.bfloat16, CHOICE, list(BDIA[1]))
    if name == "step":
        return prev, cur, f, *tail
    with torch.no_grad():
        _, nxt, carry, _ = ops.step(prev, cur, f, *tail)
    return nxt.requires_grad_(state.is_floating_point), cur, f, carry, *tail


@pytest.mark.parametrize("state", (torch.int32, torch.float64), ids=str)
@pytest.mark.parametrize("name", ("step", "inverse"))
def test_opcheck(name, state):
    torch.library.opcheck(getattr(torch.ops.revstep, name).default, _arguments(name, state))


@pytest.mark.parametrize("state", checks.STATES, ids=str)
@pytest.mark.parametrize("name", ("step", "inverse"))
def test_fake_kernels_promise_what_real_ones_give(name, state):
    from torch._subclasses.fake_tensor import FakeTensorMode

    arguments = _arguments(name, state)
    real = getattr(ops, name)(*arguments)
    with FakeTensorMode() as mode:
        fake = getattr(ops, name)(
            *(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments)
        )
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride())


@pytest.mark.parametrize("view", (None, torch.float64), ids=str)
@pytest.mark.parametrize("pair", rows.PAIRS.values(), ids=rows.PAIRS)
def test_float_gradients(pair, view):
    g = torch.Generator().manual_seed(1)
    prev, cur, f = (torch.randn(4, 3, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3))
    carry, coefficients = torch.empty((0, 0), dtype=torch.int32), rows.lists(pair)
    outputs = slice(0, 2) if view else slice(1, 2)
    assert torch.autograd.gradcheck(
        lambda p, q, h: rows.compiled.step(p, q, h, CHOICE, *coefficients, 0, view)[outputs], (prev, cur, f)
    )
    assert torch.autograd.gradcheck(
        lambda n, q, h: rows.compiled.inverse(n, q, h, carry, CHOICE, *coefficients, 0, view)[outputs],
        (prev, cur, f),
    )
    assert torch.autograd.gradgradcheck(
        lambda p, q, h: rows.compiled.step(p, q, h, CHOICE, *coefficients, 0, view)[1], (prev, cur, f)
    )


def test_gradcheck_rejects_the_gradient_of_the_other_set(monkeypatch):
    select = _registration._select
    monkeypatch.setattr(
        _registration, "_select", lambda choice, first, second: select(1 - choice, first, second)
    )
    f = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(
            lambda h: rows.compiled.step(
                torch.zeros_like(f), None, h, CHOICE, [1.0, 1.0], [0.0, 0.0], [0.5, 1.5], 0, None
            )[1],
            (f,),
        )


@pytest.mark.parametrize("state", (torch.int32, torch.float32), ids=str)
def test_the_gradients_of_a_row_are_those_of_its_set_alone(state):
    """Bit for bit, in bfloat16 with factors that it cannot hold."""
    pair = ((ops.snap(0.7), ops.snap(0.3), 1.7), (ops.snap(-0.3), ops.snap(1.3), 0.6))
    prev, cur, _ = checks.operands((4, 40), state, torch.float32)
    prev, cur = (torch.randn(4, 40).requires_grad_() if state.is_floating_point else x for x in (prev, cur))
    f, weight = torch.randn(4, 40).bfloat16().requires_grad_(), torch.randn(4, 40).bfloat16()
    wanted = (prev, cur, f) if state.is_floating_point else (f,)
    mixed = torch.autograd.grad(
        rows.compiled.step(prev, cur, f, CHOICE, *rows.lists(pair), 20, torch.bfloat16)[0], wanted, weight
    )
    alone = [
        torch.autograd.grad(ops.step(prev, cur, f, *c, 20, torch.bfloat16)[0], wanted, weight) for c in pair
    ]
    for i, got in enumerate(mixed):
        for b in range(4):
            assert torch.equal(got[b], alone[int(CHOICE[b])][i][b])


def test_compiled_chain_has_the_same_bits():
    def chain(x, f, choice):
        _, prev, _ = ops.encode(x, torch.int32, 20, None)
        view, nxt, carry, _ = rows.compiled.step(prev, prev, f, choice, *rows.lists(BDIA), 20, torch.float32)
        _, back, _ = rows.compiled.inverse(nxt, prev, f, carry, choice, *rows.lists(BDIA), 20, None)
        return torch.sin(view), nxt, back

    x, f = torch.randn(4, 33), torch.randn(4, 33)
    for a, b in zip(
        torch.compile(chain, fullgraph=True, backend="aot_eager")(x, f, CHOICE), chain(x, f, CHOICE)
    ):
        assert checks.same(a, b)
    assert torch.equal(chain(x, f, CHOICE)[2], ops.encode(x, torch.int32, 20, None)[1])


def test_operands_stay_as_they_were():
    prev, cur, f, choice = (*checks.operands((4, 40), torch.int32, torch.float32), CHOICE.clone())
    _, nxt, carry, _ = rows.compiled.step(prev, cur, f, choice, *rows.lists(BDIA), 20, torch.float32)
    operands = (prev, cur, f, nxt, carry)
    kept = [t.clone() for t in operands]
    rows.compiled.step(prev, cur, f, choice, *rows.lists(BDIA), 20, torch.float32)
    rows.compiled.inverse(nxt, cur, f, carry, choice, *rows.lists(BDIA), 20, torch.float32)
    assert all(checks.same(a, b) for a, b in zip(kept, operands)) and torch.equal(choice, CHOICE)
