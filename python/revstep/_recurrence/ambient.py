"""Ambient state on which the evaluation of a block depends beside its arguments and weights: autocast, random
generators, cached parametrizations and the switches of the process. It is recorded once and entered again
where the block is evaluated again in backward.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrize
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import tree_leaves


class _Rebuilds(threading.local):
    """``with`` it: this thread evaluates a block again."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


rebuilds = _Rebuilds()


def rebuilding() -> bool:
    """Whether the calling thread is inside the re-evaluation of a block (in backward, or in ``reconstruct``).

    For forward hooks and blocks that count or record what passes by: they run in the forward pass and again
    in the re-evaluation. What a block computes must not depend on it.
    """
    return rebuilds.depth > 0


def transformed(given: Any) -> bool:
    """A torch.func transform is active, or a tensor in these containers carries a tangent of forward mode."""
    forward_mode = forward_ad._current_level >= 0 and any(
        isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in tree_leaves(given)
    )
    return forward_mode or torch._C._are_functorch_transforms_active()


class ParametrizationCache:
    """Whether ``torch.nn.utils.parametrize.cached()`` was in force at construction; :meth:`enter` starts with
    an empty one, or with none.

    A weight cached in the forward pass belongs to that graph: the block evaluated again must compute its own.
    """

    def __init__(self) -> None:
        self._enabled = parametrize._cache_enabled

    def enter(self, stack: contextlib.ExitStack) -> None:
        before = parametrize._cache_enabled, parametrize._cache
        # These are globals of the process: leave them alone where nobody uses them.
        if not self._enabled and not before[0]:
            return
        stack.callback(self._set, *before)
        self._set(self._enabled, {})

    @staticmethod
    def _set(enabled: int, cache: dict) -> None:
        parametrize._cache_enabled, parametrize._cache = enabled, cache


class Autocast:
    """The autocast state of the given device types at construction; :meth:`enter` enters it again."""

    def __init__(self, device_types: Sequence[str]):
        self._states = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in device_types]
        self._cache = torch.is_autocast_cache_enabled()

    def enter(self, stack: contextlib.ExitStack) -> None:
        for device_type, enabled, dtype in self._states:
            if enabled or (torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)) != (
                False,
                dtype,
            ):
                stack.enter_context(
                    torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=self._cache)
                )


class Generators:
    """The global random generators of the CPU and of the devices at hand."""

    def __init__(self, devices: Sequence[torch.device]):
        self._devices = sorted({d for d in devices if d.type not in ("cpu", "meta")}, key=str)

    def get(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.get_device_module(d).get_rng_state(d) for d in self._devices)]

    def set(self, states: Sequence[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:]):
            torch.get_device_module(device).set_rng_state(state, device)

    @contextlib.contextmanager
    def at(self, states: Sequence[Tensor] | None) -> Iterator[None]:
        """Run with the given states, then put back the present ones. None: nothing to replay."""
        if states is None:
            yield
            return
        now = self.get()
        self.set(states)
        try:
            yield
        finally:
            self.set(now)


def same_states(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b))


# ------------------------------------------------------------------------------------------------------------
# Switches of the process on which the bits of a kernel depend: read when a pass or a run begins, set for the
# time of a re-evaluation, put back afterwards.


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

    __slots__ = ("_changed", "_values")

    def __init__(self) -> None:
        self._values = [switch.read() for switch in SWITCHES]
        self._changed: list = []

    def compare(self) -> None:
        """Once a backward pass, for reading all of them costs as much as several small operators."""
        self._changed = [(s, value) for s, value in zip(SWITCHES, self._values) if s.read() != value]

    def enter(self, stack: contextlib.ExitStack) -> None:
        for switch, value in self._changed:
            stack.callback(switch.write, switch.read())
            switch.write(value)
