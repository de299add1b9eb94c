"""The public surface as mypy in strict mode sees it, from the installed package.

Usage: python .ci/typed.py MYPY     in the environment where revstep and its extras are installed

1. Every public name is known by its type, and is not "Any" (``py.typed`` is there, what is found or imported
   late is declared too). ``tests/recorded/typed_use.py``, programs as a user writes them, pass, and what they
   do wrong on purpose is found.
2. Every public signature passes ``--strict``: stubs are made of the installed sources, without bodies.
   What belongs to no public name is left out, and so is what REMARKS names.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "recorded"))
import api  # noqa: E402

LINE = re.compile(r"^(?P<file>.+?):(?P<line>\d+): (?P<kind>\w+): (?P<text>.*)$")
#: Of stubs alone: they hold no values, so that attributes which a subclass sets have no type there. And
#: revstep's abstract classes declare attributes that some subclasses compute.
REMARKS = re.compile(
    r'has type "EllipsisType"|expression has type "None", variable has type "int"'
    r"|Cannot override (class variable|writeable attribute)"
)
#: What stands for "nobody knows".
UNKNOWN = re.compile(r'^Revealed type is "(Any|def \(\*Any, \*\*Any\).*)"$')


def mypy(program: str, folder: Path, *arguments: str) -> Iterator[re.Match[str]]:
    """Its remarks. The cache is beside ``folder``, for torch takes it twenty seconds."""
    run = subprocess.run(
        [program, "--strict", "--no-error-summary", f"--python-executable={sys.executable}",
         f"--cache-dir={folder.parent / 'cache'}", "--follow-imports=silent", *arguments],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    if run.returncode not in (0, 1):
        sys.exit(f"{run.stdout}{run.stderr}mypy failed with status {run.returncode}")
    return filter(None, map(LINE.match, run.stdout.splitlines()))


def wrong_names_and_use(program: str, folder: Path) -> list[str]:
    """Public names that mypy does not know, or knows nothing of. Remarks on the programs of a user, where a
    comment ``# expect: CODE`` does not ask for them; and what is asked for and was not said.
    """
    lines = [f"import {part}" for part in api.PARTS] + [f"reveal_type({name})" for name in api.public()]
    text = (ROOT / "tests" / "recorded" / "typed_use.py").read_text(encoding="utf-8")
    (folder / "names.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "typed_use.py").write_text(text, encoding="utf-8")
    unknown, found = [], {}
    for remark in mypy(program, folder, "names.py", "typed_use.py"):
        number, is_error = int(remark["line"]), remark["kind"] == "error"
        if remark["file"] == "typed_use.py" and is_error:
            found[number] = remark["text"]
        elif remark["file"] == "names.py" and (is_error or UNKNOWN.match(remark["text"])):
            unknown.append(f"{lines[number - 1]}: {remark['text']}")
    wanted = {n: line.partition("# expect: ")[2] for n, line in enumerate(text.splitlines(), 1)}
    return unknown + [
        f"typed_use.py:{n}: {found.get(n, 'no error')}, expected {code or 'no error'}"
        for n, code in wanted.items()
        if (n in found) != bool(code) or (n in found and not found[n].endswith(f"[{code}]"))
    ]


def public_definitions() -> set[tuple[str, str]]:
    """``(module, qualified name)`` of every public class, function and method."""
    found = set()
    for value in api.public().values():
        if inspect.isclass(value):
            found |= {
                (value.__module__, value.__qualname__),
                (value.__module__, f"{value.__qualname__}.__init__"),
            }
            members = (m.fget if isinstance(m, property) else m for _, m in api.members(value, set()))
            functions = [inspect.unwrap(getattr(m, "__func__", m)) for m in members if m is not None]
        else:
            functions = [inspect.unwrap(value)] if callable(value) else []
        found |= {(f.__module__, f.__qualname__) for f in functions if inspect.isfunction(f)}
    return found


def owner(tree: ast.Module, line: int) -> str:
    """The qualified name of the innermost class or function that has a line."""
    name, body = "", tree.body
    while True:
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        inside = [n for n in body if isinstance(n, kinds) and n.lineno <= line <= (n.end_lineno or 0)]
        if not inside:
            return name
        name, body = f"{name}.{inside[0].name}".lstrip("."), inside[0].body


def untyped_signatures(program: str, folder: Path) -> list[str]:
    """What strict mode says about the signatures of public names."""
    import revstep

    package = Path(revstep.__file__).parent
    stubgen = Path(program).with_name("stubgen")
    subprocess.run(
        [stubgen, "-q", "--parse-only", "-o", folder, "revstep"], cwd=package.parent, check=True, text=True
    )
    public, found = public_definitions(), []
    for remark in mypy(program, folder, "-p", "revstep"):
        path = Path(remark["file"])
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        name = owner(ast.parse((folder / path).read_text(encoding="utf-8")), int(remark["line"]))
        if remark["kind"] == "error" and (module, name) in public and not REMARKS.search(remark["text"]):
            found.append(f"{module}.{name}: {remark['text']}")
    return found


def main(program: str) -> int:
    program = str(Path(program).absolute())
    problems = []
    with tempfile.TemporaryDirectory() as work:
        for check in (wrong_names_and_use, untyped_signatures):
            folder = Path(work) / check.__name__
            folder.mkdir()
            problems += [f"{check.__name__}: {problem}" for problem in check(program, folder)]
    print("\n".join(problems) or f"{len(api.public())} public names are typed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
