"""Bytes kept for backward do not grow with depth, but for checksums and carries: by saved-tensor hooks and by
the process.
"""

import os
import subprocess
import sys

import pytest
import torch
from stacks import SCHEMES, batch, stack

from revstep.ops import carry_bits


def saved_bytes(module, x):
    """Storage of all tensors that autograd keeps for the backward pass, each storage once, the leaves not
    counted.
    """
    leaves = {t.untyped_storage().data_ptr() for t in (x, *module.parameters())}
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    del y
    return sum(n for p, (n, _) in kept.items() if p not in leaves)


@pytest.mark.parametrize("state, width", [("fixed32", 4), ("fixed64", 8)])
@pytest.mark.parametrize("name", SCHEMES)
def test_saved_tensors_are_two_states(name, state, width):
    x = batch()
    few, many = (saved_bytes(stack(name, layers, state, dropout=0.0, scale=1.0), x) for layers in (8, 64))
    assert few == many == 2 * width * x.numel()
    assert saved_bytes(stack(name, 8, state, dropout=0.0, keep=8), x) > 20 * few


@pytest.mark.parametrize("name", SCHEMES)
def test_bytes_per_layer_are_checksums_and_carries(name):
    x = batch()
    modules = [stack(name, layers, dropout=0.0, scale=1.0) for layers in (8, 64)]
    for module in modules:
        module(x).sum().backward()
    grown = modules[1].report.bytes_saved - modules[0].report.bytes_saved
    steps = range(modules[0].steps, modules[1].steps)
    carries = sum(carry_bits(modules[1].scheme.coefficients(k).alpha) for k in steps) * x.numel() // 8
    assert grown == 8 * len(steps) + carries


def test_kept_layers_are_stored():
    x = batch()
    sizes = [saved_bytes(stack("blend", 8, dropout=0.0, keep=k), x) for k in (0, 1, 4, 8)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4


_PEAK = """
import re, sys, torch, revstep
from revstep_lab.verify import example_blocks
layers, keep = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
block = example_blocks(1, width=128, dropout=0.0, scale=1.0)[0]
# one block's weights: only activations can grow
stack = revstep.ReversibleStack([block] * layers, revstep.Blend(), keep=keep)
x = torch.randn(8, 512, 128, requires_grad=True)
stack(x).square().mean().backward()
assert keep or stack.report.exact
# Not ru_maxrss: across fork and exec that starts from the parent's peak.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024, x.numel())
"""


def _peak(layers, keep=0):
    # Every activation gets its own mapping, so that the peak is what is alive and not what glibc keeps for
    # later.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, str(layers), str(keep)],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    peak, elements = map(int, run.stdout.split())
    return peak, elements


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak from /proc")
def test_peak_of_the_process_does_not_grow_with_depth():
    """8 to 64 layers: the peak may grow by the carries (2 bits an element and layer) and 128 KiB a layer of
    graph nodes and rounding to pages.
    """
    (few, elements), (many, _), (stored, _) = _peak(8), _peak(64), _peak(64, 64)
    carries = 56 * elements // 4
    assert stored - few > 1e9, "the stored pass should be large here, or the comparison says nothing"
    assert many - few <= carries + 56 * 128 * 1024
