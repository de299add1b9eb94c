"""One claim, measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Result:
    """A claim with its measurement; data, not an exception.

    Attributes:
        claim: what was measured, in words.
        ok: whether the claim holds.
        measured: the figure, in ``unit``.
        bound: the most it may be, in ``unit``.
        unit: of both.
        why: one sentence: what the figure is, or what went wrong.
    """

    claim: str
    ok: bool
    measured: float
    bound: float
    unit: str
    why: str = ""

    def to_dict(self) -> dict:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAILS"
        return f"{self.claim}: {verdict} ({self.measured:.3g} {self.unit}, at most {self.bound:.3g}){': ' + self.why if self.why else ''}"


def failed(claim: str, unit: str, error: Exception) -> Result:
    """A claim that could not be measured because the code under test raised."""
    return Result(claim, False, float("inf"), 0.0, unit, f"{type(error).__name__}: {error}")
