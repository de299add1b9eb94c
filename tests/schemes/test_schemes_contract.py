"""What every registered scheme owes: complete claims, checked coefficients, primitives that undo each other
in every state format.
"""

import dataclasses
import functools
import inspect
import math
import pickle
import re
import subprocess
import sys

import pytest
import torch

import revstep
from revstep import FixedPoint, Float, MidpointBlend, ops
from revstep.errors import ConfigError, StateOverflowError
from revstep.schemes import Claims, Scheme, available

SCHEMES = available()
FORMATS = [
    FixedPoint(32),
    FixedPoint(32, 12),
    FixedPoint(64),
    FixedPoint(64, 50),
    Float(torch.float32),
    Float(torch.float64),
]
#: The field every scheme has; the other numbers it takes are weights of ``prev``.
STEP_SIZE = "h"


def variants(name: str) -> list[Scheme]:
    """The default, a small step, and weights on both sides of 1 wherever a field takes them."""
    cls, out = SCHEMES[name], [SCHEMES[name](), SCHEMES[name](h=0.05)]
    for field in dataclasses.fields(cls):
        if field.init and field.name not in (STEP_SIZE, "seed"):
            for value in (0.3, -0.7, 1.0, -1.3, 1 / 256):
                try:
                    out.append(cls(h=0.1, **{field.name: value}))
                except ConfigError:
                    continue
    return out


CASES = [pytest.param(s, id=f"{name}-{i}") for name in SCHEMES for i, s in enumerate(variants(name))]


@pytest.mark.parametrize("name, cls", SCHEMES.items(), ids=SCHEMES)
def test_claims_are_complete(name, cls):
    claims = cls.claims
    assert cls.name == name and isinstance(claims, Claims)
    assert claims.order >= 1 and claims.evaluations == cls.halves and cls.halves in (1, 2)
    assert all(
        isinstance(text, str) and text.strip() for text in (claims.equation, claims.stability, claims.source)
    )
    assert cls.starts and set(cls.starts) <= set(revstep.schemes._base.STARTS) and cls.starts[0] == "repeat"
    assert "Source:" in inspect.getdoc(cls)
    assert getattr(revstep, cls.__name__) is cls and cls.__name__ in revstep.__all__
    module = inspect.getsourcefile(cls)
    assert len(open(module, encoding="utf-8").readlines()) <= 150


@pytest.mark.parametrize(
    "field, value", [("order", 0), ("evaluations", 0), ("source", ""), ("stability", "")]
)
def test_incomplete_claims_are_refused(field, value):
    with pytest.raises(ConfigError, match="incomplete claims"):
        dataclasses.replace(SCHEMES["midpoint"].claims, **{field: value})


def test_a_scheme_without_name_or_claims_is_refused():
    for attributes in (
        {"name": "x"},
        {"claims": SCHEMES["midpoint"].claims},
        {"name": 3, "claims": SCHEMES["midpoint"].claims},
    ):
        with pytest.raises(
            ConfigError, match=r"scheme class X must define `name` \(str\) and `claims` \(Claims\)"
        ):
            type("X", (Scheme,), attributes)


@pytest.mark.parametrize("scheme", CASES)
def test_coefficients_are_numbers_of_the_layer_alone(scheme):
    again = pickle.loads(pickle.dumps(scheme))
    for layer in range(6):
        c = scheme.coefficients(layer)
        assert all(math.isfinite(x) for x in c) and c.gamma != 0
        assert ops.snap(c.alpha) == c.alpha and ops.snap(c.beta) == c.beta, (
            "alpha and beta live on the 2**-24 grid"
        )
        assert c == scheme.coefficients(layer) == again.coefficients(layer)
        assert 0 <= ops.carry_bits(c.alpha) <= 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        scheme.h = 3.0
    assert scheme == again and hash(scheme) == hash(again)


@pytest.mark.parametrize(
    "scheme, layer, expected",
    [
        (SCHEMES["midpoint"](h=0.25), 5, (1.0, 0.0, 0.5)),
        (SCHEMES["leapfrog"](h=0.5), 1, (-1.0, 2.0, 0.25)),
        (SCHEMES["blend"](c=-0.5, h=0.5), 3, (-0.5, 1.5, 0.25)),
        (SCHEMES["blend"](c=1.0, h=0.5), 0, (1.0, 0.0, 1.0)),
        (SCHEMES["midpoint_blend"](a=0.75, h=0.5), 2, (0.75, 0.25, 0.5)),
        (SCHEMES["hamiltonian"](h=0.5, a=0.75, b=-1.25), 4, (0.75, 0.0, 0.5)),
        (SCHEMES["hamiltonian"](h=0.5, a=0.75, b=-1.25), 5, (-1.25, 0.0, 0.5)),
    ],
    ids=repr,
)
def test_coefficients_are_those_of_the_source(scheme, layer, expected):
    assert scheme.coefficients(layer) == expected


@pytest.mark.parametrize("c", (1.0 + 2.0**-24, -1.5))
def test_blend_refuses_a_growing_parasitic_root(c):
    with pytest.raises(
        ConfigError, match=r"Blend c = .*: expected \|c\| <= 1 \(above, the parasitic root -c grows\)"
    ):
        SCHEMES["blend"](c=c)


#: Options that are no number of every layer; Blend's weights are a list, checked in test_blend_by_layer.
OTHERS = ("seed", "weights")
NUMBERS = [
    (cls, f.name)
    for cls in SCHEMES.values()
    for f in dataclasses.fields(cls)
    if f.init and f.name not in OTHERS
]


@pytest.mark.parametrize("bad", [0, 0.0, float("nan"), float("inf"), True, None, "1", 1j, [0.0]], ids=repr)
@pytest.mark.parametrize("cls, field", NUMBERS, ids=[f"{c.name}-{f}" for c, f in NUMBERS])
def test_every_number_is_checked(cls, field, bad):
    with pytest.raises(ConfigError, match=rf"{cls.__name__} {field}(\[0\])? = .*expected"):
        cls(**{field: bad})


WEIGHTS = [(cls, field) for cls, field in NUMBERS if field != STEP_SIZE]


@pytest.mark.parametrize("cls, field", WEIGHTS, ids=[f"{c.name}-{f}" for c, f in WEIGHTS])
def test_weights_of_prev_stay_undoable(cls, field):
    with pytest.raises(
        ConfigError, match=r"needs 9 carry bits an element; at most 8 are kept: choose \|alpha\| >= 2\*\*-8"
    ):
        cls(**{field: 2.0**-9})
    with pytest.raises(ConfigError, match="alpha = 0 is not reversible"):
        cls(**{field: 1e-9})  # snaps to 0
    with pytest.raises(ConfigError, match=r"above 2\.0|expected \|c\| <= 1"):
        cls(**{field: 2.5})
    assert getattr(cls(**{field: 0.7}), field) == ops.snap(0.7)


def test_lists_of_weights():
    scheme = MidpointBlend(a=[0.5, -1.25, 0.1])
    assert [scheme.coefficients(j).alpha for j in range(3)] == [0.5, -1.25, ops.snap(0.1)]
    assert [scheme.coefficients(j).beta for j in range(3)] == [0.5, 2.25, 1 - ops.snap(0.1)]
    for layer in (-1, 3):
        with pytest.raises(ConfigError, match=f"has values of a for layers 0 to 2, got layer {layer}"):
            scheme.coefficients(layer)
    for depth in (2, 4):
        with pytest.raises(
            ConfigError, match=f"has 3 values of a for {depth} layers: give one a layer, or one number"
        ):
            scheme.check_depth(depth)
    scheme.check_depth(3)
    with pytest.raises(ConfigError, match=r"MidpointBlend a\[1\] = 0: expected"):
        MidpointBlend(a=[0.5, 0])
    with pytest.raises(ConfigError, match="a = 'papers': expected a number, a list of numbers or 'paper'"):
        MidpointBlend(a="papers")
    with pytest.raises(ConfigError, match="seed = -1: expected a non-negative integer"):
        MidpointBlend(seed=-1)


# ---- the primitives ----


def _field(x):
    return torch.tanh(x) * 0.5


@pytest.mark.parametrize("value", (torch.float32, torch.float64, torch.bfloat16), ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("scheme", CASES)
def test_inverse_undoes_step(scheme, fmt, value):
    g = torch.Generator().manual_seed(0)
    prev, cur = (fmt.encode(torch.randn(5, 67, generator=g).clamp(-3, 3))[1] for _ in range(2))
    for layer in range(2 * scheme.halves):
        f = _field(fmt.decode(cur, torch.float32)).to(value)
        nxt, carry = scheme.step(prev, cur, f, layer=layer, state=fmt, return_carry=True)
        c = scheme.coefficients(layer)
        assert nxt.dtype == fmt.dtype and not torch.equal(nxt, prev)
        bits = ops.carry_bits(c.alpha) if fmt.exact else 0
        assert carry.shape == ops.carry_shape(prev.numel(), bits)
        back = scheme.inverse(nxt, cur, f, layer=layer, state=fmt, carry=carry if bits else None)
        if fmt.exact:
            assert torch.equal(back, prev)
        else:  # six roundings of values up to the largest term, divided by alpha
            bound = (
                8
                * torch.finfo(fmt.dtype).eps
                * (3 * (abs(c.alpha) + abs(c.beta)) + abs(c.gamma) + float(nxt.abs().max()))
                / abs(c.alpha)
            )
            assert float((back - prev).abs().max()) <= bound
        prev, cur = cur, nxt


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.exact], ids=str)
@pytest.mark.parametrize("scheme", CASES)
def test_a_wrong_inverse_would_be_seen(scheme, fmt):
    """The comparison above is not empty: another increment, layer state or carry does not lead back."""
    prev, cur = (fmt.encode(torch.linspace(-1, 1, 64).roll(k))[1] for k in (0, 5))
    f = torch.linspace(0.3, 0.6, 64)
    nxt, carry = scheme.step(prev, cur, f, state=fmt, return_carry=True)
    kept = carry if carry.numel() else None
    assert torch.equal(scheme.inverse(nxt, cur, f, state=fmt, carry=kept), prev)
    assert not torch.equal(scheme.inverse(nxt, cur, -f, state=fmt, carry=kept), prev)
    assert not torch.equal(scheme.inverse(nxt + 2, cur, f, state=fmt, carry=kept), prev)
    if kept is not None:
        assert not torch.equal(scheme.inverse(nxt, cur, f, state=fmt, carry=kept ^ 1), prev)
        with pytest.raises(
            ConfigError, match=r"\|alpha\| = .* < 1: pass carry=, from step\(\.\.\., return_carry=True\)"
        ):
            scheme.inverse(nxt, cur, f, state=fmt)


@pytest.mark.parametrize("name", SCHEMES)
def test_increments_may_be_functions_of_the_view(name):
    scheme = SCHEMES[name](h=0.1)
    views = {
        FixedPoint(32): torch.float32,
        FixedPoint(64): torch.float64,
        Float(torch.float32): torch.float32,
        Float(torch.float64): torch.float64,
    }
    for fmt, dtype in views.items():
        prev, cur = (fmt.encode(torch.randn(20))[1] for _ in range(2))
        seen = []
        a = scheme.step(prev, cur, lambda x, seen=seen: seen.append(x) or _field(x), state=fmt)
        assert seen[0].dtype == dtype and torch.equal(seen[0], fmt.decode(cur, dtype))
        assert torch.equal(a, scheme.step(prev, cur, _field(seen[0]), state=fmt))


@pytest.mark.parametrize("name", SCHEMES)
def test_the_format_is_inferred_or_must_fit(name):
    scheme = SCHEMES[name](h=0.1)
    for fmt in (FixedPoint(32), FixedPoint(64), Float(torch.float32), Float(torch.float64)):
        x = fmt.encode(torch.randn(9))[1]
        f = torch.randn(9)
        assert torch.equal(scheme.step(x, x, f), scheme.step(x, x, f, state=fmt))
    message = (
        "states are torch.float32, but FixedPoint(bits=32, frac_bits=20) holds torch.int32: encode them with"
        " state.encode(x)"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        scheme.step(f, f, f, state=FixedPoint())


@pytest.mark.parametrize("name", SCHEMES)
def test_leaving_the_range_is_an_error(name):
    scheme, fmt = SCHEMES[name](), FixedPoint()
    x = fmt.encode(torch.zeros(50))[1]
    f = torch.zeros(50)
    f[17] = 1e6
    carry = torch.zeros(ops.carry_shape(50, ops.carry_bits(scheme.coefficients(3).alpha)), dtype=torch.int32)
    for call in (scheme.step, functools.partial(scheme.inverse, carry=carry)):
        with pytest.raises(
            StateOverflowError, match=r"layer 3: 1 value\(s\) outside FixedPoint.*first at flat index 17"
        ) as info:
            call(x, x, f, layer=3, state=fmt)
        assert info.value.layer == 3 and info.value.largest > info.value.limit == fmt.limit
    assert scheme.step(x, x, f, state=FixedPoint(on_nonfinite="propagate")).dtype == torch.int32


@pytest.mark.parametrize("name", SCHEMES)
def test_float_steps_are_differentiable(name):
    scheme = SCHEMES[name](h=0.3)
    prev, cur, f = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda p, c, g: scheme.step(p, c, g), (prev, cur, f))


@pytest.mark.parametrize("name", SCHEMES)
def test_starts(name):
    scheme = SCHEMES[name](h=0.25)
    for layer in range(3):
        assert scheme.start_coefficients(layer, "repeat") == scheme.coefficients(layer)
        if "euler" in scheme.starts and layer:
            assert scheme.start_coefficients(layer, "euler") == scheme.coefficients(layer)
    if "euler" in scheme.starts:
        first = scheme.start_coefficients(0, "euler")
        assert first[:2] == (1.0, 0.0) and 0 < first.gamma < 1
    else:
        with pytest.raises(
            ConfigError, match=re.escape(f"{name} has no start 'euler', expected one of {scheme.starts}")
        ):
            scheme.start_coefficients(0, "euler")


@pytest.mark.parametrize("scheme", CASES)
def test_amplification_is_the_product_of_what_the_inverse_divides_by(scheme):
    steps = 6 * scheme.halves
    expected = 1.0
    for k in range(steps):
        expected *= max(1.0, 1.0 / abs(scheme.coefficients(k).alpha))
    assert (
        scheme.amplification(steps) == pytest.approx(expected, rel=1e-12) and scheme.amplification(0) == 1.0
    )


# ---- the paper's draw ----


def test_the_draw_is_a_function_of_seed_and_layer():
    draws = {(s, j): MidpointBlend(seed=s).blend(j) for s in (0, 1, 2**40) for j in range(50)}
    assert len(set(draws.values())) == len(draws)
    backwards = MidpointBlend(seed=1)
    for j in reversed(range(50)):
        assert backwards.blend(j) == draws[1, j]
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = MidpointBlend(seed=1)
    assert [again.blend(j) for j in (7, 7, 3)] == [draws[1, 7], draws[1, 7], draws[1, 3]]
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert pickle.loads(pickle.dumps(again)).blend(49) == draws[1, 49]


def test_the_draw_is_the_same_in_another_process():
    code = "from revstep import MidpointBlend; print([MidpointBlend(seed=5).blend(j) for j in range(4)])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str([MidpointBlend(seed=5).blend(j) for j in range(4)])


def test_the_draw_has_the_papers_distribution():
    """+-1 + U(-1/2, 1/2): |a| uniform in [1/2, 3/2], either sign. Bounds: six standard deviations of 4000
    draws.
    """
    scheme, n = MidpointBlend(seed=3), 4000
    a = torch.tensor([scheme.blend(j) for j in range(n)], dtype=torch.float64)
    assert float(a.abs().min()) >= 0.5 and float(a.abs().max()) <= 1.5
    assert abs(float(a.sign().mean())) <= 6 / math.sqrt(n)
    assert abs(float(a.mean())) <= 6 * math.sqrt((1 + 1 / 12) / n)
    assert abs(float(a.abs().mean()) - 1) <= 6 * math.sqrt(1 / 12 / n)
    quarters = torch.histc(a.abs(), 4, 0.5, 1.5) / n
    assert float((quarters - 0.25).abs().max()) <= 6 * math.sqrt(0.25 * 0.75 / n)
    halves = (a[:-1].sign() * a[1:].sign()).mean()
    assert abs(float(halves)) <= 6 / math.sqrt(n), "neighbouring layers are independent"
