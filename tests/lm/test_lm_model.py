"""The models: one set of parameters for every trunk, a loss that agrees with its definition, and reversible =
stored, bit for bit.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from revstep import lm
from revstep.errors import ConfigError
from revstep.lm._config import ModelConfig
from revstep.schemes import _base

TINY = dict(vocab=40, context=12, layers=3, width=16, heads=2)
SHAPES = {"gpt": lm.GPTConfig(**TINY), "llama": lm.LlamaConfig(**TINY | {"heads": 4}, kv_heads=2)}
SCHEMES = [*sorted(_base.available()), "midpoint_blend:a=0.5"]


@pytest.fixture(params=SHAPES)
def make(request):
    """A factory of tiny models of one kind; keywords change their shape, or are options of the trunk."""

    def made(scheme="plain", seed=0, double=False, **changes):
        options = {name: changes.pop(name) for name in ("state", "start", "keep") if name in changes}
        model = lm.make_model(
            dataclasses.replace(SHAPES[request.param], **changes), scheme, seed=seed, **options
        )
        return model.double() if double else model

    return made


def batch(seed=0):
    ids = torch.randint(40, (2, 13), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("scheme", ["checkpoint", *SCHEMES])
def test_same_names_and_weights_whatever_the_trunk(make, scheme):
    plain, other = make(seed=5).state_dict(), make(scheme, seed=5).state_dict()
    assert list(plain) == list(other) and all(torch.equal(plain[name], other[name]) for name in plain)


def test_weights_depend_on_the_seed_alone(make):
    torch.manual_seed(1)
    a = make(seed=5).state_dict()
    torch.manual_seed(2)
    b, c = make(seed=5).state_dict(), make(seed=6).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a) and not torch.equal(
        a["tokens.weight"], c["tokens.weight"]
    )


def test_initialisation_is_gpt2s(make):
    model = make(width=64, layers=8)
    weights = dict(model.named_parameters())
    for name, std in (
        ("tokens.weight", 0.02),
        ("trunk.blocks.3.attn.qkv.weight", 0.02),
        ("trunk.blocks.3.mlp.proj.weight", 0.02 / 4),
    ):
        n = weights[name].numel()
        # Five standard errors of a standard deviation.
        assert abs(weights[name].std().item() / std - 1) < 5 / (2 * n) ** 0.5, name
    assert all((p == 0).all() for name, p in weights.items() if name.endswith("bias"))
    assert all(
        (p == 1).all() for name, p in weights.items() if ".ln." in f".{name}" and name.endswith("weight")
    )


def test_block_is_equation_2_5(make):
    model = make(double=True)
    block, (p, *tables) = model.trunk.blocks[0], model._enter(batch()[0])
    attn, mlp = block.halves()
    a = attn(p, *tables)
    assert torch.equal(block(p, *tables), a + mlp(p + a, *tables))


def test_the_model_is_causal(make):
    model, (x, _) = make().eval(), batch()
    changed = x.clone()
    changed[:, 7:] = 0
    assert torch.equal(model(x)[:, :7], model(changed)[:, :7]) and not torch.equal(
        model(x)[:, 7:], model(changed)[:, 7:]
    )


@pytest.mark.parametrize("chunk", ["auto", 1, 7, 1000])
def test_chunked_loss_and_gradients_are_those_of_cross_entropy(make, chunk):
    x, y = batch()
    reference, chunked = make(loss_chunk=0, double=True), make(loss_chunk=chunk, double=True)
    want, got = reference(x, y), chunked(x, y)
    assert torch.equal(want, F.cross_entropy(reference(x).flatten(0, 1), y.flatten()))
    want.backward()
    got.backward()
    eps = torch.finfo(torch.float64).eps
    rows = y.numel()
    assert abs(want - got) <= 8 * eps * rows * want.abs()
    for (name, a), b in zip(reference.named_parameters(), chunked.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= 64 * eps * rows * max(1.0, a.grad.abs().max().item()), name


def test_chunked_loss_under_autocast_is_not_rounded_to_bfloat16(make):
    x, y = batch()
    model = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.hidden(x).flatten(0, 1)
        loss = model(x, y)
    exact = F.cross_entropy(F.linear(hidden.double(), model.tokens.weight.double()), y.flatten())
    assert loss.dtype == torch.float32 and abs(loss.item() - exact.item()) < 1e-5 < abs(
        exact.item() - exact.bfloat16().item()
    )


@pytest.mark.parametrize("chunk", [0, 7])
def test_a_head_of_its_own(make, chunk):
    x, y = batch()
    tied, untied = (make(tied=tied, loss_chunk=chunk) for tied in (True, False))
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"head.weight"} and not torch.equal(
        untied.head.weight, untied.tokens.weight
    )
    assert torch.equal(untied(x), F.linear(untied.hidden(x), untied.head.weight))
    untied(x, y).backward()
    unseen = [i for i in range(40) if i not in x]  # tied, the softmax reaches every row of the embedding
    assert (
        untied.head.weight.grad.abs().amin(dim=0).min() > 0 and (untied.tokens.weight.grad[unseen] == 0).all()
    )


def test_make_model_wants_a_shape():
    with pytest.raises(ConfigError, match="config is ModelConfig; expected one of GPTConfig, LlamaConfig"):
        lm.make_model(ModelConfig(vocab=4))


def test_bad_tokens_are_refused(make):
    with pytest.raises(ConfigError, match="crop them"):
        make()(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"expected \(batch, time\)"):
        make()(torch.zeros(5, dtype=torch.int64))


def test_recomputed_trunk_gives_the_stored_bits(make):
    grads = []
    for scheme in ("plain", "checkpoint"):
        torch.manual_seed(0)
        model = make(scheme, dropout=0.2)
        model(*batch()).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def descend(make, scheme, keep, steps=6, dtype=None, start="repeat", state="fixed32"):
    torch.manual_seed(0)
    model = make(scheme, dropout=0.1, keep=keep, start=start, state=state)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = model(*batch(step % 2))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_reversible_training_is_stored_training_bit_for_bit(make, scheme, dtype):
    losses, model = descend(make, scheme, keep=0, dtype=dtype)
    stored_losses, stored = descend(make, scheme, keep=TINY["layers"], dtype=dtype)
    assert model.trunk.report.exact
    assert losses == stored_losses and losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), stored.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore::revstep.AmplificationWarning")
def test_the_comparison_above_notices_a_float_state(make):
    exact, stored = (
        descend(make, "midpoint_blend:a=0.5", keep=keep, state="float32", dtype=torch.bfloat16)[1]
        for keep in (0, TINY["layers"])
    )
    assert not all(torch.equal(a, b) for a, b in zip(exact.parameters(), stored.parameters(), strict=True))


@pytest.mark.parametrize("scheme", ["midpoint", "blend"])
def test_euler_start_and_wide_state_train(make, scheme):
    losses, model = descend(make, scheme, keep=0, start="euler", state="fixed64")
    assert losses[-1] < losses[0] and model.trunk.report.exact


def test_a_float_state_is_reported_as_not_exact(make):
    _, model = descend(make, "midpoint", keep=0, state="float32", dtype=torch.bfloat16)
    assert not model.trunk.report.exact and model.trunk.report.max_error > 0


def test_blend_tends_to_the_plain_network(make):
    x, y = batch()
    plain = make().eval()(x, y).item()
    gaps = [abs(make(f"blend:c={c}").eval()(x, y).item() - plain) for c in (0.5, 0.03125)]
    assert gaps[1] < gaps[0] / 4


@pytest.mark.parametrize("scheme", ["plain", "checkpoint", "blend"])
def test_unknown_options_are_refused_whatever_the_trunk(scheme):
    with pytest.raises(ConfigError, match="unknown option 'kep' of a trunk, expected some of checks, keep"):
        lm.make_model(SHAPES["gpt"], scheme, kep=1)


def test_keep_by_a_budget_does_not_change_the_gradients():
    x = torch.randint(16, (2, 8))
    grads = []
    for options in (
        {},
        {"keep": "auto", "memory_budget": 20_000},
        {"keep": "auto", "memory_budget": 1.0, "save_ops": "attention"},
    ):
        model = lm.make_model(SHAPES["gpt"], "blend", **options)
        model(x, x).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other))
