"""``revstep demo --hf``: the worked example with Hugging Face models."""

from __future__ import annotations

import argparse

from revstep.errors import ConfigError

from ._demo_real import OF_STACKS

#: What the other demo has and this one fixes, with the parser's defaults.
_FIXED = {"what": None, "minutes": None} | OF_STACKS


def run(args: argparse.Namespace) -> int:
    wrong = [name for name, default in _FIXED.items() if getattr(args, name) != default]
    if wrong:
        name = args.what if wrong[0] == "what" else f"--{wrong[0]}"
        taken = "--steps, --seed, --small and --out are taken"
        raise ConfigError(f"{name} does not go with --hf, whose models are fixed: drop it ({taken})")
    from ..demo.finetune import Settings
    from ..demo.finetune import run as run_demo

    changes = {"seed": args.seed, "out": "revstep-demo-hf" if args.out is None else args.out} | ({"steps": args.steps} if args.steps else {})
    settings = Settings.small(**changes) if args.small else Settings(**changes)
    command = " ".join(["revstep demo --hf", *["--small"] * args.small, f"--steps {settings.steps}", f"--seed {settings.seed}"])
    outcome = run_demo(settings, command)
    print(f"\n{outcome.summary}\n\nwrote {', '.join(outcome.written)} and the models in {outcome.folder}")
    return outcome.code
