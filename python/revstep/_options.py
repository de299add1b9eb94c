"""How a stack runs its blocks: every option once, for the stack itself, ``hf.convert``, a converted model's
config.json, ``lm.TrainConfig`` and the command line.

A new option is a field here, with its flag if it has one, and what it does in :mod:`revstep.stack`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

from ._specs import scheme_text, state_text
from ._values import parse_bytes
from .errors import ConfigError

STARTS = ("repeat", "euler")
READOUTS = ("last", "mean", "pair")
Function = TypeVar("Function", bound=Callable[..., Any])


def keep(text: str) -> int | str:
    """``auto`` or a number of layers. Raises argparse.ArgumentTypeError for neither."""
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor a number of layers") from None


def tile(text: str) -> int | str:
    """``auto`` or a number of tokens. Raises argparse.ArgumentTypeError for neither."""
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor a number of tokens") from None


def memory_budget(text: str) -> int | float:
    """A fraction (``0.5``, ``1.0``) or a size (``4GB``, ``4GiB``, bytes). Raises argparse.ArgumentTypeError
    for neither.
    """
    with contextlib.suppress(ValueError):
        if "." in text and float(text) <= 1:
            return float(text)
    try:
        return 0 if text == "0" else parse_bytes(text)
    except ConfigError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a fraction such as 0.5 nor a size such as 4GB or 4GiB"
        ) from None


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """How a :class:`~revstep.ReversibleStack` runs its blocks.

    Args:
        scheme: Midpoint, MidpointBlend, Blend, BDIA, Leapfrog or Hamiltonian; where a string is taken, its
            string.
        state: ``FixedPoint()`` (bit-exact, checked on every backward pass) or ``Float()`` (drift measured and
            reported); None: ``FixedPoint()``.
        start: ``"repeat"`` (s[0] = s[1] = x) or ``"euler"`` (the first step is the scheme's one-step method);
            None: ``"repeat"``, but ``hf.convert`` then chooses what suits pretrained weights.
        readout: ``"last"``: the last state (for Hamiltonian the stream p); ``"mean"`` of the last two;
            ``"pair"``: both.
        keep: the last ``keep`` layers keep their graphs and are not evaluated again; the number of layers
            stores everything. ``"auto"``: as many as ``memory_budget`` holds, decided in each forward pass by
            the bytes that the graph of its first layer takes.
        memory_budget: for ``keep="auto"``: bytes (int) for the graphs kept from forward to backward, or a
            fraction (float) of what is free.
        save_ops: operators whose outputs are kept and not computed again: ``"attention"`` (output and
            log-sum-exp of scaled dot products), a list of OpOverloads, or a policy function as for
            ``torch.utils.checkpoint.create_selective_checkpoint_contexts``. A block's attribute ``save_ops``
            goes before.
        tile: tokens of a tile: the tokenwise halves of the blocks (their MLPs, declared by
            :func:`revstep.tokenwise`; ``hf.convert`` finds them) are evaluated and differentiated tile by
            tile, so that their graph never exists for all tokens at once. None: whole. Gradients of weights
            are sums over the tiles, rounded otherwise than in one product. ``"auto"``, with ``keep="auto"``
            and a ``memory_budget`` in bytes: whole where that holds one layer's graph, and otherwise by the
            largest tiles of 1,024 or 256 tokens with which it does. The first layer is evaluated once more
            for that, once for each shape of the input.
        offload_carries: the carries of a step wait in (page-locked) host memory for backward, and are copied
            beside the blocks: per element and layer as many bits less on the device as the scheme's carries
            have. On a CPU, where they lie in host memory anyway, it saves nothing.
        checks: True: compare each rebuilt state's checksum with the forward pass's, and what the
            re-evaluation of each block saves with what the forward pass saved (of large tensors some lines of
            64 bytes, other ones in each pass). ``"all"``: all of every saved tensor, weights, buffers and
            arguments among them. False: neither; only how many tensors a block saves, and their shapes,
            dtypes and devices, are compared, and of float states no error is measured.

    Raises:
        ConfigError: a value that no stack could use.
    """

    # metadata: ``flag``, how argparse reads it, where a flag of this form is enough; ``same_bits``: it
    # changes no bit of a result, so that a run may go on with another value.
    scheme: Any = None
    state: Any = None
    start: str | None = field(
        default=None, metadata={"flag": {"choices": STARTS, "help": "first step of a two-step scheme"}}
    )
    readout: str = field(
        default="last", metadata={"flag": {"choices": ("last", "mean"), "help": "what leaves the trunk"}}
    )
    keep: int | str = field(
        default=0,
        metadata={
            "flag": {
                "type": keep,
                "metavar": "N",
                "help": (
                    "last layers whose graph is stored instead of rebuilt, or auto: what --memory-budget"
                    " holds"
                ),
            },
            "same_bits": True,
        },
    )
    memory_budget: int | float | None = field(
        default=None,
        metadata={
            "flag": {
                "type": memory_budget,
                "metavar": "SIZE",
                "help": "with --keep auto: 4GB, 4GiB, bytes, or a fraction of what is free",
            },
            "same_bits": True,
        },
    )
    save_ops: Any = field(
        default=None,
        metadata={
            "flag": {
                "choices": ("attention",),
                "help": "keep attention's output and log-sum-exp instead of computing them twice",
            },
            "same_bits": True,
        },
    )
    tile: int | str | None = field(
        default=None,
        metadata={
            "flag": {
                "type": tile,
                "metavar": "TOKENS",
                "help": (
                    "evaluate and differentiate the MLPs by tiles of so many tokens; auto, with --keep auto:"
                    " where --memory-budget does not hold a layer's graph"
                ),
            }
        },
    )
    offload_carries: bool = field(
        default=False,
        metadata={
            "flag": {
                "action": "store_true",
                "default": None,  # not given
                "help": "let carries wait in host memory for backward, to save memory of a GPU",
            },
            "same_bits": True,
        },
    )
    checks: bool | str = field(default=True, metadata={"same_bits": True})

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises ConfigError for a value that no stack could use; what depends on the blocks, the stack looks
        at.
        """
        if self.start not in (None, *STARTS):
            raise ConfigError(f"start is {self.start!r}, expected one of {', '.join(STARTS)}")
        if self.readout not in READOUTS:
            raise ConfigError(f"readout is {self.readout!r}, expected one of {READOUTS}")
        if self.checks not in (True, False, "all"):
            raise ConfigError(f"checks is {self.checks!r}, expected True, False or 'all'")
        if self.keep != "auto" and (
            isinstance(self.keep, bool) or not isinstance(self.keep, int) or self.keep < 0
        ):
            raise ConfigError(
                f"keep is {self.keep!r}, expected an integer from 0 to the number of layers, or 'auto'"
            )
        _check_budget(self.keep, self.memory_budget)
        _check_tile(self.tile, self.keep, self.memory_budget)
        if not isinstance(self.offload_carries, bool):
            raise ConfigError(f"offload_carries is {self.offload_carries!r}, expected True or False")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(_FIELDS)

    @classmethod
    def of(cls, scheme: Any, **given: Any) -> StackOptions:
        """``scheme`` and what is given beside it; where ``scheme`` is options already, what is given goes
        before, a None too, but for ``state``, where None is none given.
        """
        if given.get("state") is None:
            given.pop("state", None)
        if isinstance(scheme, StackOptions):
            return dataclasses.replace(scheme, **given)
        return StackOptions(scheme=scheme, **given)

    def stack_options(self, **changes: Any) -> StackOptions:
        """These alone, where more is configured beside them, with some exchanged."""
        return StackOptions(**{name: getattr(self, name) for name in _FIELDS} | changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: a scheme and a state format as their strings, None as None. A ``save_ops`` that
        is no word cannot be written and becomes None.

        Raises:
            ConfigError: a scheme with an option that a string cannot hold.
        """
        written = {
            "scheme": _text(self.scheme, scheme_text),
            "state": _text(self.state, state_text),
            "save_ops": self.save_ops if isinstance(self.save_ops, str) else None,
        }
        return {name: written.get(name, getattr(self, name)) for name in _FIELDS}


_FIELDS: Mapping[str, dataclasses.Field] = {f.name: f for f in dataclasses.fields(StackOptions)}
#: Options with a flag of their own form, and those that a run may change when it goes on.
FLAGS = tuple(name for name, f in _FIELDS.items() if f.metadata.get("flag"))
SAME_BITS = frozenset(name for name, f in _FIELDS.items() if f.metadata.get("same_bits"))


def add_flags(parser: argparse._ActionsContainer, names: tuple[str, ...] = FLAGS, **notes: str) -> None:
    """``--start``, ``--keep``, ... of these options; None where not given. ``notes``: what the help says
    beside, by name.
    """
    for name in names:
        flag = dict(_FIELDS[name].metadata["flag"])
        default = _FIELDS[name].default
        flag["help"] += notes.get(name, "" if default is None else f" (default {default})")
        parser.add_argument(f"--{name.replace('_', '-')}", **flag)


class StackKeywords(TypedDict, total=False):
    """The options but scheme and state, for the ``**options`` of what takes them: a type checker does not
    read the fields of :class:`StackOptions` there. A test compares the two.
    """

    start: str | None
    readout: str
    keep: int | str
    memory_budget: int | float | None
    save_ops: Any
    tile: int | str | None
    offload_carries: bool
    checks: bool | str


class ModelKeywords(StackKeywords, total=False):
    """The options but the scheme."""

    state: Any


def takes_options(function: Function) -> Function:
    """Show the options that ``function(..., **options)`` takes in its signature, for help() and editors. To a
    type checker they are a :class:`StackKeywords` or :class:`ModelKeywords`.
    """
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    taken = {p.name for p in own}
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for name, f in _FIELDS.items()
        if name not in taken
    ]
    function.__signature__ = signature.replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
    return function


def _text(value: Any, write: Callable[[Any], str]) -> str | None:
    return value if value is None or isinstance(value, str) else write(value)


def _check_tile(tile: Any, keep: Any, budget: Any) -> None:
    if tile == "auto":
        if keep != "auto" or not isinstance(budget, int):
            raise ConfigError(
                f"tile is 'auto', keep is {keep!r} and memory_budget is {budget!r}: tiles are chosen by the"
                " budget that keep='auto' has, expected it in bytes (an int), because they decide about last"
                " bits, which what is free just now may not"
            )
    elif tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 1):
        raise ConfigError(f"tile is {tile!r}, expected a number of tokens, 1 or more, 'auto' or None")


def _check_budget(keep: Any, budget: Any) -> None:
    if keep != "auto":
        if budget is not None:
            raise ConfigError(
                f"memory_budget is {budget!r} and keep is {keep!r}: a budget decides how many layers are"
                " kept, use keep='auto' with it"
            )
        return
    whole = isinstance(budget, int) and not isinstance(budget, bool) and budget >= 0
    if not whole and not (isinstance(budget, float) and 0.0 < budget <= 1.0):
        raise ConfigError(
            f"memory_budget is {budget!r}, expected bytes (an int, 0 or more) or a fraction of what is free"
            " (a float above 0, at most 1.0)"
        )
