"""A step on the CPU whose contract is checked once, for loops that take it again and again on operands of one
kind: :func:`~revstep.ops.step` and :func:`~revstep.ops.inverse` without torch's dispatcher on the way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from ..errors import ConfigError
from ._coefficients import carry_shape
from ._direct import kind
from ._forks import threads
from ._kernels import _NO_CARRY, _dense, check_carry, check_step


class BoundStep:
    """``next = alpha prev + beta cur + gamma f`` for states and increments like those given.

    The same kernel with the same numbers, and so the same bits. Nothing is seen by torch's dispatcher: no
    autograd, no modes, no compiler.

    Args:
        state: a state on the CPU; others have to have its shape and dtype.
        value: an increment; others have to have its dtype.
        coefficients: alpha, beta, gamma.
        frac_bits, view_dtype: as for ``step``.

    Attributes:
        carry_bits: bits an element that ``inverse`` needs.

    Raises:
        ConfigError: operands or coefficients that ``step`` does not take, or a device without kernels.
    """

    __slots__ = (
        "_count", "_dtypes", "_kind", "_needs_cur", "_numbers", "_shape", "_view_dtype", "carry_bits",
    )  # fmt: skip

    def __init__(
        self,
        state: Tensor,
        value: Tensor,
        coefficients: tuple[float, float, float],
        frac_bits: int,
        view_dtype: torch.dtype | None,
    ):
        if not state.is_cpu:
            raise ConfigError(f"the state is on {state.device}, expected one on the CPU: use step")
        alpha, beta, gamma = coefficients
        bits = check_step(state, state, value, alpha, beta, gamma, frac_bits, view_dtype)
        self.carry_bits = bits
        self._shape = state.shape
        self._dtypes = state.dtype, value.dtype
        self._view_dtype = view_dtype
        self._needs_cur = beta != 0.0
        self._kind = kind(state.dtype, value.dtype, view_dtype, frac_bits)
        self._count = state.numel()
        self._numbers = alpha, beta, gamma, bits

    def step(self, prev: Tensor, cur: Tensor, f: Tensor, stats: int) -> tuple[Tensor | None, Tensor, Tensor]:
        """``(view, next, carry)``, the view None without a ``view_dtype``; the four numbers of the pass go to
        the address ``stats``.
        """
        bits = self.carry_bits
        carry = prev.new_empty(carry_shape(prev.numel(), bits), dtype=torch.int32) if bits else _NO_CARRY
        return *self._run(_C.step_of, prev, cur, f, carry, stats), carry

    def inverse(
        self, nxt: Tensor, cur: Tensor, f: Tensor, carry: Tensor, stats: int
    ) -> tuple[Tensor | None, Tensor]:
        """``(view, prev)``: what :meth:`step` made ``nxt`` of."""
        check_carry(nxt, carry, self.carry_bits)
        return self._run(_C.inverse_of, nxt, cur, f, _dense(carry), stats)

    def _run(self, kernel, source, cur, f, carry, stats):
        source, f = self._seen(source, 0), self._seen(f, 1)
        cur = self._seen(cur, 0) if self._needs_cur else None
        out = torch.empty_like(source)
        view = torch.empty_like(f, dtype=self._view_dtype) if self._view_dtype else None
        kernel(
            self._kind,
            self._count,
            source.data_ptr(),
            0 if cur is None else cur.data_ptr(),
            f.data_ptr(),
            out.data_ptr(),
            0 if view is None else view.data_ptr(),
            carry.data_ptr(),
            stats,
            *self._numbers,
            threads(),
        )
        return view, out

    def _seen(self, x: Tensor, which: int) -> Tensor:
        """An operand as the kernel reads it."""
        if x.dtype is not self._dtypes[which] or x.shape != self._shape or not x.is_cpu:
            raise ConfigError(
                f"bound to {('states', 'increments')[which]} {tuple(self._shape)} {self._dtypes[which]} on"
                f" the CPU, got {tuple(x.shape)} {x.dtype} on {x.device}: bind anew"
            )
        return _dense(x)
