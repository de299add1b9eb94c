"""``revstep train``: a small language model on text files, plain or reversible."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...lm._config import BAD_STEPS, DTYPES, PARALLEL, SHAPES, TrainConfig
from .. import shared
from .._numbers import output_folder

if TYPE_CHECKING:
    from ...lm import Result

NAME = "train"
HELP = "train a small language model on text, with a plain or a reversible trunk"
EXAMPLES = """
revstep train --out run                             the standard library's own sources, Blend c = 1/4
revstep train --data book.txt notes/ --tokenizer bytes --out run --steps 200
revstep train --scheme midpoint_blend:a=paper,seed=3 --dtype bfloat16 --out run2
revstep train --model llama --heads 8 --kv-heads 2 --out run3    two heads of keys and values
torchrun --standalone --nproc-per-node 8 -m revstep.lm --parallel fsdp --batch 64 --out run
revstep train --out run --resume                    go on where it stopped, bit for bit
revstep train --data book.txt --out run --resume auto    start, or go on: for a scheduler that may restart it
"""

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
_HELP = {
    "context": "tokens in a sequence",
    "layers": "blocks",
    "width": "channels",
    "heads": "attention heads",
    "dropout": "probability",
    "batch": "sequences in a micro-batch",
    "accumulate": "micro-batches in a step",
    "steps": "optimiser steps of the whole run",
    "lr": "peak learning rate",
    "min_lr": "learning rate at the end",
    "warmup": "steps of linear warm-up",
    "weight_decay": "of matrices",
    "beta1": "of AdamW",
    "beta2": "of AdamW",
    "clip": "largest gradient norm, 0: none",
    "eval_every": "steps between validations, 0: at the end",
    "eval_batches": "batches of a validation",
    "save_every": "steps between checkpoints, 0: at the end",
    "seed": "of weights, dropout and batches",
    "max_bytes": "stop reading text there, 0: no limit",
    "val_fraction": "share of the text, at its end, kept for validation",
    "kv_heads": "heads of keys and values, 0: as many as --heads",
    "hidden": "channels inside the SwiGLU, 0: 8/3 of the width, rounded up to a multiple of 64",
    "rope_theta": "base of the rotary frequencies",
    "max_bad_steps": "stop when so many steps in a row were skipped",
    "min_headroom": (
        "stop, with a checkpoint, when the largest state value times this would leave the format's range; 0:"
        " do not"
    ),
    "norm_eps": "added to the mean square in RMSNorm",
}
#: Numbers, by group; type and default come from TrainConfig.
_MODEL = ("layers", "width", "heads", "context", "dropout")
_LLAMA = ("kv_heads", "hidden", "rope_theta", "norm_eps")
_RUN = (
    "steps",
    "batch",
    "accumulate",
    "lr",
    "min_lr",
    "warmup",
    "weight_decay",
    "beta1",
    "beta2",
    "clip",
    "seed",
    "max_bad_steps",
    "min_headroom",
)
_WATCH = ("eval_every", "eval_batches", "save_every")


def _note(name: str) -> str:
    default = _DEFAULTS[name]
    return f" (default {default:g})" if isinstance(default, float) else f" (default {default})"


def _add(group: argparse._ArgumentGroup, names: tuple[str, ...]) -> None:
    # Defaults are None here and live in TrainConfig, so that --resume can tell what was asked for from what
    # was not.
    for name in names:
        kind = type(_DEFAULTS[name])
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            metavar="N" if kind is int else "X",
            help=_HELP[name] + _note(name),
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument_group("text")
    text.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="files and folders (default: the Python standard library's sources on this machine)",
    )
    text.add_argument(
        "--extensions",
        type=shared.endings,
        metavar="LIST",
        help="endings looked for in folders (default py,txt,md)",
    )
    text.add_argument(
        "--tokenizer", metavar="NAME", help="bytes, or bpe:N to train one of N ids" + _note("tokenizer")
    )
    _add(text, ("max_bytes", "val_fraction"))
    model = parser.add_argument_group("model")
    model.add_argument("--model", choices=tuple(SHAPES), help="what the blocks are made of" + _note("model"))
    shared.add_scheme(model, None, _note("scheme"))
    shared.add_state(model, None, _note("state"))
    shared.add_flags(model, start=_note("start"))
    model.add_argument(
        "--no-checks",
        dest="checks",
        action="store_const",
        const=False,
        help="keep no checksums of the states",
    )
    _add(model, _MODEL)
    model.add_argument(
        "--loss-chunk",
        type=shared.loss_chunk,
        metavar="N",
        help="rows of logits held at once: auto, N, or 0 for all" + _note("loss_chunk"),
    )
    model.add_argument(
        "--untied",
        dest="tied",
        action="store_const",
        const=False,
        help="a head of its own instead of the token embedding's matrix",
    )
    _add(parser.add_argument_group("model llama only"), _LLAMA)
    run_group = parser.add_argument_group("run")
    run_group.add_argument(
        "--fused-step",
        action="store_const",
        const=True,
        help="the optimiser steps inside backward: gradients do not exist all at once",
    )
    run_group.add_argument(
        "--out",
        type=output_folder,
        metavar="DIR",
        help="folder of the run: data, log.jsonl, checkpoint" + _note("out"),
    )
    run_group.add_argument(
        "--resume",
        nargs="?",
        const="must",
        choices=("must", "auto"),
        metavar="auto",
        help=(
            "go on with the run in --out; its own options need not be repeated. auto: or start it, if it has"
            " no checkpoint yet (for schedulers)"
        ),
    )
    run_group.add_argument(
        "--stop-at",
        type=int,
        metavar="N",
        help="stop after N steps in all, to resume later (the schedule still ends at --steps)",
    )
    run_group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the blocks, by autocast; float16 with a loss scale" + _note("dtype"),
    )
    run_group.add_argument(
        "--on-bad-step",
        choices=BAD_STEPS,
        help="when a loss or gradient is not finite, or a state leaves its range" + _note("on_bad_step"),
    )
    run_group.add_argument(
        "--parallel",
        choices=PARALLEL,
        help="under torchrun: each process holds the model (ddp) or a part of it (fsdp)" + _note("parallel"),
    )
    run_group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ..." + _note("device"))
    _add(run_group, _RUN)
    _add_former(parser)
    watch = parser.add_argument_group("watch")
    _add(watch, _WATCH)
    watch.add_argument(
        "--no-progress", dest="progress", action="store_const", const=False, help="no progress bar"
    )


#: Options of the former ``train --hf``, still parsed so that they lead to the command that took its place.
_FORMER = ("hf", "lora", "lora_alpha", "lora_targets", "teacher", "teacher_weight", "deploy")


def _add_former(parser: argparse.ArgumentParser) -> None:
    for name in _FORMER:
        parser.add_argument(f"--{name.replace('_', '-')}", help=argparse.SUPPRESS)


def _refuse_former(args: argparse.Namespace) -> None:
    """Raises ConfigError for ``train --hf``, with the command that does it now."""
    given = shared.given(args, _FORMER)
    if not given:
        return
    others = [*_FORMER[1:], "data", "scheme", "steps", "lr", "out"]
    others = [name for name in others if getattr(args, name) is not None]
    words = [given.get("hf", "MODEL"), *([] if "lora" in given else ["--full"])]
    for name in others:
        value = getattr(args, name)
        words += [
            f"--{name.replace('_', '-')}",
            *(map(str, value) if isinstance(value, list) else [str(value)]),
        ]
    command = f"revstep finetune {shlex.join(words)}"
    raise ConfigError(f"fine-tuning a Hugging Face model is a command of its own; run: {command}")


def run(args: argparse.Namespace) -> int:
    _refuse_former(args)
    given = shared.given(args, _DEFAULTS)
    if args.stop_at is not None and args.stop_at < 1:
        raise ConfigError(f"--stop-at is {args.stop_at}; expected a number of steps, at least 1")
    from ...lm import resume, train
    from ...lm._checkpoint import checkpoints

    out = args.out or _DEFAULTS["out"]
    if args.resume == "must" or (args.resume == "auto" and checkpoints(out)):
        result = resume(out, given, stop_at=args.stop_at)
    else:
        result = train(TrainConfig(**given), stop_at=args.stop_at)
    if result.rank:
        return 128 + result.signal if result.interrupted else 0  # the first process tells
    return _tell(result)


def _tell(result: Result) -> int:
    if not result.losses:
        print(f"nothing to do: the run has its {result.step} steps; raise --steps to go on")
        return 0
    val = f", validation {result.val_losses[-1][1]:.4f}" if result.val_losses else ""
    print(
        f"step {result.step} of {result.config.steps}: loss {result.losses[-1]:.4f}{val},"
        f" {result.tokens_per_second:,.0f} tokens/s, peak memory {result.peak_memory / 1e6:,.0f} MB, states"
        f" {result.reconstruction}"
    )
    print(f"saved in {result.checkpoint}")
    if result.interrupted:
        command = "revstep train" if result.config.parallel == "none" else "torchrun ... -m revstep.lm"
        print(f"stopped early; go on with: {command} --out {result.config.out} --resume", file=sys.stderr)
        return 128 + result.signal
    return 0
