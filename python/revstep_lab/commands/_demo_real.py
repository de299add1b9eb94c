"""``revstep demo``: the demo on real weights, where they can be had."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from revstep.errors import ConfigError

#: Options that only the stacks have, with their defaults; given, they choose them.
OF_STACKS = {"layers": 12, "width": 64, "schemes": [], "dtype": "auto", "device": "auto"}


def _weights(real: Any) -> tuple[Path | None, str]:
    """The file, or None and a clause that says why the demo on real weights cannot run."""
    try:
        real.check_packages()
    except ConfigError as error:
        return None, str(error)
    file, why = real.find_weights()
    return file, f"SmolLM2-135M cannot be had here ({why}); expected a package index that pip reaches"


def run(args: argparse.Namespace) -> int | None:
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
            f"{why}, so this is the demo that needs none: every reversible stack from scratch, beside the plain one\n",
        )
        return None
    outcome = real.run(settings, file)
    if outcome.document:
        print(f"\n{outcome.summary}\n\nwrote {', '.join(outcome.written)} in {outcome.folder}")
        print(f"the deployed model is a folder that transformers loads: {outcome.folder / 'model'}")
        print("the same with a model and text of your own: revstep finetune MODEL --data PATH --out run")
    return outcome.code
