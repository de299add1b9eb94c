"""Reading docstrings: what they are of, their examples, cross references, errors and arguments."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import doctest
import functools
import importlib
import importlib.util
import inspect
import io
import itertools
import re
import textwrap
import tokenize
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pages

PYTHON = pages.ROOT / "python"
PACKAGES = ("revstep", "revstep_lab")
#: Public parts, whose functions and classes name all of their arguments where they name one.
PUBLIC = (
    "revstep revstep.hf revstep.lm revstep.ode revstep.ode.compositions revstep.ode.fields"
    " revstep.ode.methods revstep.ops revstep.plan revstep.schemes revstep.stack revstep.state"
    " revstep.verify revstep.verify.blockcheck"
).split()
ROLE = re.compile(r":(func|class|meth|mod|data|attr):`~?([^`]+)`")
SECTION = re.compile(r"^(Args|Attributes|Class attributes|Raises|Returns|Warns):$")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Text(NamedTuple):
    """A docstring: of which module, of which class or function in it ("" for the module's own)."""

    module: str
    name: str
    text: str


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(PYTHON).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def files(package: str) -> tuple[Path, ...]:
    return tuple(sorted((PYTHON / package).rglob("*.py")))


def texts_of(source: str, module: str) -> list[Text]:
    """The docstrings of a file."""
    found = []

    def visit(node: ast.AST, name: str) -> None:
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            found.append(Text(module, name, text))
        for child in ast.iter_child_nodes(node):
            inner = getattr(child, "name", "") if isinstance(child, _DOCUMENTED) else ""
            visit(child, f"{name}.{inner}".strip(".") if inner else name)

    visit(ast.parse(source), "")
    return found


@functools.cache
def texts() -> tuple[Text, ...]:
    every = (f for package in PACKAGES for f in files(package))
    return tuple(t for f in every for t in texts_of(f.read_text(encoding="utf-8"), module_name(f)))


@functools.cache
def load(module: str) -> ModuleType | None:
    """The module; None where something that it needs is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if (error.name or "revstep").partition(".")[0] in PACKAGES:
            raise
        return None


# ---- Examples ----


def examples(text: str) -> list[str]:
    """What a docstring shows as code: all of its ``>>>`` lines together, and indented paragraphs that are
    Python (or follow ``::``, or begin with an import, and so have to be). Formulas are none.
    """
    found = [text] if ">>>" in text else []
    for before, paragraph in itertools.pairwise(re.split(r"\n\s*\n", text)):
        if ">>>" in paragraph or not all(line.startswith("    ") for line in paragraph.split("\n")):
            continue
        code = textwrap.dedent(paragraph)
        try:
            is_code = ast.parse(code) is not None
        except SyntaxError:
            is_code = before.endswith("::") or code.startswith(("import ", "from "))
        if is_code:
            found.append(code)
    return found


def run(code: str, names: dict[str, Any]) -> None:
    """Run one of ``examples``. Raises AssertionError where a ``>>>`` does not give what it says."""
    if ">>>" not in code:
        exec(compile(code, "<docstring>", "exec"), names)
        return
    lost = [line for line in code.splitlines() if ">>>" in line.strip()[1:]]
    assert not lost, f"an example in the middle of a line: {lost}"
    test = doctest.DocTestParser().get_doctest(code, names, "docstring", None, 0)
    said = io.StringIO()
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.write)
    assert not said.getvalue(), said.getvalue()


# ---- What is referred to ----


def follow(start: Any, path: str) -> Any:
    """``start.path``; a field of a dataclass stands for itself. Raises AttributeError."""
    for part in path.split("."):
        fields = getattr(start, "__dataclass_fields__", {})
        start = getattr(start, part) if hasattr(start, part) or part not in fields else fields[part]
    return start


def absolute(path: str) -> Any:
    """The object of a full name. Raises AttributeError or ImportError."""
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        name = ".".join(parts[:n])
        try:
            there = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            there = False
        if there:
            found = importlib.import_module(name)
            return follow(found, ".".join(parts[n:])) if n < len(parts) else found
    raise ImportError(path)


def candidates(target: str, module: str, classes: list[str]):
    """Where to look, in turn: functions that return the object, each of which may raise."""
    if target.startswith("."):
        package = module if hasattr(load(module), "__path__") else module.rpartition(".")[0]
        rest = target.lstrip(".")
        for _ in range(len(target) - len(rest) - 1):
            package = package.rpartition(".")[0]
        yield lambda: absolute(f"{package}.{rest}")
        return
    for name in classes:
        yield lambda name=name: follow(follow(load(module), name), target)
    yield lambda: follow(load(module), target)
    yield lambda: absolute(target)


IS_OF_KIND = {
    "func": callable,
    "class": inspect.isclass,
    "meth": lambda value: callable(value) or isinstance(value, property),
    "mod": inspect.ismodule,
    "data": lambda value: not inspect.ismodule(value),
    "attr": lambda value: not inspect.ismodule(value),
}


def unresolved(source: str, module: str) -> list[str]:
    """The cross references of a file's docstrings and comments that lead nowhere, or to another kind of
    thing. ``.name`` is looked up in the module's package, ``name`` in the classes around it, in the module
    and as a full name.
    """
    if load(module) is None:
        return []
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)]
    broken = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.STRING, tokenize.COMMENT):
            continue
        for role in ROLE.finditer(token.string):
            line = token.start[0] + token.string.count("\n", 0, role.start())
            classes = [n.name for n in nodes if n.lineno <= line <= n.end_lineno]
            for candidate in candidates(role[2], module, classes):
                try:
                    if IS_OF_KIND[role[1]](candidate()):
                        break
                except (AttributeError, ImportError):
                    continue
            else:
                broken.append(f"{module}, line {line}: {role[0]}")
    return broken


# ---- Errors and arguments ----


def sections(text: str) -> dict[str, list[str]]:
    """Names of the entries of each section. An entry that has lost its indent is none, and ends it."""
    found: dict[str, list[str]] = {}
    names = None
    for line in text.splitlines():
        if match := SECTION.match(line):
            names = found.setdefault(match[1].removeprefix("Class ").capitalize(), [])
        elif line and not line.startswith(" "):
            names = None
        elif names is not None and (match := re.match(r"^    ([\w.]+(?:, [\w.]+)*):(?: |$)", line)):
            names += match[1].split(", ")
    return found


@functools.cache
def known_errors() -> frozenset[str]:
    """Names of all exception classes, once every module is imported."""

    def below(cls: type):
        yield cls
        for sub in cls.__subclasses__():
            yield from below(sub)

    for package in PACKAGES:
        for file in files(package):
            load(module_name(file))
    assert builtins.ValueError in set(below(BaseException))
    return frozenset(cls.__name__ for cls in below(BaseException))


def named_errors(text: str) -> list[str]:
    """Of the sections, and of sentences "Raises X when ..."."""
    found = sections(text)
    inline = re.findall(r"\bRaises? ([A-Z]\w+(?:Error|Warning|Exception))\b", text)
    return [*found.get("Raises", ()), *found.get("Warns", ()), *inline]


def parameters(value: Any) -> tuple[set[str], set[str]]:
    """(Names that may be documented, names that have to be). ``takes_options`` shows more of them than the
    function has by name; those may be, as ``options`` or each by its own.
    """
    shown = set(inspect.signature(value).parameters)
    function = inspect.unwrap(value.__init__ if inspect.isclass(value) else value)
    code = getattr(function, "__code__", None)
    if code is None:
        return shown, shown
    count = code.co_argcount + code.co_kwonlyargcount
    own = set(code.co_varnames[:count]) - {"self", "cls"}
    variadic = sum(bool(code.co_flags & flag) for flag in (inspect.CO_VARARGS, inspect.CO_VARKEYWORDS))
    return {*shown, *own, *code.co_varnames[count : count + variadic]}, {n for n in own if n[0] != "_"}


def _given_to_self(cls: type) -> set[str]:
    """Attributes that the methods of a class of this project set."""
    sources = [
        inspect.getsource(base) for base in cls.__mro__ if base.__module__.partition(".")[0] in PACKAGES
    ]
    nodes = [n for source in sources for n in ast.walk(ast.parse(textwrap.dedent(source)))]
    return {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}


def wrong_entries(text: str, value: Any, public: bool) -> list[str]:
    """Entries of ``Args:`` that are no argument, of ``Attributes:`` that are no attribute; of a public
    object also arguments that have no entry where others have one.
    """
    found, faults = sections(text), []
    if "Args" in found:
        may, must = parameters(value)
        faults += [f"{name} is no argument" for name in found["Args"] if name not in may]
        if public:
            faults += [f"{name} is not there" for name in sorted(must - set(found["Args"]))]
    if "Attributes" in found and inspect.isclass(value):
        has = {*dir(value), *_given_to_self(value)}
        has |= {name for base in value.__mro__ for name in vars(base).get("__annotations__", ())}
        if dataclasses.is_dataclass(value):
            has |= {f.name for f in dataclasses.fields(value)}
        faults += [f"{name} is no attribute" for name in found["Attributes"] if name not in has]
    return faults


@functools.cache
def public() -> frozenset[str]:
    """``module:name`` of everything public, where it is defined."""
    found = set()
    for module in map(importlib.import_module, PUBLIC):
        for name in getattr(module, "__all__", ("available", "get")):
            value = getattr(module, name)
            if hasattr(value, "__qualname__"):
                found.add(f"{value.__module__}:{value.__qualname__}")
    return frozenset(found)


def is_public(text: Text) -> bool:
    """Whether it is public, or a public method of what is."""
    outer, _, method = text.name.rpartition(".")
    names = public()
    return f"{text.module}:{text.name}" in names or (
        not method.startswith("_") and f"{text.module}:{outer}" in names
    )


def described() -> list[tuple[Text, Any]]:
    """Docstrings with what they are of. Functions within functions cannot be reached and are left out."""
    found = []
    for text in texts():
        module = load(text.module)
        try:
            value = follow(module, text.name) if text.name else module
        except AttributeError:
            continue
        found.append((text, value.fget if isinstance(value, property) else value))
    return found
