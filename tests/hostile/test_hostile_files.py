"""Files as the package reads and writes them: what is no regular file is not read, what a user names is
written to and not replaced, and nothing is lost where a write fails.
"""

import contextlib
import json
import os
import resource
import stat
import threading
from pathlib import Path

import pytest

from revstep import _files
from revstep._cli import main
from revstep.errors import RevstepError

SAID = b'{"a": 1}\n'


@contextlib.contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---- reading ----


def test_a_pipe_is_not_waited_for_and_a_device_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(OSError):
            _files.read_bytes(path)
    with pytest.raises(OSError, match="a pipe or a device among the files"):
        _files.refuse_irregular(tmp_path)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 200_000, b"1" * 5000, b""], ids=len)
def test_what_is_not_json_is_a_value_error(tmp_path, text):
    (tmp_path / "f.json").write_bytes(text)
    with pytest.raises(ValueError):
        _files.read_json(tmp_path / "f.json")


def test_every_bit_of_what_is_sealed_counts():
    """As values: a bit of white space changes none of them."""
    body = {"format": 2, "step": 10, "config": {"lr": 1e-3, "data": ["é", "b"], "tied": True, "out": None}}
    text = _files.sealed(body)
    same = 0
    for at in range(len(text)):
        for bit in range(8):
            flipped = bytearray(text)
            flipped[at] ^= 1 << bit
            try:
                found = json.loads(flipped.decode("utf-8"))
            except ValueError:
                continue
            try:
                read = _files.unsealed(found)
            except ValueError:
                continue
            assert read == body, (at, bit, flipped)
            same += 1
    assert 0 < same < len(text) and _files.unsealed(json.loads(text)) == body
    with pytest.raises(ValueError, match="no checksum"):
        _files.unsealed(body)


# ---- writing where a user says ----


def test_a_file_is_replaced_whole_and_keeps_its_permissions(tmp_path):
    path = tmp_path / "o.json"
    path.write_bytes(b"x" * 100)
    path.chmod(0o640)
    before = path.stat().st_ino
    _files.write_output(path, SAID)
    assert path.read_bytes() == SAID and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_ino != before and os.listdir(tmp_path) == ["o.json"]
    with files_of_at_most(3), pytest.raises(OSError, match="File too large"):
        _files.write_output(path, SAID * 9)
    assert path.read_bytes() == SAID and os.listdir(tmp_path) == ["o.json"]


def test_what_is_written_through_a_link_leaves_the_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    for name, target in (("link", "real"), ("dangling", "fresh")):
        (tmp_path / name).symlink_to(target)
        _files.write_output(tmp_path / name, SAID)
        assert (tmp_path / name).is_symlink() and (tmp_path / target).read_bytes() == SAID


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    _files.write_output(pipe, SAID)
    reader.join(timeout=10)
    assert got == [SAID] and stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_device_is_written_to(tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "full").symlink_to("/dev/full")
    _files.write_output(tmp_path / "null", SAID)
    with pytest.raises(OSError, match="No space left"):
        _files.write_output(tmp_path / "full", SAID)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and (tmp_path / "null").is_symlink()
    assert os.readlink(tmp_path / "full") == "/dev/full"


def test_stdout_by_its_name_keeps_what_was_printed(tmp_path):
    """``--json /dev/stdout > file``: the file must not be replaced under the stream."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT), 1)
        import sys

        sys.stdout = open(1, "w", closefd=False)
        print("before")
        _files.write_output("/dev/stdout", SAID)
        print("after", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "said").read_bytes() == b"before\n" + SAID + b"after\n"


REFUSED = {
    "a folder": (".", "it is a folder, and a file is to be written"),
    "nothing above": ("no/where.json", "No such file or directory"),
    "a file above": ("f/x.json", "Not a directory"),
    "a loop": ("loop", "Too many levels of symbolic links"),
    "no name": ("", "the name is empty"),
    "too long": ("x" * 300, "File name too long"),
}


@pytest.mark.parametrize("name, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_written_is_said_before_anything_is_computed(
    tmp_path, monkeypatch, capsys, name, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    assert main(["plan", "gpt2", "--seq", "8", "--json", name]) == 2
    said = capsys.readouterr()
    assert message in said.err and not said.out and sorted(os.listdir(tmp_path)) == ["f", "loop"]


@pytest.mark.parametrize(
    "command", ["convert {0} {1}", "finetune {0} --out {1}", "train --out {1}", "demo stacks --out {1}"]
)
def test_out_that_is_a_file_is_refused(tmp_path, capsys, command):
    (tmp_path / "f").write_bytes(b"mine")
    assert main(command.format(tmp_path, tmp_path / "f").split()) == 2
    assert "it is a file, and a folder is to be written" in capsys.readouterr().err
    assert (tmp_path / "f").read_bytes() == b"mine" and os.listdir(tmp_path) == ["f"]


# ---- folders that are whole or as they were ----


def test_a_folder_gets_all_files_or_none(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_bytes(b"old")
    (folder / "mine").write_bytes(b"mine")

    def write(part):
        (part / "a").write_bytes(b"new")
        (part / "sub").mkdir()
        (part / "sub" / "b").write_bytes(b"new" * 1000)

    with (
        files_of_at_most(1000),
        pytest.raises(RevstepError, match=r"could not write .*model: .*File too large"),
    ):
        _files.write_folder(folder, write)
    assert (folder / "a").read_bytes() == b"old" and sorted(os.listdir(folder)) == ["a", "mine"]
    _files.write_folder(folder, write)
    assert (folder / "a").read_bytes() == b"new" and sorted(os.listdir(folder)) == ["a", "mine", "sub"]
    with files_of_at_most(1000), pytest.raises(RevstepError):
        _files.write_folder(tmp_path / "fresh" / "deeper", write)
    assert not (tmp_path / "fresh").exists()


def test_what_a_refused_run_made_is_taken_away(tmp_path):
    with pytest.raises(KeyError), _files.kept_if_done(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "c").write_bytes(b"")
        raise KeyError
    assert os.listdir(tmp_path) == []
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyError), _files.kept_if_done(tmp_path / "there"):
        Path(tmp_path / "there" / "c").write_bytes(b"")
        raise KeyError
    assert os.listdir(tmp_path / "there") == ["c"]
