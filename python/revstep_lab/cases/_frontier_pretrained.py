"""The ways of ``revstep bench frontier`` to run a step of a pretrained model: forward, backward and AdamW."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from revstep import hf
from revstep._models.layers import decoder_layers, unwrapped
from revstep._options import StackOptions
from revstep.hf._finetune import add_lora
from revstep.hf._loss import chunk_loss
from revstep.plan import plan

from ..bench import packages
from ._frontier_trunk import OFFLOADED, OURS, Step, products_kept, stepping, within_budget

#: Tokens of a tile, and what plan calls a model's scheme by its carry bits.
TILE = 256
SCHEMES = {2: "blend:c=0.25", 4: "blend:c=0.0625"}
#: Tokens of the text that the state format is chosen on.
CALIBRATION = 512
COUPLING = {
    "what": "revlib-style coupling",
    "reason": "a coupling of the layers' halves is another function than the one the weights were trained as",
}


@dataclass(frozen=True)
class Way:
    """A way to run the model, and where it stands in a plan.

    Attributes:
        around: what is in force during the step.
        fused: the optimiser steps inside backward.
        mode: plan's word; None: plan does not know this way.
        bits, keep, tile: of the reversible ones.
        offloaded: carries wait in host memory; planned alone, as of a device with memory of its own.
    """

    around: Callable[[], AbstractContextManager]
    fused: bool = False
    mode: str | None = None
    bits: int = 4
    keep: int = 0
    tile: int | None = None
    offloaded: bool = False


class Pretrained:
    """One model and its ways; each takes the model as it is and leaves it so.

    Args:
        case: a :class:`.frontier.FrontierCase`.
        model: plain, float32.
        rows: token ids, (1, tokens).
    """

    def __init__(self, case: Any, model: nn.Module, rows: Tensor):
        self.case, self.rows = case, rows
        self.about = f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters"
        self.config = model.config
        torch.manual_seed(0)
        if case.adapting == "LoRA":
            model = add_lora(model, case.rank, targets="all-linear")
        self.model = chunk_loss(model.train())
        self.layers = decoder_layers(model)[1]
        self.options = self._calibrated()
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)  # as the Trainer, no temporaries
        self.ways = self._ways()
        self.skipped = [COUPLING]
        if reason := packages.no_compiler():
            self.ways = {n: w for n, w in self.ways.items() if not n.startswith("compiled")}
            self.skipped.append({"what": "torch's activation memory budget", "reason": reason})

    def steps(self) -> dict[str, Step]:
        return {n: partial(self._step, way, self.rows) for n, way in self.ways.items() if not way.offloaded}

    def small(self) -> dict[str, Step]:
        """The same with few tokens: makes the optimiser's state and what is made once."""
        few = self.rows[:, :64]
        return {n: partial(self._step, way, few) for n, way in self.ways.items() if not way.offloaded}

    def planned(self) -> list[str]:
        """The ways that plan knows."""
        return [name for name, way in self.ways.items() if way.mode is not None]

    def predicted(self, names: Iterable[str]) -> dict[str, dict[str, float]]:
        """``{way: {"peak", "step_time"}}`` of those of these that plan knows: bytes above the weights and the
        optimiser's state, time beside plain's.
        """
        found, plans = {}, {}
        for name in names:
            way = self.ways.get(name)
            if way is None or way.mode is None:
                continue
            key = (way.bits, way.tile, way.fused, way.offloaded)
            if key not in plans:
                plans[key] = self._plan(*key)
            made = plans[key]
            point = next(
                p
                for p in made.points
                if (p.mode, p.keep, p.tile, p.fused_step) == (way.mode, way.keep, way.tile, way.fused)
                and p.chunked
            )
            row = made.row(way.mode, True)
            there = row.parameters + row.optimizer
            found[name] = {"peak": point.peak - there, "step_time": point.step_time}
        return found

    # ---- parts ----

    def _plan(self, bits: int, tile: int | None, fused: bool, offloaded: bool) -> Any:
        from revstep._models.training import CPU_CHUNK

        lora = f"lora:r={self.case.rank},targets=all-linear"
        return plan(
            self.config, sequence=self.case.tokens, dtype=self.case.dtype, weights="float32",
            trainable=lora if self.case.adapting == "LoRA" else "all",
            scheme=SCHEMES[bits], chunk=CPU_CHUNK, tile=tile, fused_step=fused,
            offload_carries=offloaded, device="cuda" if offloaded else "cpu",
        )  # fmt: skip

    def _calibrated(self) -> StackOptions:
        hf.convert(self.model, SCHEMES[4], calibration=self.rows[:, :CALIBRATION])
        found = hf.conversion(self.model).stack.options
        hf.revert(self.model)
        return found

    def _step(self, way: Way, rows: Tensor, between: Callable[[], None]) -> None:
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=self.case.dtype == "bfloat16")
        with way.around(), stepping(self.optimizer, way.fused):
            with autocast:
                loss = self.model(input_ids=rows, labels=rows, use_cache=False).loss
            between()
            loss.backward()

    def _ways(self) -> dict[str, Way]:
        depth = len(self.layers)
        check = self._checkpointed
        found = {
            "plain": Way(contextlib.nullcontext, mode="plain"),
            "checkpoint, every layer": Way(check, mode="checkpointed"),
            "checkpoint, every 2nd layer": Way(partial(check, 2)),
            "checkpoint, every 4th layer": Way(partial(check, 4)),
            "checkpoint, attention kept": Way(partial(check, context_fn=packages.keep_attention)),
            "checkpoint, products kept": Way(partial(check, context_fn=products_kept())),
            "checkpoint, every 2nd product kept": Way(partial(check, context_fn=products_kept(2))),
        }
        for budget in (1.0, 0.5, 0.0):
            backend = within_budget(budget)
            found[f"compiled layer by layer, memory budget {budget:g}"] = Way(
                partial(self._compiled, backend)
            )
        points = [(4, k, None) for k in (0, depth // 4, depth // 2, 3 * depth // 4)]
        points += [(4, 0, TILE), (4, depth // 4, TILE), (2, 0, None), (2, 0, TILE)]
        for bits, keep, tile in points:
            found[name_of(bits, keep, tile)] = self._ours(bits, keep, tile)
        found[f"{OURS}, 4 bits, keep=0, attention kept"] = Way(
            partial(self._converted, self._with(4, 0, None, "attention"))
        )
        for bits in (4, 2):
            name = f"{name_of(bits, 0, TILE)}{OFFLOADED}"
            found[name] = Way(contextlib.nullcontext, False, "reversible", bits, 0, TILE, offloaded=True)
        if self.case.adapting == "full":
            fused = {"plain", "checkpoint, every layer", name_of(4, 0, None), name_of(4, 0, TILE)}
            fused |= {name_of(4, depth // 2, None), name_of(4, 0, 2 * TILE)}
            found[name_of(4, 0, 2 * TILE)] = self._ours(4, 0, 2 * TILE)
            for name in [n for n in found if n in fused]:
                way = found[name]
                found[f"{name}, fused step"] = Way(way.around, True, way.mode, way.bits, way.keep, way.tile)
        return found

    def _ours(self, bits: int, keep: int, tile: int | None) -> Way:
        options = self._with(bits, keep, tile)
        return Way(partial(self._converted, options), False, "reversible", bits, keep, tile)

    def _with(self, bits: int, keep: int, tile: int | None, save_ops: str | None = None) -> StackOptions:
        from revstep._specs import parse_scheme

        scheme = parse_scheme(SCHEMES[bits]).make()
        return self.options.stack_options(scheme=scheme, keep=keep, tile=tile, save_ops=save_ops)

    @contextlib.contextmanager
    def _converted(self, options: StackOptions) -> Iterator[None]:
        hf.convert(self.model, options)
        stack = hf.conversion(self.model).stack
        stack._looked, stack._followed = [True], True  # what only a stack's first pass looks at is no step's
        try:
            yield
        finally:
            hf.revert(self.model)

    @contextlib.contextmanager
    def _checkpointed(self, every: int = 1, **options: Any) -> Iterator[None]:
        inner = unwrapped(self.model)
        word = "activation" if hasattr(inner, "activation_checkpointing_enable") else "gradient"
        getattr(inner, f"{word}_checkpointing_enable")({"use_reentrant": False, **options})
        for i, layer in enumerate(self.layers):
            layer.gradient_checkpointing = i % every == 0
        try:
            yield
        finally:
            getattr(inner, f"{word}_checkpointing_disable")()

    @contextlib.contextmanager
    def _compiled(self, backend: Any) -> Iterator[None]:
        for layer in self.layers:
            layer.compile(backend=backend)
        try:
            yield
        finally:
            for layer in self.layers:
                layer._compiled_call_impl = None


def name_of(bits: int, keep: int, tile: int | None) -> str:
    return f"{OURS}, {bits} bits, keep={keep}{f', tiles of {tile}' if tile else ''}"
