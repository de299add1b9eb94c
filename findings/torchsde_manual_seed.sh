#!/usr/bin/env bash
# torchsde's noise does not come from torch's generator: torch.manual_seed does not repeat a run, numpy's old global
# seed does.
#
# One would guess that a package for torch, whose states, times and noise are tensors, draws by torch's generator, so
# that torch.manual_seed repeats it. sdeint makes a Brownian motion if none is given, and its seed is taken from
# numpy.random.randint. A script that seeds torch alone has other paths in each run, however careful it is otherwise.
# A program that keeps torch's random state in a checkpoint resumes with other noise. And where numpy is seeded in
# every worker or before every batch, say for the augmentation of data, all those calls get one and the same path,
# although torch's generator has gone on. Generators of numpy.random.default_rng(seed) have no effect either.
#
# What helps: bm=torchsde.BrownianInterval(..., entropy=seed), with a seed drawn from torch's generator.
#
# Seen with Python 3.11, torch 2.13.0, torchsde 0.2.6, numpy 2.4.6, CPU, 2026-11-30; dy = -y dt + 0.3 dW, y at t = 1:
#   torch.manual_seed(0) before each of two calls: the same: False
#   numpy.random.seed(0) before each of two calls, torch not seeded: the same: True
#   numpy.random.default_rng(0) before each of two calls: the same: False
#   entropy drawn after torch.manual_seed(0) before each of two calls: the same: True
#   torch's random state is the same before and after sdeint: True
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchsde==0.2.6 scipy==1.17.1
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import numpy as np
import torch
import torchsde


class Decay(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return 0.3 * torch.ones_like(y)


start, times = torch.ones(3, 1), torch.tensor([0.0, 1.0])


def path(entropy=None):
    bm = None
    if entropy is not None:
        bm = torchsde.BrownianInterval(0.0, 1.0, (3, 1), entropy=entropy, levy_area_approximation="space-time")
    return torchsde.sdeint(Decay(), start, times, bm=bm, dt=0.1)[-1]


def repeated(seed, entropy=lambda: None):
    paths = []
    for _ in range(2):
        seed(0)
        paths.append(path(entropy()))
    return torch.equal(*paths)


drawn = repeated(torch.manual_seed, lambda: int(torch.randint(2**31, ())))
torch.manual_seed(0)
state = torch.get_rng_state()
path()
found = {
    "torch.manual_seed(0) before each of two calls: the same": repeated(torch.manual_seed),
    "numpy.random.seed(0) before each of two calls, torch not seeded: the same": repeated(np.random.seed),
    "numpy.random.default_rng(0) before each of two calls: the same": repeated(np.random.default_rng),
    "entropy drawn after torch.manual_seed(0) before each of two calls: the same": drawn,
    "torch's random state is the same before and after sdeint": torch.equal(state, torch.get_rng_state()),
}
for name, answer in found.items():
    print(f"{name}: {answer}")
same = list(found.values()) == [False, True, False, True, True]
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
