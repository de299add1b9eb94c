"""Tiny demo runs: a few kilobytes of text, two layers, one thread."""

import pytest
import torch

from revstep import _cli
from revstep.lm import _data
from revstep_lab.demo import depth

TINY = "--minutes 0.05 --layers 2 --width 16 --device cpu --dtype float32 --no-progress".split()


@pytest.fixture(scope="module", autouse=True)
def small_world(tmp_path_factory):
    """One thread; a little text instead of the whole library; fewer depths in the figure."""
    root = tmp_path_factory.mktemp("library")
    for i in range(4):
        (root / f"module{i}.py").write_text(
            f"def f{i}(x):\n    return x + {i}  # the state can be rebuilt\n\n" * 60, encoding="utf-8"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_data, "standard_library", lambda max_bytes=0: sorted(root.glob("*.py")))
        patch.setattr(depth, "DEPTHS", (2, 4, 8))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture
def demo(tmp_path, capsys):
    """``demo(*options)`` -> (exit code, what was printed, folder)."""

    def call(*options):
        out = tmp_path / "demo"
        code = _cli.main(["demo", *TINY, "--out", str(out), *options])
        said = capsys.readouterr()
        return code, said.out + said.err, out

    return call
