"""A wheel tried where it was installed, in a few seconds: states are rebuilt exactly, gradients are those of
stored states, the kernels have the bits of their reference, and an orbit returns to its start in both loops.

Usage: python .ci/smoke.py     with revstep and nothing else installed, not from the root of a checkout
"""

from __future__ import annotations

import platform
import shutil
import sys
from importlib import metadata

import torch

import revstep
from revstep import _C, ode, ops, verify

COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "clang++", "nvcc", "cmake", "ninja", "cl", "clang-cl")


def stack() -> None:
    def block() -> torch.nn.Module:
        layers = (torch.nn.LayerNorm(32), torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 32))
        return torch.nn.Sequential(*layers)

    torch.manual_seed(0)
    x = torch.randn(3, 7, 32)
    for scheme in (revstep.Blend(c=0.25), revstep.BDIA(seed=0), revstep.Leapfrog(h=0.5)):
        for bits in (32, 64):
            net = revstep.ReversibleStack([block() for _ in range(4)], scheme, revstep.FixedPoint(bits))
            assert verify.reconstruction(net, x).ok, (scheme, bits)
            assert verify.gradients(net, x).ok, (scheme, bits)


def kernels() -> None:
    """The compiled step against the reference in torch: a tail, and enough for several threads."""
    for n in (37, 100_003):
        prev, cur = (torch.randint(-(2**20), 2**20, (n,), dtype=torch.int32) for _ in range(2))
        f = torch.randn(n)
        found = ops.step(prev, cur, f, 0.375, 0.625, 0.5, 20, torch.float32)
        expected = ops.reference.step(prev, cur, f, 0.375, 0.625, 0.5, 20, torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(found[:3], expected[:3], strict=False)), n


def orbit() -> None:
    q, p = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.1], dtype=torch.float64)
    for loop in ("compiled", "python"):
        run = ode.integrate(ode.fields.Kepler(), (q, p), scheme="kahan_li6", h=1e-2, steps=300, loop=loop)
        assert run.reverse().exact, loop


def main() -> int:
    distribution = metadata.distribution("revstep")
    assert distribution.version == revstep.__version__ == _C.__version__
    for part in (stack, kernels, orbit):
        part()
    there = [name for name in COMPILERS if shutil.which(name)]
    print(
        f"revstep {revstep.__version__}, Python {platform.python_version()}, torch {torch.__version__},"
        f" {platform.platform()}: exact; levels {', '.join(_C.isa_levels())}; compilers on the PATH: "
        + (", ".join(there) or "none")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
