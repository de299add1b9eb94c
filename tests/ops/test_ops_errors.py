"""Every way to misuse an operator ends in a ConfigError that says what was got and what was expected."""

import re

import pytest
import torch

from revstep import ops
from revstep.errors import ConfigError, ReferenceKernelWarning, RevstepError

I32, I64, F32 = torch.int32, torch.int64, torch.float32
STATE, F = torch.zeros(8, dtype=I32), torch.zeros(8)
NO_CARRY = torch.empty((0, 0), dtype=I32)


def step(prev=STATE, cur=STATE, f=F, alpha=1.0, beta=0.0, gamma=1.0, frac_bits=20, view=None):
    return ops.step(prev, cur, f, alpha, beta, gamma, frac_bits, view)


def inverse(
    nxt=STATE, cur=STATE, f=F, carry=NO_CARRY, alpha=1.0, beta=0.0, gamma=1.0, frac_bits=20, view=None
):
    return ops.inverse(nxt, cur, f, carry, alpha, beta, gamma, frac_bits, view)


OPERANDS = {
    "state dtype": (dict(first=STATE.to(torch.int16)), "state has dtype torch.int16, expected one of"),
    "half state": (dict(first=F.half()), "state has dtype torch.float16, expected one of"),
    "increment dtype": (dict(f=STATE), "the increment f has dtype torch.int32, expected one of"),
    "increment shape": (
        dict(f=torch.zeros(7)),
        "the increment f has shape (7,), the state (8,): a block must return the shape it was given",
    ),
    "broadcast": (dict(f=torch.zeros(1)), "the increment f has shape (1,), the state (8,)"),
    "increment device": (dict(f=F.to("meta")), "the increment f is on meta, the state on cpu"),
    "no cur": (dict(cur=None, beta=0.5, alpha=0.5), "beta = 0.5 needs the current state, got None"),
    "cur shape": (
        dict(cur=torch.zeros(4, dtype=I32), beta=1.0),
        "the two states differ: (4,) torch.int32 cpu and (8,) torch.int32 cpu",
    ),
    "cur dtype": (
        dict(cur=STATE.to(I64)),
        "the two states differ: (8,) torch.int64 cpu and (8,) torch.int32 cpu",
    ),
    "view dtype": (dict(view=I32), "the float view has dtype torch.int32, expected one of"),
    "frac_bits": (dict(frac_bits=31), "frac_bits = 31 for torch.int32, expected 0 to 30"),
    "negative frac_bits": (dict(frac_bits=-1), "frac_bits = -1 for torch.int32, expected 0 to 30"),
    "frac_bits of int64": (
        dict(first=STATE.to(I64), cur=None, frac_bits=62),
        "frac_bits = 62 for torch.int64, expected 0 to 61",
    ),
    "alpha 0": (
        dict(alpha=0.0),
        "alpha = 0 is not reversible: the step would forget prev; choose |alpha| >= 2**-8",
    ),
    "alpha 0 in floats": (
        dict(first=F, cur=None, alpha=0.0),
        "alpha = 0 is not reversible: the step would forget prev",
    ),
    "alpha off the grid": (
        dict(alpha=0.1),
        "alpha = 0.1 is not a multiple of 2**-24; use revstep.ops.snap(0.1) = 0.10000002384185791",
    ),
    "beta off the grid": (
        dict(beta=1 / 3),
        "beta = 0.3333333333333333 is not a multiple of 2**-24; use revstep.ops.snap",
    ),
    "alpha NaN": (
        dict(alpha=float("nan")),
        "alpha = nan is not a multiple of 2**-24; use revstep.ops.snap(nan) = a finite number",
    ),
    "alpha infinite": (dict(alpha=float("inf")), "a finite number"),
    "alpha small": (
        dict(alpha=2.0**-9),
        "|alpha| = 0.001953125 needs 9 carry bits an element; at most 8 are kept: choose |alpha| >= 2**-8",
    ),
    "alpha large": (dict(alpha=-2.5), "|alpha| = 2.5 is above 2.0, the largest the fixed-point kernels take"),
    "beta large": (dict(beta=-4.5), "|beta| = 4.5 is above 4.0, the largest the fixed-point kernels take"),
}


@pytest.mark.parametrize("function, first", [(step, "prev"), (inverse, "nxt")], ids=["step", "inverse"])
@pytest.mark.parametrize("change, message", OPERANDS.values(), ids=OPERANDS)
def test_operands_and_coefficients(function, first, change, message):
    change = {first if k == "first" else k: v for k, v in change.items()}
    with pytest.raises(ConfigError, match=re.escape(message)):
        function(**change)


@pytest.mark.parametrize(
    "carry",
    [NO_CARRY, torch.zeros(1, 2, dtype=I32), torch.zeros(2, 1, dtype=I32), torch.zeros(1, 1, dtype=I64)],
)
def test_a_carry_that_is_not_the_forward_one(carry):
    with pytest.raises(
        ConfigError,
        match=re.escape("expected (1, 1) torch.int32 cpu: pass the one the forward step returned"),
    ):
        inverse(carry=carry, alpha=0.5)


FORMATS = {
    "encode integers": (lambda: ops.encode(STATE, I32, 20, None), "x has dtype torch.int32, expected one of"),
    "encode to half": (
        lambda: ops.encode(F, torch.float16, 20, None),
        "state dtype is torch.float16, expected one of",
    ),
    "encode view": (lambda: ops.encode(F, I32, 20, I64), "the float view has dtype torch.int64"),
    "encode frac_bits": (
        lambda: ops.encode(F, I64, 62, None),
        "frac_bits = 62 for torch.int64, expected 0 to 61",
    ),
    "decode dtype": (lambda: ops.decode(F.half(), 20, F32), "state has dtype torch.float16, expected one of"),
    "decode view": (lambda: ops.decode(STATE, 20, I32), "the float view has dtype torch.int32"),
    "decode frac_bits": (
        lambda: ops.decode(STATE, 31, F32),
        "frac_bits = 31 for torch.int32, expected 0 to 30",
    ),
    "checksum dtype": (lambda: ops.checksum(F.bfloat16()), "x has dtype torch.bfloat16, expected one of"),
}


@pytest.mark.parametrize("call, message", FORMATS.values(), ids=FORMATS)
def test_formats(call, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("call, message", FORMATS.values(), ids=FORMATS)
def test_formats_of_meta_tensors(call, message, monkeypatch):
    """What has no numbers is checked by the same contract: a graph that would fail is not traced."""
    for name in ("STATE", "F"):
        monkeypatch.setitem(globals(), name, globals()[name].to("meta"))
    with pytest.raises(ConfigError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("function, first", [(step, "prev"), (inverse, "nxt")], ids=["step", "inverse"])
@pytest.mark.parametrize("change, message", OPERANDS.values(), ids=OPERANDS)
def test_operands_of_meta_tensors(function, first, change, message):
    given = {first: STATE, "cur": STATE, "f": F} | ({"carry": NO_CARRY} if function is inverse else {})
    given |= {first if k == "first" else k: v for k, v in change.items()}
    cpu = change.get("f")
    given = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    if cpu is not None and cpu.is_meta:  # the devices differ the other way round
        given["f"], message = F, "the increment f is on cpu, the state on meta"
    with pytest.raises(
        ConfigError, match=re.escape(message.replace(" cpu", " meta") if "differ" in message else message)
    ):
        function(**given)


def test_the_same_contract_without_real_tensors():
    """A mistake is named while a graph is traced, not only when it runs."""
    with pytest.raises(Exception, match="a block must return the shape it was given"):
        torch.compile(
            lambda p, f: ops.step(p, None, f, 1.0, 0.0, 1.0, 20, None)[1], fullgraph=True, backend="aot_eager"
        )(STATE, torch.zeros(7))


def test_config_errors_are_value_errors():
    assert issubclass(ConfigError, ValueError) and issubclass(ConfigError, RevstepError)


@pytest.mark.parametrize(
    "value, snapped", [(0.5, 0.5), (0.1, 1677722 / 2**24), (-0.7, -11744051 / 2**24), (0.0, 0.0)]
)
def test_snap(value, snapped):
    assert ops.snap(value) == snapped == ops.snap(snapped)


def test_no_operator_changes_its_operands():
    x = torch.randn(50)
    prev, cur = (torch.randint(-1000, 1000, (50,), dtype=I32) for _ in range(2))
    kept = [t.clone() for t in (prev, cur, x)]
    _, nxt, carry, _ = ops.step(prev, cur, x, 0.5, 0.5, 1.0, 20, F32)
    before = [t.clone() for t in (nxt, carry)]
    ops.inverse(nxt, cur, x, carry, 0.5, 0.5, 1.0, 20, F32)
    ops.decode(nxt, 20, F32)
    ops.checksum(nxt)
    assert all(torch.equal(a, b) for a, b in zip([*kept, *before], [prev, cur, x, nxt, carry]))
    same = torch.randn(5)
    for copy in (ops.decode(same, 0, F32), ops.encode(same, F32, 0, None)[1]):
        assert torch.equal(copy, same) and copy.data_ptr() != same.data_ptr()


def test_the_reference_says_that_it_is_running():
    from revstep.ops import _registration

    _registration._warn_reference.cache_clear()
    with pytest.warns(
        ReferenceKernelWarning,
        match="pure-torch reference, not compiled kernels, on 'xpu': there are none for 'xpu'",
    ):
        _registration._warn_reference(torch.device("xpu"))


@pytest.mark.parametrize(
    "arguments", [(-1, "n is negative"), (None, "level is not usable")], ids=["n", "level"]
)
def test_the_extension_checks_what_it_is_given(arguments):
    from revstep import _C

    n, message = arguments
    stats = torch.zeros(4, dtype=I64)
    with pytest.raises(RuntimeError, match=message):
        data, into = STATE.data_ptr(), stats.data_ptr()
        given = _C.ChecksumArgs(n=8 if n is None else n, data=data, stats=into, state=_C.dtypes()["int32"])
        _C.checksum(given, threads=1, isa=99 if n is None else -1)
