"""Checkpoints that are there whole or not at all, and that say so when they are not.

A run folder holds ``checkpoint-00000100/`` with ``weights.safetensors``, ``training.pt`` (optimiser,
scaler, random states, place in the data) and ``manifest.json`` (step, config, sizes and SHA-256 of the
other two, and a checksum of itself). A checkpoint is written under a temporary name (``.part``), flushed,
renamed, and only then are older ones removed; the newest whole name is the one that counts. Where the same
step is written again, the one before is called ``.old`` until its successor is there, and counts until then.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .._files import advice, flush_folder, read_bytes, read_json, sealed, unsealed, write_flushed
from .._imports import require
from .._values import shown
from ..errors import RevstepError

#: 2 since the manifest has a checksum of its own; 1 is read, and what its config says cannot be checked.
FORMAT, UNSEALED = 2, 1
WEIGHTS, TRAINING, MANIFEST = "weights.safetensors", "training.pt", "manifest.json"
_NAME = re.compile(r"checkpoint-(\d{8,})(\.old)?")


class CheckpointError(RevstepError, RuntimeError):
    """A checkpoint could not be written or cannot be read; says what is still there to use."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        step: optimiser steps done.
        config: the run's ``TrainConfig.to_dict()`` and, as "vocab", the tokenizer's size.
        weights: the model's state_dict, on the CPU.
        training: optimiser, scaler, random states, place in the data (empty when only the weights were asked
            for).
        environment: what equal bits depend on: torch version, device, threads.
        path: the folder it is in.
    """

    step: int
    config: dict[str, Any]
    weights: dict[str, Tensor]
    training: dict[str, Any]
    environment: dict[str, Any]
    path: Path | None = None


def outline(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without the values of weights and optimiser: for processes that are given their part of
    them.
    """
    empty = functools.partial(
        tree_map_only, Tensor, lambda tensor: tensor.to("meta") if tensor.ndim else tensor
    )
    return replace(
        checkpoint,
        weights=empty(checkpoint.weights),
        training={**checkpoint.training, "optimizer": empty(checkpoint.training["optimizer"])},
    )


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a run folder, oldest first."""
    folder = Path(folder)
    found = (
        {path.name: path for path in folder.iterdir() if _NAME.fullmatch(path.name)}
        if folder.is_dir()
        else {}
    )
    counting = [
        path
        for name, path in found.items()
        if not name.endswith(".old") or name.removesuffix(".old") not in found
    ]
    return sorted(counting, key=lambda path: int(_NAME.fullmatch(path.name)[1]))


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` into the run folder and remove the ones before it.

    Raises:
        CheckpointError: it could not be written (disk full, no permission); earlier checkpoints are
            untouched.
    """
    folder = Path(folder)
    target = folder / f"checkpoint-{checkpoint.step:08d}"
    part, stale = (folder / f"{target.name}.{ending}" for ending in ("part", "old"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of processes that were killed: what they take may be what is missing.
        for leftover in folder.glob("checkpoint-*.part"):
            shutil.rmtree(leftover)
        part.mkdir()
        _write(part, checkpoint)
        if target.exists():  # the same step again: a folder cannot be renamed over
            shutil.rmtree(stale, ignore_errors=True)
            target.rename(stale)
        part.rename(target)
        flush_folder(folder)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            if stale.exists() and not target.exists():
                stale.rename(target)
        shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(
            f"could not write the checkpoint of step {checkpoint.step} to {folder}: {error}; {advice(error)}."
            f" {what_is_left(folder)}"
        ) from error
    for older in [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path != target]:
        shutil.rmtree(older, ignore_errors=True)
    return target


def what_is_left(folder: Path | None) -> str:
    """The sentence that ends the message of a run that could not go on."""
    intact = checkpoints(folder) if folder is not None else []
    return (
        f"The last checkpoint, {intact[-1].name}, is intact: go on from it with --resume"
        if intact
        else "There is no earlier checkpoint"
    )


def _write(part: Path, checkpoint: Checkpoint) -> None:
    safetensors = require("safetensors.torch", "writing a checkpoint")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    buffer = io.BytesIO()
    torch.save(checkpoint.training, buffer)
    # Both are made in memory and written by Python, so that a full disk is an OSError and not a library's own
    # exception.
    contents = {WEIGHTS: safetensors.save(weights), TRAINING: buffer.getvalue()}
    manifest = {
        "format": FORMAT,
        "step": checkpoint.step,
        "config": checkpoint.config,
        "environment": checkpoint.environment,
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        },
    }
    for name, content in contents.items():
        write_flushed(part / name, content)
    write_flushed(part / MANIFEST, sealed(manifest))
    flush_folder(part)


def load_checkpoint(folder: str | Path, *, training: bool = True) -> Checkpoint:
    """The newest checkpoint of a run folder (or the one at ``folder`` itself), checked against its manifest.

    ``training=False`` reads the weights alone.

    Raises:
        CheckpointError: there is none, or it is damaged, incomplete or of another format.
    """
    with _reading(folder) as (path, manifest):
        weights = _checked(path, manifest, WEIGHTS)
        state = _checked(path, manifest, TRAINING) if training else None
        return Checkpoint(
            step=manifest["step"],
            config=manifest["config"],
            weights=require("safetensors.torch", "reading a checkpoint").load(weights),
            training={} if state is None else torch.load(io.BytesIO(state), weights_only=True),
            environment=manifest["environment"],
            path=path,
        )


def stored_config(folder: str | Path) -> dict[str, Any]:
    """``Checkpoint.config`` of the newest checkpoint, without reading the rest of it.

    Raises:
        CheckpointError: as ``load_checkpoint``.
    """
    with _reading(folder) as (_, manifest):
        return manifest["config"]


@contextlib.contextmanager
def _reading(folder: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The newest checkpoint's folder and manifest; what goes wrong while they are read is a
    CheckpointError.
    """
    folder = Path(folder)
    found = [folder] if (folder / MANIFEST).exists() else checkpoints(folder)
    if not found:
        raise CheckpointError(f"no checkpoint in {folder}; expected the --out folder of a training run")
    path = found[-1]
    try:
        yield path, _manifest(path / MANIFEST)
    except (RevstepError, MemoryError):
        raise
    except Exception as error:  # of what reads weights and tensors, each has its own
        said = f"{error} is missing" if isinstance(error, KeyError) else shown(str(error), 300, quoted=False)
        raise CheckpointError(
            f"cannot read the checkpoint {path}: {said}; restore it from a copy, or start again in another"
            " folder"
        ) from error


def _manifest(path: Path) -> dict[str, Any]:
    """What a manifest says, if it is whole. Raises OSError, ValueError, KeyError, TypeError."""
    found = read_json(path)
    if found["format"] == UNSEALED:
        warnings.warn(
            f"{path} was written by an earlier revstep, without a checksum of itself: that its config is the"
            " one of the run cannot be checked; the next checkpoint has one",
            UserWarning,
            stacklevel=2,
        )
    elif found["format"] == FORMAT:
        found = unsealed(found)
    else:
        raise ValueError(
            f"it is of format {shown(found['format'])}, this version reads {UNSEALED} and {FORMAT}"
        )
    if isinstance(found["step"], bool) or not isinstance(found["step"], int) or found["step"] < 0:
        raise ValueError(f"its step is {shown(found['step'])}, expected a number of steps")
    for name in ("config", "environment", "files"):
        if not isinstance(found[name], dict):
            raise ValueError(f"its {name} is {shown(found[name])}, expected names and values")
    return found


def _checked(path: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    content, expected = read_bytes(path / name), manifest["files"][name]
    if len(content) != expected["bytes"]:
        raise ValueError(f"{name} has {len(content)} bytes, {expected['bytes']} were written")
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise ValueError(f"{name} is not what was written (its checksum differs)")
    return content
