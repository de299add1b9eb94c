"""The command line's ends: whatever a command raises is an exit code and one sentence, and the sentence
arrives where the output cannot.
"""

import io
import os
import sys
from importlib import metadata

import pytest

from revstep import _cli
from revstep._cli.commands import plan

REFUSED = _cli.REFUSED


@pytest.fixture
def command(monkeypatch, capsys):
    """Run ``revstep plan``, whose work is this error; its code and what it said on stderr."""

    def run(error, *words):
        def fail(args):
            raise error

        monkeypatch.setattr(plan, "run", fail)
        code = _cli.main(["plan", "smollm2-135m", *words])
        return code, capsys.readouterr().err

    return run


def test_interrupted(command):
    assert command(KeyboardInterrupt()) == (_cli.INTERRUPTED, "revstep: interrupted\n")


def test_a_reader_that_has_gone_is_not_told(command):
    assert command(BrokenPipeError()) == (REFUSED, "")


def test_an_error_without_words_has_its_name(command):
    assert command(PermissionError()) == (REFUSED, "revstep: PermissionError\n")


def test_where_it_happened_is_shown_on_request(command):
    code, said = command(OSError("no such thing"), "--traceback")
    assert code == REFUSED and said.startswith("Traceback") and said.endswith("\nrevstep: no such thing\n")


@pytest.mark.parametrize(
    "error, what",
    [
        (MemoryError(), "none is left"),
        (MemoryError("12 bytes"), "12 bytes"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nand more"), "DefaultCPU"),
        (ValueError("array is too big; calculation overflowed"), "array is too big"),
    ],
)
def test_too_little_memory_is_a_sentence(command, error, what):
    code, said = command(error)
    assert (
        code == REFUSED and said.startswith(f"revstep: not enough memory ({what}") and said.count("\n") == 1
    )
    assert "choose a smaller batch" in said


def test_an_error_of_ours_is_not_hidden(command):
    """What no sentence explains stays an exception, with its place in the program."""
    with pytest.raises(ValueError, match="a bug"):
        command(ValueError("a bug"))


def test_a_wrong_option_has_the_code_of_a_refusal(capsys):
    assert _cli.main(["plan", "smollm2-135m", "--no-such-option"]) == REFUSED
    assert "--no-such-option" in capsys.readouterr().err


def test_a_version_that_is_not_installed(monkeypatch, capsys):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert _cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "revstep (not installed)\n"


# ---- output that does not arrive ----


@pytest.fixture
def stdout(monkeypatch):
    """Put a stream in the place of stdout; it is closed afterwards, whatever was left in it."""
    streams = []

    def put(stream):
        streams.append(stream)
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    yield put
    for stream in streams:
        stream.close()


def test_a_full_disk_is_a_sentence(stdout, capsys):
    stdout(open("/dev/full", "w"))
    assert _cli.main(["--version"]) == REFUSED
    assert (
        capsys.readouterr().err == "revstep: what was printed could not be written: No space left on device\n"
    )
    sys.stdout.flush()  # as the interpreter does at its end: nothing more to complain of


def test_a_pipe_that_nobody_reads(stdout, capsys):
    reads, writes = os.pipe()
    os.close(reads)
    stdout(os.fdopen(writes, "w"))
    assert _cli.main(["--version"]) == REFUSED and capsys.readouterr().err == ""
    sys.stdout.flush()


def test_letters_that_the_stream_lacks_are_escapes(stdout, monkeypatch):
    stream = stdout(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    monkeypatch.setattr(plan, "run", lambda args: print("\N{GREEK SMALL LETTER ALPHA}") or 0)
    assert _cli.main(["plan", "smollm2-135m"]) == 0
    assert stream.buffer.getvalue() == b"\\u03b1\n"


def test_without_a_stdout(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(plan, "run", lambda args: 0)
    assert _cli.main(["plan", "smollm2-135m"]) == 0


def test_commands_of_a_package_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr(_cli, "has_lab", lambda: False)
    assert _cli.main(["bench", "peers"]) == REFUSED
    assert (
        "revstep bench is in the package revstep-lab, which is not installed; run: pip"
        in capsys.readouterr().err
    )
    assert _cli.main(["--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} " in said for name in _cli.LAB_COMMANDS) and "(with the package revstep-lab)" in said
