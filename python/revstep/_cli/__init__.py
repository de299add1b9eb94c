"""The ``revstep`` command. Subcommands are the modules of ``revstep._cli.commands``, and those of
``revstep_lab.commands`` where the package revstep-lab is installed; there is no list of them but of the names
of the latter.

A command module has NAME, HELP (one line), EXAMPLES (command lines, shown by --help, or a function that
returns them), ``add_arguments(parser)`` and ``run(args) -> int``. It imports torch inside ``run``, so that
--help is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import pkgutil
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import ModuleType

from ..errors import RevstepError
from . import _numbers

#: Exit codes: a claim or check failed is 1 (a command's own), a sentence on stderr 2, Ctrl-C 130 as in a
#: shell.
FAILED, REFUSED, INTERRUPTED = 1, 2, 128 + signal.SIGINT
#: The package of measurements beside the library, the distribution that brings it, and what it adds to the
#: command.
LAB, LAB_DISTRIBUTION = "revstep_lab", "revstep-lab"
LAB_COMMANDS = {
    "bench": "time and memory beside others",
    "demo": "fine-tune a pretrained model reversibly in three minutes",
    "verify": "measure every claim on this machine",
}


def find_commands() -> dict[str, ModuleType]:
    """The command modules by NAME, sorted."""
    packages = [f"{__name__}.commands"] + [f"{LAB}.commands"] * has_lab()
    modules = [
        importlib.import_module(f"{name}.{info.name}")
        for name in packages
        for info in pkgutil.iter_modules(importlib.import_module(name).__path__)
        if not info.name.startswith("_")
    ]
    return {module.NAME: module for module in sorted(modules, key=lambda module: module.NAME)}


def has_lab() -> bool:
    """Whether revstep-lab is installed. The command line alone asks, and by name: nothing here imports it."""
    return importlib.util.find_spec(LAB) is not None


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser with every subcommand; ``args.run`` is the chosen command's.

    Args:
        command: the only one whose options and examples are needed; the others have their name and help.
            Those of bench import torch, and ``revstep --help`` does not wait for it.
    """
    parser = argparse.ArgumentParser(
        prog="revstep",
        description="Reversible networks whose hidden states are rebuilt bit for bit.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="revstep COMMAND --help shows a command's options and examples.",
    )
    parser.add_argument("--version", action="version", version=_version())
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in find_commands().items():
        sub = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _numbers.register(sub)
        if command in (None, name):
            examples = module.EXAMPLES() if callable(module.EXAMPLES) else module.EXAMPLES
            sub.epilog = "examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines())
            module.add_arguments(sub)
        sub.add_argument(
            "--traceback", action="store_true", help="on an error, show where in the program it happened"
        )
        sub.set_defaults(run=module.run)
    if not has_lab():
        for name, what in LAB_COMMANDS.items():
            subparsers.add_parser(name, help=f"{what} (with the package {LAB_DISTRIBUTION})")
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"revstep {version('revstep')}"
    except PackageNotFoundError:
        return "revstep (not installed)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own) and return its exit code. Errors are one sentence on
    stderr.

    0: done; 1: a check failed; 2: a wrong command line, or an error explained on stderr; 130: Ctrl-C; 143: a
    training stopped by SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # what it cannot show, it shows as an escape
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    code = _run(argv)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
        return REFUSED
    except OSError as error:
        _drop_stdout()
        return _say(f"what was printed could not be written: {error.strerror}", False, REFUSED)
    return code


def _drop_stdout() -> None:
    """Nothing more goes there: the interpreter would try again at its end, and complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str]) -> int:
    if argv and argv[0] in LAB_COMMANDS and not has_lab():
        return _say(
            f"revstep {argv[0]} is in the package {LAB_DISTRIBUTION}, which is not installed; run: pip"
            f" install {LAB_DISTRIBUTION}",
            False,
            REFUSED,
        )
    try:
        args = make_parser(argv[0] if argv else "").parse_args(argv)
    except SystemExit as end:  # argparse has printed what it had to say
        return end.code if isinstance(end.code, int) else REFUSED
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return args.run(args)
        except KeyboardInterrupt:
            return _say("interrupted", args.traceback, INTERRUPTED)
        except BrokenPipeError:
            return REFUSED  # the reader of our output has gone; there is no one to tell
        except (RevstepError, OSError) as error:
            return _say(str(error) or type(error).__name__, args.traceback, REFUSED)
        except (MemoryError, OverflowError, RuntimeError, ValueError) as error:
            if (shortage := _shortage(error)) is None:
                raise
            return _say(shortage, args.traceback, REFUSED)


#: How torch says that it cannot have so much memory, or that nobody can.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|unable to allocate|cannot allocate"
    r"|calculation overflowed|multiplication overflow|unpacking long",
    re.I,
)


def _shortage(error: Exception) -> str | None:
    """One sentence where the memory does not suffice; None for any other error."""
    said = (str(error).strip().splitlines() or [""])[0]
    if not isinstance(error, MemoryError) and not _NO_MEMORY.search(said):
        return None
    return f"not enough memory ({said or 'none is left'}): choose a smaller batch, context or model"


def _say(sentence: str, with_traceback: bool, code: int) -> int:
    if with_traceback:
        traceback.print_exc()
    print(f"revstep: {sentence}", file=sys.stderr)
    return code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    print(f"revstep: warning: {message}", file=sys.stderr)
