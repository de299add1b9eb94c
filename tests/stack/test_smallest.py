"""What a pass holds at its smallest: carries in host memory (``offload_carries``), states in the memory of
those they replace, no casts of weights.
"""

import pytest
import torch
from torch import nn

import revstep
from revstep.errors import ConfigError, ReconstructionError
from revstep.stack import _carries
from revstep_lab.bench.peaks import by_allocator

WIDTH, LAYERS, ROWS = 16, 6, 5


def stack(offload=True, scheme=None):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(LAYERS)]
    return revstep.ReversibleStack(blocks, scheme or revstep.Blend(c=1 / 16), offload_carries=offload)


def step(made, backward=lambda loss: loss.backward()):
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1), requires_grad=True)
    backward(made(x).square().sum())
    assert made.report.exact
    return [x.grad, *(p.grad for p in made.parameters())]


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.fixture
def sent(monkeypatch):
    """The carries that were sent to the host, in order."""
    seen = []

    class Watched(_carries.Offloaded):
        def __init__(self, carry, stream):
            super().__init__(carry, stream)
            seen.append(self)

    monkeypatch.setattr(_carries, "Offloaded", Watched)
    return seen


def twice(loss):
    loss.backward(retain_graph=True)
    loss.backward()


@pytest.mark.parametrize("backward", [lambda loss: loss.backward(), twice], ids=["once", "twice"])
def test_gradients_have_the_same_bits(backward, sent):
    assert same(step(stack(), backward), step(stack(False), backward))
    assert len(sent) == LAYERS


def test_what_is_reported_is_what_lies_on_the_device():
    made, other = stack(), stack(False)
    step(made), step(other)
    carries = LAYERS * 4 * 4 * -(-ROWS * WIDTH // 32)  # four bits an element, packed 32 to a word
    assert other.report.bytes_saved - made.report.bytes_saved == carries


def test_schemes_without_carries_send_nothing(sent):
    step(stack(scheme=revstep.Midpoint()))
    assert not sent


def test_damage_in_host_memory_is_noticed(sent):
    made = stack()
    loss = made(torch.randn(ROWS, WIDTH, requires_grad=True)).square().sum()
    sent[2]._host.view(-1)[0] ^= 1
    with pytest.raises(ReconstructionError):
        loss.backward()


def test_they_are_let_go_as_backward_passes(sent):
    import weakref

    made = stack()
    loss = made(torch.randn(ROWS, WIDTH, requires_grad=True)).square().sum()
    alive = [weakref.ref(one._host) for one in sent]
    sent.clear()
    left = []
    made.blocks[0][0].weight.register_hook(lambda g: left.append(sum(a() is not None for a in alive)))
    loss.backward()
    assert left[0] <= 1


# ---- the order of copies and blocks, on a device that writes down what is asked of it ----


class Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


class Device:
    """Stands for ``torch.cuda``: one stream for the blocks, one beside it."""

    def __init__(self):
        self.log = []
        self.blocks = Stream("blocks", self.log)

    def Stream(self):
        return Stream("side", self.log)

    def current_stream(self, device):
        return self.blocks

    def stream(self, stream):
        device = self

        class On:
            def __enter__(self):
                device.log.append(f"on {stream.name}")

            def __exit__(self, *_):
                device.log.append("off")

        return On()


@pytest.fixture
def device(monkeypatch):
    made = Device()
    monkeypatch.setattr(torch, "get_device_module", lambda device=None: made)
    return made


def test_the_copy_waits_for_the_step_and_the_inverse_for_the_copy(device):
    send = _carries.Offload(torch.device("cpu"))
    carry = torch.arange(8, dtype=torch.int32).view(2, 4)
    record = type("Record", (), {"carry": send(carry)})()
    assert device.log == ["side waits for blocks", "on side", "off"]
    device.log.clear()
    assert torch.equal(_carries.carry_of([record], 0), carry)
    assert device.log == ["on side", "off", "blocks waits for side"]


def test_the_one_below_sets_out_a_step_early(device):
    send = _carries.Offload(torch.device("cpu"))
    records = [
        type("Record", (), {"carry": send(torch.full((1, 4), k, dtype=torch.int32))})() for k in (0, 1)
    ]
    device.log.clear()
    _carries.carry_of(records, 1)
    assert device.log == ["on side", "off", "blocks waits for side", "on side", "off"]
    device.log.clear()
    assert int(_carries.carry_of(records, 0)[0, 0]) == 0
    assert device.log == ["blocks waits for side"], "it has set out already"


def test_mutant_that_reads_before_the_copy_is_there(device, monkeypatch):
    monkeypatch.setattr(Stream, "wait_stream", lambda self, other: None)
    with pytest.raises(AssertionError):
        test_the_copy_waits_for_the_step_and_the_inverse_for_the_copy(device)


def test_refused():
    with pytest.raises(ConfigError, match="offload_carries is 1, expected True or False"):
        stack(offload=1)


# ---- states take the memory of those they replace ----


def addresses(monkeypatch, made):
    """Of the states that kernels wrote, forwards and backwards."""
    from revstep._recurrence import walk

    forwards, backwards = [], []
    take, undo = walk.Pair.take, walk.Pair.undo

    def watch(method, log):
        def watched(self, i, *args):
            found = method(self, i, *args)
            log.append(self.states[i].data_ptr())
            return found

        return watched

    monkeypatch.setattr(walk.Pair, "take", watch(take, forwards))
    monkeypatch.setattr(walk.Pair, "undo", watch(undo, backwards))
    step(made)
    return forwards, backwards


def test_a_pass_writes_two_states(monkeypatch):
    forwards, backwards = addresses(monkeypatch, stack(False))
    assert len(set(forwards)) == 2 and len(forwards) == LAYERS
    assert len(set(backwards)) == 2 and len(backwards) == LAYERS


def test_states_that_backward_needs_are_not_written_to(monkeypatch):
    """Layers that keep their graphs come after the states that the rebuilt ones start from."""
    made = stack(False)
    made.keep = 2
    expected = step(stack(False))
    forwards, _ = addresses(monkeypatch, made)
    assert len(set(forwards)) == 4
    assert all(torch.equal(a, b) for a, b in zip([p.grad for p in made.parameters()], expected[1:]))


def test_a_graph_that_is_kept_is_read_twice(monkeypatch):
    made = stack(False)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    loss = made(x).square().sum()
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    assert made.report.exact and torch.equal(x.grad, 2 * first)


def test_states_of_a_pass_are_all_there():
    made = stack(False)
    states = made.states(torch.randn(ROWS, WIDTH))
    rebuilt = made.reconstruct(states.last_two)
    assert len({s.data_ptr() for s in states}) >= LAYERS + 1
    assert all(torch.equal(a, b) for a, b in zip(states, rebuilt, strict=True))


def test_mutant_that_does_not_lend_the_last_states(monkeypatch):
    from revstep._recurrence import walk

    monkeypatch.setattr(walk.Pair, "lend", lambda self: None)
    made = stack(False)
    made.keep = 2
    with pytest.raises(ReconstructionError):
        step(made)


# ---- casts of weights, which autocast keeps ----


def bytes_after_forward(blocks):
    """Above those before the pass, under autocast; of weights many times larger than the activations."""
    made = revstep.ReversibleStack(blocks, revstep.Midpoint())

    def run(between):
        with torch.autocast("cpu", torch.bfloat16):
            loss = made(torch.ones(2, 256, requires_grad=True)).square().sum()
            between()
        loss.backward()

    return by_allocator(run)["kept"]


def wide(count=6):
    torch.manual_seed(0)
    return [nn.Linear(256, 256) for _ in range(count)]


CAST = 2 * 256 * 256


def test_casts_are_let_go_layer_by_layer():
    assert bytes_after_forward(wide()) < CAST


def test_mutant_that_leaves_them_to_autocast(monkeypatch):
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: None)
    assert bytes_after_forward(wide()) >= 6 * CAST


def test_of_a_block_that_comes_again_it_stays():
    """It has a next use, and one cast of all uses is one rounding of the gradient."""
    assert CAST <= bytes_after_forward(wide(1) * 6) < 2 * CAST


def test_gradients_do_not_depend_on_it(monkeypatch):
    def run():
        made = revstep.ReversibleStack(wide(), revstep.Midpoint())
        with torch.autocast("cpu", torch.bfloat16):
            loss = made(torch.ones(2, 256, requires_grad=True)).square().sum()
        loss.backward()
        assert made.report.exact
        return [p.grad for p in made.parameters()]

    found = run()
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: None)
    assert same(found, run())


# ---- the input's gradient of a tokenwise half, written tile by tile into memory that nobody clears ----


class Gated(nn.Module):
    """An MLP of the tokens that begin with a positive number; where there is none it is not asked."""

    def __init__(self):
        super().__init__()
        self.linear, self.bias = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        chosen = x[..., :1] > 0
        rest = self.bias.expand_as(x)
        return rest + chosen * self.linear(x) if chosen.any() else rest


@pytest.mark.parametrize("first", [-1.0, 1.0])
def test_tiles_whose_input_has_no_gradient(first):
    """The memory of the input's gradient is not cleared before, so theirs has to be written as zero."""

    def run(tile):
        torch.manual_seed(0)
        block = nn.Sequential(revstep.tokenwise(Gated()))
        stack = revstep.ReversibleStack([block], revstep.Midpoint(), tile=tile).double()
        signs = first * torch.tensor([1.0, -1.0, 1.0, -1.0]).repeat_interleave(12)[:40]
        x = (signs[:, None] * torch.rand(40, WIDTH)).double().requires_grad_()
        spoilt = [torch.full((40, WIDTH), float("nan")).double() for _ in range(8)]
        del spoilt
        stack(x).square().sum().backward()
        return [x.grad, *(p.grad for p in stack.parameters())]

    for a, b in zip(run(12), run(None), strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(1.0, float(b.abs().max()))
