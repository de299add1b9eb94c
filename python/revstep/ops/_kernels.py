"""The compiled kernels behind the operator signatures of :mod:`revstep.ops.reference`.

Everything a type cannot say is checked here once: shapes, dtypes, devices, contiguity. The extension gets raw
pointers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C  # after torch, to whose OpenMP runtime it binds
from ..errors import ConfigError
from ._coefficients import MAX_BETA, carry_bits, carry_shape, numerator
from ._devices import current
from ._forks import threads
from ._formats import STATE_DTYPES, VALUE_DTYPES, check_checksum, check_decode, check_encode, check_format

#: The number of a dtype in the extension's structs.
_CODE = {getattr(torch, name): code for name, code in _C.dtypes().items()}
#: Most products that one pass of ``scale`` writes.
MAX_SCALED = _C.MAX_SCALED
#: Of every step on the CPU that has none: it has no elements.
_NO_CARRY = torch.empty(carry_shape(0, 0), dtype=torch.int32)
_STATS = torch.empty(4, dtype=torch.int64)


def check_operands(
    state: Tensor, cur: Tensor | None, f: Tensor, beta: float, frac_bits: int, view_dtype: torch.dtype | None
) -> None:
    """Contract of one step. Raises ConfigError naming the operand that breaks it."""
    if state.dtype not in STATE_DTYPES:
        raise ConfigError(f"state has dtype {state.dtype}, expected one of {STATE_DTYPES}")
    if f.dtype not in VALUE_DTYPES:
        raise ConfigError(f"the increment f has dtype {f.dtype}, expected one of {VALUE_DTYPES}")
    if f.shape != state.shape:
        raise ConfigError(
            f"the increment f has shape {tuple(f.shape)}, the state {tuple(state.shape)}: a block must return"
            " the shape it was given"
        )
    if f.device != state.device:
        raise ConfigError(f"the increment f is on {f.device}, the state on {state.device}")
    if beta != 0.0:
        if cur is None:
            raise ConfigError(f"beta = {beta} needs the current state, got None")
    if cur is not None:
        same = cur.shape == state.shape and cur.dtype == state.dtype and cur.device == state.device
        if not same:
            raise ConfigError(
                f"the two states differ: {tuple(cur.shape)} {cur.dtype} {cur.device} and {tuple(state.shape)}"
                f" {state.dtype} {state.device}"
            )
    check_format(state.dtype, frac_bits, view_dtype)


@functools.lru_cache(maxsize=1024)
def check_coefficients(state: torch.dtype, alpha: float, beta: float) -> int:
    """Carry bits of a step with these coefficients; 0 for float states."""
    if state.is_floating_point:
        if alpha == 0.0:
            raise ConfigError("alpha = 0 is not reversible: the step would forget prev")
        return 0
    numerator(beta, "beta")
    if abs(beta) > MAX_BETA:
        raise ConfigError(
            f"|beta| = {abs(beta)} is above {MAX_BETA}, the largest the fixed-point kernels take"
        )
    return carry_bits(alpha)


def check_carry(state: Tensor, carry: Tensor, bits: int) -> None:
    """The packed carries of a step with these many carry bits. Raises ConfigError."""
    expected = carry_shape(state.numel(), bits)
    if bits and (
        tuple(carry.shape) != expected or carry.dtype != torch.int32 or carry.device != state.device
    ):
        raise ConfigError(
            f"carry is {tuple(carry.shape)} {carry.dtype} {carry.device}, expected {expected} torch.int32"
            f" {state.device}: pass the one the forward step returned"
        )


def check_choice(state: Tensor, choice: Tensor | None, second: Sequence[float] | None, name: str) -> None:
    """One uint8 for each row of the tensor called ``name``, and the second set of numbers. Raises
    ConfigError.
    """
    if choice is None or second is None:
        missing, given = ("choice", "second") if choice is None else ("second", "choice")
        raise ConfigError(
            f"{given} is given and {missing} is not: rows take second where their choice is 1, so pass both"
            " or neither"
        )
    if state.ndim == 0:
        raise ConfigError(
            f"{name} has no rows: its shape is (), expected (rows, ...); leave out choice and second"
        )
    if choice.dtype != torch.uint8:
        raise ConfigError(
            f"choice has dtype {choice.dtype}, expected torch.uint8: use choice.to(torch.uint8)"
        )
    if tuple(choice.shape) != (state.shape[0],):
        raise ConfigError(
            f"choice has shape {tuple(choice.shape)}, expected ({state.shape[0]},): one value for each row of"
            f" {name} {tuple(state.shape)}"
        )
    if choice.device != state.device:
        raise ConfigError(f"choice is on {choice.device}, {name} on {state.device}: move choice there")


def check_choice_values(choice: Tensor) -> None:
    """0 and 1 only. Raises ConfigError. Reads the values: not for CUDA tensors, where that would wait for the
    device.
    """
    if choice.numel() and int(choice.max()) > 1:
        raise ConfigError(
            f"choice has a value {int(choice.max())}, expected 0 or 1: the index of the row's set of"
            " coefficients"
        )


def check_step(
    state: Tensor,
    cur: Tensor | None,
    f: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
    frac_bits: int,
    view_dtype: torch.dtype | None,
    choice: Tensor | None = None,
    second: Sequence[float] | None = None,
    values: bool = True,
) -> int:
    """Contract of one step; ``values``: also of those in ``choice``. Returns its carry bits. Raises
    ConfigError.
    """
    if choice is None and second is None:
        check_operands(state, cur, f, beta, frac_bits, view_dtype)
        return check_coefficients(state.dtype, alpha, beta)
    check_choice(state, choice, second, "the state")
    if len(second) != 3:
        raise ConfigError(
            f"second has {len(second)} values, expected 3: alpha, beta and gamma of the rows with choice 1"
        )
    check_operands(state, cur, f, beta or second[1], frac_bits, view_dtype)
    if values and choice.device.type != "cuda":
        check_choice_values(choice)
    return max(
        check_coefficients(state.dtype, alpha, beta), check_coefficients(state.dtype, second[0], second[1])
    )


def check_scale(
    g: Tensor,
    factors: Sequence[float],
    last_dtype: torch.dtype,
    choice: Tensor | None = None,
    second: Sequence[float] | None = None,
    values: bool = True,
) -> None:
    """Contract of multiples of one tensor; ``values``: also of those in ``choice``. Raises ConfigError."""
    for name, dtype in (("g", g.dtype), ("the last product", last_dtype)):
        if dtype not in VALUE_DTYPES:
            raise ConfigError(f"{name} has dtype {dtype}, expected one of {VALUE_DTYPES}")
    if not 1 <= len(factors) <= MAX_SCALED:
        raise ConfigError(f"{len(factors)} factors are given, expected 1 to {MAX_SCALED}")
    if choice is None and second is None:
        return
    check_choice(g, choice, second, "g")
    if len(factors) != len(second):
        raise ConfigError(f"{len(factors)} factors are given, second has {len(second)}: expected as many")
    if values and choice.device.type != "cuda":
        check_choice_values(choice)


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() and not x.is_neg() else x.resolve_neg().contiguous()


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()  # which is 0 where there are no elements


def _launch(kernel: str, device: torch.device, arguments: Any) -> None:
    """Run ``kernel`` of the extension on its struct of arguments, which are all on ``device``."""
    if device.type == "cuda":
        with current(device):
            getattr(_C, f"{kernel}_cuda")(arguments, torch.cuda.current_stream(device).cuda_stream)
    else:
        getattr(_C, kernel)(arguments, threads(), -1)


def _rows(x: Tensor, choice: Tensor) -> Any:
    """Which rows of ``x`` take the second numbers. A row without elements counts as one of length 1."""
    return _C.Rows(choice=_pointer(choice), length=max(1, x.numel() // max(1, choice.numel())))


def _new_view(like: Tensor, view_dtype: torch.dtype | None) -> Tensor:
    if view_dtype is None:
        return like.new_empty(0, dtype=torch.float32)
    # Its strides are those of ``like``, which is contiguous.
    return torch.empty_like(like) if view_dtype is like.dtype else torch.empty_like(like, dtype=view_dtype)


def new_stats(like: Tensor) -> Tensor:
    """The four numbers of a pass. A tensor like another is made sooner than one of a shape."""
    return torch.empty_like(_STATS) if like.is_cpu else like.new_empty(4, dtype=torch.int64)


def _run(state, cur, f, carry, first, frac_bits, bits, view_dtype, inverse, choice, second, in_place):
    """``first``, ``second``: (alpha, beta, gamma). Without ``choice`` every row takes the first."""
    second = (0.0, 0.0, 0.0) if second is None else second
    state, f = _dense(state), _dense(f)
    out = state if in_place else torch.empty_like(state)
    cur = _dense(cur) if first[1] != 0.0 or second[1] != 0.0 else None
    choice = None if choice is None else _dense(choice)
    view = _new_view(state, view_dtype)
    stats = new_stats(state)
    arguments = _C.StepArgs(
        n=state.numel(),
        source=_pointer(state),
        cur=_pointer(cur),
        value=_pointer(f),
        out=_pointer(out),
        view=_pointer(view),
        carry=_pointer(carry),
        stats=stats.data_ptr(),
        state=_CODE[state.dtype],
        value_type=_CODE[f.dtype],
        view_type=_CODE[view.dtype],
        alpha=first[0],
        beta=first[1],
        gamma=first[2],
        frac_bits=frac_bits,
        carry_bits=bits,
    )
    if choice is not None:
        arguments.by_row(rows=_rows(state, choice), alpha=second[0], beta=second[1], gamma=second[2])
    _launch("inverse" if inverse else "step", state.device, arguments)
    return view, out, stats


def step(
    prev: Tensor,
    cur: Tensor | None,
    f: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
    frac_bits: int,
    view_dtype: torch.dtype | None,
    choice: Tensor | None = None,
    second: Sequence[float] | None = None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bits = check_step(prev, cur, f, alpha, beta, gamma, frac_bits, view_dtype, choice, second)
    carry = (
        prev.new_empty(carry_shape(prev.numel(), bits), dtype=torch.int32)
        if bits or not prev.is_cpu
        else _NO_CARRY
    )
    view, out, stats = _run(
        prev,
        cur,
        f,
        carry,
        (alpha, beta, gamma),
        frac_bits,
        bits,
        view_dtype,
        False,
        choice,
        second,
        in_place,
    )
    return view, out, carry, stats


def inverse(
    nxt: Tensor,
    cur: Tensor | None,
    f: Tensor,
    carry: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
    frac_bits: int,
    view_dtype: torch.dtype | None,
    choice: Tensor | None = None,
    second: Sequence[float] | None = None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    bits = check_step(nxt, cur, f, alpha, beta, gamma, frac_bits, view_dtype, choice, second)
    check_carry(nxt, carry, bits)
    first = (alpha, beta, gamma)
    return _run(
        nxt, cur, f, _dense(carry), first, frac_bits, bits, view_dtype, True, choice, second, in_place
    )


def encode(
    x: Tensor, state_dtype: torch.dtype, frac_bits: int, view_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    check_encode(x, state_dtype, frac_bits, view_dtype)
    x = _dense(x)
    out = torch.empty_like(x, dtype=state_dtype, memory_format=torch.contiguous_format)
    view = _new_view(x, view_dtype)
    stats = new_stats(x)
    arguments = _C.EncodeArgs(
        n=x.numel(),
        x=_pointer(x),
        out=_pointer(out),
        view=_pointer(view),
        stats=stats.data_ptr(),
        value_type=_CODE[x.dtype],
        state=_CODE[state_dtype],
        view_type=_CODE[view.dtype],
        frac_bits=frac_bits,
    )
    _launch("encode", x.device, arguments)
    return view, out, stats


def decode_arguments(state: Tensor, view: Tensor, frac_bits: int) -> Any:
    """The struct for a contiguous state and the view that is written, or compared with it."""
    return _C.DecodeArgs(
        n=state.numel(),
        state_data=_pointer(state),
        view=_pointer(view),
        state=_CODE[state.dtype],
        view_type=_CODE[view.dtype],
        frac_bits=frac_bits,
    )


def decode(state: Tensor, frac_bits: int, view_dtype: torch.dtype) -> Tensor:
    check_decode(state, frac_bits, view_dtype)
    state = _dense(state)
    view = _new_view(state, view_dtype)
    _launch("decode", state.device, decode_arguments(state, view, frac_bits))
    return view


def checksum(x: Tensor) -> Tensor:
    check_checksum(x)
    x = _dense(x)
    stats = new_stats(x)
    arguments = _C.ChecksumArgs(n=x.numel(), data=_pointer(x), stats=stats.data_ptr(), state=_CODE[x.dtype])
    _launch("checksum", x.device, arguments)
    return stats.resize_(())  # the first of the four


def scale(
    g: Tensor,
    factors: list[float],
    last_dtype: torch.dtype,
    choice: Tensor | None = None,
    second: Sequence[float] | None = None,
) -> list[Tensor]:
    check_scale(g, factors, last_dtype, choice, second)
    return _scale(_dense(g), None if choice is None else _dense(choice), factors, second or [], last_dtype)


def _scale(
    g: Tensor, choice: Tensor | None, first: list[float], second: list[float], last_dtype: torch.dtype
) -> list[Tensor]:
    out = [*(torch.empty_like(g) for _ in first[1:]), _new_view(g, last_dtype)]
    arguments = _C.ScaleArgs(
        n=g.numel(),
        g=_pointer(g),
        out=[_pointer(x) for x in out],
        factors=first,
        value_type=_CODE[g.dtype],
        last_type=_CODE[last_dtype],
    )
    if choice is not None:
        arguments.by_row(rows=_rows(g, choice), factors=second)
    _launch("scale", g.device, arguments)
    return out
