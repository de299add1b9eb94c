"""What the commands for Hugging Face models share: text as rows of token ids, pretrained models, and names of schemes
and states looked at before anything is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...specs import STORED_TRUNKS, parse_scheme, parse_state

if TYPE_CHECKING:
    from torch import Tensor

EXTENSIONS = (".py", ".txt", ".md")


def token_rows(
    tokenizer: Any, paths: Sequence[str] | None, context: int, *, extensions: Sequence[str] = EXTENSIONS, max_bytes: int = 0, limit: int = 0
) -> Tensor:
    """The text of ``paths`` (none: the standard library) as rows (N, ``context``) int64, documents ended by the tokenizer's end id where it has one.

    ``limit`` ends the reading after that many tokens (0: all).

    Raises:
        ConfigError: nothing to read, files that are not text, or less than one row.
    """
    import torch

    from ...lm import data

    files = data.find_files(paths, extensions) if paths else [(path, False) for path in data.standard_library()]
    skipped: list[str] = []
    ids: list[int] = []
    for text in data.read_texts(files, max_bytes, skipped):
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        if limit and len(ids) >= limit:
            del ids[limit:]
            break
    if skipped:
        warnings.warn(f"{len(skipped)} of {len(files)} files were left out, the first: {skipped[0]}", UserWarning, stacklevel=2)
    if len(ids) < context:
        raise ConfigError(f"the text has {len(ids)} tokens, expected at least one row of {context}: give more text or a smaller context")
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
