"""Switches of the process on which the bits of a kernel depend: read when a pass or a run begins, set for the
time of a re-evaluation, put back afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.modules import module as global_hooks
from torch.overrides import _get_current_function_mode_stack


class Switch(NamedTuple):
    """A setting of the process: ``write(read())`` changes nothing."""

    name: str
    set_by: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _sdp_names() -> list[str]:
    getters = (n for n in dir(torch._C) if n.startswith("_get_") and n.endswith("_sdp_enabled"))
    found = [n[len("_get_") : -len("_sdp_enabled")] for n in getters]
    return [n for n in found if hasattr(torch._C, f"_set_sdp_use_{n}")]


_SDP = [
    (getattr(torch._C, f"_get_{n}_sdp_enabled"), getattr(torch._C, f"_set_sdp_use_{n}"))
    for n in _sdp_names()
]  # fmt: skip
_FP32 = list(itertools.product(("generic", "cuda", "mkldnn"), ("all", "matmul", "conv", "rnn")))
_FP32 = [pair for pair in _FP32 if pair[0] != "generic" or pair[1] == "all"]


def _read_attention() -> tuple:
    return (*(read() for read, _ in _SDP), *torch._C._get_sdp_priority_order())


def _write_attention(values: tuple) -> None:
    for (_, write), value in zip(_SDP, values):
        write(value)
    torch._C._set_sdp_priority_order(list(values[len(_SDP) :]))


def _read_precision() -> tuple:
    several = (torch._C._get_fp32_precision_getter(*pair) for pair in _FP32)
    return torch._C._get_float32_matmul_precision(), *several


def _write_precision(values: tuple) -> None:
    """The general settings first: they change those of the libraries, and what
    follows them follows them still.
    """
    if torch._C._get_float32_matmul_precision() != values[0]:
        torch._C._set_float32_matmul_precision(values[0])
    for pair, value in zip(_FP32, values[1:]):
        if torch._C._get_fp32_precision_getter(*pair) != value:
            torch._C._set_fp32_precision_setter(*pair, value)


_REDUCED = [
    (getattr(torch._C, f"_get_cublas_allow_{n}"), getattr(torch._C, f"_set_cublas_allow_{n}"))
    for n in ("fp16_reduced_precision_reduction", "bf16_reduced_precision_reduction", "fp16_accumulation")
    if hasattr(torch._C, f"_get_cublas_allow_{n}")
]


def _read_reduced() -> tuple:
    return tuple(read() for read, _ in _REDUCED)


def _write_reduced(values: tuple) -> None:
    for (_, write), value in zip(_REDUCED, values):
        write(*value) if isinstance(value, tuple) else write(value)


def _read_deterministic() -> tuple:
    return torch._C._get_deterministic_algorithms(), torch._C._get_deterministic_algorithms_warn_only()


def _write_deterministic(values: tuple) -> None:
    torch._C._set_deterministic_algorithms(values[0], warn_only=values[1])


_LIBRARIES = [
    (getattr(torch._C, f"_get_{n}"), getattr(torch._C, f"_set_{n}"))
    for n in (
        "mkldnn_enabled",
        "mkldnn_deterministic",
        "cudnn_enabled",
        "cudnn_benchmark",
        "cudnn_deterministic",
    )
    if hasattr(torch._C, f"_get_{n}")
]


def _read_libraries() -> tuple:
    return tuple(read() for read, _ in _LIBRARIES)


def _write_libraries(values: tuple) -> None:
    for (_, write), value in zip(_LIBRARIES, values):
        write(value)


_GLOBAL = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_forward_hooks_with_kwargs",
    "_global_forward_hooks_always_called",
)


def _read_global_hooks() -> tuple:
    return tuple(tuple(getattr(global_hooks, name).items()) for name in _GLOBAL)


def _write_global_hooks(values: tuple) -> None:
    for name, items in zip(_GLOBAL, values):
        hooks = getattr(global_hooks, name)  # its handles know this very dictionary
        hooks.clear()
        hooks.update(items)


def _write_modes(modes: tuple) -> None:
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)


SWITCHES: tuple[Switch, ...] = (
    Switch(
        "attention kernels", "`torch.nn.attention.sdpa_kernel`, `torch.backends.cuda.enable_*_sdp`",
        _read_attention, _write_attention,
    ),
    Switch(
        "precision of float32 kernels",
        "`torch.set_float32_matmul_precision`, `torch.backends.*.fp32_precision`, `allow_tf32`",
        _read_precision, _write_precision,
    ),
    Switch(
        "reduced precision in 16-bit products", "`torch.backends.cuda.matmul.allow_*`",
        _read_reduced, _write_reduced,
    ),
    Switch(
        "deterministic algorithms", "`torch.use_deterministic_algorithms`",
        _read_deterministic, _write_deterministic,
    ),
    Switch(
        "kernel libraries", "`torch.backends.cudnn.flags`, `torch.backends.mkldnn.flags`",
        _read_libraries, _write_libraries,
    ),
    Switch("number of threads", "`torch.set_num_threads`", torch.get_num_threads, torch.set_num_threads),
    Switch("default dtype", "`torch.set_default_dtype`", torch.get_default_dtype, torch.set_default_dtype),
    # Tensor.backward is such a function itself, so that during it the mode that sees it is out of force.
    Switch(
        "default device, modes of torch functions", "`torch.set_default_device`, `with torch.device(...)`",
        lambda: tuple(_get_current_function_mode_stack()), _write_modes,
    ),
    Switch(
        "global forward hooks", "`torch.nn.modules.module.register_module_forward_hook`",
        _read_global_hooks, _write_global_hooks,
    ),
)  # fmt: skip


class Switches:
    """The switches as they are at construction. :meth:`compare` finds those that are others now,
    :meth:`enter` sets them for the time of a context.
    """

    __slots__ = ("_other", "_values")

    def __init__(self) -> None:
        self._values, self._other = [switch.read() for switch in SWITCHES], []

    def compare(self) -> None:
        """Once a backward pass, for reading all of them costs as much as several small operators."""
        self._other = [(s, value) for s, value in zip(SWITCHES, self._values) if s.read() != value]

    def enter(self, stack: contextlib.ExitStack) -> None:
        for switch, value in self._other:
            stack.callback(switch.write, switch.read())
            switch.write(value)
