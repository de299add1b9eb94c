"""What a fine-tuning keeps about itself in its folder, and whether the run there is gone on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..._files import read_json, sealed, unsealed, write_atomic
from ...errors import ConfigError
from .finetune import DEFAULTS, RUN_OPTIONS

RECORD = "finetune.json"
#: Since the record has a checksum; those before say nothing of a format, and are read as they are.
FORMAT = 2


def read_record(out: Path) -> dict[str, Any] | None:
    """What a run wrote about itself into its folder, or None where no run was.

    Raises:
        ConfigError: a record that cannot be read.
    """
    file = out / RECORD
    if not file.is_file():
        return None
    try:
        found = read_json(file)
        if isinstance(found, dict) and found.get("format") == FORMAT:
            found = unsealed(found)
        elif not isinstance(found, dict) or "format" in found:
            raise ValueError("it is not the record of a run that this version knows")
        if isinstance(found["options"], dict) and isinstance(found["finished"], bool) and "model" in found:
            return found
        raise ValueError("it is not the record of a run")
    except (OSError, ValueError, KeyError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    raise ConfigError(f"cannot read {file}: {reason}; remove the folder, or name another --out")


def write_record(out: Path, record: dict[str, Any]) -> None:
    """The inverse of :func:`read_record`. Raises OSError."""
    write_atomic(out / RECORD, sealed(record | {"format": FORMAT}))


def goes_on(out: Path, record: dict[str, Any] | None, model: str, resume: str | None) -> bool:
    """Whether the run in ``out`` is gone on with, rather than a new one begun.

    Raises:
        ConfigError: a finished or unfinished run that this one would write over; nothing to resume; a run of
            another model.
    """
    if record is None:
        if resume == "must":
            raise ConfigError(f"there is no run in {out} to resume; start it without --resume")
        if (out / "config.json").is_file() or any(out.glob("*.safetensors")):
            raise ConfigError(f"{out} holds a model already: name another --out")
        return False
    if record["finished"]:
        raise ConfigError(
            f"{out} holds a finished run: name another --out, or remove the folder; to train its model"
            f" further: revstep finetune {out} --out NEW; to try it: revstep generate {out}"
        )
    numbers = (path.name.rpartition("-")[2] for path in out.glob("checkpoint-*"))
    last = [int(number) for number in numbers if number.isdigit()]
    if not last:  # ended before it had anything to go on from
        if resume != "must":
            print(f"the run in {out} ended before its first checkpoint; it is started again", file=sys.stderr)
        else:
            raise ConfigError(
                f"there is no checkpoint-N in {out} to resume from: the run ended before its first; start it"
                " without --resume"
            )
        return False
    if resume is None:
        raise ConfigError(
            f"{out} holds an unfinished run, with a checkpoint of step {max(last)}: go on with --resume, or"
            " name another --out"
        )
    if record["model"] != model:
        was = record["model"]
        raise ConfigError(f"the run in {out} is of {was}, got {model}: name that one, or another --out")
    return True


def options_of(record: dict[str, Any], given: dict[str, Any], out: Path) -> dict[str, Any]:
    """The options of the run that goes on.

    Raises:
        ConfigError: an option that was another when the run began.
    """
    before = {name: value for name, value in record["options"].items() if name in RUN_OPTIONS}
    for name, value in plain(given).items():
        if before.get(name, DEFAULTS.get(name)) != value:
            was = before.get(name, DEFAULTS.get(name))
            raise ConfigError(
                f"--{name.replace('_', '-')} is {value}, the run in {out} began with {was}: drop it, or name"
                " another --out"
            )
    return before


def plain(given: dict[str, Any]) -> dict[str, Any]:
    """The options as JSON gives them back."""
    return json.loads(json.dumps(given))
