"""What surrounds a forward pass beside its arguments and weights. Recorded once, and entered again
where a block is evaluated again.

:data:`TABLE` is the list: how each thing is called, what sets it, and what backward does where it is another
one than in the forward pass. The guide's table is written from it. Three kinds of things are in it:

- switches of the process (:mod:`revstep._recurrence.ambient`);
- autocast, the generators and cached parametrizations (:mod:`revstep._recurrence.ambient`);
- what belongs to a block's modules (:class:`ModuleRecord`): modes, hooks, flags. Read
  where the block has been evaluated.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .._recurrence.ambient import SWITCHES, Autocast, Generators, ParametrizationCache, Switches, rebuilds

AGAIN, NAMED = "entered again", "named before anything is computed"
RECORDED = "recorded a layer, entered again"


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
    modules: Sequence[nn.Module], before: Sequence[ModuleRecord], after: Sequence[ModuleRecord]
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
                for name, value, current in zip(_ADAPTERS, was.adapters, now.adapters):
                    if value != current and value is not None:
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


# ---- all of it, for the evaluations of one pass ----


class Around:
    """What surrounded one forward pass, compared with what is in force now and entered again."""

    def __init__(self, devices: Sequence[torch.device]):
        self.generators = Generators(devices)
        self._autocast = Autocast(sorted({"cpu", *(d.type for d in devices)}))
        self._cache = ParametrizationCache()
        self._switches = Switches()
        # by step, where they are others now: the records of its modules, the flags of its parameters
        self._now: dict[int, tuple] = {}

    def compare(self, records: Sequence[Any], blocks: Sequence[Any], refuse: Callable[[int], None]) -> None:
        """Against the forward pass's, before anything is computed. Names what cannot be entered again.

        Args:
            records: what the forward pass kept, by step; blocks: theirs.
            refuse: gets each step whose modules or flags are others now; raises where it cannot be run.
        """
        self._switches.compare()
        self._now = {}
        found: dict[int, tuple] = {}
        for k, (record, block) in enumerate(zip(records, blocks)):
            if id(block) not in found:
                found[id(block)] = block.modules(), block.flags()
            modules, flags = now = found[id(block)]
            if modules is not record.modules or flags != record.flags:
                refuse(k)
                self._now[k] = now

    def enter(self, ambient: contextlib.ExitStack, step: int, record: Any, block: Any) -> None:
        """What surrounded block ``step``, entered into ``ambient``."""
        ambient.enter_context(rebuilds)
        if step in self._now:
            ambient.enter_context(block.as_recorded(record.modules, record.flags, *self._now[step]))
        if record.buffers:
            ambient.enter_context(block.restored(record.buffers, record.before))
        if others := block.exchanged(record.registered):
            ambient.enter_context(block.holding(others))
        if record.rng is not None:
            ambient.enter_context(self.generators.at(record.rng))
        self._switches.enter(ambient)
        self._autocast.enter(ambient)
        self._cache.enter(ambient)
        ambient.enter_context(torch.enable_grad())
