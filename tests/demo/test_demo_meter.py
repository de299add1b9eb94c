"""The bytes meter against cases whose answer is known, and meters that forget something, which the same check
must reject.
"""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

import revstep
from revstep.errors import ConfigError
from revstep.lm._architectures import make_trunk
from revstep.ops import carry_bits
from revstep.schemes import available
from revstep_lab.demo import depth, race, settings
from revstep_lab.demo.depth import cosine, worst
from revstep_lab.drawing import spread

B, T, C, LAYERS = 2, 8, 16, 6
ELEMENTS = B * T * C


class Layer(nn.Module):
    """tanh(x W): saves its input for W's gradient and its output for tanh's."""

    report = None

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.eye(C) * 0.1)

    def forward(self, x):
        return torch.tanh(x @ self.w)

    def halves(self):
        return self, self


def batch():
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(0))


def predicted(stack):
    """Two int32 states, 8 bytes of checksum for each state (two of them at the start), and the carry bits of
    each step.
    """
    carries = sum(carry_bits(stack.scheme.coefficients(k).alpha) for k in range(stack.steps))
    return 2 * 4 * ELEMENTS + 8 * (stack.steps + 2) + carries * ELEMENTS // 8


def check_reversible(measure):
    """The meter gives the predicted number for every scheme."""
    for scheme in available().values():
        stack = revstep.ReversibleStack([Layer() for _ in range(LAYERS)], scheme())
        assert measure(stack, batch()).total == predicted(stack), scheme.name


def check_stored(measure):
    """Each layer of the plain trunk keeps its input and its tanh: the input x, then one state and one tanh a
    layer.
    """
    plain = make_trunk([Layer() for _ in range(LAYERS)], "plain")
    assert measure(plain, batch()).total == 4 * ELEMENTS * 2 * LAYERS
    checkpointed = make_trunk([Layer() for _ in range(LAYERS)], "checkpoint")
    assert measure(checkpointed, batch()).total == 4 * ELEMENTS * LAYERS


def test_the_meter_is_right():
    check_reversible(depth.kept_for_backward)
    check_stored(depth.kept_for_backward)


def mutant(change):
    return lambda trunk, x: change(depth.kept_for_backward(trunk, x))


MUTANTS = {
    "forgets checksums and carries": (
        mutant(lambda kept: dataclasses.replace(kept, tape=0)),
        check_reversible,
    ),
    "counts the states twice": (
        mutant(
            lambda kept: dataclasses.replace(kept, tape=kept.tape + (2 * 4 * ELEMENTS if kept.tape else 0))
        ),
        check_reversible,
    ),
    "forgets what autograd saves": (mutant(lambda kept: dataclasses.replace(kept, autograd=0)), check_stored),
}


@pytest.mark.parametrize("measure, check", MUTANTS.values(), ids=MUTANTS)
def test_a_wrong_meter_is_rejected(measure, check):
    with pytest.raises(AssertionError):
        check(measure)


def test_a_meter_that_forgets_the_carries_alone_is_rejected():
    def forgets(trunk, x):
        carries = predicted(trunk) - 2 * 4 * ELEMENTS - 8 * (trunk.steps + 2)
        kept = depth.kept_for_backward(trunk, x)
        return dataclasses.replace(kept, tape=kept.tape - carries)

    with pytest.raises(AssertionError, match=r"bdia|blend"):
        check_reversible(forgets)


def test_a_stack_without_checks_is_refused_and_gradients_are_not_left_behind():
    stack = revstep.ReversibleStack([Layer()], revstep.Blend(), checks=False)
    with pytest.raises(ConfigError, match="checks=True"):
        depth.kept_for_backward(stack, batch())
    assert all(p.grad is None for p in stack.parameters())


def test_kept_layers_count():
    """keep=k: those layers are stored, by the same meter."""
    totals = [
        depth.kept_for_backward(
            revstep.ReversibleStack([Layer() for _ in range(LAYERS)], revstep.Midpoint(), keep=k), batch()
        ).total
        for k in (0, 1, 3)
    ]
    assert totals[0] < totals[1] < totals[2]


# ---- small parts ----


def test_unigram_entropy_of_a_fair_coin():
    coin = torch.arange(10_000).numpy() % 2
    assert abs(settings.unigram_entropy(coin, coin, 2) - torch.log(torch.tensor(2.0)).item()) < 1e-6


def test_the_rate_does_not_depend_on_the_number_of_steps_before_it_falls():
    known, unknown = (
        [race.rate_factor(s, 100) for s in range(70)],
        [race.rate_factor(s, 0) for s in range(70)],
    )
    assert (
        known == unknown and race.rate_factor(0, 100) == 0.1 and abs(race.rate_factor(100, 100) - 0.1) < 1e-9
    )
    falling = [race.rate_factor(s, 100) for s in range(70, 100)]
    assert falling == sorted(falling, reverse=True)


def test_cosine_and_worst():
    a, b = (
        [torch.tensor([1.0, 0.0]), torch.tensor([[0.0]])],
        [torch.tensor([0.0, 2.0]), torch.tensor([[0.0]])],
    )
    assert cosine(a, a) == 1.0 and cosine(a, b) == 0.0 and cosine(a, [-t for t in a]) == -1.0
    assert cosine(a, [t * 0 for t in a]) != cosine(a, [t * 0 for t in a])  # NaN: no direction
    assert worst([0.0, float("nan"), 1.0]) == float("inf") and worst([]) == 0.0


@pytest.mark.parametrize("places", [[0.5, 0.5, 0.5], [0.0, 0.02, 1.0], [0.9, 0.1, 0.5], [0.3]])
def test_labels_do_not_overlap_and_keep_their_order(places):
    heights = [0.1 + 0.05 * i for i in range(len(places))]
    moved = spread(places, heights)
    order = sorted(range(len(places)), key=lambda i: places[i])
    for low, high in itertools.pairwise(order):
        assert moved[high] - moved[low] >= (heights[low] + heights[high]) / 2 - 1e-9
    assert len(places) > 1 or moved == places
