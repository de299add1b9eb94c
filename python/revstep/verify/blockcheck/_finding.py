"""A measured claim about a user's block, with what to change when it does not hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from .._checks import Result


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

    def to_dict(self) -> dict:
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
