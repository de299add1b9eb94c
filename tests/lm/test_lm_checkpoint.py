"""Checkpoints: whole or not at all, with a sentence for every way they go wrong, and the one before still
there.
"""

import json
import resource

import pytest
import torch

from revstep import lm
from revstep.lm import _checkpoint as module
from revstep.lm._checkpoint import checkpoints


def example(step, size=1000):
    generator = torch.Generator().manual_seed(step)
    training = {
        "optimizer": {"state": {0: torch.ones(3)}},
        "batches": "{}",
        "random": {"cpu": torch.get_rng_state()},
    }
    return lm.Checkpoint(
        step,
        {"vocab": 3},
        {"w": torch.randn(size, generator=generator), "t": torch.ones(2, 3).t()},
        training,
        {"torch": "x"},
    )


def test_round_trip_keeps_every_bit_and_only_the_newest(tmp_path):
    for step in (1, 2, 10):
        path = lm.save_checkpoint(tmp_path, example(step))
    loaded = lm.load_checkpoint(tmp_path)
    assert (
        loaded.step == 10
        and loaded.path == path
        and [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000010"]
    )
    assert all(torch.equal(loaded.weights[name], value) for name, value in example(10).weights.items())
    assert torch.equal(loaded.training["optimizer"]["state"][0], torch.ones(3)) and loaded.config == {
        "vocab": 3
    }
    assert lm.load_checkpoint(path, training=False).training == {}


def test_the_same_step_can_be_saved_again(tmp_path):
    for size in (5, 6):
        lm.save_checkpoint(tmp_path, example(3, size))
    assert len(lm.load_checkpoint(tmp_path).weights["w"]) == 6 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("step", [2, 1], ids=["a later step", "the same step"])
def test_full_disk_leaves_the_old_checkpoint(tmp_path, step):
    """A file-size limit makes the kernel refuse the write half way, as a full disk does."""
    lm.save_checkpoint(tmp_path, example(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(lm.CheckpointError) as refused:
            lm.save_checkpoint(tmp_path, example(step, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space" in str(refused.value) and "checkpoint-00000001, is intact" in str(refused.value)
    assert (
        lm.load_checkpoint(tmp_path).step == 1
        and len(lm.load_checkpoint(tmp_path).weights["w"]) == 1000
        and len(list(tmp_path.iterdir())) == 1
    )


@pytest.mark.parametrize("call", ["rename of the part", "flush"])
def test_failure_at_the_last_moment_leaves_the_old_checkpoint(tmp_path, monkeypatch, call):
    lm.save_checkpoint(tmp_path, example(1))

    def fail(*args):
        raise OSError(5, "Input/output error")

    if call == "flush":
        monkeypatch.setattr(module, "flush_folder", fail)
    else:
        real = module.Path.rename
        monkeypatch.setattr(
            module.Path,
            "rename",
            lambda self, target: fail() if self.name.endswith(".part") else real(self, target),
        )
    with pytest.raises(lm.CheckpointError, match="Input/output error"):
        lm.save_checkpoint(tmp_path, example(1, size=7))
    monkeypatch.undo()
    assert lm.load_checkpoint(tmp_path).step == 1 and len(checkpoints(tmp_path)) == 1


def test_a_checkpoint_cut_off_by_a_crash_is_not_one(tmp_path):
    lm.save_checkpoint(tmp_path, example(1))
    (tmp_path / "checkpoint-00000002.part").mkdir()
    assert lm.load_checkpoint(tmp_path).step == 1
    lm.save_checkpoint(tmp_path, example(2))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000002"]


def damage_shorter(path):
    path.write_bytes(path.read_bytes()[:-10])


def damage_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage, words",
    [
        (damage_shorter, "bytes, "),
        (damage_one_bit, "checksum differs"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "training.pt"])
def test_damage_is_noticed_and_named(tmp_path, name, damage, words):
    damage(lm.save_checkpoint(tmp_path, example(1)) / name)
    with pytest.raises(lm.CheckpointError, match=words) as refused:
        lm.load_checkpoint(tmp_path)
    assert name in str(refused.value) and "restore it from a copy" in str(refused.value)


def test_damaged_manifests(tmp_path):
    path = lm.save_checkpoint(tmp_path, example(1)) / "manifest.json"
    manifest = json.loads(path.read_text())
    for content, words in (
        ("{", "cannot read"),
        (json.dumps(manifest | {"format": 9}), "format 9"),
        ("[]", "cannot read"),
        (json.dumps({"format": 1}), "missing"),
    ):
        path.write_text(content)
        with pytest.raises(lm.CheckpointError, match=words):
            lm.load_checkpoint(tmp_path)


def test_no_checkpoint(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(lm.CheckpointError, match="expected the --out folder"):
            lm.load_checkpoint(folder)
