"""What surrounds a forward pass beside its arguments and weights. Recorded once, and entered again
where a block is evaluated again.

:data:`TABLE` is the list: how each thing is called, what sets it, and what backward does where it is another
one than in the forward pass. The guide's table is written from it. Three kinds of things are in it:

- switches of the process (:data:`SWITCHES`): read when the pass begins, set for the time of a
  re-evaluation, put back afterwards;
- autocast, the generators and cached parametrizations, which have classes of their own in :mod:`.replay`;
- what belongs to a block's modules (:class:`ModuleRecord`): modes, hooks, flags. Read
  where the block has been evaluated.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.overrides import _get_current_function_mode_stack

AGAIN, NAMED = "entered again", "named before anything is computed"
RECORDED = "recorded a layer, entered again"


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


# ---- a block's modules ----

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_HOOK_FLAGS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
#: Attributes of peft's tuner layers that choose what they compute. Weights merged since are another version
#: of the weight, which is found there.
_ADAPTERS = ("_active_adapter", "_disable_adapters", "scaling")


class ModuleRecord(NamedTuple):
    """One module when its block had been evaluated."""

    training: bool
    hooks: tuple | None
    adapters: tuple
    children: tuple
    rate: float | None  # of a dropout


def record(modules: Sequence[nn.Module]) -> list[ModuleRecord]:
    """One record a module."""
    return [_record(m, m.__dict__) for m in modules]


def _record(module: nn.Module, attributes: dict) -> ModuleRecord:
    hooks = None
    if module._forward_pre_hooks or module._forward_hooks:
        hooks = tuple(tuple(getattr(module, name).items()) for name in (*_HOOKS, *_HOOK_FLAGS))
    active = attributes.get("_active_adapter")
    adapters: tuple = ()
    if "_disable_adapters" in attributes:
        scaling = attributes.get("scaling")
        numbers = isinstance(scaling, dict) and all(map(_plain, scaling.values()))
        factors = tuple(scaling.items()) if numbers else None
        names = tuple(active) if isinstance(active, list) else active
        adapters = names, attributes["_disable_adapters"], factors
    rate = attributes.get("p")
    children = tuple(module._modules.values())
    return ModuleRecord(module.training, hooks, adapters, children, rate if _plain(rate) else None)


def _plain(value: Any) -> bool:
    return type(value) is float or type(value) is int


def replaced(modules: Sequence[nn.Module], before: Sequence[ModuleRecord]) -> tuple[str, str, str] | None:
    """(name, what it was, what it is) of the first submodule that is not the one it was;
    None where all are.
    """
    for module, was in zip(modules, before):
        now = tuple(module._modules.values())
        if now != was.children:
            names, places = list(module._modules), range(len(now) + 1)
            k = next(i for i in places if now[i : i + 1] != was.children[i : i + 1])
            kinds = [type(c[k]).__name__ if k < len(c) else "not there" for c in (was.children, now)]
            return names[k] if k < len(names) else f"number {k}", *kinds
    return None


@contextlib.contextmanager
def entered(
    modules: Sequence[nn.Module],
    before: Sequence[ModuleRecord],
    after: Sequence[ModuleRecord],
) -> Iterator[None]:
    """Modes, hooks, adapters and rates as in ``before`` for the modules that are as in ``after`` now.

    Afterwards they are so again.
    """
    with contextlib.ExitStack() as stack:
        for module, was, now in zip(modules, before, after):
            if was.training != now.training:
                stack.callback(setattr, module, "training", now.training)
                module.training = was.training
            if was.hooks != now.hooks:
                _swap_hooks(stack, module, was.hooks)
            if was.adapters != now.adapters:
                for name, value, other in zip(_ADAPTERS, was.adapters, now.adapters):
                    if value != other and value is not None:
                        kind = type(module.__dict__[name])
                        _set(stack, module, name, kind(value) if isinstance(value, tuple) else value)
            if was.rate != now.rate and was.rate is not None:
                _set(stack, module, "p", was.rate)
        yield


def _set(stack: contextlib.ExitStack, module: nn.Module, name: str, value: Any) -> None:
    stack.callback(module.__dict__.__setitem__, name, module.__dict__[name])
    module.__dict__[name] = value


def _swap_hooks(stack: contextlib.ExitStack, module: nn.Module, hooks: tuple | None) -> None:
    """Other dictionaries for the time being: a handle that is removed meanwhile
    still finds the module's own.
    """
    for name, items in zip((*_HOOKS, *_HOOK_FLAGS), hooks or ((),) * 5):
        stack.callback(module.__dict__.__setitem__, name, module.__dict__[name])
        module.__dict__[name] = OrderedDict(items)


#: (what, what sets it, what backward does where it is another one than in the forward pass)
TABLE: tuple[tuple[str, str, str], ...] = (
    (
        "autocast: on or off, its dtype and its cache, for every device type involved",
        "`torch.autocast`",
        AGAIN,
    ),
    (
        "random generators of the CPU and of the devices involved",
        "`torch.manual_seed`, every draw",
        RECORDED + " where the layer draws",
    ),
    (
        "grad mode",
        "`torch.no_grad`, `torch.enable_grad`",
        "always on, as in the forward pass of a training step",
    ),
    ("cached parametrizations", "`torch.nn.utils.parametrize.cached`", AGAIN + ", with an empty cache"),
    *((s.name, s.set_by, AGAIN) for s in SWITCHES),
    ("training mode of each module", "`train()`, `eval()`", RECORDED),
    (
        "forward hooks and pre-hooks of each module",
        "`register_forward_hook`, `register_forward_pre_hook`, `handle.remove()`",
        RECORDED,
    ),
    ("`requires_grad` of each parameter", "`requires_grad_()`, peft's `set_adapter`", RECORDED),
    ("active and disabled adapters", "peft's `set_adapter`, `disable_adapter()`", RECORDED),
    ("factors of adapters", "peft's `rescale_adapter_scale`", RECORDED),
    ("rate of each dropout", "`dropout.p = ...`", RECORDED),
    ("submodules of the block", "`block.mlp = ...`, merging or quantising", NAMED),
    (
        "weights, buffers and arguments",
        "an optimiser's step, `load_state_dict`, in-place operations",
        "named when the layer is evaluated again",
    ),
)
