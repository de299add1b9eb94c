"""A result of a benchmark as one line a figure: the same columns for every case, so that files of many machines and dates go into one table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from revstep.errors import ConfigError
from revstep.lm.files import write_atomic

#: ``metric``: ``time`` (seconds of a call, or of a unit of work where the case counts one), ``time / ROW`` (median ratio), or the name of another figure.
#: ``options``, ``packages``: JSON.
FIELDS = (
    "bench", "group", "name", "metric", "p20", "p50", "p80", "rounds", "options", "device", "threads", "date", "revstep", "commit", "torch", "python", "packages",
)  # fmt: skip
_ENVIRONMENT = ("device", "threads", "date", "revstep", "commit", "torch", "python")
_APART = ("case", "environment", "goals", "skipped")


def measurements(result: dict) -> Iterator[tuple[str, dict]]:
    """``(where it stands in the result, measurement)`` of every measurement, at any depth: ``("parts/two-body/rows", {"name": ..., "p50": ...})``."""
    return _walk({key: value for key, value in result.items() if key not in _APART}, ())


def _walk(value: object, path: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    if isinstance(value, dict) and {"name", "p20", "p50", "p80"} <= value.keys():
        yield "/".join(path), value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, path)


def _figures(value: dict, name: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a measurement beside its times, by dotted name."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _figures(inner, f"{name}{key}.")
        elif isinstance(inner, (int, float)) and not isinstance(inner, bool):
            yield f"{name}{key}", inner


def lines(result: dict) -> list[dict]:
    """One dictionary with the keys ``FIELDS`` for each figure of a result with ``bench``, ``case``, ``rounds`` and ``environment``."""
    env = result["environment"]
    shared = {
        "bench": result["bench"], "rounds": result["rounds"], "options": json.dumps(result["case"]), **{key: env[key] for key in _ENVIRONMENT},
        "packages": json.dumps({key: value for key, value in env.items() if key not in _ENVIRONMENT}),
    }  # fmt: skip
    out = []
    for group, m in measurements(result):
        here = {**shared, "group": group, "name": m["name"]}
        out.append({**here, "metric": "time", **{key: m[key] for key in ("p20", "p50", "p80")}})
        out += [{**here, "metric": f"time / {other}", "p50": ratio} for other, ratio in m["ratios"].items()]
        others = {key: value for key, value in m.items() if key not in ("p20", "p50", "p80", "ratios", "rounds")}
        out += [{**here, "metric": name, "p50": value} for name, value in _figures(others)]
    return out


def add_to_csv(path: str, result: dict) -> None:
    """Append the lines of a result to a file, which gets the header if it is new; whole or not at all.

    Raises:
        ConfigError: the file has another header. OSError: as ``open`` does.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    file = Path(path)
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    if not before:
        writer.writeheader()
    elif before.splitlines()[0] != ",".join(FIELDS):
        raise ConfigError(f"{path} begins with {before.splitlines()[0]!r}, expected the columns {','.join(FIELDS)}: name another file")
    writer.writerows(lines(result))
    write_atomic(file, (before + ("\n" if before and not before.endswith("\n") else "") + text.getvalue()).encode())
