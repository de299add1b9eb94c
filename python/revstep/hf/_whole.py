"""Loading a transformers model, or a Trainer's checkpoint into one, with every tensor read from a file.

transformers itself fills tensors that a folder lacks with random numbers and says so in a table on stderr.
Here each such tensor is an error with its name, whether it is missing, has another shape, or belongs nowhere.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from .._files import read_json, read_start
from .._imports import cause, foreign, require
from .._models.layers import unwrapped
from ..errors import ConfigError

__all__ = ["ADAPTER", "cause", "load_checkpoint", "load_whole", "refuse_incomplete", "refuse_loading"]

#: The file by which peft marks a folder of adapters.
ADAPTER = "adapter_config.json"
#: Names of tensors that an error lists of each kind; the rest are counted.
NAMED = 16


def load_whole(kind: Any, path: str | os.PathLike, **options: Any) -> nn.Module:
    """``kind.from_pretrained(path, **options)``, refused unless the folder holds every tensor of the model.

    A head that is tied to the embeddings, and what the class declares ignorable, may be absent.

    Args:
        kind: a transformers model class, or one of transformers' ``Auto`` classes.
        path: a folder that ``save_pretrained`` wrote, or a name on the hub.
        options: of ``from_pretrained``.

    Raises:
        ConfigError: tensors are missing, of another shape or unexpected; a file is absent or damaged; an
            option asks for a report on such tensors, or for random numbers in their place.
    """
    for name in ("ignore_mismatched_sizes", "output_loading_info"):
        if options.pop(name, False):
            raise ConfigError(
                f"{name} is on; expected it off, for a tensor that is missing or has another shape is an "
                "error here: load the model with transformers itself, and call revstep.hf.convert"
            )
    safetensors = require("safetensors", "reading a model's weights", "hf")
    try:
        options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        model, found = kind.from_pretrained(path, **options)
    except (safetensors.SafetensorError, pickle.UnpicklingError, EOFError) as error:
        found = f"a weight file of {path} is damaged ({cause(error)})"
        instead = "expected what save_pretrained wrote: copy or download the folder again"
        raise ConfigError(f"{found}; {instead}") from error
    except OSError as error:
        _name_absent_shards(path, options, error)
        raise
    except RuntimeError as error:
        _name_unread(path, error)
        raise
    refuse_loading(path, f"those of a {type(model).__name__} as its config.json describes it", found)
    return model


def refuse_loading(path: str | os.PathLike, what: str, found: dict[str, Any]) -> None:
    """:func:`refuse_incomplete` of what transformers' ``output_loading_info`` reports."""
    shapes = {name: (list(got), list(expected)) for name, got, expected in found["mismatched_keys"]}
    refuse_incomplete(path, what, found["missing_keys"], found["unexpected_keys"], shapes)


def _name_unread(path: str | os.PathLike, error: RuntimeError) -> None:
    """An error that names what transformers could not put together from several tensors, or quantise.

    Its own names are in a table on stderr alone; here they are taken from where the error was raised.
    """
    trace = error.__traceback__
    while trace is not None:
        report = trace.tb_frame.f_locals.get("loading_info")
        failed = getattr(report, "conversion_errors", None)
        if failed:
            name, text = sorted(failed.items())[0]
            lines = [line.strip() for line in text.splitlines() if not line.startswith("Error: ")]
            reason = next((line for line in reversed(lines) if line), "no reason is given")
            raise ConfigError(
                f"the weights of {path} do not make a model as its config.json describes it; of its tensors, "
                f"{len(failed)} cannot be made from what is there ({_listed(failed)}), {name} because: "
                f"{reason}. Get the whole folder again, or ask for another quantisation where that failed"
            ) from error
        trace = trace.tb_next


def refuse_incomplete(
    path: str | os.PathLike, what: str, missing: Collection[str], unexpected: Collection[str],
    shapes: dict[str, tuple[list[int], list[int]]],
) -> None:  # fmt: skip
    """See that nothing is missing, unexpected or of another shape.

    Args:
        path: the folder that was read; what: what was expected in it, in words.
        missing, unexpected: names of tensors.
        shapes: name: (shape in the folder, shape in the model) of those that differ.

    Raises:
        ConfigError: something is; with the tensors' names.
    """
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_listed(missing)})")
    if shapes:
        told = [f"{name} is {got}, expected {expected}" for name, (got, expected) in shapes.items()]
        parts.append(f"{len(shapes)} of another shape ({_listed(told)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({_listed(unexpected)})")
    if parts:
        raise ConfigError(
            f"the weights of {path} are not {what}; of its tensors, {'; '.join(parts)}. Random numbers would "
            "stand in their place, so nothing was loaded: get all of it again, or make its "
            "configuration agree with its weights"
        )


def _name_absent_shards(path: str | os.PathLike, options: dict[str, Any], error: OSError) -> None:
    """An error that names every shard that is not there; transformers names one, in the system's words."""
    folder = Path(path) / (options.get("subfolder") or "")
    for index in sorted(folder.glob("*.index*.json")):
        shards = _shards(index)
        absent = {name for name in shards if not (folder / name).is_file()}
        if absent:
            found = f"{folder} lacks {_listed(absent)}, in which {index.name} says that tensors are"
            instead = "expected every file it lists: copy or download the folder again"
            raise ConfigError(f"{found}; {instead}") from error


def _shards(index: Path) -> set[str]:
    with foreign(lambda said: ConfigError(f"{index} lists no files of weights ({said})")):
        return set(map(str, read_json(index)["weight_map"].values()))


def _listed(names: Iterable[str]) -> str:
    """The names by order, of many the first and how many more."""
    names = sorted(names, key=_with_numbers)
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _with_numbers(name: str) -> list[tuple[int, str]]:
    """Layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# ---- Weights of a Trainer's checkpoint, all of them, into a model that goes on training ----
#
# transformers' Trainer reads them with ``strict=False``. What a checkpoint lacks keeps the value it had
# before training and a warning is all that is said; so do the experts of a model whose tensors
# ``save_pretrained`` writes under other names than the model has, such as Mixtral's.

#: As peft names the weights of adapters in a folder.
_ADAPTERS = "adapter_model.safetensors"


def load_checkpoint(model: nn.Module, path: str | os.PathLike) -> None:
    """Put the weights of ``path``, a checkpoint-N folder, into ``model``, in place.

    Args:
        model: as it was when the checkpoint was written: the same class, or a peft model with the same
            adapters.
        path: the folder. What else it holds, of optimiser and schedule, the Trainer reads.

    Raises:
        ConfigError: tensors are missing, unexpected or of another shape, or a file is absent or damaged;
            the model is as it was.
    """
    inner = unwrapped(model)
    if inner is not model and hasattr(model, "peft_config"):
        _refuse_other_adapters(model, Path(path))  # the Trainer loads these right
        return
    again = "remove the folder, and go on from the checkpoint before it"
    with foreign(lambda said: ConfigError(f"cannot read the weights of {path}: {said}; {again}")):
        whole = load_whole(type(inner), path, dtype=inner.dtype)
    inner.load_state_dict(whole.state_dict())


def _refuse_other_adapters(model: nn.Module, path: Path) -> None:
    peft, safetensors = (require(name, "resuming", "hf") for name in ("peft", "safetensors"))
    expected = {name: list(tensor.shape) for name, tensor in peft.get_peft_model_state_dict(model).items()}
    again = "remove the folder, and go on from the checkpoint before it"
    with foreign(lambda said: ConfigError(f"cannot read {path / _ADAPTERS}: {said}; {again}")):
        read_start(path / _ADAPTERS)
        with safetensors.safe_open(path / _ADAPTERS, "pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
    refuse_incomplete(
        path,
        "those of the adapters that were trained",
        expected.keys() - found.keys(),
        found.keys() - expected.keys(),
        {name: (found[name], shape) for name, shape in expected.items() if found.get(name, shape) != shape},
    )
