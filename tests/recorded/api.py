"""The public surface: names, signatures, members and command-line options, as text.

Usage: python tests/recorded/api.py            prints it
       python tests/recorded/api.py --write    writes api.txt: only for a change that the deprecation policy
                                               (docs/stability.md) allows

A name is public if ``dir()`` of a public package shows it, or if it is a public member of a public class.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = Path(__file__).with_name("api.txt")
CHANGELOG = Path(__file__).resolve().parents[2] / "CHANGELOG.md"
PARTS = (
    "revstep",
    "revstep.errors",
    "revstep.hf",
    "revstep.hf.adapters",
    "revstep.lm",
    "revstep.ode",
    "revstep.ode.compositions",
    "revstep.ode.fields",
    "revstep.ode.methods",
    "revstep.ode.tableaus",
    "revstep.ops",
    "revstep.ops.reference",
    "revstep.plan",
    "revstep.schemes",
    "revstep.stack",
    "revstep.state",
    "revstep.verify",
    "revstep.verify.blockcheck",
)
#: An address is no part of a signature.
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def is_ours(value: Any) -> bool:
    """A class or function that is defined in revstep."""
    return callable(value) and str(getattr(value, "__module__", "")).split(".")[0] == "revstep"


def is_constant(value: Any) -> bool:
    """Neither a class, function or module, nor what ``from __future__`` leaves behind."""
    return not (callable(value) or isinstance(value, ModuleType) or type(value).__module__ == "__future__")


def defined(module: ModuleType) -> set[str]:
    """Names that a module without ``__all__`` does not have from elsewhere."""
    found = set()
    for node in ast.parse(inspect.getsource(module)).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
    return found


def public() -> dict[str, Any]:
    """``{place: object}`` of every public name, the shortest place of each object."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for part in PARTS:
        module = importlib.import_module(part)
        names = dir(module) if hasattr(module, "__all__") else defined(module)
        for name in sorted(n for n in names if not n.startswith("_")):
            value = getattr(module, name)
            if is_constant(value) or (is_ours(value) and id(value) not in seen):
                seen.add(id(value))
                found[f"{part}.{name}"] = value
    return found


def members(cls: type, known: set[type]) -> Iterator[tuple[str, Any]]:
    """Public functions, properties and annotated attributes of a class, by name; those it has from a class
    among ``known`` are listed there.
    """
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.split(".")[0] == "revstep" and (base is cls or base not in known):
            found |= dict.fromkeys(inspect.get_annotations(base))
            found |= {n: v for n, v in vars(base).items() if is_member(v)}
    yield from sorted((n, v) for n, v in found.items() if not n.startswith("_"))


def is_member(value: Any) -> bool:
    return isinstance(value, property | classmethod | staticmethod) or inspect.isfunction(value)


def signature(value: Any) -> str:
    """``(x: Tensor, *, h: float = 1.0) -> Tensor``, annotations as they are written; ``(...)`` of a class
    that is made as a class outside of revstep is.
    """
    if inspect.isclass(value) and not any(
        {"__init__", "__new__"} & vars(base).keys() and is_ours(base) for base in value.__mro__
    ):
        return "(...)"
    found = inspect.signature(value)
    parts, kind = [], None
    for p in found.parameters.values():
        if p.kind is p.KEYWORD_ONLY and kind not in (p.KEYWORD_ONLY, p.VAR_POSITIONAL):
            parts.append("*")
        if kind is p.POSITIONAL_ONLY and p.kind is not p.POSITIONAL_ONLY:
            parts.append("/")
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        text = star + p.name + ("" if p.annotation is p.empty else f": {written(p.annotation)}")
        parts.append(text if p.default is p.empty else f"{text} = {default(p.default)}")
        kind = p.kind
    returns = "" if found.return_annotation is found.empty else f" -> {written(found.return_annotation)}"
    return f"({', '.join(parts)}){returns}"


def written(annotation: Any) -> str:
    annotation = getattr(annotation, "__forward_arg__", annotation)
    return annotation.strip("'\"") if isinstance(annotation, str) else inspect.formatannotation(annotation)


def default(value: Any) -> str:
    if inspect.isroutine(value) or inspect.isclass(value):
        return value.__qualname__
    return ADDRESS.sub("", repr(value))


def marked(value: Any) -> str:
    """That a name goes, as PEP 702 marks it."""
    return " (deprecated)" if "__deprecated__" in getattr(value, "__dict__", {}) else ""


def lines_of(place: str, value: Any, known: set[type]) -> Iterator[str]:
    """One line for the name, and one for each member of a class."""
    if not inspect.isclass(value):
        text = f"{place}{signature(value)}" if callable(value) else f"{place}: {type(value).__name__}"
        yield text + marked(value)
        return
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    fields = {f.name for f in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    yield f"class {place}{signature(value)}" + (f" of {bases}" if bases else "") + marked(value)
    for name, member in members(value, known):
        member = getattr(member, "__func__", member)
        if isinstance(member, property):
            yield f"{place}.{name}: property{signature(member.fget).partition(')')[2]}"
        elif inspect.isfunction(member):
            yield f"{place}.{name}{signature(member)}{marked(member)}"
        elif name not in fields:  # those are in the line of the class
            yield f"{place}.{name}: attribute"


def options() -> Iterator[str]:
    """One line for each option of each command of the library."""
    from revstep import _cli

    (commands,) = (a for a in _cli.make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for command in sorted(set(commands.choices) - set(_cli.LAB_COMMANDS)):
        parser = commands.choices[command]
        for action in parser._actions:
            names = ", ".join(action.option_strings) or action.dest.upper()
            choices = "" if action.choices is None else f" of {', '.join(map(str, action.choices))}"
            yield f"revstep {command}: {names}{choices}"


def surface() -> list[str]:
    """The public surface, a name a line."""
    found = public()
    known = {value for value in found.values() if inspect.isclass(value)}
    names = [line for place, value in found.items() for line in lines_of(place, value, known)]
    return [*names, *options()]


def key(line: str) -> str:
    """What a line is about: its name, or command and option."""
    return line if line.startswith("revstep ") else re.split(r"[(:]", line.removeprefix("class "))[0]


def changes(old: list[str], new: list[str]) -> dict[str, list[str]]:
    """Lines that changed, went and came."""
    before, after = {key(line): line for line in old}, {key(line): line for line in new}
    both = [name for name in before if name in after and before[name] != after[name]]
    return {
        "changed": [f"{before[name]} -> now {after[name]}" for name in both],
        "gone": [line for name, line in before.items() if name not in after],
        "new": [line for name, line in after.items() if name not in before],
    }


def message(found: dict[str, list[str]]) -> str:
    """What to do about changes, as a test says it."""
    lines = [f"  {kind}: {line}" for kind, group in found.items() for line in group]
    return "\n".join(
        [
            "the public surface is not the recorded one:",
            *lines,
            "A name that went or changed needs what docs/stability.md asks for: first a release in which it"
            " warns, and an entry in CHANGELOG.md. If the change is meant, run: python tests/recorded/api.py"
            " --write",
        ]
    )


def unsaid(found: dict[str, list[str]], changelog: str) -> list[str]:
    """What went or changed and is not named, in backticks, among the unreleased changes."""
    unreleased = changelog.partition("\n## [Unreleased]")[2].partition("\n## ")[0]
    said = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`]+)`", unreleased))))
    return [
        line
        for line in found["gone"] + found["changed"]
        if not (set(re.split(r"[\s,]+", line)) if line.startswith("revstep ") else {key(line).split(".")[-1]})
        & said
    ]


def main(arguments: list[str]) -> int:
    new = surface()
    if arguments != ["--write"]:
        print("\n".join(new))
        return 0
    old = FILE.read_text(encoding="utf-8").splitlines() if FILE.exists() else []
    found = changes(old, new)
    missing = unsaid(found, CHANGELOG.read_text(encoding="utf-8"))
    if missing:
        print("CHANGELOG.md does not name in backticks, under Unreleased:", *missing, sep="\n  ")
        return 1
    FILE.write_text("\n".join(new) + "\n", encoding="utf-8")
    print({kind: len(group) for kind, group in found.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
