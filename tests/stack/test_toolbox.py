"""torch's own tools inside and around a stack, part 1: checkpointing, offloading and other saved-tensor
hooks, transforms, modes, parts of the gradient.
"""

import functools

import pytest
import torch
from stacks import batch, run, same, stack
from torch import nn
from torch.autograd.graph import (
    allow_mutation_on_saved_tensors,
    disable_saved_tensors_hooks,
    save_on_cpu,
    saved_tensors_hooks,
)
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import revstep
from revstep_lab.verify import example_blocks

LAYERS = 4


def blocks(dropout=0.1):
    return example_blocks(LAYERS, dropout=dropout)


def both(build, **options):
    """The training pass of ``build(keep)`` rebuilt and stored: equal bits, exact report. Returns the
    rebuilding stack's results and report.
    """
    ours, stored = build(0), build(LAYERS)
    got, expected = run(ours, batch(), **options), run(stored, batch(), **options)
    assert same(got, expected)
    return got, ours.report


class Within(nn.Module):
    """``block`` under ``manager()``, halves too."""

    def __init__(self, block, manager):
        super().__init__()
        self.block, self.manager = block, manager

    def forward(self, x):
        with self.manager():
            return self.block(x)

    def halves(self):
        return tuple(Within(half, self.manager) for half in self.block.halves())


class Checkpointed(nn.Module):
    def __init__(self, block, **options):
        super().__init__()
        self.block, self.options = block, options

    def forward(self, *args):
        return checkpoint(self.block, *args, **self.options)

    def halves(self):
        return tuple(Checkpointed(half, **self.options) for half in self.block.halves())


def matrix_products(context, op, *args, **kwargs):
    return (
        CheckpointPolicy.MUST_SAVE
        if op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        else CheckpointPolicy.PREFER_RECOMPUTE
    )


WAYS = {
    "checkpoint": {"use_reentrant": False},
    "no early stop": {"use_reentrant": False, "early_stop": False},
    "reentrant": {"use_reentrant": True},
    "selective": {
        "use_reentrant": False,
        "context_fn": functools.partial(create_selective_checkpoint_contexts, matrix_products),
    },
}


# ---- torch.utils.checkpoint ----


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["blend", "hamiltonian", "bdia"])
def test_checkpoint_inside_a_block(name, way):
    got, report = both(
        lambda keep: stack(name, blocks=[Checkpointed(b, **WAYS[way]) for b in blocks()], keep=keep)
    )
    assert report.exact and report.kept == 0
    plain = run(stack(name, blocks=blocks(), keep=LAYERS), batch())
    # A reentrant one sums the gradients of an input used twice before they meet those of the step: other bits
    # than without it, rebuilt or stored.
    assert same(got, plain) is (way != "reentrant" or name == "hamiltonian")


def test_a_checkpoint_that_draws_other_numbers_is_told_apart():
    """What the test above must reject: recomputed with another dropout mask than in the forward pass."""
    got, _ = both(
        lambda keep: stack(
            "blend",
            blocks=[Checkpointed(b, use_reentrant=False, preserve_rng_state=False) for b in blocks()],
            keep=keep,
        )
    )
    assert not same(got, run(stack("blend", blocks=blocks(), keep=LAYERS), batch()))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["blend", "hamiltonian", "bdia"])
def test_checkpoint_around_a_stack(name, way):
    around = Checkpointed(stack(name, blocks=blocks()), **WAYS[way])
    assert same(run(around, batch()), run(stack(name, blocks=blocks(), keep=LAYERS), batch()))
    assert around.block.report.exact and around.block.report.layers == around.block.steps


class Model(nn.Module):
    """Two stacks with a layer between them and a head, of which ``parts`` are checkpointed together."""

    def __init__(self, keep, way=None):
        super().__init__()
        torch.manual_seed(7)
        first, second = (stack("blend", blocks=blocks(), keep=keep) for _ in range(2))
        self.trunk, self.head, self.way = (
            nn.Sequential(first, nn.Linear(32, 32), nn.Tanh(), second),
            nn.Linear(32, 16),
            way,
        )

    def forward(self, x):
        return self.head(self.trunk(x) if self.way is None else checkpoint(self.trunk, x, **self.way))


@pytest.mark.parametrize("way", WAYS)
def test_checkpoint_around_two_stacks_in_a_model(way):
    module = Model(0, WAYS[way])
    assert same(run(module, batch()), run(Model(LAYERS), batch()))
    assert all(module.trunk[i].report.exact for i in (0, 3))


# ---- saved-tensor hooks: offloading, counting, compressing ----


def test_saved_tensor_hooks_around_a_stack_see_its_two_end_states():
    packed = []

    def pack(t):
        packed.append(t)
        return t.clone()

    module = stack("blend", blocks=blocks())
    got = run(module, batch(), context=lambda: saved_tensors_hooks(pack, torch.clone))
    assert (
        [t.dtype for t in packed] == [torch.int32] * 2
        and same(got, run(stack("blend", blocks=blocks(), keep=LAYERS), batch()))
        and module.report.exact
    )


def test_saved_tensor_hooks_that_lose_bits_are_caught():
    module = stack("blend", blocks=blocks())
    with pytest.raises(revstep.ReconstructionError, match="kept for backward, was changed"):
        run(module, batch(), context=lambda: saved_tensors_hooks(lambda t: t // 2, lambda t: t * 2))


@pytest.mark.parametrize("name", ["blend", "hamiltonian"])
def test_save_on_cpu_around_and_inside(name):
    _, report = both(lambda keep: stack(name, blocks=blocks(), keep=keep), context=save_on_cpu)
    assert report.exact
    both(lambda keep: stack(name, blocks=[Within(b, save_on_cpu) for b in blocks()], keep=keep))


def test_hooks_of_a_block_hold_what_is_saved_under_them():
    """Such tensors are the block's business from the forward pass on; the others are rebuilt. The hooks see
    both evaluations.
    """

    class Partly(nn.Module):
        def __init__(self, block, halve=False):
            super().__init__()
            self.block, self.packed, self.halve = block, 0, halve

        def pack(self, t):
            self.packed += 1
            return t.to(torch.float16) if self.halve else t.double()

        def forward(self, x):
            a = self.block.attention(x)
            with saved_tensors_hooks(self.pack, torch.Tensor.float):
                b = self.block.mlp(x + a)
            return a + b

    built = {}

    def build(keep, halve=False):
        built[keep] = stack("blend", blocks=[Partly(b, halve) for b in blocks(0.0)], keep=keep)
        return built[keep]

    got, report = both(build)
    assert (
        same(got, run(stack("blend", blocks=blocks(0.0), keep=LAYERS), batch()))
        and report.exact
        and report.layers == LAYERS
    )
    assert all(a.packed == 2 * b.packed > 0 for a, b in zip(built[0].blocks, built[LAYERS].blocks))
    lossy, _ = both(functools.partial(build, halve=True))
    assert not same(lossy, got)  # what the block's hooks lose is lost, rebuilt or stored: they are heard


class Field(nn.Linear):
    """A transform of torch.func within a block."""

    def __init__(self, transform):
        super().__init__(32, 32)
        with torch.no_grad():
            self.weight.copy_(torch.linspace(-0.3, 0.3, 1024).view(32, 32))
            self.bias.zero_()
        self.transform = transform

    def forward(self, x):
        def f(t):
            return torch.tanh(nn.Linear.forward(self, t))

        if self.transform == "grad":
            return torch.func.grad(lambda t: f(t).sum())(x)
        return (
            torch.func.vmap(f)(x)
            if self.transform == "vmap"
            else torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]
        )


def disabled():
    return disable_saved_tensors_hooks("not here")


def test_disabled_saved_tensor_hooks_are_refused():
    x = batch()
    with disabled():
        with pytest.raises(
            revstep.UnsupportedError, match=r"disable_saved_tensors_hooks is in force.*keep=len\(blocks\)"
        ):
            stack("blend", blocks=blocks())(x)
        stored = run(stack("blend", blocks=blocks(), keep=LAYERS), batch())
    y = stack("blend", blocks=blocks())(x).sum()
    with disabled(), pytest.raises(revstep.UnsupportedError, match="backward of the stack outside it"):
        y.backward()
    assert same(stored, run(stack("blend", blocks=blocks()), batch()))
    for within in ([Within(b, disabled) for b in blocks()], [Field("grad")] * LAYERS):
        with pytest.raises(
            revstep.UnsupportedError, match=r"layer 0 disables saved-tensor hooks \(torch\.func\.grad"
        ):
            run(stack("blend", blocks=within), batch())
        assert run(stack("blend", blocks=within, keep=LAYERS), batch())


@pytest.mark.parametrize("transform", ["jvp", "vmap"])
def test_transforms_inside_a_block(transform):
    both(lambda keep: stack("blend", blocks=[Field(transform) for _ in range(LAYERS)], keep=keep))


def test_allow_mutation_on_saved_tensors():
    """Right for what follows the stack; a block that relies on it is refused, and right when stored."""

    def loss(y):
        z = y.square()
        y.zero_()
        return z.sum()

    # The square's saved tensor, without the mode.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run(stack("blend", blocks=blocks()), batch(), loss=loss)
    results = []
    for keep in (0, LAYERS):
        module, x = stack("blend", blocks=blocks(0.0), keep=keep), batch()
        with allow_mutation_on_saved_tensors():
            loss(module(x)).backward()
        results.append([x.grad, *(p.grad for p in module.parameters())])
    assert same(*results)

    class Mutating(nn.Linear):
        def forward(self, x):
            y = super().forward(x).exp()
            z = 2 * y.tanh()
            y.add_(1.0)
            return z

    for keep in (0, LAYERS):
        module, x = stack("blend", blocks=[Mutating(32, 32)] * LAYERS, keep=keep), batch()
        with allow_mutation_on_saved_tensors():
            y = module(x).sum()
            if keep == 0:
                with pytest.raises(
                    RuntimeError, match="layer 3 was changed in place after autograd had saved it"
                ):
                    y.backward()
            else:
                y.backward()


# ---- modes ----


def test_anomaly_mode():
    def anomaly():
        return torch.autograd.set_detect_anomaly(True)

    def loss(y):
        with anomaly():
            return y.square().sum()

    _, report = both(lambda keep: stack("blend", blocks=blocks(), keep=keep), context=anomaly, loss=loss)
    assert report.exact

    class Rooted(nn.Linear):
        def forward(self, x):
            return (0 * super().forward(x)).sqrt()  # a slope of infinity times zero

    for keep in (0, LAYERS):
        module = stack("blend", blocks=[Rooted(32, 32) for _ in range(LAYERS)], keep=keep)
        with (
            pytest.warns(
                UserWarning, match=r"(?s)Traceback of forward call.*\(0 \* super\(\)\.forward\(x\)\)"
            ),
            anomaly(),
        ):
            y = module(batch()).sum()
            with pytest.raises(RuntimeError, match="MulBackward0' returned nan"):
                y.backward()


def test_profilers():
    expected = run(stack("blend", blocks=blocks(), keep=LAYERS), batch())
    for profiler in (
        torch.autograd.profiler.profile,
        functools.partial(torch.profiler.profile, record_shapes=True, profile_memory=True),
    ):
        module, x = stack("blend", blocks=blocks()), batch()
        with profiler() as p:
            got = run(module, x)
        assert same(got, expected) and module.report.exact
        counts = {e.key: e.count for e in p.key_averages()}
        assert counts["revstep::step"] == counts["revstep::inverse"] == LAYERS


def test_deterministic_algorithms():
    expected = run(stack("blend", blocks=blocks(), keep=LAYERS), batch())
    for on, off in (
        (lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)),
        (
            lambda: torch.set_deterministic_debug_mode("error"),
            lambda: torch.set_deterministic_debug_mode("default"),
        ),
    ):
        on()
        try:
            assert torch.are_deterministic_algorithms_enabled()
            got, report = both(lambda keep: stack("blend", blocks=blocks(), keep=keep))
        finally:
            off()
        assert same(got, expected) and report.exact


# ---- parts of the gradient ----


@pytest.mark.parametrize("what", ["input", "first", "third", "last", "unused"])
def test_gradients_of_some_inputs(what):
    results, layers = [], {"input": 4, "first": 4, "third": 2, "last": 1, "unused": 4}[what]
    for keep in (0, LAYERS):
        module, x = stack("blend", blocks=blocks(0.0), keep=keep), batch()
        extra = nn.Parameter(torch.ones(3))
        b = module.blocks
        wanted = {
            "input": [x],
            "first": [*b[0].parameters()],
            "third": [b[2].mlp.up.weight],
            "last": [b[3].mlp.down.bias, b[3].mlp.up.bias],
            "unused": [extra, x],
        }
        results.append(
            list(torch.autograd.grad(module(x).square().sum(), wanted[what], allow_unused=what == "unused"))
        )
        if keep == 0:
            assert module.report.exact and module.report.layers == layers
        x.grad = None
        module(x).square().sum().backward(inputs=wanted["third"])
        assert [p for p in (x, *module.parameters()) if p.grad is not None] == wanted["third"]
        results[-1].append(wanted["third"][0].grad)
    assert same(*results) and (results[0][0] is None) is (what == "unused")
