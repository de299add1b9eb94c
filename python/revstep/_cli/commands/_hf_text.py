"""What the commands for Hugging Face models share: text as rows of token ids, pretrained models, and names of
schemes and states looked at before anything is loaded."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._specs import STORED_TRUNKS, parse_scheme, parse_state
from ...errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


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

    from ...lm import _data

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

    from ...hf import _folders
    from ...hf._settings import quiet

    with quiet():
        tokenizer, model = _folders.load_tokenizer(args.hf), _folders.load_model(args.hf)
        try:
            model.to(torch.device(args.device))
        except RuntimeError as error:
            raise ConfigError(
                f"--device {args.device} cannot be used: {str(error).splitlines()[0]}; try cpu"
            ) from error
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
