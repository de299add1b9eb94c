"""Hooks of autograd and of modules, on and in a stack: gradients equal those of the same blocks stored, bit
for bit, and each hook sees the same.
"""

import contextlib

import pytest
import torch
from stacks import SCHEMES, batch, run, same, stack
from torch import nn
from torch.nn.modules import module as globally

import revstep
from revstep.stack import rebuilding
from revstep.stack._tape import Tape
from revstep_lab.verify import example_blocks

LAYERS = 4


def build(keep, name="blend", **options):
    return stack(name, LAYERS, keep=keep, **{"dropout": 0.0} | options)


def rebuilt_and_stored(prepare, name="blend", **options):
    """A training pass of the rebuilding stack and of the storing one after ``prepare(stack)``: (results,
    stack, what prepare returned) of each.
    """
    out = []
    for keep in (0, LAYERS):
        module = build(keep, name, **options)
        noted = prepare(module)
        out.append((run(module, batch()), module, noted))
    assert out[0][1].report.exact and out[0][1].report.layers == module.steps and out[1][1].report is None
    return out


def assert_right(prepare, name="blend", changes=True, **options):
    """Equal bits, and with ``changes`` other ones than without the hooks: they did act."""
    (ours, module, noted), (stored, _, expected) = rebuilt_and_stored(prepare, name, **options)
    assert same(ours, stored)
    assert same(ours, run(build(0, name, **options), batch())) is not changes
    return module, noted, expected


@pytest.mark.parametrize("layer", range(LAYERS))
def test_one_wrong_bit_is_told_apart(layer, monkeypatch):
    """What every comparison here must reject: right states, but one layer's saved tensors a bit off."""
    saved = Tape.saved

    def off(tape, k, i):
        t = saved(tape, k, i)
        return t * (1 + 2.0**-23) if k == layer and t.is_floating_point() else t

    monkeypatch.setattr(Tape, "saved", off)
    with pytest.raises(AssertionError):
        assert_right(lambda module: [p.register_hook(lambda g: 2 * g) for p in module.parameters()])


# ---- hooks on tensors ----


class Hooked(nn.Module):
    """A block around another, with hooks on its input, on what it computes on the way, and on a
    view of that.
    """

    def __init__(self, block):
        super().__init__()
        self.block, self.last = block, nn.Linear(32, 32)

    def forward(self, x):
        x.register_hook(lambda g: 1.5 * g)
        h = self.block(x)
        h.register_hook(lambda g: g.clamp(-0.01, 0.01))
        h[..., :4].register_hook(lambda g: pytest.fail("nothing reads this view"))
        left, right = h.chunk(2, -1)
        right.register_hook(lambda g: 2 * g)
        return self.last(torch.cat([left, right], -1))


def hooked_blocks():
    torch.manual_seed(0)
    return [Hooked(b) for b in example_blocks(LAYERS, dropout=0.0)]


@pytest.mark.parametrize("name", ["blend", "midpoint"])
def test_hooks_on_tensors_inside_a_block(name):
    ours, stored = (run(stack(name, blocks=hooked_blocks(), keep=keep), batch()) for keep in (0, LAYERS))
    assert same(ours, stored)
    plain = [nn.Sequential(h.block, h.last) for h in hooked_blocks()]
    assert not same(ours, run(stack(name, blocks=plain), batch()))


def test_hooks_on_input_output_and_the_node_behind_it():
    results = []
    for keep in (0, LAYERS):
        module, x, seen = build(keep), batch(), []
        x.register_hook(lambda g, seen=seen: seen.append(g.clone()) or 3 * g)

        def loss(y, seen=seen):
            y.register_hook(lambda g: seen.append(g.clone()) or g.clamp(-1, 1))
            y.grad_fn.register_prehook(lambda gs: seen.append(gs[0] if gs[0] is not None else gs[1]))
            y.view(-1)[:5].register_hook(lambda g: pytest.fail("nothing reads this view"))
            y.retain_grad()
            return y.square().sum()

        results.append([*run(module, x, loss=loss), *seen])
    assert same(*results) and len(results[0]) == len(list(module.parameters())) + 6


def test_retain_grad_inside_a_block():
    """On the tensors of the forward pass; those of the re-evaluation are no part of the graph and
    get none.
    """

    class Retaining(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block, self.seen = block, []

        def forward(self, x):
            h = self.block(x)
            h.retain_grad()
            self.seen.append(h)
            return 2.0 * h

    modules = [
        stack("blend", blocks=[Retaining(b) for b in example_blocks(LAYERS, dropout=0.0)], keep=keep)
        for keep in (0, LAYERS)
    ]
    assert same(*(run(m, batch()) for m in modules))
    for ours, stored in zip(*(m.blocks for m in modules)):
        (forward, again), (expected,) = ours.seen, stored.seen
        assert torch.equal(forward.grad, expected.grad) and again.grad is None and torch.equal(forward, again)


def test_hooks_on_parameters():
    def prepare(module):
        calls = []
        for name, p in module.named_parameters():
            p.register_hook(lambda g, name=name: calls.append(name) or g.clamp(-0.05, 0.05))
        every = list(module.parameters())
        torch.autograd.graph.register_multi_grad_hook(every, lambda grads: calls.append(("all", len(grads))))
        torch.autograd.graph.register_multi_grad_hook(
            list(module.blocks[2].parameters()), lambda g: calls.append("any"), mode="any"
        )
        return calls

    module, calls, expected = assert_right(prepare)
    count = len(list(module.parameters()))
    assert (
        calls == expected and ("all", count) in calls and calls.count("any") == 1 and len(calls) == count + 2
    )


# ---- the optimiser inside the backward pass ----


def optimise_in_backward(module, make=lambda p: torch.optim.AdamW([p], lr=0.05)):
    """Each parameter is stepped, and its gradient freed, as soon as it has one: weights of the layers above
    change while those below are rebuilt.
    """
    optimisers = {p: make(p) for p in module.parameters()}

    def step(p):
        optimisers[p].step()
        p.grad = None

    for p in optimisers:
        p.register_post_accumulate_grad_hook(step)


@pytest.mark.parametrize("name", SCHEMES)
def test_optimiser_in_backward(name):
    (ours, a, _), (stored, b, _) = rebuilt_and_stored(optimise_in_backward, name, dropout=0.1)
    assert same(ours, stored) and same(list(a.parameters()), list(b.parameters()))
    assert not any(torch.equal(p, q) for p, q in zip(a.parameters(), build(0, name).parameters())) and all(
        p.grad is None for p in a.parameters()
    )
    again, expected = run(a, batch()), run(b, batch())
    assert same(again, expected) and a.report.exact


def test_optimiser_in_backward_of_a_block_at_several_depths():
    """Its gradient is complete, and its weights change, only after its lowest layer has been
    evaluated again.
    """
    shared = [example_blocks(1, dropout=0.0) * LAYERS for _ in range(2)]
    modules = [stack("blend", blocks=blocks, keep=keep) for blocks, keep in zip(shared, (0, LAYERS))]
    for module in modules:
        optimise_in_backward(module)
    assert (
        same(*(run(m, batch()) for m in modules))
        and same(*(list(m.parameters()) for m in modules))
        and modules[0].report.exact
    )


def test_a_step_of_all_weights_while_layers_are_still_to_be_rebuilt_is_caught():
    module = build(0)

    def step(_):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.01)

    # Layer 2 is through.
    handle = module.blocks[2].attention.norm.weight.register_post_accumulate_grad_hook(step)
    with pytest.raises(
        revstep.ReconstructionError, match="weights or inputs changed between forward and backward"
    ) as caught:
        run(module, batch())
    assert caught.value.layer == 1
    handle.remove()
    # Layer 2 still needs its other weights.
    module.blocks[2].mlp.down.weight.register_post_accumulate_grad_hook(step)
    with pytest.raises(RuntimeError, match="of layer 2 was changed in place after autograd had saved it"):
        run(module, batch())


# ---- hooks on modules ----

PLACES = {
    "block": lambda m: list(m._functions()),
    "submodule": lambda m: [s for f in m._functions() for s in f.modules() if isinstance(s, nn.Linear)],
    "stack": lambda m: [m],
}
BACKWARD = {
    "full": (
        "register_full_backward_hook",
        lambda calls, i: (
            lambda m, gi, go: calls.append((i, gi, go)) or tuple(None if g is None else 2 * g for g in gi)
        ),
    ),
    "pre": (
        "register_full_backward_pre_hook",
        lambda calls, i: lambda m, go: calls.append((i, (), go)) or tuple(2 * g for g in go),
    ),
    "deprecated": (
        "register_backward_hook",
        lambda calls, i: lambda m, gi, go: calls.append((i, (), go)) and None,
    ),
}


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
@pytest.mark.parametrize("name", ["blend", "hamiltonian", "bdia"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", BACKWARD)
def test_backward_hooks_of_modules(name, place, kind):
    """Each is called once a pass, with the gradients of the stored pass. The deprecated kind sees those of
    the last node of a module alone, as in torch.
    """
    register, hook = BACKWARD[kind]

    def prepare(module):
        calls = []
        for i, target in enumerate(PLACES[place](module)):
            getattr(target, register)(hook(calls, i))
        return calls

    module, calls, expected = assert_right(prepare, name, changes=kind != "deprecated", dropout=0.1)
    assert sorted(i for i, _, _ in calls) == list(range(len(PLACES[place](module)))) and any(
        g is not None for _, _, go in calls for g in go
    )
    for (i, *ours), (j, *stored) in zip(calls, expected):
        assert i == j and all(same(_given(a), _given(b)) for a, b in zip(ours, stored))


def _given(gradients):
    return [g for g in gradients if g is not None]  # the node behind a rebuilding stack has an output more


def test_a_hook_that_drops_the_second_call_is_told_apart():
    """What the assertions above must reject: a hook called in only one of the two passes changes nothing in
    forward, and the gradients.
    """
    module = build(0)
    module.blocks[1].register_forward_hook(lambda m, a, out: out if rebuilding() else 2 * out)
    with pytest.raises(revstep.ReconstructionError) as caught:
        run(module, batch())
    assert caught.value.layer == 1


def test_forward_hooks_that_change_values():
    def prepare(module):
        module.blocks[0].register_forward_pre_hook(lambda m, args: (args[0].tanh(),))
        module.blocks[1].register_forward_hook(lambda m, args, out: out * 0.5)
        module.blocks[2].mlp.up.register_forward_hook(lambda m, args, out: out.clamp(-0.5, 0.5))
        module.blocks[3].register_forward_hook(
            lambda m, args, kwargs, out: out + 0.1 * args[0], with_kwargs=True
        )
        module.register_forward_pre_hook(
            lambda m, args, kwargs: ((2 * args[0], *args[1:]), kwargs), with_kwargs=True
        )
        module.register_forward_hook(lambda m, args, out: out.sin())

    for name in ("blend", "bdia"):
        assert_right(prepare, name, dropout=0.1)


class Scaled(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, *, scale):
        return scale * self.block(x)


def test_hooks_that_rewrite_keyword_arguments():
    """They run before both evaluations, and rewrite the arguments of the forward pass each time anew."""

    def once(keep):
        module = stack("blend", blocks=[Scaled(b) for b in example_blocks(LAYERS, dropout=0.0)], keep=keep)
        for block in module.blocks:
            block.register_forward_pre_hook(
                lambda m, args, kwargs: (args, {"scale": 2 * kwargs["scale"]}), with_kwargs=True
            )
        scale = torch.tensor(0.5, requires_grad=True)
        return [*run(module, batch(), scale=scale), scale.grad]

    ours = once(0)
    assert same(ours, once(LAYERS)) and ours[-1] is not None
    assert same(ours[:-1], run(build(0), batch()))  # twice a half is one


def test_a_hook_that_always_runs_does_so_when_a_block_fails_too():
    calls = []
    module = build(0)
    module.blocks[1].register_forward_hook(lambda m, args, out: calls.append(rebuilding()), always_call=True)
    assert run(module, batch()) and calls == [False, True]
    module.blocks[1].mlp.register_forward_pre_hook(lambda m, args: 1 / 0 if rebuilding() else None)
    y = module(batch())
    with pytest.raises(ZeroDivisionError):
        y.sum().backward()
    assert calls == [False, True, False, True] and not rebuilding()


def test_rebuilding_tells_the_two_evaluations_apart():
    """Within nested modules, per thread, in ``reconstruct``, and not once backward is over or a layer is
    kept.
    """
    calls = []
    module, x = build(2), batch()
    for i, block in enumerate(module.blocks):
        block.mlp.register_forward_hook(lambda m, args, out, i=i: calls.append((i, rebuilding())))
        block.mlp.down.weight.register_hook(lambda g: calls.append(rebuilding()))
    y = module(x).sum()
    assert calls == [(i, False) for i in range(LAYERS)]
    y.backward()
    assert calls[LAYERS:] == [False, False, (1, True), False, (0, True), False] and not rebuilding()
    calls.clear()
    module.reconstruct(module.states(x).last_two)
    assert [c for _, c in calls] == [False] * LAYERS + [True] * LAYERS


def test_global_hooks():
    calls, results = [], []
    for keep in (0, LAYERS):
        module = build(keep)
        with contextlib.ExitStack() as removed:
            for handle in (
                globally.register_module_forward_pre_hook(lambda m, args: calls.append("pre")),
                globally.register_module_forward_hook(
                    lambda m, args, out: 1.1 * out if isinstance(m, nn.LayerNorm) else None
                ),
                globally.register_module_full_backward_pre_hook(lambda m, go: calls.append("backward pre")),
                globally.register_module_full_backward_hook(
                    lambda m, gi, go: (
                        calls.append("backward") or tuple(None if g is None else 0.9 * g for g in gi)
                        if isinstance(m, nn.Linear)
                        else None
                    )
                ),
                nn.modules.module.register_module_parameter_registration_hook(
                    lambda m, name, p: pytest.fail("the stack registers no parameter")
                ),
            ):
                removed.callback(handle.remove)
            results.append(run(module, batch()))
            modules, linears = len(list(module.modules())) - 1, 4 * LAYERS  # all but the list of blocks
        evaluated = modules + (modules - 1 if keep == 0 else 0)  # the stack itself is not called again
        assert [calls.count(kind) for kind in ("pre", "backward pre", "backward")] == [
            evaluated,
            modules,
            linears,
        ]
        calls.clear()
    assert same(*results) and not same(results[0], run(build(0), batch()))
