"""save_ops: outputs of chosen operators are kept instead of being computed twice; the same bits, fewer
evaluations, bytes counted.
"""

import pytest
import torch
import torch.nn.functional as F
from stacks import SCHEMES, batch, bf16, run, same, stack
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy

import revstep
from operator_calls import Count
from revstep.stack._selection import ReuseOutputs

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
LAYERS, WIDTH, HEADS = 3, 32, 4


class Attend(nn.Module):
    """Attention, then dropout: what draws after the kept operator must draw the same."""

    def __init__(self, spoil=False):
        super().__init__()
        self.qkv, self.out, self.spoil = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), spoil

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        if self.spoil:
            y.mul_(2)
        return F.dropout(self.out(y.transpose(1, 2).flatten(2)), 0.2)

    def halves(self):
        return self, self


def attend(name="blend", **options):
    torch.manual_seed(0)
    return stack(name, blocks=[Attend() for _ in range(LAYERS)], **options)


def counted(module, x, **options):
    with Count() as count:
        got = run(module, x, **options)
    return got, count.calls


def by_torch(context, op, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if op is ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize(
    "save_ops",
    ["attention", [ATTENTION], by_torch, lambda context, op, *args, **kwargs: op is ATTENTION],
    ids=["word", "list", "policy", "bool"],
)
@pytest.mark.parametrize("name", SCHEMES)
def test_same_bits_and_one_evaluation(name, save_ops):
    x = batch()
    expected, twice = counted(attend(name), x)
    module = attend(name, save_ops=save_ops)
    got, once = counted(module, x)
    assert same(got, expected) and module.report.exact
    assert twice[ATTENTION] == 2 * module.steps and once[ATTENTION] == module.steps
    assert once[torch.ops.aten.addmm.default] == twice[torch.ops.aten.addmm.default]


def test_bytes_are_counted():
    x, modules = batch(), (attend(), attend(save_ops="attention"))
    for module in modules:
        run(module, x)
    B, T, _ = x.shape
    out, log_sum_exp = 4 * x.numel(), 4 * B * HEADS * T
    assert modules[1].report.bytes_saved - modules[0].report.bytes_saved == LAYERS * (out + log_sum_exp)


def test_a_block_chooses_for_itself():
    module = attend(save_ops="attention")
    module.blocks[0].save_ops = None
    module.blocks[1].save_ops = [torch.ops.aten.addmm.default]
    expected, _ = counted(attend(), batch())
    got, calls = counted(module, batch())
    assert same(got, expected)
    assert calls[ATTENTION] == 2 * LAYERS - 1 and calls[torch.ops.aten.addmm.default] == 4 * LAYERS - 2


def test_autocast_keep_and_a_second_backward():
    for options in ({}, {"keep": 1}, {"keep": "auto", "memory_budget": 40_000}):
        expected, got = (
            run(attend(save_ops=ops, **options), batch(), context=bf16) for ops in (None, "attention")
        )
        assert same(got, expected)
    module, x = attend(save_ops="attention"), batch()
    torch.manual_seed(3)
    y = module(x).square().sum()
    first = torch.autograd.grad(y, x, retain_graph=True)
    second = torch.autograd.grad(y, x)
    assert same(first, second) and same(first, [run(attend(), batch())[1]])


def test_what_draws_random_numbers_is_computed_again():
    for op in (torch.ops.aten.native_dropout.default, torch.ops.aten.bernoulli_.float):
        x = batch()
        module = attend(save_ops=[op])
        (expected, plain), (got, calls) = counted(attend(), x), counted(module, x)
        assert same(got, expected) and calls[op] == plain[op]


def test_kept_outputs_are_let_go():
    module, left = attend(save_ops="attention"), []
    tapes = []
    made = revstep.stack._tape.Tape.finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(revstep.stack._tape.Tape, "finish", lambda self: (tapes.append(self), made(self))[1])
        y = module(batch())
    for block in module.blocks:
        block.qkv.weight.register_hook(lambda g: left.append(sum(bool(r.outputs) for r in tapes[0].records)))
    y.sum().backward()
    assert left == [3, 2, 1]


def test_written_to_after_it_was_kept():
    module = stack(blocks=[Attend(spoil=True)] * 2, save_ops="attention")
    with pytest.raises(RuntimeError, match=r"in place, but save_ops keeps it|modified by an inplace"):
        module(batch()).sum().backward()


@pytest.mark.parametrize("save_ops", ["mm", torch.ops.aten.mm, [torch.ops.aten.mm], 3])
def test_refusals(save_ops):
    with pytest.raises(revstep.ConfigError, match="expected 'attention', a list of operators"):
        attend(save_ops=save_ops)


def test_compiled_blocks_are_refused():
    block = Attend()
    for made in (torch.compile(Attend(), backend="eager"), block):
        block.compile(backend="eager")
        with pytest.raises(revstep.ConfigError, match="a compiled block has none"):
            stack(blocks=[made], save_ops="attention")(batch())


def test_mutant_hands_out_another_layers_output(monkeypatch):
    kept = []
    made = ReuseOutputs.__init__

    def mixed(self, own, *rest):
        kept.append(own)
        made(self, dict(zip(own, kept[0].values())), *rest)

    monkeypatch.setattr(ReuseOutputs, "__init__", mixed)
    with pytest.raises(revstep.ReconstructionError, match="computed other values"):
        run(attend(save_ops="attention"), batch())
