"""The rules of the fuzz see what they are for; and the fuzz itself, where REVSTEP_FUZZ_SECONDS says how
long.
"""

import ctypes
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hf"))

import fuzz_bindings
import fuzz_child
import fuzz_damage
import fuzz_rules
from fuzz_child import Limits, Outcome

import fuzz

SECONDS = "REVSTEP_FUZZ_SECONDS"
SENTENCE = "revstep: the width is 0; expected at least 1\n"


@pytest.mark.skipif(not os.environ.get(SECONDS), reason=f"{SECONDS} does not say for how long")
def test_hostile_commands(tmp_path):
    failures = fuzz.fuzz(
        int(os.environ.get("REVSTEP_FUZZ_SEED", "0")), float(os.environ[SECONDS]), 10**9, tmp_path
    )
    assert failures == []


FAULTS = {
    "a traceback": (
        Outcome(2, "", SENTENCE + "Traceback (most recent call last):", 0),
        [],
        [],
        "a traceback",
    ),
    "an abort": (Outcome(-6, "", "", 0), [], [], "killed by signal 6"),
    "a hang": (Outcome(-9, "", "", 9, True, True), [], [], "hung"),
    "no sentence": (Outcome(2, "", "", 0), [], [], "no sentence"),
    "another exit code": (Outcome(70, "", "", 0), [], [], "exit code 70"),
    "an ignored exception": (Outcome(2, "", SENTENCE + "Exception ignored in", 0), [], [], "ignored"),
    "a loss": (Outcome(2, "", SENTENCE, 0), ["a-file"], [], "lost or changed: a-file"),
    "a loss of one that did its work": (
        Outcome(0, "", "", 0),
        ["model/config.json"],
        [],
        "lost or changed: model",
    ),
    "written though refused": (
        Outcome(2, "", SENTENCE, 0),
        [],
        ["out/data"],
        "written though refused: out/data",
    ),
    "saved nothing": (Outcome(0, "saved in out\n", "", 0), [], [], "nothing was saved"),
}


@pytest.mark.parametrize("outcome, lost, new, fault", FAULTS.values(), ids=FAULTS)
def test_every_fault_is_seen(outcome, lost, new, fault):
    argv = ["train", "--out", "out"]
    assert any(fault in found for found in fuzz_rules.faults(argv, outcome, lost, new))
    assert fuzz_rules.faults(argv, Outcome(2, "", SENTENCE, 0), [], []) == []
    assert fuzz_rules.faults(argv, Outcome(0, "", "", 0), ["out/x"], ["out/y"]) == []


def raised(argv):
    raise KeyError(argv[0])


def aborted(argv):
    os.abort()


def hung(argv):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as compiled code does that looks at no signal
    time.sleep(60)


def told(argv):
    print("é" + argv[0])
    return 2


def filled(argv):
    bytearray(1 << 40)


@pytest.mark.parametrize(
    "main, code, said",
    [
        (raised, 1, "KeyError: 'x'"),
        (aborted, -6, ""),
        (hung, -9, ""),
        (told, 2, "éx"),
        (filled, 1, "MemoryError"),
    ],
)
def test_what_a_child_does_is_told(tmp_path, monkeypatch, main, code, said):
    monkeypatch.setattr("revstep._cli.main", main)
    monkeypatch.setattr(fuzz_child, "GRACE", 0.3)
    found = fuzz_child.run(["x"], tmp_path, Limits(patience=0.3))
    assert found.code == code and said in found.out + found.err and found.hung == (main is hung)


def test_a_change_in_a_tree_is_seen(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "l").symlink_to("a")
    before = fuzz_rules.snapshot(tmp_path)
    (tmp_path / "l").unlink()
    (tmp_path / "l").write_bytes(b"a")
    (tmp_path / "b").mkdir()
    assert fuzz_rules.differences(before, fuzz_rules.snapshot(tmp_path)) == (["l"], ["b"])


def test_a_case_is_the_same_everywhere_and_no_two_are_alike(tmp_path):
    said = []
    for name in "ab":
        said.append([])
        for number in range(1, 41, 2):
            folder = tmp_path / name / str(number)
            folder.mkdir(parents=True)
            (folder / "f.txt").write_bytes(b"abc" * 100)
            said[-1].append(str(fuzz.case(5, number, folder)))
    assert said[0] == said[1] and len(set(said[0])) > 15


def test_every_damage_changes_the_file(tmp_path):
    for way in {*fuzz_damage.ANY, fuzz_damage.value, fuzz_damage.header}:
        path = tmp_path / way.__name__
        path.write_bytes(
            (2).to_bytes(8, "little") + b"{}" + bytes(30)
            if way is fuzz_damage.header
            else b'{"a": [1, {"b": 2}]}'
        )
        before = path.read_bytes()
        seen = {way(path, fuzz.Random(seed)) for seed in range(1)}
        changed = path.is_symlink() or not path.is_file() or path.read_bytes() != before
        assert changed and all(seen), way


# ---- calls of the extension ----


def test_hostile_calls_of_the_extension():
    made, failures = fuzz_bindings.fuzz(seed=2, seconds=60, most=4000)
    assert (made, failures) == (4000, [])


def test_most_calls_reach_the_kernels():
    """A fuzz whose calls all fail at their types would find nothing else."""
    ends = [fuzz_bindings.call(random.Random(f"2:{k}")) for k in range(2000)]
    returned = sum(end == "returned" for end in ends)
    refused = sum(end.startswith("RuntimeError: revstep") for end in ends)
    assert returned > 200 and refused > 200


def beyond(call):
    """A call that writes one byte behind an array."""
    ctypes.c_char.from_address(call.arrays.address(3) + 8 * fuzz_bindings.N).value = b"x"


def dead(call):
    os.kill(os.getpid(), signal.SIGKILL)


def other(call):
    raise KeyError("no refusal of ours")


@pytest.mark.parametrize("broken", [beyond, dead, other])
def test_a_call_that_breaks_the_rules_is_found(broken, monkeypatch, capfd):
    made = []

    def make(call):
        made.append(call)
        return broken(call) if len(made) == 6 else None

    monkeypatch.setattr(fuzz_bindings.Call, "make", make)
    assert fuzz_bindings.batch(seed=1, first=10, count=20) == 15
