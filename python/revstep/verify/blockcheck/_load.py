"""The user's own block as the checks take it: the factory that makes it, an input for it, and what a finding
about it says.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...stack import from_residual
from .._checks import Result

# ------------------------------------------------------------------------------------------------------------
# A measured claim about a user's block, with what to change when it does not hold.


@dataclass(frozen=True)
class Finding:
    """``check`` is the short name by which a rule is called; ``advice`` says what to change (or, where
    the claim holds, to look at), a sentence each."""

    check: str
    result: Result
    advice: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.result.ok

    @property
    def verdict(self) -> str:
        return "FAILS" if not self.ok else "look" if self.advice else "ok"

    def to_dict(self) -> dict[str, Any]:
        return {"check": self.check, **self.result.to_dict(), "advice": list(self.advice)}


def finding(
    check: str,
    claim: str,
    ok: bool,
    why: str = "",
    advice: str | Sequence[str] = "",
    measured: float | None = None,
    bound: float = 0.0,
    unit: str = "",
) -> Finding:
    """A Finding whose figure, where none is given, counts violations: 0 or 1, at most 0."""
    figure = (0.0 if ok else 1.0) if measured is None else measured
    words = (advice,) if isinstance(advice, str) else tuple(advice)
    return Finding(
        check, Result(claim, ok, figure, bound, unit or "violations", why), tuple(w for w in words if w)
    )


# ---- Whatever a user's code raises becomes words; only Ctrl-C ends the check ----


def described(error: BaseException) -> str:
    """The error's kind and message, also where the message cannot be made."""
    try:
        words = str(error)
    except Exception:
        words = "(its message cannot be read)"
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


@contextlib.contextmanager
def caught(tell: Callable[[str], None]) -> Iterator[None]:
    """``tell`` what was raised inside, and go on after the block. SystemExit is an error here too."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        tell(described(error))


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """A ConfigError that begins with ``what`` in place of anything that is raised inside.

    Raises:
        ConfigError: anything was raised inside.
    """
    try:
        yield
    except (KeyboardInterrupt, ConfigError):
        raise
    except BaseException as error:
        raise ConfigError(f"{what} {described(error)}") from error


# ------------------------------------------------------------------------------------------------------------
# ``module:make_block`` or ``file.py:make_block``: the user's factory, what it makes, and an input for it.

#: block dtype and autocast dtype by the name that a command line gives
DTYPES: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "float32": (torch.float32, None),
    "float64": (torch.float64, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "float32+bf16": (torch.float32, torch.bfloat16),
}


def load_factory(spec: str) -> Callable[..., Any]:
    """The callable that ``package.module:name`` or ``path/file.py:name`` stands for.

    Raises:
        ConfigError: it cannot be found, imported or called.
    """
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name.isidentifier():
        raise ConfigError(
            f"--block {spec!r}: expected module:function or file.py:function, for example mymodule:make_block"
        )
    with refusing(f"--block {spec}: importing {source} failed:"):
        module = _from_file(Path(source)) if source.endswith(".py") else _from_name(source)
        factory = getattr(module, name, None)
    if not callable(factory):
        known = (
            ", ".join(sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_")))
            or "nothing that can be called"
        )
        raise ConfigError(f"--block {spec}: {source} has no function {name}; it has {known}")
    return factory


def _from_name(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` has it; an installed command does not
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _from_file(path: Path) -> Any:
    path = path.resolve(strict=True)
    folder = str(path.parent)
    if folder not in sys.path:  # so that the file can import its neighbours, as when it is run
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickle look a module up by its name
    spec.loader.exec_module(module)
    return module


def parse_arguments(text: str | None) -> tuple[list[Any], dict[str, Any]]:
    """``"64, dropout=0.1"`` -> ``([64], {"dropout": 0.1})``: Python literals, as in a call.

    Raises:
        ConfigError: not literals.
    """
    try:
        call = ast.parse(f"f({text or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or any(k.arg is None for k in call.keywords):
            raise ValueError("not a list of arguments")
        return [ast.literal_eval(a) for a in call.args], {
            k.arg: ast.literal_eval(k.value) for k in call.keywords
        }
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"--block-args {text!r}: expected arguments as in a call, numbers or quoted strings, for example"
            ' "64, dropout=0.1"'
        ) from error


@dataclass(frozen=True)
class Subject:
    """A user's factory and an input.

    Attributes:
        name: what to call it.
        factory: ``factory()`` -> nn.Module, or a pair (F, G).
        x: the input the checks use.
        dtype: what the blocks are cast to; None leaves them as the factory made them.
        residual: the blocks return x + f(x), and are taken through :func:`revstep.from_residual`.
    """

    name: str
    factory: Callable[[], Any]
    x: Tensor
    dtype: torch.dtype | None = None
    residual: bool = False

    def make(self, seed: int = 0) -> nn.Module | tuple[nn.Module, nn.Module]:
        """A new layer; the same seed gives the same initial weights."""
        return _make(self.factory, self.dtype, seed, self.residual)

    def parts(self) -> dict[str, Callable[[], nn.Module]]:
        """Label and maker of each module that must keep the rules: the block, or F and G of a pair."""
        if isinstance(self.make(), tuple):
            return {"F": lambda: self.make()[0], "G": lambda: self.make()[1]}
        return {"": self.make}


def _make(
    factory: Callable[[], Any], dtype: torch.dtype | None, seed: int, residual: bool
) -> nn.Module | tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(), refusing("the factory raised"):
        torch.manual_seed(seed)
        made = factory()
    pair = tuple(made) if isinstance(made, (tuple, list)) else (made,)
    if len(pair) > 2 or not pair or not all(isinstance(m, nn.Module) for m in pair):
        got = (
            f"({', '.join(type(m).__name__ for m in pair)})"
            if isinstance(made, (tuple, list))
            else type(made).__name__
        )
        raise ConfigError(
            f"the factory returned {got}, expected an nn.Module that computes the increment f(x), or a pair"
            " (F, G) of them"
        )
    with refusing(f"the block cannot be cast to {dtype}:"):
        fresh = tuple(_copy(m) if dtype is None else _copy(m).to(dtype) for m in pair)
    if residual:
        fresh = tuple(map(from_residual, fresh))
    return fresh if len(fresh) == 2 else fresh[0]


def _copy(module: nn.Module) -> nn.Module:
    """A factory may hand out one module again and again: what we run is never the module itself, where it can
    be copied.
    """
    try:
        return copy.deepcopy(module)
    except Exception:  # whatever its own __deepcopy__ or a member of it raises
        return module


def make_subject(
    spec: str,
    block_args: str | None = None,
    shape: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    residual: bool = False,
) -> Subject:
    """What ``revstep verify --block`` was asked to look at.

    Args:
        spec: ``package.module:name`` or ``path/file.py:name`` of what makes the block, as
            :func:`load_factory` takes it.
        block_args: arguments of that, as they stand in a call: ``"64, heads=4"``; None: none.
        shape: ``"2,16,64"``; None: the block must have a method ``example_input()``.
        dtype: a name of :data:`DTYPES` without autocast; None: that of the block's
            first parameter.
        seed: of the input.
        residual: see :class:`Subject`.

    Raises:
        ConfigError: something of it cannot be used.
    """
    args, kwargs = parse_arguments(block_args)
    function = load_factory(spec)
    cast = _dtype(dtype)

    call = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])

    def factory() -> Any:
        with refusing(f"{spec.rpartition(':')[2]}({call}) raised"):
            return function(*args, **kwargs)

    made = _make(factory, cast, 0, residual)
    first = made[0] if isinstance(made, tuple) else made
    with refusing("no input could be made for the block:"):
        x = _input(first, shape, cast, seed)
    return Subject(spec, factory, x, cast, residual)


def _dtype(name: str | None) -> torch.dtype | None:
    plain = {k: v for k, (v, autocast) in DTYPES.items() if autocast is None}
    if name is not None and name not in plain:
        raise ConfigError(
            f"--dtype {name}: expected one of {', '.join(plain)} with --block (bfloat16 and float16 autocast"
            " are measured beside it)"
        )
    return None if name is None else plain[name]


def _input(block: nn.Module, shape: str | None, dtype: torch.dtype | None, seed: int) -> Tensor:
    parameter = next((p for p in block.parameters() if p.is_floating_point()), torch.zeros(()))
    dtype = dtype or parameter.dtype
    if shape is not None:
        try:
            sizes = [int(n) for n in shape.split(",")]
        except ValueError:
            sizes = []
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"--shape {shape!r}: expected sizes separated by commas, for example 2,16,64")
        return torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
            parameter.device, dtype
        )
    if not callable(getattr(block, "example_input", None)):
        raise ConfigError(
            "which input does the block take? give --shape 2,16,64 (batch, length, width), or the block a"
            " method example_input() that returns one"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = block.example_input()
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ConfigError(
            f"example_input() returned {got}, expected hidden states: a floating-point tensor such as"
            " torch.randn(2, 16, 64)"
        )
    return x.detach().to(dtype)
