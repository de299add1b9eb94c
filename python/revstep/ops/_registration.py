"""torch.library registration: schemas, device kernels, fake kernels, autograd formulas."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _C
from ..errors import ReferenceKernelWarning
from . import _devices, _direct, _formats, _kernels, reference
from ._coefficients import carry_shape

_LIBRARY = torch.library.Library("revstep", "DEF")
#: Of rows whose ``choice`` is 1; the others, and all where there is none, take the first numbers.
_ROWS = "Tensor? choice=None, float[]? second=None"
_COMMON = f"float alpha, float beta, float gamma, int frac_bits, ScalarType? view_dtype, {_ROWS}"

_LIBRARY.define(
    f"step(Tensor prev, Tensor? cur, Tensor f, {_COMMON}) -> (Tensor view, Tensor next, Tensor carry, Tensor"
    " stats)"
)
_LIBRARY.define(
    f"inverse(Tensor nxt, Tensor? cur, Tensor f, Tensor carry, {_COMMON}) -> (Tensor view, Tensor prev,"
    " Tensor stats)"
)
_LIBRARY.define(
    "encode(Tensor x, ScalarType state_dtype, int frac_bits, ScalarType? view_dtype) -> (Tensor view, Tensor"
    " state, Tensor stats)"
)
_LIBRARY.define("decode(Tensor state, int frac_bits, ScalarType view_dtype) -> Tensor")
_LIBRARY.define("checksum(Tensor x) -> Tensor")
# Without defaults, which :func:`scale` has instead: where an operator returns a list, torch counts the
# gradients that backward returns against the arguments without trailing defaults
# (findings/list_output_default_arguments.sh).
_LIBRARY.define(
    "scale(Tensor g, float[] factors, ScalarType last_dtype, Tensor? choice, float[]? second) -> Tensor[]"
)


@functools.cache
def _warn_reference(device: torch.device) -> None:
    warnings.warn(
        f"revstep runs its pure-torch reference, not compiled kernels, on '{device}':"
        f" {_devices.refusal(device)}",
        ReferenceKernelWarning,
        stacklevel=4,
    )


def _reference_checksum(x: Tensor) -> Tensor:
    return torch.tensor(reference.checksum(x), dtype=torch.int64, device=x.device)


_CHECKS = {
    "encode": _formats.check_encode,
    "decode": _formats.check_decode,
    "checksum": _formats.check_checksum,
    "scale": _kernels.check_scale,
}


def _checked_reference(name: str):
    """The reference behind the same contract as the compiled kernels."""
    function = _reference_checksum if name == "checksum" else getattr(reference, name)

    def run(*args):
        _warn_reference(args[0].device)
        if name == "step":
            _kernels.check_step(*args)
        elif name == "inverse":
            _kernels.check_carry(args[0], args[3], _kernels.check_step(*args[:3], *args[4:]))
        else:
            _CHECKS[name](*args)
        return function(*args)

    return run


def _on_device(name: str):
    """The compiled kernel where the device can run it, which is not asked before the first call; else the
    reference.
    """
    compiled, checked = getattr(_kernels, name), _checked_reference(name)

    def run(*args):
        return (checked if _devices.refusal(args[0].device) else compiled)(*args)

    return run


def _register_kernels() -> None:
    for name in ("step", "inverse", "encode", "decode", "checksum", "scale"):
        _LIBRARY.impl(name, getattr(_kernels, name), "CPU")
        _LIBRARY.impl(name, _checked_reference(name), "CompositeExplicitAutograd")
        if _C.built_with_cuda():
            _LIBRARY.impl(name, _on_device(name), "CUDA")


def _fake_view(like: Tensor, dtype: torch.dtype | None) -> Tensor:
    return (
        like.new_empty((0,), dtype=torch.float32)
        if dtype is None
        else torch.empty(like.shape, dtype=dtype, device=like.device)
    )


def _fake_stats(like: Tensor) -> Tensor:
    return like.new_empty((4,), dtype=torch.int64)


def _fake_state(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(like.shape, dtype=dtype, device=like.device)


def _fake_step(prev, cur, f, alpha, beta, gamma, frac_bits, view_dtype, choice=None, second=None):
    bits = _kernels.check_step(
        prev, cur, f, alpha, beta, gamma, frac_bits, view_dtype, choice, second, values=False
    )
    carry = prev.new_empty(carry_shape(prev.numel(), bits), dtype=torch.int32)
    return _fake_view(prev, view_dtype), _fake_state(prev, prev.dtype), carry, _fake_stats(prev)


def _fake_inverse(nxt, cur, f, carry, alpha, beta, gamma, frac_bits, view_dtype, choice=None, second=None):
    _kernels.check_carry(
        nxt,
        carry,
        _kernels.check_step(
            nxt, cur, f, alpha, beta, gamma, frac_bits, view_dtype, choice, second, values=False
        ),
    )
    return _fake_view(nxt, view_dtype), _fake_state(nxt, nxt.dtype), _fake_stats(nxt)


def _fake_encode(x, state_dtype, frac_bits, view_dtype):
    _formats.check_encode(x, state_dtype, frac_bits, view_dtype)
    return _fake_view(x, view_dtype), _fake_state(x, state_dtype), _fake_stats(x)


def _fake_decode(state, frac_bits, view_dtype):
    _formats.check_decode(state, frac_bits, view_dtype)
    return _fake_state(state, view_dtype)


def _fake_checksum(x):
    _formats.check_checksum(x)
    return x.new_empty((), dtype=torch.int64)


def _scaled(g: Tensor | None, factor: float, dtype: torch.dtype) -> Tensor | None:
    if g is None or factor == 0.0:
        return None
    return (g if factor == 1.0 else g * factor).to(dtype)


def _sum(view: Tensor | None, state: Tensor | None) -> Tensor | None:
    """Cotangent of the new state: what came through its float view plus, for float states, what came
    directly.
    """
    if view is None or view.numel() == 0:
        return state
    return view if state is None else view + state


def _linear_context(ctx, inputs, output, inverse: bool) -> None:
    """Of a step or inverse: linear in (state, cur, f) with factors that are constant over all elements, or
    over a row.
    """
    state, cur, f = inputs[:3]
    *first, _, view_dtype, choice, second = inputs[-7:]
    ctx.dtypes = (state.dtype, None if cur is None else cur.dtype, f.dtype)
    sets = [first] if second is None else [first, second]
    ctx.factors = [(1 / a, -b / a, -g / a) if inverse else (a, b, g) for a, b, g in sets]
    ctx.others = len(inputs) - 3
    if second is not None:
        ctx.save_for_backward(choice)
    ctx.has_view = view_dtype is not None
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(x for x in output if not x.dtype.is_floating_point))


def _linear_backward(ctx, view, state, *_):
    floating = [dtype is not None and dtype.is_floating_point for dtype in ctx.dtypes]
    g = _sum(view if ctx.has_view else None, state if floating[0] else None)
    scaled = [
        [
            _scaled(g, factor, dtype) if ok else None
            for factor, dtype, ok in zip(factors, ctx.dtypes, floating)
        ]
        for factors in ctx.factors
    ]
    grads = [_select(*ctx.saved_tensors, *pair) for pair in zip(*scaled)] if len(scaled) == 2 else scaled[0]
    return (*grads, *(None,) * ctx.others)


def _select(choice: Tensor, first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Each row the gradient of its own set, so that its bits are those of a step of that set alone."""
    like = second if first is None else first
    if like is None:
        return None
    zero = like.new_zeros(())
    rows = (choice != 0).view(-1, *(1,) * (like.ndim - 1))
    return torch.where(rows, zero if second is None else second, zero if first is None else first)


def _register_linear(name: str) -> None:
    context = functools.partial(_linear_context, inverse=name == "inverse")
    torch.library.register_autograd(f"revstep::{name}", _linear_backward, setup_context=context)


def _fake_scale(g, factors, last_dtype, choice=None, second=None):
    _kernels.check_scale(g, factors, last_dtype, choice, second, values=False)
    return [_fake_state(g, g.dtype) for _ in factors[1:]] + [_fake_state(g, last_dtype)]


def _scale_context(ctx, inputs, output) -> None:
    g, factors, _, choice, second = inputs
    ctx.dtype = g.dtype
    ctx.sets = [factors] if second is None else [factors, second]
    ctx.others = len(inputs) - 1
    if second is not None:
        ctx.save_for_backward(choice)
    ctx.set_materialize_grads(False)


def _scale_backward(ctx, grads):
    """The sum of the products, in the order of the factors."""
    total = None
    for h, *factors in zip(grads, *ctx.sets):
        scaled = [_scaled(None if h is None else h.to(ctx.dtype), factor, ctx.dtype) for factor in factors]
        part = scaled[0] if len(scaled) == 1 else _select(*ctx.saved_tensors, *scaled)
        total = part if total is None else total if part is None else total + part
    return (total, *(None,) * ctx.others)


def _encode_context(ctx, inputs, output) -> None:
    x, state_dtype, _, view_dtype = inputs
    ctx.dtype = x.dtype
    ctx.float_state = state_dtype.is_floating_point
    ctx.has_view = view_dtype is not None
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(t for t in output if not t.dtype.is_floating_point))


def _encode_backward(ctx, view, state, _):
    return (
        _scaled(_sum(view if ctx.has_view else None, state if ctx.float_state else None), 1.0, ctx.dtype),
        None,
        None,
        None,
    )


def _decode_context(ctx, inputs, output) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)


def _decode_backward(ctx, view):
    return (_scaled(view, 1.0, ctx.dtype) if ctx.dtype.is_floating_point else None), None, None


_register_kernels()
torch.library.register_fake("revstep::step", _fake_step)
torch.library.register_fake("revstep::inverse", _fake_inverse)
torch.library.register_fake("revstep::encode", _fake_encode)
torch.library.register_fake("revstep::decode", _fake_decode)
torch.library.register_fake("revstep::checksum", _fake_checksum)
for _name in ("step", "inverse"):
    _register_linear(_name)
torch.library.register_fake("revstep::scale", _fake_scale)
torch.library.register_autograd("revstep::scale", _scale_backward, setup_context=_scale_context)
torch.library.register_autograd("revstep::encode", _encode_backward, setup_context=_encode_context)
torch.library.register_autograd("revstep::decode", _decode_backward, setup_context=_decode_context)

# ---- calls ----
#
# The dispatcher takes longer than a kernel on a small state. Where nobody but the kernel has anything to do
# with a call, it is not asked: ordinary tensors on the CPU, no gradient, no mode, no tracer, no compiler, no
# profiler.

_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state
_profiled = torch._C._autograd._profiler_enabled
_excluded = torch._C._dispatch_tls_is_dispatch_key_excluded
_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality


def _plain(*tensors: Tensor | None) -> bool:
    """Nothing stands between a call on these and its kernel."""
    if torch.compiler.is_compiling() or _modes() or _tracing() is not None:
        return False
    if _transforms() or forward_ad._current_level >= 0 or _profiled():
        return False
    watched = torch.is_grad_enabled() and not _excluded(_AUTOGRAD)
    for t in tensors:
        if t is None:
            continue
        if type(t) is not Tensor or not t.is_cpu or t.layout is not torch.strided or t.is_nested:
            return False
        if watched and t.requires_grad:
            return False
    return True


def step(
    prev: Tensor, cur: Tensor | None, f: Tensor, alpha: float, beta: float, gamma: float, frac_bits: int,
    view_dtype: torch.dtype | None, choice: Tensor | None = None, second: Sequence[float] | None = None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``in_place``: the memory of ``prev`` may take ``next``, where the call is a plain one."""
    if _plain(prev, cur, f, choice):
        given = prev, cur, f, alpha, beta, gamma, frac_bits, view_dtype, choice, second, in_place
        done = _direct.step(*given)
        return _kernels.step(*given) if done is None else done
    return torch.ops.revstep.step.default(
        prev, cur, f, alpha, beta, gamma, frac_bits, view_dtype, choice, second
    )


def inverse(
    nxt: Tensor, cur: Tensor | None, f: Tensor, carry: Tensor, alpha: float, beta: float, gamma: float,
    frac_bits: int, view_dtype: torch.dtype | None, choice: Tensor | None = None,
    second: Sequence[float] | None = None, in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``in_place``: the memory of ``nxt`` may take ``prev``, where the call is a plain one."""
    if _plain(nxt, cur, f, carry, choice):
        given = nxt, cur, f, carry, alpha, beta, gamma, frac_bits, view_dtype, choice, second, in_place
        done = _direct.inverse(*given)
        return _kernels.inverse(*given) if done is None else done
    return torch.ops.revstep.inverse.default(
        nxt, cur, f, carry, alpha, beta, gamma, frac_bits, view_dtype, choice, second
    )


def encode(
    x: Tensor, state_dtype: torch.dtype, frac_bits: int, view_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    if not _plain(x):
        return torch.ops.revstep.encode.default(x, state_dtype, frac_bits, view_dtype)
    done = _direct.encode(x, state_dtype, frac_bits, view_dtype)
    return _kernels.encode(x, state_dtype, frac_bits, view_dtype) if done is None else done


def decode(state: Tensor, frac_bits: int, view_dtype: torch.dtype) -> Tensor:
    if not _plain(state):
        return torch.ops.revstep.decode.default(state, frac_bits, view_dtype)
    done = _direct.decode(state, frac_bits, view_dtype)
    return _kernels.decode(state, frac_bits, view_dtype) if done is None else done


def checksum(x: Tensor) -> Tensor:
    call = _kernels.checksum if _plain(x) else torch.ops.revstep.checksum.default
    return call(x)


def scale(
    g: Tensor,
    factors: Sequence[float],
    last_dtype: torch.dtype,
    choice: Tensor | None = None,
    second: Sequence[float] | None = None,
) -> list[Tensor]:
    if not _plain(g, choice):
        return torch.ops.revstep.scale.default(g, factors, last_dtype, choice, second)
    done = _direct.scale(g, factors, last_dtype, choice, second)
    return _kernels.scale(g, factors, last_dtype, choice, second) if done is None else done
