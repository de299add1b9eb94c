"""``revstep bench --report FOLDER``: report.md and figures from the JSON files that ``revstep bench --json`` wrote there."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from types import ModuleType

from revstep.errors import ConfigError

from .. import markdown

PAGE = "report.md"
_HEAD = """<!-- Written by revstep bench --report from the JSON files beside it. Do not edit: measure again, then run it again. -->

# All measurements

Times are medians over interleaved rounds of one run, each with a fresh graph after uncounted warm-up rounds; ratios are medians of the ratios of single rounds. *kept* is what torch's allocator holds between forward
and backward, *peak* the most it holds during the step, both above what was there before and with the parameters' gradients; *process* is the growth of the process's resident
memory (VmHWM). Each row's memory is measured in an untimed step, in a process of its own.
"""


def results(folder: Path, cases: dict[str, ModuleType]) -> dict[Path, dict]:
    """File -> result, of every JSON file of the folder that a case of ``revstep bench`` wrote.

    Raises:
        ConfigError: there is none, or one of a case that is not here.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or "bench" not in data:
            continue  # of another command
        if data["bench"] not in cases:
            raise ConfigError(f"{path} is of 'revstep bench {data['bench']}', expected one of {', '.join(cases)}")
        found[path] = data
    if not found:
        raise ConfigError(f"{folder} has no JSON file of 'revstep bench', expected some: revstep bench --json {folder}/NAME.json")
    return found


def page(found: dict[Path, dict], cases: dict[str, ModuleType]) -> str:
    """The whole page, goals that are not met and what was left out included."""
    parts = [_HEAD]
    for path, result in found.items():
        pictures = [f"![{path.stem}: {group}]({name})\n" for group, name, _ in figures(path, result)]
        pictures += [f"![{path.stem}: loss against {axis}]({path.stem}-{axis}.png)\n" for axis in getattr(cases[result["bench"]], "CURVES", ())]
        parts += [f"## {path.stem}\n", figures_of(result, cases[result["bench"]], path.name, pictures)]
    return "\n".join(parts)


def figures_of(result: dict, module: ModuleType, link: str, pictures: Sequence[str] = ()) -> str:
    """Device, versions and command of one result, its tables, what goes behind them, its goals, and what was left out. ``link``: where its file is."""
    env = result["environment"]
    packages = ", ".join(f"{key} {env[key]}" for key in env if key not in ("device", "threads", "date", "revstep", "commit", "torch", "python"))
    parts = [
        f"{env['device']}, {env['threads']} thread{'s' * (env['threads'] > 1)}, Python {env['python']}, torch {env['torch']}"
        f"{', ' * bool(packages)}{packages}, revstep {env['revstep']} ({env['commit']}), {env['date']}; medians of {result['rounds']} rounds; "
        f"`{result['command']}` ([all numbers]({link}))\n"
    ]
    parts += [f"**{title}.**\n\n{markdown.table(header, rows)}\n" for title, header, rows in module.tables(result)]
    parts += pictures
    if goals := module.verdicts(result):
        parts.append(markdown.table(("goal", "measured", "", ""), goals) + "\n")
    skipped = result.get("skipped", []) + [s for part in result.get("parts", {}).values() for s in part.get("skipped", [])]
    parts += [f"Left out: {skip['what']}: {skip['reason']}.\n" for skip in skipped]
    return "\n".join(parts)


def figures(path: Path, result: dict) -> list[tuple[str, str, list[dict]]]:
    """``(group, file name, its rows)`` of every figure of a result: one for each group of two measurements or more."""
    from ..bench.records import measurements

    groups = [(group, [m for _, m in rows]) for group, rows in groupby(measurements(result), key=lambda found: found[0])]
    return [(group, f"{path.stem}-{re.sub('[^a-z0-9]+', '-', group.lower())}.png", rows) for group, rows in groups if len(rows) > 1]


def write(folder: str, cases: dict[str, ModuleType]) -> list[Path]:
    """Page and figures into the folder; returns their paths.

    Raises:
        ConfigError: as :func:`results`.
    """
    from revstep.lm.files import write_atomic

    from ..bench.plots import draw_curves, draw_rows

    found, written = results(Path(folder), cases), []
    for path, result in found.items():
        env = result["environment"]
        for group, name, rows in figures(path, result):
            draw = draw_curves if "x" in rows[0] else draw_rows
            draw(
                path.with_name(name),
                path.stem if group == "measurements" else f"{path.stem}: {group}",
                f"{env['device']}, torch {env['torch']}, {env['date']}; {result['command']}",
                rows,
            )
            written.append(path.with_name(name))
        if getattr(cases[result["bench"]], "CURVES", ()):
            written += cases[result["bench"]].draw(path, result)
    write_atomic(Path(folder) / PAGE, page(found, cases).encode())
    return [*written, Path(folder) / PAGE]
