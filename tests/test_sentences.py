"""Sentences of the smaller modules that no other test reads."""

import argparse
import errno
import os
import pickle
import types

import pytest
import torch

import revstep
from revstep import ConfigError, RevstepError, _files, _imports, _locks, _options, _specs, _values, errors
from revstep._cli import _numbers, shared
from revstep._recurrence import ambient
from revstep.schemes import Blend


@pytest.mark.parametrize(
    "read, text, said",
    [
        (_numbers.whole, "1.5", "'1.5' is not a whole number"),
        (_numbers.finite, "much", "'much' is not a number"),
        (_numbers.finite, "1e999", "'1e999' is not a finite number"),
        (_numbers.finite, "nan", "'nan' is not a finite number"),
        (_options.tile, "some", "'some' is neither 'auto' nor a number of tokens"),
        (_options.keep, "all", "'all' is neither 'auto' nor a number of layers"),
    ],
)
def test_words_of_the_command_line(read, text, said):
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        read(text)


def test_words_that_are_read():
    assert (_options.tile("auto"), _options.tile("64"), _options.keep("3")) == ("auto", 64, 3)
    assert _numbers.finite("-1e-3") == -1e-3
    assert shared.endings("py, .txt,,") == (".py", ".txt")
    assert _specs.parse_scheme("midpoint_blend:a=0.5/1.0").make().a == (0.5, 1.0)


def test_a_command_that_asks_for_an_option_it_does_not_have():
    given = argparse.Namespace(lr=0.1, seed=None)
    assert shared.given(given, ("lr", "seed")) == {"lr": 0.1}
    with pytest.raises(ConfigError, match=r"no option for steps; add it in add_arguments"):
        shared.given(given, ("lr", "steps"))


def test_a_scheme_is_a_string():
    with pytest.raises(ConfigError, match=r"scheme is 3; expected a string such as 'blend:c=0.25'"):
        _specs.parse_scheme(3)


def test_numbers_with_more_digits_than_python_writes():
    assert _values.shown(10**9999) == "a whole number of about 9999 digits"


@pytest.mark.parametrize(
    "error",
    [
        errors.ResolutionError("still", 3.5),
        errors.ParasiticModeError("apart", 7, 0.5, 0.25),
        revstep.StateOverflowError("beyond", 3, 2.0**21, 2.0**20),
    ],
)
def test_errors_of_another_process(error):
    """What a worker raises arrives whole."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


# ---- files ----


def test_a_folder_where_a_file_belongs(tmp_path):
    """Nothing is moved, neither the file nor those beside it."""
    (tmp_path / "out" / "b").mkdir(parents=True)

    def write(part):
        (part / "a").write_bytes(b"new")
        (part / "b").write_bytes(b"new")

    with pytest.raises(RevstepError, match=r"could not write .*a folder is where a file is to be written"):
        _files.write_folder(tmp_path / "out", write)
    assert not (tmp_path / "out" / "a").exists() and (tmp_path / "out" / "b").is_dir()


def test_what_a_library_raises_while_it_writes(tmp_path):
    def write(part):
        raise ValueError("the disk\nand more")

    with pytest.raises(RevstepError, match=r"could not write .*new: the disk;"):
        _files.write_folder(tmp_path / "new", write)
    assert os.listdir(tmp_path) == []


def test_no_disk_is_not_no_folder(tmp_path):
    def write(part):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RevstepError, match="free some space"):
        _files.write_folder(tmp_path / "new", write)


# ---- random numbers and surroundings ----


def test_nothing_to_replay():
    generators = ambient.Generators([])
    torch.manual_seed(3)
    with generators.at(None):
        first = torch.rand(2)
    states = generators.get()
    second = torch.rand(2)
    with generators.at(states):
        assert torch.equal(torch.rand(2), second)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), first)


def test_a_scheme_that_no_string_says():
    with pytest.raises(ConfigError, match="cannot be written as a string"):
        _specs.scheme_text(Odd(c=0.25))


class Odd(Blend):
    """An option whose text is read as another value."""

    def __eq__(self, other):
        return False

    __hash__ = None


def test_a_name_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    new, stat = tmp_path / "file" / "new", os.stat
    with pytest.raises(NotADirectoryError):
        _files.refuse_output(new)

    def on_windows(path, **options):
        if path == new:
            raise FileNotFoundError(errno.ENOENT, "The system cannot find the path", str(path))
        return stat(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", on_windows)
        with pytest.raises(NotADirectoryError, match="above it is no folder"):
            _files.refuse_output(new)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="it cannot be written"):
        _files.refuse_output(tmp_path / "new")


def test_an_error_of_ours_while_a_folder_is_written_stays(tmp_path):
    def write(folder):
        (folder / "half").write_text("x")
        raise ConfigError("no such model")

    with pytest.raises(ConfigError, match=r"^no such model$"):
        _files.write_folder(tmp_path / "out", write)
    assert not (tmp_path / "out").exists()


def test_names_in_a_folder_on_windows(tmp_path, monkeypatch):
    """A folder cannot be opened there."""
    monkeypatch.setattr(_files, "os", types.SimpleNamespace(name="nt"))
    _files.flush_folder(tmp_path)


def test_an_interrupt_inside_of_another_package_is_no_refusal():
    class PanicException(BaseException):
        """As what panicked in Rust looks from here."""

    with pytest.raises(KeyboardInterrupt), _imports.foreign(ConfigError):
        raise KeyboardInterrupt
    with pytest.raises(ConfigError, match="index out of bounds"), _imports.foreign(ConfigError):
        raise PanicException("index out of bounds\nand more")


def test_a_lock_that_its_holder_took_away_meanwhile(tmp_path, monkeypatch):
    """Between opening and locking: what was locked is no file of this name any more, so another is made."""
    real, opened = _locks._locked, []

    def locked(handle):
        opened.append(handle)
        if len(opened) == 1:
            (tmp_path / _locks.NAME).unlink()
        return real(handle)

    monkeypatch.setattr(_locks, "_locked", locked)
    with _locks.only_writer(tmp_path):
        assert len(opened) == 2 and (tmp_path / _locks.NAME).exists()
    assert not (tmp_path / _locks.NAME).exists()


def test_a_word_that_is_true_or_false():
    assert _specs.parse_scheme("blend:c=True").options == {"c": True}
    assert _specs.parse_scheme("blend:c=false").options == {"c": False}
    with pytest.raises(ConfigError, match="Blend c = True: expected a finite"):
        _specs.parse_scheme("blend:c=True").make()
