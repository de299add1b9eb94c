"""``revstep finetune``: a pretrained model on your text, reversibly, by transformers' Trainer."""

from __future__ import annotations

import argparse
from typing import Any

from ...errors import ConfigError
from .. import shared
from .._numbers import output_folder
from ._fit import check_fit

NAME = "finetune"
HELP = "fine-tune a pretrained model on your text, by LoRA or in full, in constant activation memory"
EXAMPLES = """
revstep finetune path/to/model --data my-text/ --out run           LoRA; four losses tell what it did
revstep finetune path/to/model.gguf --data book.txt --out run      a GGUF file; or owner/name on the hub
revstep finetune path/to/model --data my-text/ --full --out run --deploy plain
revstep finetune path/to/model --data my-text/ --out run --resume  go on where it was stopped
revstep finetune path/to/model --data my-text/ --bits 3.8 --out run      fewer bits a layer, less memory
revstep finetune path/to/model --data my-text/ --scheme plain --out baseline
revstep generate run --prompt "Once"                               what came of it
"""

#: What is taken where an option is not given. "full" and "lora": by what trains.
DEFAULTS: dict[str, Any] = {
    "scheme": "auto", "steps": 200, "batch": 4, "accumulate": 1, "context": 512, "dtype": "float32",
    "device": "auto", "seed": 0, "warmup": 10, "weight_decay": 0.0, "clip": 1.0, "save_every": 0,
    "loss_chunk": "auto", "lora": 8, "lora_targets": "all-linear", "val_fraction": 0.05, "eval_batches": 4,
    "loss_tolerance": 0.005, "head_last": False, "fused_step": False, "out": "run-finetune",
}  # fmt: skip
#: LoRA starts from zero and takes larger steps than weights that are trained already.
LEARNING_RATE = {"lora": 2e-4, "full": 5e-5}
#: Read of the standard library, where no --data is given; all of it would take a tokenizer half a minute.
LIBRARY_BYTES = 4_000_000

_NUMBERS = {
    "steps": (int, "optimiser steps"), "batch": (int, "rows of a micro-batch"),
    "accumulate": (int, "micro-batches of a step"), "context": (int, "tokens of a row"),
    "warmup": (int, "steps in which the learning rate rises, at most a tenth of all"),
    "weight_decay": (float, "of AdamW"), "clip": (float, "largest gradient norm, 0: none"),
    "seed": (int, "of the adapters, the order of the rows and dropout"),
    "save_every": (int, "steps between checkpoints, 0: only when stopped"),
}  # fmt: skip


def _note(name: str) -> str:
    value = DEFAULTS[name]
    return f" (default {value:g})" if isinstance(value, float) else f" (default {value})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder that save_pretrained wrote, a GGUF file, or the name of a model on the hub",
    )
    text = parser.add_argument_group("text")
    text.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="files and folders (default: the standard library's sources)",
    )
    text.add_argument("--extensions", type=shared.endings, metavar="LIST", help="endings (default py,txt,md)")
    text.add_argument(
        "--max-bytes", type=int, metavar="N", help="stop reading text there (default: all of --data)"
    )
    share = "share kept for validation" + _note("val_fraction")
    text.add_argument("--val-fraction", type=float, metavar="X", help=share)
    text.add_argument(
        "--eval-batches", type=int, metavar="N", help="batches of a validation" + _note("eval_batches")
    )
    adapting = parser.add_argument_group("what trains")
    adapting.add_argument("--full", action="store_true", help="all weights, instead of LoRA adapters")
    adapting.add_argument("--lora", type=int, metavar="R", help="rank of the adapters" + _note("lora"))
    adapting.add_argument(
        "--lora-alpha", type=float, metavar="X", help="scale times rank (default: twice the rank)"
    )
    adapting.add_argument(
        "--lora-targets",
        metavar="NAMES",
        help="modules, by commas, all-linear, or auto: peft's choice" + _note("lora_targets"),
    )
    rates = f"(default {LEARNING_RATE['lora']:g}, with --full {LEARNING_RATE['full']:g})"
    lr = f"peak, falling as a cosine {rates}"
    adapting.add_argument("--lr", type=float, metavar="X", help=lr)
    adapting.add_argument(
        "--teacher", metavar="MODEL", help="distil: learn this model's answers instead of the next tokens"
    )
    adapting.add_argument(
        "--teacher-weight", type=float, metavar="X", help="share of the teacher in the loss (default 1)"
    )
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--scheme", metavar="NAME[:OPTIONS]",
        help="auto: measured on your text; blend:c=0.0625, midpoint:h=1, ...; plain or checkpoint: not "
        "reversible" + _note("scheme"),
    )  # fmt: skip
    shared.add_auto(how)
    shared.add_state(how, None, " (default: chosen on your text)")
    how.add_argument(
        "--loss-tolerance", type=float, metavar="X",
        help="warn where the conversion changes the loss by more than this share" + _note("loss_tolerance"),
    )  # fmt: skip
    shared.add_flags(how, shared.OF_CONVERT, start=" (default: what the scheme recommends)")
    how.add_argument(
        "--fit",
        metavar="SIZE",
        help=(
            "4GB, 4GiB or bytes that a whole step may hold: the kept layers and the tiles are chosen, as"
            " revstep plan predicts, for the fastest step that fits"
        ),
    )
    how.add_argument(
        "--loss-chunk",
        type=shared.loss_chunk,
        metavar="N",
        help="rows of logits held at once: auto, N, 0: all",
    )
    how.add_argument(
        "--head-last",
        action="store_true",
        help=(
            "the gradient of a matrix that is head and embedding comes at the end of backward, which counts"
            " with --full; the logits are computed twice"
        ),
    )
    how.add_argument(
        "--fused-step",
        action="store_true",
        help=(
            "the optimiser steps inside backward: gradients do not exist all at once, which counts with"
            " --full"
        ),
    )
    how.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="by autocast" + _note("dtype")
    )
    how.add_argument("--device", metavar="NAME", help="auto, cpu or cuda" + _note("device"))
    run_group = parser.add_argument_group("run")
    run_group.add_argument(
        "--out", type=output_folder, metavar="DIR", help="folder of the run and its model" + _note("out")
    )
    run_group.add_argument(
        "--deploy",
        type=output_folder,
        metavar="DIR",
        help="also write the plain model there, adapters merged",
    )
    run_group.add_argument(
        "--resume",
        nargs="?",
        const="must",
        choices=("must", "auto"),
        metavar="auto",
        help="go on with the unfinished run in --out, with its options. auto: or start it, for schedulers",
    )
    run_group.add_argument(
        "--no-progress", dest="progress", action="store_false", help="lines instead of a progress bar"
    )
    for name, (kind, words) in _NUMBERS.items():
        meta = "N" if kind is int else "X"
        run_group.add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar=meta, help=words + _note(name)
        )


#: Options that are kept with a run; where it lies and whether it goes on are not.
RUN_OPTIONS = (
    "data",
    "extensions",
    "max_bytes",
    "val_fraction",
    "eval_batches",
    "full",
    "lora",
    "lora_alpha",
    "lora_targets",
    "lr",
    "teacher",
    "teacher_weight",
    "scheme",
    *shared.OF_AUTO,
    "state",
    *shared.OF_CONVERT,
    "fit",
    "loss_tolerance",
    "loss_chunk",
    "head_last",
    "fused_step",
    "dtype",
    "device",
    *_NUMBERS,
)


def run(args: argparse.Namespace) -> int:
    for flag in ("full", "head_last", "fused_step"):  # not given is not the same as refused, to --resume
        setattr(args, flag, getattr(args, flag) or None)
    given = shared.given(args, RUN_OPTIONS)
    check(given)
    from ._finetune_run import Run

    return Run(
        args.model,
        given,
        out=args.out or DEFAULTS["out"],
        deploy=args.deploy,
        resume=args.resume,
        progress=args.progress,
    ).go()


def check(given: dict[str, Any]) -> None:
    """Options that do not go together, or that nothing could be made of, before anything is loaded.

    Raises:
        ConfigError: says which.
    """
    if given.get("full"):
        for name in ("lora", "lora_alpha", "lora_targets"):
            if name in given:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is of adapters, and --full trains all weights: drop one"
                )
    if given.get("lora", 1) < 1:
        raise ConfigError(
            f"--lora is {given['lora']}, expected the rank of the adapters, a whole number of at least 1"
        )
    if "teacher_weight" in given and "teacher" not in given:
        raise ConfigError("--teacher-weight goes with --teacher MODEL")
    for name in ("context", "eval_batches"):
        least = 2 if name == "context" else 1
        if given.get(name, least) < least:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {given[name]}, expected a whole number of at least {least}"
            )
    if not 0 < given.get("val_fraction", 0.5) < 1:
        raise ConfigError(f"--val-fraction is {given['val_fraction']:g}, expected a share between 0 and 1")
    if not given.get("loss_tolerance", 1) > 0:
        raise ConfigError(
            f"--loss-tolerance is {given['loss_tolerance']:g}, expected a positive share of the loss, e.g."
            " 0.005"
        )
    check_fit(given)
    shared.check_auto(given, given.get("scheme"))
    shared.check(given.get("scheme"), given.get("state"))
