"""Two runs into one folder: the second says who holds it, and a process that was killed holds nothing."""

import json
import os
import signal

import pytest

from revstep._locks import NAME, FolderInUseError, only_writer


def holder(folder, ready):
    """A child that holds the folder until it is killed -> its id."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # it does not outlive a test that fails
        with only_writer(folder):
            os.write(ready, b"x")
            signal.pause()
        os._exit(0)
    return child


def test_the_second_is_told_who_holds_it_and_a_killed_process_holds_nothing(tmp_path):
    there, ready = os.pipe()
    child = holder(tmp_path / "run", ready)
    os.read(there, 1)
    with pytest.raises(FolderInUseError, match=rf"is being written by process {child} on .*, since \d{{4}}-"):
        with only_writer(tmp_path / "run"):
            pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "run" / NAME).exists()  # nobody has taken it away
    with only_writer(tmp_path / "run"):
        said = json.loads((tmp_path / "run" / NAME).read_bytes())
        assert said["process"] == os.getpid()
    assert not (tmp_path / "run").exists() or os.listdir(tmp_path / "run") == []


def test_the_same_process_is_refused_too_and_the_holder_keeps_it(tmp_path):
    with only_writer(tmp_path):
        for _ in range(2):
            with pytest.raises(FolderInUseError), only_writer(tmp_path):
                pass
    with only_writer(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_stays_empty_is_taken_away_and_a_damaged_lock_says_so_much(tmp_path):
    with only_writer(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path) == []
    with only_writer(tmp_path / "c"):
        (tmp_path / "c" / NAME).write_bytes(b"\xff")
        with pytest.raises(FolderInUseError, match="written by another process"), only_writer(tmp_path / "c"):
            pass
        (tmp_path / "c" / "kept").write_bytes(b"")
    assert os.listdir(tmp_path / "c") == ["kept"]


def test_a_lock_that_was_taken_away_meanwhile_is_none(tmp_path):
    """Who opened the file before its holder removed it locks a file without a name, and has to try again."""
    with only_writer(tmp_path):
        os.rename(tmp_path / NAME, tmp_path / "other")
        with only_writer(tmp_path):  # another file of that name
            assert os.path.samefile(tmp_path / NAME, tmp_path / NAME)
