"""What broke other libraries, part 1: dropout, autocast, frozen parts, arguments, shared modules, buffers."""

import pytest
import torch
from stacks import FORMATS, SCHEMES, batch, bf16, run, same, stack
from torch import nn

import revstep
from revstep_lab.verify import example_blocks


@pytest.mark.parametrize("name", SCHEMES)
def test_dropout_is_replayed_and_leaves_the_global_generator_alone(name):
    """The same seed gives the same loss, the same gradients and the same next random number as the stored
    pass.
    """
    reversible = run(stack(name, 5, dropout=0.3), batch())
    assert same(reversible, run(stack(name, 5, dropout=0.3), batch()))
    assert same(reversible, run(stack(name, 5, dropout=0.3, keep=5), batch()))
    assert not same(reversible[:1], run(stack(name, 5, dropout=0.3), batch(), seed=4)[:1])


@pytest.mark.parametrize("name", SCHEMES)
def test_autocast_inside_the_block(name):
    class Inside(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            with bf16():
                return self.block(x)

        def halves(self):
            f, g = self.block.halves()
            return Inside(f), Inside(g)

    blocks = [Inside(b) for b in example_blocks(4)]
    ours, stored = (run(stack(name, blocks=blocks, keep=k), batch()) for k in (0, 4))
    assert same(ours, stored)


def test_backward_inside_another_autocast():
    """Re-evaluation uses the forward pass's autocast state, whatever is in force when backward is called."""

    def once(keep):
        module, x = stack("blend", 4, dropout=0.0, keep=keep), batch()
        y = module(x)
        with bf16():  # torch runs the backward operations themselves in bf16 here, stored or not
            y.square().sum().backward()
        return module.report, x.grad

    (report, ours), (_, stored) = once(0), once(4)
    assert report.exact and torch.equal(ours, stored)


def test_a_block_that_takes_the_default_precision_of_autocast_gets_the_forward_pass_s():
    class Default(nn.Linear):
        def forward(self, x):
            with torch.autocast("cpu"):  # of torch.get_autocast_dtype
                return torch.tanh(super().forward(x)).float()

    blocks = [Default(32, 32) for _ in range(3)]
    module, x, before = stack("midpoint", blocks=blocks), batch(), torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        y = module(x)
        torch.set_autocast_dtype("cpu", torch.bfloat16)
        y.square().sum().backward()
    finally:
        torch.set_autocast_dtype("cpu", before)
    assert module.report.exact


@pytest.mark.parametrize("name", SCHEMES)
def test_input_without_gradient_still_trains_every_block(name):
    x = batch(grad=False)
    grads = [run(stack(name, 4, keep=k), x)[2:-1] for k in (0, 4)]
    assert same(*grads) and all(g is not None and g.abs().max() > 0 for g in grads[0] if g.numel() > 3 * 32)


@pytest.mark.parametrize("frozen", [(0, 1), (1, 3), (4, 5), (0, 1, 2, 3, 4, 5)])
@pytest.mark.parametrize("grad", [True, False])
def test_frozen_blocks(frozen, grad):
    def build(keep):
        module = stack("blend", 6, keep=keep)
        for i in frozen:
            module.blocks[i].requires_grad_(False)
        return module

    if not grad and len(frozen) == 6:
        module = build(0)
        y = module(batch(grad=False))
        assert not y.requires_grad and module.report is None
        return
    ours, stored = (run(build(k), batch(grad=grad)) for k in (0, 6))
    assert same(ours, stored)


def test_layers_below_the_lowest_trained_one_are_not_rebuilt():
    module = stack("blend", 6, dropout=0.0)
    for i in range(4):
        module.blocks[i].requires_grad_(False)
    run(module, batch(grad=False))
    assert module.report.layers == 2 and module.report.exact


def test_partly_frozen_block():
    def build(keep):
        module = stack("midpoint", 4, keep=keep)
        for b in module.blocks:
            b.mlp.requires_grad_(False)
            b.attention.norm.weight.requires_grad_(False)
        return module

    assert same(*(run(build(k), batch()) for k in (0, 4)))


class Arguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x, mask, *, scale=None, nested=None, flag=False):
        t = self.linear(x)
        if mask is not None:
            t = t.masked_fill(mask, 0.0)
        if scale is not None:
            t = t * scale
        if flag:
            t = t + nested[0][1] * nested[1]["k"]
        return 0.1 * t


@pytest.mark.parametrize("name", ["midpoint", "blend", "leapfrog"])
def test_extra_arguments(name):
    def once(keep):
        torch.manual_seed(0)
        module = stack(name, blocks=[Arguments() for _ in range(4)], keep=keep)
        leaves = [torch.rand(32, requires_grad=True) for _ in range(3)]
        scale, w, k = leaves
        mask = torch.ones(9, 32, dtype=torch.bool).triu(20)
        out = run(module, batch(), mask, scale=scale * 2, nested=((None, w.exp()), {"k": k}), flag=True)
        return [*out, *(t.grad for t in leaves)]

    ours, stored = once(0), once(4)
    assert same(ours, stored) and all(g.abs().max() > 0 for g in ours[-3:])
    module = stack(name, blocks=[Arguments() for _ in range(2)])
    module(batch(), None).sum().backward()
    assert module.report.exact


def test_argument_changed_in_place_is_found():
    module, mask = (
        stack("midpoint", blocks=[Arguments() for _ in range(3)]),
        torch.zeros(9, 32, dtype=torch.bool),
    )
    y = module(batch(), mask)
    mask.fill_(True)
    with pytest.raises(revstep.ReconstructionError):
        y.sum().backward()


def test_tensor_the_block_closes_over_gets_its_gradient():
    """The graph is autograd's own, so a leaf that is neither parameter nor argument is not forgotten."""

    class Closure(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weights = [weight]  # hidden from parameters()

        def forward(self, x):
            return torch.tanh(x * self.weights[0])

    grads = []
    for keep in (0, 3):
        w = torch.linspace(0.1, 1, 32).requires_grad_()
        run(stack("midpoint", blocks=[Closure(w) for _ in range(3)], keep=keep), batch())
        grads.append(w.grad)
    assert torch.equal(*grads) and grads[0].abs().max() > 0


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("context", [None, bf16])
def test_the_same_module_at_several_depths(name, context):
    import contextlib

    results = []
    for keep in (0, 4):
        block = example_blocks(1)[0]
        results.append(
            run(
                stack(name, blocks=[block] * 4, keep=keep), batch(), context=context or contextlib.nullcontext
            )
        )
    assert same(*results)


def test_two_forwards_before_one_backward():
    def once(keep):
        module, x = stack("blend", 4, keep=keep), batch()
        torch.manual_seed(5)
        (module(x).square().sum() + module(2 * x).sum()).backward()
        return [x.grad, *(p.grad for p in module.parameters())]

    assert same(once(0), once(4))


def test_interleaved_backwards():
    module, a, b = stack("blend", 4, dropout=0.0), batch(), batch()
    ya, yb = module(a), module(b)
    ya.sum().backward()
    yb.sum().backward()
    assert torch.equal(a.grad, b.grad)


def test_batch_norm_statistics_move_once():
    def once(keep):
        torch.manual_seed(0)
        module = stack(
            "midpoint",
            blocks=[nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8)) for _ in range(3)],
            keep=keep,
        )
        out = run(module, torch.randn(6, 8).requires_grad_())
        return [*out, *module.buffers()]

    ours = once(0)
    assert same(ours, once(3))
    assert any(not torch.equal(b, torch.zeros_like(b)) for b in ours[-9:])


def test_buffer_written_in_forward_moves_once():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(32, 32)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += 1
            return self.linear(x)

    module = stack("midpoint", blocks=[Counter() for _ in range(3)])
    run(module, batch())
    assert [float(b.seen) for b in module.blocks] == [1.0, 1.0, 1.0]


def test_eval_and_no_grad_cost_nothing():
    module = stack("blend", 4).eval()
    with torch.no_grad():
        y = module(batch())
    assert y.grad_fn is None and module.report is None
    with torch.inference_mode():
        assert torch.equal(module(batch(grad=False)), y)


@pytest.mark.parametrize("state", list(FORMATS))
@pytest.mark.parametrize("shape", [(32,), (0, 9, 32), (1, 1, 32), (3, 2, 2, 32)])
def test_shapes(state, shape):
    module = stack("blend", blocks=[nn.Linear(32, 32) for _ in range(3)], state=state)
    x = torch.randn(shape, requires_grad=True)
    y = module(x)
    assert y.shape == x.shape and y.dtype == x.dtype
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("layout", ["transposed", "expanded", "strided", "channels_last"])
def test_any_stride_order(layout):
    x = {
        "transposed": torch.randn(32, 9, 2).permute(2, 1, 0),
        "expanded": torch.randn(1, 9, 32).expand(2, 9, 32),
        "strided": torch.randn(4, 9, 64)[::2, :, ::2],
        "channels_last": torch.randn(2, 4, 5, 32).contiguous(memory_format=torch.channels_last),
    }[layout]
    blocks = [nn.Linear(32, 32) for _ in range(3)]
    a, b = x.clone().requires_grad_(), x.contiguous().requires_grad_()
    assert not x.is_contiguous()
    assert same(run(stack("blend", blocks=blocks), a), run(stack("blend", blocks=blocks), b))


def test_pairs_chain():
    """readout='pair' feeds another stack: two halves of a network give what the whole gives."""
    blocks = example_blocks(6, dropout=0.0)
    x = batch()
    whole = stack("midpoint", blocks=blocks)
    first, second = stack("midpoint", blocks=blocks[:3], readout="pair"), stack("midpoint", blocks=blocks[3:])
    expected = whole(x)
    got = second(first(x))
    assert torch.equal(got, expected)
    got.square().sum().backward()
    grad, x.grad = x.grad, None
    expected.square().sum().backward()
    assert torch.equal(grad, x.grad)
