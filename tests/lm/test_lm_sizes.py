"""How much memory there is, on systems that say it in different ways or not at all, and how large a model is
before it is built.
"""

import os
import sys
from pathlib import Path

import pytest

from revstep import ConfigError
from revstep.lm import TrainConfig, _sizes, make_model

resource = pytest.importorskip("resource")
GIB = 2**30


@pytest.fixture
def machine(monkeypatch):
    """A machine of these properties, each of which it may not tell."""

    def build(meminfo=None, pages=None, limit=resource.RLIM_INFINITY):
        def read_text(path, **options):
            assert path == Path("/proc/meminfo")
            if meminfo is None:
                raise FileNotFoundError(path)
            return meminfo

        monkeypatch.setattr(_sizes.Path, "read_text", read_text)
        known = {} if pages is None else {"SC_PHYS_PAGES": 0, "SC_PAGE_SIZE": 1}
        monkeypatch.setattr(os, "sysconf_names", known)
        monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 4096}.get)
        monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, resource.RLIM_INFINITY))
        return _sizes.memory_here()

    return build


INFO = "MemTotal:       8388608 kB\nMemFree:        1 kB\nSwapTotal:      1048576 kB\n"


def test_memory_and_swap(machine):
    assert machine(INFO) == 9 * GIB


def test_what_the_process_is_limited_to(machine):
    assert machine(INFO, limit=GIB) == GIB


@pytest.mark.parametrize("damaged", [None, "MemTotal: some kB\n", "MemTotal: 5 kB\n", "no colon\n"])
def test_another_system(machine, damaged):
    assert machine(damaged, pages=2**20) == 4 * GIB


def test_a_system_that_says_nothing_refuses_nothing(machine):
    assert machine() is None
    huge = TrainConfig(width=2**20, heads=2, layers=9999)
    _sizes.refuse_beyond_memory(huge, True)
    _sizes.refuse_model_beyond_memory(huge.shape(256), True)
    assert machine(INFO) == 9 * GIB
    with pytest.raises(ConfigError, match=r"the model has .* parameters, which take at least"):
        _sizes.refuse_beyond_memory(huge, True)


def test_windows_has_no_limits_of_a_process(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine(INFO, limit=GIB) == 9 * GIB


@pytest.mark.parametrize("model", ["gpt", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_count_is_that_of_the_matrices(model, tied):
    shape = TrainConfig(model=model, tied=tied, width=48, heads=4, layers=3, context=20).shape(77)
    built = make_model(shape, "plain")
    assert _sizes.parameters(shape) == sum(p.numel() for p in built.parameters() if p.ndim > 1)
