"""Sentences of the smaller modules that no other test reads."""

import argparse
import errno
import os
import pickle

import pytest
import torch

import revstep
from revstep import ConfigError, RevstepError, _files, _options, _specs, _values, errors
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
