"""The optimiser inside backward: the weights of the ordinary step, one gradient at a time, and what it
refuses.
"""

import copy

import pytest
import torch
from torch import nn

import revstep
from revstep import ConfigError, UnsupportedError, _fused_step
from revstep_lab.verify import example_blocks

LAYERS, WIDTH, STEPS = 4, 32, 4
OPTIMISERS = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1),
    "AdamW, amsgrad": lambda groups: torch.optim.AdamW(groups, lr=0.01, amsgrad=True),
    "SGD, momentum": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.01),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01),
}


class Model(nn.Module):
    """Tokens in, logits out, one matrix for both ends: its gradient has two parts, the last of which comes
    last.
    """

    def __init__(self, keep=0):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(64, WIDTH)
        self.stack = revstep.ReversibleStack(
            example_blocks(LAYERS, width=WIDTH, dropout=0.0), revstep.Blend(c=0.25), keep=keep
        )

    def forward(self, ids):
        logits = self.stack(self.table(ids)) @ self.table.weight.T
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def groups(model):
    """Two, of another learning rate each, so that a step with the numbers of the other group shows."""
    own = list(model.table.parameters())
    return [{"params": own, "lr": 0.002}, {"params": list(model.stack.parameters())}]


def batches():
    g = torch.Generator().manual_seed(1)
    return [torch.randint(64, (2, 16), generator=g) for _ in range(STEPS)]


def train(model, optimizer, between=lambda model: None, data=None):
    """The loop as everybody writes it, with a schedule. Returns the losses."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    losses = []
    for ids in batches() if data is None else data:
        loss = model(ids)
        loss.backward()
        between(model)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def pair(name="AdamW", **bounds):
    """(model, optimiser) of ordinary steps, and of fused ones with its FusedStep."""
    ordinary, ours = Model(), Model()
    made = OPTIMISERS[name](groups(ours))
    return (ordinary, OPTIMISERS[name](groups(ordinary))), (ours, made, revstep.fused_step(made, **bounds))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_weights_are_those_of_the_ordinary_step(name):
    (ordinary, optimizer), (ours, fused, handle) = pair(name)
    assert train(ordinary, optimizer) == train(ours, fused)
    assert same(ordinary, ours) and not same(ours, Model())
    assert ours.stack.report.exact and handle.skipped == 0 and handle.norm > 0


@pytest.mark.parametrize("wrong", ["group", "schedule"])
def test_mutant_with_numbers_of_another_group_or_moment(monkeypatch, wrong):
    """The same comparison rejects a step that takes the first group's numbers, or those of the beginning."""
    optimise, first = _fused_step.FusedStep._optimise, {}

    def other(self, p, group):
        if wrong == "group":
            group = self.optimizer.param_groups[0]
        else:
            group = first.setdefault(id(group), dict(group))
        optimise(self, p, group)

    (ordinary, optimizer), (ours, fused, _) = pair("SGD, momentum")
    train(ordinary, optimizer)
    monkeypatch.setattr(_fused_step.FusedStep, "_optimise", other)
    train(ours, fused)
    assert not same(ordinary, ours)


def test_a_plain_model_too():
    made = []
    for fuse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if fuse:
            revstep.fused_step(optimizer)
        for _ in range(3):
            model(torch.ones(4, 8)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        made.append(model)
    assert same(*made)


def test_one_gradient_exists_at_a_time():
    """At every moment at which a parameter has been stepped, none holds a gradient; ordinarily all do at the
    end.
    """
    (ordinary, _), (ours, _, _) = pair()
    seen = {id(m): [] for m in (ordinary, ours)}
    for model in (ordinary, ours):
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(
                lambda _, m=model: seen[id(m)].append(sum(q.grad is not None for q in m.parameters()))
            )
        model(batches()[0]).backward()
    count = len(list(ours.parameters()))
    assert seen[id(ours)] == [0] * count and max(seen[id(ordinary)]) == count


def test_clipping_by_value_is_torchs():
    (ordinary, optimizer), (ours, fused, _) = pair(clip_value=1e-3)
    clip = lambda model: nn.utils.clip_grad_value_(model.parameters(), 1e-3)  # noqa: E731
    train(ordinary, optimizer, clip)
    train(ours, fused)
    assert same(ordinary, ours)


def test_clipping_by_norm_takes_that_of_the_step_before():
    (ordinary, optimizer), (ours, fused, handle) = pair("SGD, momentum", clip_norm=0.5)
    norms = []

    def clip(model):
        found = [p.grad for p in model.parameters()]
        before = norms[-1] if norms else 0.0
        norms.append(float(torch.stack([g.double().norm() for g in found]).norm()))
        for g in found:
            g.mul_(0.5 / before if before > 0.5 else 1.0)

    train(ordinary, optimizer, clip)
    train(ours, fused)
    assert norms[0] > 0.5 and handle.norm == pytest.approx(norms[-1], rel=1e-5)
    for p, q in zip(ordinary.parameters(), ours.parameters()):
        # The two norms are sums in another order: some eps of float32, which the steps hand on.
        assert torch.allclose(p, q, rtol=0, atol=1e-5)
    (free, others), _ = pair("SGD, momentum")
    train(free, others)
    assert not any(
        torch.allclose(p, q, rtol=0, atol=1e-5) for p, q in zip(free.parameters(), ours.parameters())
    )


def test_a_run_that_goes_on_is_the_run(tmp_path):
    """The norm of the last step is saved with the optimiser's state."""
    _, (whole, _, _) = pair("SGD, momentum", clip_norm=0.5)
    for ids in batches():
        whole(ids).backward()
    _, (first, stopped, _) = pair("SGD, momentum", clip_norm=0.5)
    for ids in batches()[:2]:
        first(ids).backward()
    torch.save([first.state_dict(), stopped.state_dict()], tmp_path / "half.pt")
    _, (second, goes_on, handle) = pair("SGD, momentum", clip_norm=0.5)
    weights, state = torch.load(tmp_path / "half.pt")
    second.load_state_dict(weights)
    goes_on.load_state_dict(state)
    assert handle.norm > 0
    for ids in batches()[2:]:
        second(ids).backward()
    assert same(whole, second)
    del state["param_groups"][0][_fused_step.NORM]  # the mutant: a state that has forgotten it
    second.load_state_dict(weights)
    goes_on.load_state_dict(copy.deepcopy(state))
    for ids in batches()[2:]:
        second(ids).backward()
    assert not same(whole, second)


def test_gradients_that_are_not_finite_are_not_used():
    _, (model, _, handle) = pair()
    before = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"gradients of \d+ parameters were not finite"):
        (model(batches()[0]) * float("inf")).backward()
    assert same(model, before) and handle.skipped == len(list(model.parameters()))
    model(batches()[0]).backward()
    assert handle.skipped == 0 and not same(model, before)


def test_remove_brings_ordinary_steps_back():
    _, (model, optimizer, handle) = pair()
    before = copy.deepcopy(model)
    with handle:
        pass
    model(batches()[0]).backward()
    assert same(model, before) and all(p.grad is not None for p in model.parameters())
    optimizer.step()
    assert not same(model, before)


class Counting(torch.optim.SGD):
    """Counts its steps in the group, where a step for one parameter would count as one of all."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
        return super().step(closure)


def test_an_optimiser_that_counts_for_a_group_is_refused():
    model = Model()
    revstep.fused_step(Counting(model.parameters(), lr=0.1))
    with pytest.raises(UnsupportedError, match="Counting keeps steps for a whole group"):
        model(batches()[0]).backward()


def weight():
    return nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: torch.optim.LBFGS([weight()]), UnsupportedError, "LBFGS evaluates the loss several times"),
        (lambda: object(), ConfigError, "is a object, expected a torch.optim.Optimizer"),
        (
            lambda: torch.optim.SGD([weight().requires_grad_(False)], lr=0.1),
            ConfigError,
            "no parameter that requires a gradient",
        ),
    ],
)
def test_refused(make, error, match):
    with pytest.raises(error, match=match):
        revstep.fused_step(make())


@pytest.mark.parametrize("bounds", [{"clip_norm": 0.0}, {"clip_value": -1.0}, {"clip_norm": float("nan")}])
def test_bounds_that_are_not_positive(bounds):
    with pytest.raises(ConfigError, match="expected a positive number"):
        revstep.fused_step(torch.optim.SGD([weight()], lr=0.1), **bounds)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UnsupportedError, match="2 processes train together"):
        revstep.fused_step(torch.optim.SGD([weight()], lr=0.1))


def test_parameters_spread_over_processes_are_refused():
    spread = weight()
    spread.device_mesh = "a DTensor has one"
    with pytest.raises(UnsupportedError, match="DTensor"):
        revstep.fused_step(torch.optim.SGD([spread], lr=0.1))


class Fails(torch.autograd.Function):
    """Backward raises here."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("on purpose")


def test_a_pass_after_one_that_failed_has_its_own_norm():
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.01)
    fused, x = revstep.fused_step(optimizer, clip_norm=1.0), torch.randn(2, 4)
    second(first(x)).sum().backward()
    with pytest.raises(RuntimeError, match="on purpose"):  # the second's are stepped before it
        second(Fails.apply(first(x))).sum().backward()
    expected = []
    for p in (*first.parameters(), *second.parameters()):
        p.register_hook(lambda g: expected.append(float(g.square().sum())))
    second(first(x)).mul(100).sum().backward()
    assert fused.norm == pytest.approx(sum(expected) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.bfloat16])
def test_weights_of_other_types(dtype):
    def stepped(fuse):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(5, 3).to(dtype))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        if fuse:
            revstep.fused_step(optimizer)
        (weight * 3).abs().square().sum().backward()
        optimizer.step()
        return weight.detach()

    assert torch.equal(stepped(True), stepped(False))


def test_sparse_gradients():
    def stepped(fuse):
        torch.manual_seed(0)
        table = nn.Embedding(9, 4, sparse=True)
        optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1)
        fused = revstep.fused_step(optimizer) if fuse else None
        table(torch.tensor([1, 3, 3])).square().sum().backward()
        optimizer.step()
        return table.weight.detach(), fused

    (weight, fused), (plain, _) = stepped(True), stepped(False)
    assert torch.equal(weight, plain) and weight[1].ne(weight[0]).all()
    assert fused.norm > 0.0 and fused.skipped == 0


def test_large_gradients_are_finite():
    weight = nn.Parameter(torch.ones(3))
    fused = revstep.fused_step(torch.optim.SGD([weight], lr=2e-25))
    (weight * 1e25).sum().backward()
    each = float(torch.tensor(1e25))  # as float32 has it
    assert fused.skipped == 0 and fused.norm == pytest.approx(3**0.5 * each) and weight[0] < 0


def test_a_second_fused_step_is_refused_until_the_first_is_removed():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1)
    first = revstep.fused_step(optimizer)
    with pytest.raises(ConfigError, match="steps inside backward already"):
        revstep.fused_step(optimizer)
    first.remove()
    revstep.fused_step(optimizer)


def test_a_gradient_in_parts_is_refused():
    """A layer in two reentrant checkpoints: torch calls it complete at the end of each."""
    torch.manual_seed(0)
    shared, head = nn.Linear(4, 4), nn.Linear(4, 4)
    revstep.fused_step(torch.optim.SGD([*shared.parameters(), *head.parameters()], lr=0.1))
    x = torch.randn(2, 4, requires_grad=True)
    for _ in range(2):
        x = torch.utils.checkpoint.checkpoint(shared, x, use_reentrant=True)
    with pytest.raises(UnsupportedError, match="came twice in a backward pass"):
        head(x).sum().backward()
