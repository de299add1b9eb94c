"""Marked code blocks of README.md, for .ci/run and the tests: the README is the only place where a command is
written.

A block is marked by a comment on the line before it, ``<!-- command: test -->`` or ``<!-- example: stack
-->``. The commands of a tutorial are marked ``<!-- step: NAME -->``, and are run one after the other.

Usage: python .ci/readme.py command test
       python .ci/readme.py steps docs/tutorials/fine-tune.md
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
_BLOCK = re.compile(r"^<!-- (command|example): (\w+) -->\n```(\w+)\n(.*?)^```$", re.M | re.S)
_STEP = re.compile(r"^<!-- step: (\w+) -->\n```bash\n(.*?)^```$", re.M | re.S)


def blocks(text: str) -> dict[tuple[str, str], str]:
    """``(kind, name) -> code`` of all marked blocks.

    Raises:
        ValueError: a name that marks two blocks, or a mark that no block follows.
    """
    found: dict[tuple[str, str], str] = {}
    for kind, name, _, code in _BLOCK.findall(text):
        if (kind, name) in found:
            raise ValueError(f"README marks two blocks as {kind}: {name}, expected one")
        found[kind, name] = code
    marks = len(re.findall(r"^<!-- (?:command|example): ", text, re.M))
    if marks != len(found):
        raise ValueError(
            f"README has {marks} marks, but {len(found)} marked blocks: a mark stands on the line before its"
            " ``` block"
        )
    return found


def block(kind: str, name: str) -> str:
    """One block of README.md. Raises KeyError naming the known ones."""
    found = blocks(README.read_text(encoding="utf-8"))
    if (kind, name) not in found:
        raise KeyError(f"README has no {kind} {name}, it has {', '.join(f'{k} {n}' for k, n in found)}")
    return found[kind, name]


def steps(text: str) -> list[str]:
    """The commands of a tutorial, in order.

    Raises:
        ValueError: no step, or a mark that no block of bash follows.
    """
    found = [code for _, code in _STEP.findall(text)]
    marks = len(re.findall(r"^<!-- step: ", text, re.M))
    if not found or marks != len(found):
        raise ValueError(
            f"the page has {marks} marks of steps and {len(found)} marked blocks of bash, expected as many,"
            " at least one"
        )
    return found


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python .ci/readme.py command|example NAME, or steps PAGE")
    if sys.argv[1] == "steps":
        print("".join(steps((README.parent / sys.argv[2]).read_text(encoding="utf-8"))), end="")
    else:
        print(block(*sys.argv[1:]), end="")
