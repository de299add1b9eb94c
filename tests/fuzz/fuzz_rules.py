"""What no command may do, whatever it is given: raise, abort, hang, lose or change what it was not asked
to.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from fuzz_child import Outcome

#: Of a refusal, a failed check, and an end by Ctrl-C or SIGTERM.
CODES = {0, 1, 2, 130, 143}
#: A run that had begun and could not go on says so, and what it left is there to go on from.
BEGAN = re.compile(
    r"is not finite|left its range|leave the format|range of|could not write|loss"
    r" scale|checkpoint|--resume|at step"
    r"|No space left|File too large|step \d|re-evaluation|not enough memory|holds a fine-tuning|validation"
)
#: What a link of the samples leads to: it is written in the link's stead.
TARGETS = {"link": "a-file", "dangling": "nowhere"}
#: Options that name it.
WRITES = ("--out", "--deploy", "--json", "--csv", "--html", "--report")


def snapshot(root: Path) -> dict[str, str]:
    """Every path below ``root`` -> what it is: kind, and of files the hash. Links are not followed."""
    found = {}
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            what = stat.filemode(mode)[0]
            if stat.S_ISLNK(mode):
                what += os.readlink(path)
            elif stat.S_ISREG(mode):
                what += hashlib.sha1(path.read_bytes()).hexdigest()
            found[str(path.relative_to(root))] = what
    return found


def differences(before: dict[str, str], after: dict[str, str]) -> tuple[list[str], list[str]]:
    """(paths lost or changed, paths that are new)."""
    lost = sorted(path for path, what in before.items() if after.get(path) != what)
    return lost, sorted(path for path in after if path not in before)


def may_change(argv: list[str]) -> set[str]:
    """The first parts of paths that a command that succeeds may write to."""
    found = {"run-finetune", "revstep-demo", "revstep-demo-hf", "cache"}
    command = argv[0] if argv else ""
    if command == "train":
        found.add("run")  # the default
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in WRITES:
            found.add(value if equals else argv[i + 1] if i + 1 < len(argv) else "")
    if command == "convert":
        found |= {word for word in argv[1:] if not word.startswith("-")}
    found |= {TARGETS[word] for word in found if word in TARGETS}
    return {Path(word).parts[0] if Path(word).parts else "." for word in found if "\0" not in word}


def faults(argv: list[str], outcome: Outcome, lost: list[str], new: list[str]) -> list[str]:
    """What is wrong with it, each in a few words; nothing where all is well."""
    found = []
    if outcome.hung:
        found.append("hung: it did not end when it was interrupted")
    elif outcome.code < 0:
        found.append(f"killed by signal {-outcome.code}")
    elif outcome.code not in CODES:
        found.append(f"exit code {outcome.code}")
    if "Traceback (most recent call last)" in outcome.err:
        found.append("a traceback")
    if outcome.code == 0 and (saved := re.search(r"^saved in (.+)$", outcome.out, re.M)):
        if not any(path.startswith(saved[1].split(";")[0]) for path in new) and "resume" not in " ".join(
            argv
        ):
            found.append(f"it says {saved[0]!r}, and nothing was saved")
    if "Exception ignored" in outcome.err:
        found.append("an exception that was ignored")
    if outcome.code == 2 and not re.search(r"^revstep( \w+)?: ", outcome.err, re.M):
        found.append("exit code 2 and no sentence")
    if outcome.code == 2 and not outcome.hung:
        began = BEGAN.search(outcome.err)
        where = may_change(argv) if began else {"cache"}
        found += [f"lost or changed: {path}" for path in lost if Path(path).parts[0] not in where][:3]
        found += [f"written though refused: {path}" for path in new if Path(path).parts[0] not in where][:3]
    elif (
        outcome.code in (0, 1, 130, 143)
        and "." not in (where := may_change(argv)) | {""}
        and ".." not in where
    ):
        found += [f"lost or changed: {path}" for path in lost if Path(path).parts[0] not in where][:3]
    if outcome.code == 1 and argv[:1] not in (["verify"], ["bench"], ["demo"]):
        found.append("exit code 1 of a command that checks nothing")
    return found
