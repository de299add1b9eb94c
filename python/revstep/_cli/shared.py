"""What the subcommands of ``revstep`` share: tables and JSON files, options that several of them take, and
text, checks and generation for Hugging Face models.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import write_output
from .._imports import foreign
from .._options import FLAGS, add_flags
from .._specs import STORED_TRUNKS, SchemeSpec, StateSpec, parse_scheme, parse_state
from ..errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "EXTENSIONS", "FLAGS", "OF_AUTO", "OF_CONVERT", "SchemeSpec", "StateSpec", "add_auto", "add_flags",
    "add_scheme", "add_state", "check", "check_auto", "endings", "given", "holds_one", "loss_chunk",
    "parse_scheme", "parse_state", "row_length", "run", "table", "token_rows", "write_json",
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------
# What several commands print and write.


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain text table with aligned columns."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write_json(path: str, data: Any) -> None:
    """``data`` to ``path``: a file whole or not at all, a pipe or a device as it is. Raises OSError as
    ``open`` does.
    """
    write_output(path, (json.dumps(data, indent=1) + "\n").encode())


# ------------------------------------------------------------------------------------------------------------
# Arguments that several commands share, and their parsing. Values are checked by the parts that use them.

#: Options of a stack that a converted model takes.
OF_CONVERT = tuple(name for name in FLAGS if name != "readout")

SCHEME_HELP = (
    "plain, checkpoint (plain, each block recomputed), or a reversible scheme with options: midpoint,"
    " blend:c=0.25, midpoint_blend:a=paper,seed=3, midpoint_blend:a=1/0.8/1.2 (a list, one number a layer),"
    " leapfrog, hamiltonian:h=0.5"
)
STATE_HELP = (
    "how reversible schemes hold the hidden state: fixed32[:frac_bits], fixed64[:frac_bits] (exact), float32,"
    " float64 (not)"
)


def add_scheme(parser: argparse._ActionsContainer, default: str | None, note: str = "") -> None:
    """``--scheme NAME[:OPTION=VALUE,...]``."""
    parser.add_argument("--scheme", default=default, metavar="NAME[:OPTIONS]", help=SCHEME_HELP + note)


def add_state(parser: argparse._ActionsContainer, default: str | None, note: str = "") -> None:
    """``--state NAME[:FRAC_BITS]``."""
    parser.add_argument("--state", default=default, metavar="NAME[:BITS]", help=STATE_HELP + note)


#: Options that ``--scheme auto`` chooses by.
OF_AUTO = ("tolerance", "bits")


def add_auto(parser: argparse._ActionsContainer) -> None:
    """``--tolerance`` and ``--bits``."""
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help=(
            "of auto: largest divergence from the original's next-token distribution, nats a token (default"
            " 0.004)"
        ),
    )
    parser.add_argument(
        "--bits",
        type=float,
        metavar="N",
        help="of auto: mean carry bits of a layer to choose for, instead of the tolerances",
    )


def check_auto(given: Iterable[str], scheme: str | None, names: Iterable[str] = OF_AUTO) -> None:
    """Raises ConfigError for one of ``names`` among the given options where the scheme (None: auto) is
    another.
    """
    of_auto = [name.replace("_", "-") for name in names if name in given]
    if of_auto and scheme not in (None, "auto"):
        raise ConfigError(
            f"--{of_auto[0]} goes with --scheme auto, which chooses by it, got --scheme {scheme}: drop one of"
            " them"
        )


def loss_chunk(text: str) -> int | str:
    """``auto`` or a number of rows.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor a number of rows") from None


def endings(text: str) -> tuple[str, ...]:
    """``py,.txt`` -> (".py", ".txt")."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(part if part.startswith(".") else f".{part}" for part in parts)


def given(args: argparse.Namespace, names: Any) -> dict[str, Any]:
    """Those of ``names`` that the user gave (their default being None).

    Raises:
        ConfigError: a name the parser does not have, which is a mistake in the command.
    """
    missing = [name for name in names if not hasattr(args, name)]
    if missing:
        raise ConfigError(f"the command has no option for {', '.join(missing)}; add it in add_arguments")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


# ------------------------------------------------------------------------------------------------------------
# What the commands for Hugging Face models share: text as rows of token ids, pretrained models, and names
# of schemes and states looked at before anything is loaded.

EXTENSIONS = (".py", ".txt", ".md")


def token_rows(
    tokenizer: Any,
    paths: Sequence[str] | None,
    context: int,
    *,
    extensions: Sequence[str] = EXTENSIONS,
    max_bytes: int = 0,
    limit: int = 0,
) -> Tensor:
    """The text of ``paths`` (none: the standard library) as rows (N, ``context``) int64, documents ended by
    the tokenizer's end id where it has one.

    ``limit`` ends the reading after that many tokens (0: all).

    Raises:
        ConfigError: nothing to read, files that are not text, or less than one row.
    """
    import torch

    from ..lm import _data

    files = (
        _data.find_files(paths, extensions) if paths else [(path, False) for path in _data.standard_library()]
    )
    skipped: list[str] = []
    ids: list[int] = []
    for text in _data.read_texts(files, max_bytes, skipped):
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        if limit and len(ids) >= limit:
            del ids[limit:]
            break
    if skipped:
        warnings.warn(
            f"{len(skipped)} of {len(files)} files were left out, the first: {skipped[0]}",
            UserWarning,
            stacklevel=2,
        )
    if len(ids) < context:
        raise ConfigError(
            f"the text has {len(ids)} tokens, expected at least one row of {context}: give more text or a"
            " smaller context"
        )
    return torch.tensor(ids[: len(ids) // context * context], dtype=torch.int64).view(-1, context)


def row_length(model: Any, wanted: int) -> int:
    """``wanted`` tokens, or the model's context where that is shorter."""
    return min(wanted, getattr(model.config.get_text_config(), "max_position_embeddings", None) or wanted)


def check(scheme: str | None, state: str | None) -> None:
    """Raises ConfigError for names that nothing could be made of."""
    if scheme not in (None, "auto", *STORED_TRUNKS):
        parse_scheme(scheme).make()
    if state is not None:
        parse_state(state).make()


# ---- ``revstep generate --hf``: text from a Hugging Face model folder, converted or plain ----


def holds_one(folder: str) -> bool:
    """Whether a folder holds a Hugging Face model, as ``revstep finetune`` and ``revstep convert`` write it.

    Raises:
        ConfigError: an unfinished fine-tuning, which has no model yet.
    """
    if (Path(folder) / "finetune.json").is_file() and not (Path(folder) / "config.json").is_file():
        again = f"revstep finetune MODEL --out {folder} --resume"
        raise ConfigError(f"{folder} holds a fine-tuning that has not ended: go on with {again}")
    return (Path(folder) / "config.json").is_file()


def run(args: argparse.Namespace) -> int:
    if args.folder is not None or args.scheme is not None:
        raise ConfigError(
            "the folder of a Hugging Face model says how it is converted, and --hf names it: drop "
            + ("--scheme" if args.folder is None else args.folder)
        )
    if args.count < 1 or args.temperature < 0:
        raise ConfigError(
            f"got --count {args.count} and --temperature {args.temperature:g}, expected at least 1 token and"
            " a temperature of at least 0"
        )
    import torch

    from ..hf import _sources
    from ..hf._settings import quiet
    from ..lm._parallel import find_device
    from ..lm._sampler import check_sampling

    check_sampling(args.count, args.temperature, args.top_k, args.top_p, args.seed)
    device = find_device(args.device)

    with quiet():
        tokenizer, model = _sources.load_tokenizer(args.hf), _sources.load_model(args.hf)
        model.to(device)
        ids = _prompt(tokenizer, args.prompt)
        if ids.shape[1] + args.count > row_length(model, ids.shape[1] + args.count):
            raise ConfigError(
                f"a prompt of {ids.shape[1]} tokens and --count {args.count} exceed the model's"
                f" {row_length(model, 10**9)} positions: ask for less"
            )
        torch.manual_seed(args.seed)
        sampling = (
            {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
            if args.temperature > 0
            else {}
        )
        ids = ids.to(model.device)
        end = tokenizer.eos_token_id
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
        with foreign(lambda said: ConfigError(f"{args.hf} cannot go on with this prompt: {said}")):
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=args.count,
                do_sample=args.temperature > 0,
                eos_token_id=end,
                pad_token_id=pad,
                **sampling,
            )
    print(tokenizer.decode(out[0], skip_special_tokens=True))
    return 0


def _prompt(tokenizer, text: str):
    import torch

    if text:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
    else:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ConfigError("this tokenizer has no token that begins a text: give --prompt")
        ids = torch.tensor([[start]])
    return ids
