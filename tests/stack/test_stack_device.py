"""Stacks on a CUDA device that is not there (tests/fake_device.py): the bits of the CPU, every kernel on the
tensors' own device and stream, and a host that waits for nothing before all of a pass is queued.
"""

import pytest
import torch

import revstep
from fake_device import FakeDevice, backward, on
from revstep._recurrence.ambient import Generators


def block(width=8):
    return torch.nn.Sequential(
        torch.nn.LayerNorm(width), torch.nn.Linear(width, width), torch.nn.Dropout(0.2)
    )


def stack(scheme, **options):
    torch.manual_seed(0)
    return revstep.ReversibleStack([block() for _ in range(5)], scheme, **options)


def train(module, x, fake=None):
    """Output and gradients of one pass, and what the device was asked in forward and in backward."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = module(x if fake is None else on(x))
    forward = [] if fake is None else list(fake.log)
    backward(y.square().mean())
    undone = [] if fake is None else fake.log[len(forward) :]
    grads = [x.grad, *(p.grad for p in module.parameters())]
    return [y.detach().as_subclass(torch.Tensor), *grads], forward, undone


STATES = revstep.FixedPoint(), revstep.Float()
SCHEMES = {
    "blend": lambda: revstep.Blend(c=0.25),
    "midpoint": revstep.Midpoint,
    "bdia": revstep.BDIA,
    "bdia with a seed": lambda: revstep.BDIA(seed=3),
}


@pytest.mark.parametrize("state", STATES, ids=str)
@pytest.mark.parametrize("name", SCHEMES)
def test_the_bits_of_the_cpu_and_no_wait_on_the_way(name, state):
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2))
    expected, _, _ = train(stack(SCHEMES[name](), state=state), x)
    with FakeDevice() as fake:
        module = stack(SCHEMES[name](), state=state)
        train(module, x, fake)  # the first time blocks are looked at, whether they add their input
        module.zero_grad()
        fake.log.clear()
        found, forward, undone = train(module, x, fake)
    assert all(torch.equal(a, b) for a, b in zip(expected, found))
    assert "exact" in str(module.report) or state is STATES[1]
    for log in (forward, undone):
        kernels = [line for line in log if "stream" in line]
        assert kernels and all(line.endswith("on 0, stream 11") for line in kernels)
        reads = [k for k, line in enumerate(log) if "read by" in line]
        assert reads and not any("stream" in line for line in log[reads[0] :]), log  # when all work is queued
        assert len(reads) == 1 if log is forward else len(reads) <= 3, log
        assert not any("waiting" in line for line in log), log
    copies = [line for line in forward if "copied" in line]
    assert copies == (["copied by to, beside"] if "bdia" in name else [])


def test_carries_wait_in_page_locked_memory():
    x = torch.randn(3, 4, 8)
    expected, _, _ = train(stack(revstep.Blend(c=0.25)), x)
    with FakeDevice() as fake:
        found, forward, undone = train(stack(revstep.Blend(c=0.25), offload_carries=True), x, fake)
    assert all(torch.equal(a, b) for a, b in zip(expected, found))
    moved = [line for line in forward if "side" in line or line == "off"]
    assert moved[:4] == ["side waits for main", "on side", "off", "side uses memory"]
    assert undone.count("main waits for side") == undone.count("main uses memory") == len(moved) // 4
    assert not any("waiting" in line for line in undone)


def test_generators_of_the_devices_are_replayed_and_put_back():
    with FakeDevice() as fake:
        both = Generators(
            [torch.device("cpu"), torch.device("cuda", 1), torch.device("meta"), torch.device("cuda", 0)]
        )
        before = both.get()
        assert len(before) == 3 and int(before[1][0]) == 7 and int(before[2][0]) == 9
        fake.generators[1] += 1
        with both.at(before):
            assert int(fake.generators[1][0]) == 9
        assert int(fake.generators[1][0]) == 10
        assert fake.count("generator of cuda:1") == 2


def test_autocast_of_the_device_is_entered_again():
    """A block that is evaluated again casts as it did: off inside of backward, on again for the block."""
    x = torch.randn(3, 4, 8)
    with FakeDevice() as fake, torch.autocast("cpu", torch.bfloat16):
        module = stack(revstep.Blend(c=0.25))
        y = module(on(x.clone().requires_grad_()))
    with fake:
        backward(y.square().mean())
    assert "exact" in str(module.report)
