"""A block's parameters, buffers and modules as the forward pass saw them, so that its re-evaluation finds the
same; and weights that a sharding engine holds instead.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from ..errors import ConfigError, UnsupportedError
from ..ops import fingerprint
from . import _surroundings
from ._saved import address
from ._selection import policy_of
from ._tiles import declared

# ------------------------------------------------------------------------------------------------------------
# Weights that FSDP2 has not gathered (it does when their module is called, and only then), and tensors spread
# over processes.


def _kind() -> type | None:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where nothing has imported it, nothing is sharded
    return getattr(fsdp, "FSDPModule", None)


def gathers(modules: Sequence[nn.Module]) -> bool:
    """``fully_shard`` was applied to one of them: weights are gathered, into memory
    of the engine's, while it runs.
    """
    kind = _kind()
    return kind is not None and any(isinstance(m, kind) for m in modules)


def ungathered(module: nn.Module) -> bool:
    """``fully_shard`` was applied to this very module, and its weights (those of submodules sharded by
    themselves apart) are not whole now.
    """
    kind = _kind()
    if kind is None or not isinstance(module, kind):
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in _own(module, kind))


def spread(value: Any) -> bool:
    """A DTensor. Weights may be some; states are plain tensors, of which each process keeps its own."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(value, kind)


def _own(module: nn.Module, kind: type) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    for child in module.children():
        if not isinstance(child, kind):
            yield from _own(child, kind)


# ---- A block's parameters and buffers, gathered in one walk per forward pass ----


#: Elements of the largest integer buffer that may be a count.
_COUNTS = 4096


class Members:
    """One block as the forward pass saw it.

    Attributes:
        block: the module.
        members: it and the modules in it; buffers: their buffers.
        opaque: what is made inside is not told from what others make: torch.compile made one of them, whose
            operators are not seen one by one, or an engine gathers their weights.
        trains: whether any parameter needs a gradient.
        policy: which operators' outputs are kept, the block's own choice (an attribute ``save_ops``) before
            the stack's.
        tokenwise: the modules that are taken by tiles of ``tile`` tokens; none and 0 where none is. Where
            tiles are chosen by a budget, the choice is written here.
    """

    __slots__ = (
        "_gathers", "_iterated", "_last", "_owners", "_parameters", "_silent", "_watched",
        "block", "buffers", "members", "opaque", "policy", "tile", "tokenwise", "trains",
    )  # fmt: skip

    def __init__(self, block: nn.Module, save_ops: Any = None, tile: int | str | None = None):
        self.block = block
        self.policy = policy_of(getattr(block, "save_ops", save_ops))
        self._parameters: list[tuple[dict, str, Tensor]] = []
        self.buffers: list[Tensor] = []
        self._silent: set[int] = set()
        self._iterated: list[int] = []
        self._owners: list[tuple[dict, str]] = []
        self._watched: set[int] = set()  # may be running statistics that are written past the version counter
        self.members = list(block.modules())
        self._last: list[_surroundings.ModuleRecord] = []
        compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in self.members)
        self._gathers = gathers(self.members)
        self.opaque = compiled or self._gathers
        if self.policy is not None and compiled:
            raise ConfigError(
                "save_ops sees operators, and a compiled block has none: leave one of the two out "
                "(torch.compile keeps what its partitioner chooses)"
            )  # fmt: skip
        self.tokenwise = declared(block) if tile else []
        self.tile = tile if isinstance(tile, int) and self.tokenwise else 0
        if self.tile and self.opaque:
            how = "compiled" if compiled else "sharded by fully_shard"
            raise UnsupportedError(
                f"tile={tile} takes {type(self.tokenwise[0]).__name__} apart, and the block is {how}: leave"
                " one of the two out"
            )
        for module in self.members:
            self._parameters += [
                (module._parameters, name, p) for name, p in module._parameters.items() if p is not None
            ]
            self._owners += [(module._buffers, name) for name, _ in module._buffers.items()]
            own = [b for b in module._buffers.values() if b is not None]
            if own and module.training and isinstance(module, _NormBase):
                self._silent.update(range(len(self.buffers), len(self.buffers) + len(own)))
            elif own and module.training:
                self._watched |= {i for i, b in enumerate(own, len(self.buffers)) if _may_move(b)}
            self._iterated += [
                len(self.buffers) + i
                for i, b in enumerate(own)
                if any(b is t for t in _power_iterated(module))
            ]
            self.buffers += own
        self.trains = any(p.requires_grad for _, _, p in self._parameters)

    def tensors(self) -> list[Tensor]:
        """Parameters as they are registered now (a sharding engine exchanges them while a block runs), and
        buffers.
        """
        found = (_registered(owner, name) for owner, name, _ in self._parameters)
        return [*(t for t in found if t is not None and not is_lazy(t)), *self.buffers]

    def name_of(self, storage: int) -> str:
        """How messages call the parameter or buffer with this storage; empty where there is none."""
        parameters, buffers = self.block.named_parameters(), self.block.named_buffers()
        for kind, named in (("parameter", parameters), ("buffer", buffers)):
            for name, t in named:
                if storage and address(t) == storage:
                    return f"{kind} {name!r}"
        return ""

    def modules(self) -> list[_surroundings.ModuleRecord]:
        """Modes, hooks, flags of its modules now; the same list as long as nothing changes."""
        now = _surroundings.record(self.members)
        if now != self._last:
            self._last = now
        return self._last

    def flags(self) -> tuple[bool, ...]:
        """``requires_grad`` of its parameters as they are registered now."""
        found = (_registered(owner, name) for owner, name, _ in self._parameters)
        return tuple(t is not None and t.requires_grad for t in found)

    def silent(self) -> set[int]:
        """Storages of running statistics, which an evaluation in training mode moves on and does not read."""
        return {address(self.buffers[i]) for i in self._silent}

    @contextlib.contextmanager
    def as_recorded(
        self, modules: list, flags: tuple[bool, ...], modules_now: list, flags_now: tuple[bool, ...]
    ) -> Iterator[None]:
        """Its modules and its parameters' ``requires_grad`` as they were, and as they are
        again afterwards.
        """
        found = (_registered(owner, name) for owner, name, _ in self._parameters)
        changed = [t for t, was, now in zip(found, flags, flags_now) if was != now and t is not None]
        with _surroundings.entered(self.members, modules, modules_now):
            for t in changed:
                t.requires_grad_(not t.requires_grad)
            try:
                yield
            finally:
                for t in changed:
                    t.requires_grad_(not t.requires_grad)

    def versions(self) -> list[Any]:
        """What tells whether an evaluation has written to a buffer; :meth:`changed` takes it."""
        return [self._version(i, b) for i, b in enumerate(self.buffers)]

    def _version(self, index: int, b: Tensor) -> Any:
        # Batch and instance norm, and whoever writes to ``buffer.data``, do not tell the version counter.
        return (b._version, fingerprint(b)) if index in self._watched and b.is_cpu else b._version

    def changed(self, before: Sequence[Any]) -> list[int]:
        """Indices of the buffers an evaluation wrote to, or on a device may have written to."""
        maybe = self._silent | {i for i in self._watched if not self.buffers[i].is_cpu}
        pairs = enumerate(zip(self.buffers, before))
        return [i for i, (b, was) in pairs if i in maybe or self._version(i, b) != was]

    def registered(self) -> list[Tensor | None]:
        """The buffers that its modules hold now."""
        return [_registered(*at) for at in self._owners]

    def exchanged(self, before: Sequence[Tensor | None]) -> dict[int, Tensor | None]:
        """Those of ``before`` in whose place there are others now: an evaluation has put them there, or
        torch.func.functional_call has taken its own away.
        """
        return {i: b for i, (at, b) in enumerate(zip(self._owners, before)) if _registered(*at) is not b}

    @contextlib.contextmanager
    def holding(self, buffers: Mapping[int, Tensor | None]) -> Iterator[None]:
        """With these buffers in their modules, and the present ones again afterwards."""
        now = {i: _registered(*self._owners[i]) for i in buffers}
        self._hold(buffers)
        try:
            yield
        finally:
            self._hold(now)

    def _hold(self, buffers: Mapping[int, Tensor | None]) -> None:
        for i, b in buffers.items():
            owner, name = self._owners[i]
            owner[name] = b

    def iterated(self) -> dict[int, Tensor]:
        """Copies of the buffers that an evaluation both moves on and depends on: the vectors of a spectral
        norm's power iteration.
        """
        return {i: self.buffers[i].detach().clone() for i in self._iterated}

    @contextlib.contextmanager
    def restored(self, changed: Sequence[int], before: Mapping[int, Tensor]) -> Iterator[None]:
        """Put these buffers back afterwards, so that a second evaluation does not update running statistics
        twice; it starts from ``before``.
        """
        if not changed:
            yield
            return
        found = [(self.buffers[i], self.buffers[i].clone()) for i in changed]
        _write((self.buffers[i], value) for i, value in before.items())
        try:
            yield
        finally:
            _write(found)

    def call(self, x: Tensor, args: tuple, kwargs: dict) -> Any:
        """The block, with the parameters that it had in the forward pass, where others stand in their places
        now: torch.func.functional_call had swapped them in, or they were exchanged since.

        What an engine exchanges by itself (FSDP) stays under its control.
        """
        swapped: dict[int, dict[str, Tensor]] = {}
        for owner, name, p in self._parameters:
            now = _registered(owner, name)
            engines = spread(now) or spread(p) or self._gathers
            if not isinstance(p, nn.Parameter) or (now is not p and not engines):
                swapped.setdefault(id(owner), {})[name] = p.detach().requires_grad_(p.requires_grad)
        if not swapped:
            return self.block(x, *args, **kwargs)
        named = {
            f"{prefix}.{name}" if prefix else name: p
            for prefix, module in self.block.named_modules()
            for name, p in swapped.get(id(module._parameters), {}).items()
        }
        return torch.func.functional_call(self.block, named, (x, *args), kwargs)


def _registered(owner: Any, name: str) -> Tensor | None:
    """A module's own parameter or buffer. A scripted module's ``owner`` has no ``get``."""
    return owner[name] if name in owner else None


def _write(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    pairs = list(pairs)
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(tuple(b for b, _ in pairs)):
        for buffer, value in pairs:
            buffer.copy_(value)


def _may_move(b: Tensor) -> bool:
    """A buffer that an evaluation may write past the version counter: statistics and counts; not the masks
    and indices of an attention, which are large.
    """
    return b.is_floating_point() or b.numel() <= _COUNTS


def _power_iterated(module: nn.Module) -> list[Tensor]:
    """The vectors that spectral norm, as a parametrization or as a hook, moves on in every evaluation in
    training.
    """
    if not module.training:
        return []
    hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, SpectralNorm)]
    names = [h.name + end for h in hooks for end in ("_u", "_v")] + (
        ["_u", "_v"] if isinstance(module, _SpectralNorm) else []
    )
    return [t for name in names if (t := module._buffers.get(name)) is not None]
