"""ReversibleStack: one loop over the layers, whatever the scheme and the state format."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.masked import MaskedTensor

from .._options import StackKeywords, StackOptions, takes_options
from ..errors import AmplificationWarning, ConfigError, UnsupportedError
from ..schemes import Scheme
from ..state import FixedPoint, StateFormat
from . import _operator, _residual
from ._members import spread, ungathered
from ._report import LastTwo, Report, States
from ._residual import residual_layers
from ._run import Pass
from ._selection import budget_bytes, policy_of
from ._tape import Tape
from ._tiles import declared

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Pair(nn.Module):
    """The two blocks (F, G) of one Hamiltonian layer."""

    def __init__(self, F: nn.Module, G: nn.Module):
        super().__init__()
        self.F, self.G = F, G

    def halves(self) -> tuple[nn.Module, nn.Module]:
        return self.F, self.G


class ReversibleStack(nn.Module):
    """Residual blocks stepped by a time-reversible scheme; backward rebuilds every state from the last two.

    With states s[k]: ``s[k+2] = alpha s[k] + beta s[k+1] + gamma f_k(s[k+1])``, s[0] = s[1] = x. Kept for
    backward: the last two states, 8 bytes a layer of checksum, the carries of steps with \\|alpha\\| < 1, and
    the generator state of layers that draw random numbers. Gradients are those of ordinary autograd through
    the same recurrence, bit for bit in fixed point.

    Args:
        blocks: modules that return the increment f(x) (not x + f(x)), in x's shape, or a tuple that begins
            with it and goes on with auxiliary tensors (a router's loss). For ``Hamiltonian`` one pair (F, G)
            a layer: a tuple, or a module with a method ``halves()`` that returns them.
        scheme: Midpoint, MidpointBlend, Blend, BDIA, Leapfrog or Hamiltonian; or a :class:`StackOptions` that
            has it.
        state: ``FixedPoint()`` (default) or ``Float()``.
        start: as in :class:`~revstep.StackOptions`, like all that follow but the last.
        readout: ``"last"``, ``"mean"`` or ``"pair"``.
        keep: layers at the end that keep their graphs, or ``"auto"``.
        memory_budget: for ``keep="auto"``, bytes or a share of what is free.
        save_ops: operators whose outputs are kept.
        checks: True, ``"all"`` or False.
        residual: the blocks (for Hamiltonian, both halves) return x + f(x): each goes through
            :func:`revstep.from_residual`.

    Shape: ``stack(x, *args, **kwargs)``: x any shape, float32, float64, bfloat16 or float16, or a pair (prev,
    cur) of such; further arguments go to every block. Returns x's shape and dtype (``"pair"``: a tuple of
    two); where blocks return auxiliary tensors, ``(that, aux)`` with a tuple of them for each step.

    Attributes:
        report: :class:`Report` of the last backward pass that had a state to rebuild; None before the first,
            and after one that was not checked or did not end.
        opaque: under torch.compile around the stack, the stack is one operator of the graph; False: the graph
            breaks at the stack.

    Raises:
        ConfigError: arguments that cannot work.
        StateOverflowError: a value outside the format.
        ReconstructionError: a rebuilt state differs.
        NonDeterministicBlockError: a block did different work in backward.
        UnsupportedError: see the guide.

    Source: Gal et al., arXiv 2512.02056; exact arithmetic as in docs/theory.
    """

    report: Report | None
    opaque: bool = True

    @takes_options
    def __init__(
        self,
        blocks: Iterable[Any],
        scheme: Scheme | StackOptions,
        state: StateFormat | None = None,
        *,
        residual: bool = False,
        **options: Unpack[StackKeywords],
    ):
        super().__init__()
        given = StackOptions.of(scheme, state=state, **options)
        for name in StackOptions.names():
            setattr(self, name, getattr(given, name))
        self.state = FixedPoint() if given.state is None else given.state
        self.start = given.start or "repeat"
        scheme = self.scheme
        self._validate_options()
        blocks = residual_layers(blocks, scheme.halves) if residual else blocks
        self.blocks = nn.ModuleList(_as_layer(b, i, scheme) for i, b in enumerate(blocks))
        scheme.check_depth(self.steps)
        if self.keep != "auto" and self.keep > len(self.blocks):
            raise ConfigError(
                f"keep is {self.keep!r}, expected an integer from 0 to {len(self.blocks)}, the number of"
                " layers, or 'auto'"
            )
        policy_of(self.save_ops)
        if self.tile and not any(map(declared, self._functions())):
            raise ConfigError(
                f"tile is {self.tile}, and no block has a part that is declared to compute each token alone:"
                " declare its MLP with revstep.tokenwise, or leave tile out"
            )
        self.report = None
        self._looked: list[bool] = []  # a list, which replicas of the stack share
        self._fitted: dict[Any, int] = {}  # tiles that were chosen by the budget, by what they depend on
        self._followed = False  # whether a pass has measured what the blocks keep outside of autograd
        self._handle = _operator.register(self)
        self._warn_amplification()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # written before there was such a look: not its first pass
        known = {"_looked": [True], "_followed": False, "_fitted": {}, **state}
        super().__setstate__({**known, "_handle": _operator.register(self)})  # a copy is a stack of its own

    @property
    def options(self) -> StackOptions:
        """All options, as they are now."""
        return StackOptions(**{name: getattr(self, name) for name in StackOptions.names()})

    @property
    def steps(self) -> int:
        """Steps of the recurrence: one a layer, or two for schemes of two streams."""
        return len(self.blocks) * self.scheme.halves

    def extra_repr(self) -> str:
        return (
            f"scheme={self.scheme}, state={self.state}, start={self.start!r}, readout={self.readout!r},"
            f" keep={self.keep}"
        )

    def forward(self, x: Tensor | tuple[Tensor, Tensor], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            from . import _compiling

            return _compiling.forward(self, x, args, kwargs)
        return self.evaluate(x, args, kwargs)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile every block (for Hamiltonian every half) in place, with ``torch.compile``'s arguments;
        names in ``state_dict`` stay.

        The recurrence around the blocks is kernels already. Blocks whose attributes differ (a number per
        layer) get graphs of their own.
        """
        from ._compiling import compile_blocks

        compile_blocks(self._functions(), args, options)

    def evaluate(
        self, x: Tensor | tuple[Tensor, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The forward pass itself, which no compiler looks into."""
        run = self.begin(x, (args, kwargs))
        run.lookalike = _residual.first(self._looked, self.scheme.halves)
        try:
            for _ in range(len(run.functions)):
                run.step(args, kwargs)
            y = run.end(self.readout)
        finally:  # states that double soon leave the format, and this is why
            if run.lookalike is not None:
                run.lookalike.tell()
        return (y, run.aux) if any(run.aux) else y

    def begin(self, x: Tensor | tuple[Tensor, Tensor], arguments: Any = (), leave_tape: bool = False) -> Pass:
        """A forward pass to be driven step by step, by a caller whose loop over the layers is its own; see
        :class:`Pass`.
        """
        x = self._check_input(x)
        rows = x[0].shape[0] if x[0].ndim else 1
        coefficients = self.scheme.draw(self.steps, self.start, rows, self.training)
        keep = 0 if leave_tape or self.keep == "auto" else self.keep * self.scheme.halves
        budget = (
            budget_bytes(self.memory_budget, x[0].device)
            if self.keep == "auto" and not leave_tape and torch.is_grad_enabled()
            else None
        )
        publish = _discard if leave_tape else self._publish
        follow = not self._followed and not leave_tape and torch.is_grad_enabled()
        run = Pass(
            self._functions(), self.state, coefficients, self.scheme.halves, x, arguments, keep, self.checks,
            publish, leave_tape, budget, self.save_ops, follow, self.tile, self.offload_carries,
            (self.memory_budget, self._fitted) if self.tile == "auto" else None,
        )  # fmt: skip
        self._followed = self._followed or (follow and run.differentiated)
        return run

    @torch.no_grad()
    def states(self, x: Tensor | tuple[Tensor, Tensor], *args: Any, **kwargs: Any) -> States:
        """All ``steps + 2`` states of a forward pass, in the state format's dtype; ``.last_two`` is what
        brings them back.

        Each block is evaluated as in training (grad mode on, graph dropped), so the bits are those of a
        training step.

        Raises:
            ConfigError: the scheme is not reversible in this mode (BDIA in evaluation).
        """
        run = self.begin(x, (args, kwargs), leave_tape=True)
        if run.tape is None and self.steps:
            raise ConfigError(
                f"{self.scheme} is the residual network in evaluation mode, which cannot be run backwards:"
                " call .train() first"
            )
        out = States([run.prev, run.cur])
        for _ in range(self.steps):
            run.step(args, kwargs)
            out.append(run.cur)
        run.audit.read()
        tape = run.tape if run.tape is not None else Tape([], self.state, run.view.dtype, [], run.audit)
        tape.finish()
        out.last_two = LastTwo(run.prev, run.cur, tape)
        return out

    @torch.no_grad()
    def reconstruct(self, last_two: LastTwo) -> States:
        """The states of :meth:`states` rebuilt from the last two alone, in the same order; blocks are
        evaluated again.

        ``last_two`` is ``states(...).last_two``; the block arguments are remembered there. Exact formats are
        compared with the forward checksums as in backward (unless ``checks=False``).

        Raises:
            ConfigError: ``last_two`` does not come from ``states``.
            ReconstructionError: a state came out differently.
        """
        if not isinstance(last_two, LastTwo) or last_two.tape is None:
            raise ConfigError(
                f"reconstruct() got {type(last_two).__name__}, expected stack.states(...).last_two, which"
                " carries what the inverse needs"
            )
        tape = last_two.tape
        rebuilt = [last_two.cur, last_two.prev]
        tape.rewind(last_two.prev, last_two.cur)
        for _ in range(len(tape.records)):
            rebuilt.append(tape.rebuild()[0])
        out = States(reversed(rebuilt))
        out.last_two = last_two
        return out

    def _functions(self) -> list[nn.Module]:
        if self.scheme.halves == 1:
            return list(self.blocks)
        return [half for i, block in enumerate(self.blocks) for half in _halves(block, i)]

    def _publish(self, report: Report | None) -> None:
        self.report = report

    # ---- contracts ----

    def _validate_options(self) -> None:
        if not isinstance(self.scheme, Scheme):
            raise ConfigError(
                f"scheme is {self.scheme!r}, expected an instance of a scheme such as revstep.Blend(c=0.25)"
            )
        if not isinstance(self.state, StateFormat):
            raise ConfigError(f"state is {self.state!r}, expected revstep.FixedPoint() or revstep.Float()")
        if self.start not in self.scheme.starts:
            raise ConfigError(
                f"start is {self.start!r}, {self.scheme.name} knows"
                f" {', '.join(map(repr, self.scheme.starts))}"
            )

    def _warn_amplification(self) -> None:
        factor = self.scheme.amplification(self.steps, self.start)
        if not self.state.exact and factor > 1.0:
            warnings.warn(
                f"{self.scheme} in {self.state}: the inverse multiplies rounding errors by {factor:.2g} over"
                f" {len(self.blocks)} layers; use FixedPoint(), whose inverse is bit-exact",
                AmplificationWarning,
                stacklevel=3,
            )

    def _check_input(self, x: Any) -> tuple[Tensor, Tensor]:
        pair = tuple(x) if isinstance(x, (tuple, list)) else (x, x)
        if len(pair) != 2 or not all(isinstance(t, Tensor) for t in pair):
            raise ConfigError(
                f"the stack's input is {type(x).__name__}, expected a tensor or a pair (prev, cur) of tensors"
            )
        if any(map(spread, pair)):
            raise UnsupportedError(
                "the stack's input is a DTensor; each process keeps states of its own, so give it"
                " x.to_local(): all of x where it is replicated, or this process's part of a sequence (then"
                " plan the blocks for sequence parallelism)"
            )
        a, b = pair
        for t in pair:
            if t.is_nested or t.layout != torch.strided or isinstance(t, MaskedTensor):
                kind = (
                    "nested"
                    if t.is_nested
                    else "masked"
                    if t.layout == torch.strided
                    else str(t.layout).removeprefix("torch.")
                )
                raise ConfigError(
                    f"the stack's input is a {kind} tensor, expected a dense one: use to_dense(), or pad it"
                    " and give the blocks a mask"
                )
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            raise ConfigError(
                f"prev is {tuple(a.shape)} {a.dtype} {a.device}, cur is {tuple(b.shape)} {b.dtype}"
                f" {b.device}: expected the same"
            )
        return pair


def _as_layer(block: Any, index: int, scheme: Scheme) -> nn.Module:
    if scheme.halves == 2:
        if (
            isinstance(block, (tuple, list))
            and len(block) == 2
            and all(isinstance(m, nn.Module) for m in block)
        ):
            return Pair(*block)
        if not isinstance(block, nn.Module) or not callable(getattr(block, "halves", None)):
            raise ConfigError(
                f"layer {index} is {type(block).__name__}; {scheme.name} needs a pair (F, G) of modules, or a"
                " module with a method halves() -> (F, G)"
            )
    elif not isinstance(block, nn.Module):
        raise ConfigError(
            f"layer {index} is {type(block).__name__}, expected an nn.Module that returns the increment f(x)"
            " (wrap a function in one, so that its parameters are known)"
        )
    return block


def _halves(block: nn.Module, index: int) -> tuple[nn.Module, nn.Module]:
    if ungathered(block):
        raise UnsupportedError(
            f"layer {index} was sharded as one module by fully_shard, which gathers weights when"
            f" {type(block).__name__} is called; a scheme of two streams calls its halves alone: apply"
            " fully_shard to each of layer.halves() instead"
        )
    return block.halves()


def _discard(report: Report | None) -> None:
    """``states`` leaves the report of the last backward pass alone."""
