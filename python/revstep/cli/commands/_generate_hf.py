"""``revstep generate --hf``: text from a Hugging Face model folder, converted or plain."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...errors import ConfigError
from . import _hf_text


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
            "the folder of a Hugging Face model says how it is converted, and --hf names it: drop " + ("--scheme" if args.folder is None else args.folder)
        )
    if args.count < 1 or args.temperature < 0:
        raise ConfigError(f"got --count {args.count} and --temperature {args.temperature:g}, expected at least 1 token and a temperature of at least 0")
    import torch

    from ...hf import folders
    from ...hf.quiet import quiet

    with quiet():
        tokenizer, model = folders.load_tokenizer(args.hf), folders.load_model(args.hf)
        try:
            model.to(torch.device(args.device))
        except RuntimeError as error:
            raise ConfigError(f"--device {args.device} cannot be used: {str(error).splitlines()[0]}; try cpu") from error
        ids = _prompt(tokenizer, args.prompt)
        if ids.shape[1] + args.count > _hf_text.row_length(model, ids.shape[1] + args.count):
            raise ConfigError(
                f"a prompt of {ids.shape[1]} tokens and --count {args.count} exceed the model's {_hf_text.row_length(model, 10**9)} positions: ask for less"
            )
        torch.manual_seed(args.seed)
        sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p} if args.temperature > 0 else {}
        ids = ids.to(model.device)
        end = tokenizer.eos_token_id
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=args.count, do_sample=args.temperature > 0, eos_token_id=end, pad_token_id=pad, **sampling
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
