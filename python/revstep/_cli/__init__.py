"""The ``revstep`` command. Subcommands are the modules of ``revstep._cli.commands``, and those of
``revstep_lab.commands`` where the package revstep-lab is installed; there is no list of them but of the names
of the latter.

A command module has NAME, HELP (one line), EXAMPLES (command lines, shown by --help, or a function that
returns them), ``add_arguments(parser)`` and ``run(args) -> int``. It imports torch inside ``run``, so that
--help is quick.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import ModuleType

from ..errors import RevstepError

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
