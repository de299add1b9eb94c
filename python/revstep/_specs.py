"""Schemes and state formats as short strings, ``blend:c=0.25`` or ``fixed32:18``, so that a command line, a
run's JSON or a model's config can name them.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError

#: Trunks that are not reversible: everything stored, or each block recomputed by torch.utils.checkpoint.
STORED_TRUNKS = ("plain", "checkpoint")
STATES = ("fixed32", "fixed64", "float32", "float64")

Value = bool | int | float | str | list

#: A fraction, and hardly a list of one entry a layer.
_FRACTION = re.compile(r"1/([2-9]|[1-9]\d+)")


def _value(text: str) -> Value:
    """``3`` int, ``0.5`` float, ``true``/``false`` bool, ``0.5/1.5`` a list (one per layer), anything else a
    word.
    """
    if "/" in text:
        return [_value(part) for part in text.split("/") if part]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True)
class SchemeSpec:
    """A trunk by name: ``name`` is in ``STORED_TRUNKS`` or in the scheme registry, ``options`` are its
    keyword arguments.
    """

    name: str
    options: dict[str, Value] = field(default_factory=dict)

    @property
    def reversible(self) -> bool:
        return self.name not in STORED_TRUNKS

    def make(self) -> Any:
        """The scheme object.

        Raises:
            ConfigError: unknown name or option (the known ones are listed), a value the scheme refuses, or a
                stored trunk.
        """
        from .schemes import _base

        known = _base.available()
        if self.name not in known:
            names = (*STORED_TRUNKS, *sorted(known))
            near = difflib.get_close_matches(self.name, names, 1)
            raise ConfigError(
                f"unknown scheme {self.name!r}{f'; did you mean {near[0]!r}?' if near else ''} (known:"
                f" {', '.join(names)})"
            )
        return _base.make(self.name, **self.options)


@dataclass(frozen=True)
class StateSpec:
    """A state format by name, with the fractional bits of a fixed-point one (None: the format's default)."""

    name: str
    frac_bits: int | None = None

    def make(self, *, on_nonfinite: str = "raise") -> Any:
        """The state object; ``on_nonfinite`` (fixed point only) as in ``FixedPoint``.

        Raises:
            ConfigError: fractional bits the format refuses.
        """
        import torch

        from .state import FixedPoint, Float

        if self.name.startswith("float"):
            return Float(dtype=getattr(torch, self.name))
        return FixedPoint(bits=int(self.name[-2:]), frac_bits=self.frac_bits, on_nonfinite=on_nonfinite)


def parse_scheme(text: str) -> SchemeSpec:
    """``name`` or ``name:option=value,option=value``. Names and options are looked up by ``SchemeSpec.make``,
    not here.

    Raises:
        ConfigError: not of that form, or options on a trunk that has none.
    """
    if not isinstance(text, str):
        raise ConfigError(f"scheme is {text!r}; expected a string such as 'blend:c=0.25'")
    name, colon, rest = text.strip().partition(":")
    options: dict[str, Value] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key or not equals or not value:
            raise ConfigError(
                f"scheme {text!r}: {part!r} is not option=value; write for example blend:c=0.25 or"
                " midpoint_blend:a=paper,seed=3"
            )
        if key in options:
            raise ConfigError(f"scheme {text!r} gives {key!r} twice; give it once")
        if fraction := _FRACTION.fullmatch(value):
            raise ConfigError(
                f"scheme {text!r}: {value} is read as two entries, one for each of two layers; write the"
                f" fraction as {key}={1 / int(fraction[1]):g}"
            )
        options[key] = _value(value)
    if not name or (colon and not rest):
        raise ConfigError(
            f"scheme {text!r} is not name or name:option=value; write for example plain, midpoint or"
            " blend:c=0.25"
        )
    if name in STORED_TRUNKS and options:
        raise ConfigError(f"scheme {name!r} has no options, got {rest!r}; write just {name}")
    return SchemeSpec(name.replace("-", "_"), options)


def parse_state(text: str) -> StateSpec:
    """``fixed32``, ``fixed64`` (each with ``:frac_bits``), ``float32`` or ``float64``.

    Raises:
        ConfigError: anything else; the known names are listed.
    """
    name, colon, rest = text.strip().partition(":") if isinstance(text, str) else (text, "", "")
    if name not in STATES:
        raise ConfigError(
            f"unknown state {text!r} (known: fixed32[:frac_bits], fixed64[:frac_bits], float32, float64)"
        )
    if not colon:
        return StateSpec(name)
    if name.startswith("float") or not rest.isdigit():
        raise ConfigError(
            f"state {text!r}: expected fixed32:F or fixed64:F with F the whole number of bits after the"
            " point, e.g. fixed32:18"
        )
    return StateSpec(name, int(rest))


def scheme_text(scheme: Any) -> str:
    """The string that ``parse_scheme`` turns back into an equal scheme; options at their defaults are left
    out.

    Raises:
        ConfigError: an option that a string cannot hold.
    """
    default = type(scheme)()
    options = {}
    for spec in dataclasses.fields(scheme):
        value = getattr(scheme, spec.name)
        if spec.init and value != getattr(default, spec.name):
            options[spec.name] = (
                "/".join(map(repr, value)) + "/" * (len(value) == 1)
                if isinstance(value, (tuple, list))
                else str(value)
            )
    text = scheme.name + (
        ":" + ",".join(f"{key}={value}" for key, value in options.items()) if options else ""
    )
    if parse_scheme(text).make() != scheme:
        raise ConfigError(
            f"{scheme} cannot be written as a string (tried {text!r}): use an option with a finite decimal"
            " value"
        )
    return text


def state_text(state: Any) -> str:
    """The string that ``parse_state`` turns back into the same format (``on_nonfinite`` and ``max_error`` are
    not part of it).
    """
    if state.exact:
        return f"fixed{state.bits}:{state.frac_bits}"
    return "float64" if state.dtype.itemsize == 8 else "float32"
