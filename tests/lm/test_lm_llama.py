"""The Llama-style model against transformers' LlamaForCausalLM, an implementation by others: same weights,
same logits, same gradient.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from revstep import lm, verify
from revstep.lm import _architectures
from revstep.lm._architectures import Rotary, rotate

VOCAB, LENGTH, BATCH = 48, 12, 2
SHAPE = dict(
    vocab=VOCAB,
    context=LENGTH,
    layers=3,
    width=32,
    heads=4,
    kv_heads=2,
    hidden=80,
    rope_theta=500.0,
    norm_eps=1e-2,
)
UNIT = 2.0**-24  # the largest relative error of one float32 rounding


def reference(tied):
    """Their model with eager attention (its own repetition of heads and its own softmax), every linear map of
    gain about one.
    """
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        rms_norm_eps=1e-2,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=tied,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model, generator = transformers.LlamaForCausalLM(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                weight.normal_(0.0, 1.0 if "embed" in name else weight.shape[1] ** -0.5, generator=generator)
    return model.eval()


def renamed(theirs, tied):
    """Their tensors (weights, or gradients) under our names."""
    ours = {"tokens.weight": theirs["model.embed_tokens.weight"], "ln.weight": theirs["model.norm.weight"]}
    if not tied:
        ours["head.weight"] = theirs["lm_head.weight"]
    for i in range(SHAPE["layers"]):
        old, new = f"model.layers.{i}.", f"trunk.blocks.{i}."
        ours[new + "attn.ln.weight"] = theirs[old + "input_layernorm.weight"]
        ours[new + "attn.qkv.weight"] = torch.cat(
            [theirs[f"{old}self_attn.{part}_proj.weight"] for part in "qkv"]
        )
        ours[new + "attn.proj.weight"] = theirs[old + "self_attn.o_proj.weight"]
        ours[new + "mlp.ln.weight"] = theirs[old + "post_attention_layernorm.weight"]
        for mine, their in (("gate", "gate"), ("up", "up"), ("proj", "down")):
            ours[f"{new}mlp.{mine}.weight"] = theirs[f"{old}mlp.{their}_proj.weight"]
    return ours


def both(tied=True, **changes):
    theirs = reference(tied)
    ours = lm.Llama(lm.LlamaConfig(**SHAPE | {"tied": tied, "loss_chunk": 0} | changes), "plain").eval()
    ours.load_state_dict(renamed(theirs.state_dict(), tied))
    return theirs, ours


def tokens():
    ids = torch.randint(VOCAB, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1], ids[:, 1:]


def gradient(model, of):
    model.zero_grad()
    of().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def flat(tensors):
    return torch.cat([t.double().flatten() for t in tensors])


def gain(model, result):
    """How much a relative change of all weights is magnified in ``result(model)``, measured in float64."""
    exact = copy.deepcopy(model).double()
    before, size, worst = result(exact), 1e-6, 0.0
    for seed in range(4):
        changed, generator = copy.deepcopy(exact), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in changed.parameters():
                p.mul_(1 + size * torch.randn(p.shape, dtype=torch.float64, generator=generator))
        worst = max(worst, ((result(changed) - before).norm() / before.norm()).item() / size)
    return worst


def logits_error(theirs, ours):
    """(relative distance of the logits, bound on it).

    A product of n terms in float32 is the exact product with the weights changed by n roundings at most
    (Higham, Accuracy and Stability of Numerical Algorithms, sec. 3.5). The longest path through a layer has
    products of the MLP, of the projections, of q and k, of probabilities and v, and some 16 single roundings
    (norm, rotation, softmax, silu, sum). Both models round: twice that.
    """
    x, _ = tokens()
    with torch.no_grad():
        a, b = theirs(x).logits.double(), ours(x).double()
    n = SHAPE["hidden"] + SHAPE["width"] + SHAPE["width"] // SHAPE["heads"] + LENGTH + 16
    return ((a - b).norm() / a.norm()).item(), 2 * UNIT * n * gain(ours, lambda m: m(x).detach())


def gradient_error(theirs, ours, tied=True):
    """(relative distance of the gradients, bound on it): the products of the forward pass twice over, and a
    sum over all tokens.
    """
    x, y = tokens()
    want = renamed(
        gradient(theirs, lambda: F.cross_entropy(theirs(x).logits.flatten(0, 1), y.flatten())), tied
    )
    got = gradient(ours, lambda: ours(x, y))
    assert want.keys() == got.keys()
    a, b = (flat(tensors[name] for name in sorted(want)) for tensors in (want, got))
    n = (
        2 * (SHAPE["hidden"] + SHAPE["width"] + SHAPE["width"] // SHAPE["heads"] + LENGTH + 16)
        + BATCH * LENGTH
    )
    bound = (
        2 * UNIT * n * gain(ours, lambda m: flat(g for _, g in sorted(gradient(m, lambda: m(x, y)).items())))
    )
    return ((a - b).norm() / a.norm()).item(), bound


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_logits_and_gradient_are_those_of_transformers(tied):
    theirs, ours = both(tied)
    for error, bound in (logits_error(theirs, ours), gradient_error(theirs, ours, tied)):
        assert error <= bound < 1e-3


class Tiled:
    """torch.nn.functional with shared heads repeated as a whole (0, 1, 0, 1) instead of each in turn (0, 0,
    1, 1).
    """

    def __getattr__(self, name):
        return getattr(F, name)

    def scaled_dot_product_attention(self, q, k, v, enable_gqa=False, **options):
        k, v = (t.repeat(1, q.shape[1] // t.shape[1], 1, 1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, **options)


def interleaved(x, cos, sin):
    a, b = x[..., ::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return torch.stack(
        (a * cos[:, :half] - b * sin[:, :half], b * cos[:, :half] + a * sin[:, :half]), dim=-1
    ).flatten(-2)


def swapped(self, x, cos=None, sin=None):
    x = self.ln(x)
    return self.proj(F.silu(self.up(x)) * self.gate(x))


MUTANTS = {
    "rotary sign flipped": (_architectures, "rotate", lambda x, cos, sin: rotate(x, cos, -sin)),
    "rotary pairs of neighbours": (_architectures, "rotate", interleaved),
    "rotary tables in bfloat16": (
        _architectures,
        "rotate",
        lambda x, cos, sin: rotate(x, cos.bfloat16().float(), sin.bfloat16().float()),
    ),
    "positions from one": (
        Rotary,
        "forward",
        lambda self, length, device, real=Rotary.forward: tuple(
            t.roll(1, 0) for t in real(self, length, device)
        ),
    ),
    "heads shared in the wrong order": (_architectures, "F", Tiled()),
    "gate and up swapped": (_architectures.SwiGLU, "forward", swapped),
    "halves side by side": (
        _architectures.LlamaBlock,
        "forward",
        lambda self, p, *args: self.attn(p, *args) + self.mlp(p),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_rejects(name, monkeypatch):
    theirs, ours = both()
    monkeypatch.setattr(*MUTANTS[name])
    for error, bound in (logits_error(theirs, ours), gradient_error(theirs, ours)):
        assert error > bound


@pytest.mark.parametrize("changes", [{"norm_eps": 1e-5}, {"rope_theta": 10000.0}], ids=str)
def test_the_comparison_rejects_options_that_do_not_arrive(changes):
    error, bound = logits_error(*both(**changes))
    assert error > bound


def test_the_comparison_rejects_a_gradient_that_stops(monkeypatch):
    """The rotation of the keys is right, but nothing comes back through it."""
    theirs, ours = both()
    monkeypatch.setattr(
        _architectures,
        "rotate",
        lambda x, cos, sin: rotate(x.detach() if x.shape[1] == SHAPE["kv_heads"] else x, cos, sin),
    )
    (values, value_bound), (gradients, gradient_bound) = (
        logits_error(theirs, ours),
        gradient_error(theirs, ours),
    )
    assert values <= value_bound and gradients > gradient_bound


def test_rotary_products_depend_on_the_distance_alone():
    rotary = Rotary(lm.LlamaConfig(**SHAPE))
    cos, sin = rotary(LENGTH, torch.device("cpu"))
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).expand(LENGTH, 2, 8).unbind(1)
    scores = rotate(q, cos, sin) @ rotate(k, cos, sin).T
    # Angles below LENGTH are off by LENGTH roundings at most, and the products of 8 terms by 8 more.
    bound = 4 * (LENGTH + 8) * UNIT * q[0].norm() * k[0].norm()
    for distance in range(LENGTH):
        diagonal = scores.diagonal(distance)
        assert (diagonal - diagonal[0]).abs().max() <= bound
    assert (scores[0] - scores[0, 0]).abs().max() > 100 * bound


def test_rotation_is_done_in_float32_and_returned_narrow():
    cos, sin = Rotary(lm.LlamaConfig(**SHAPE))(LENGTH, torch.device("cpu"))
    x = torch.randn(LENGTH, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = rotate(x, cos, sin)
    assert cos.dtype == sin.dtype == torch.float32 and torch.equal(
        got, rotate(x.float(), cos, sin).bfloat16()
    )
    assert not torch.equal(got, rotate(x, cos.bfloat16(), sin.bfloat16()))


def test_tables_stay_float32_in_a_model_of_narrow_weights():
    model, seen = lm.Llama(lm.LlamaConfig(**SHAPE), "blend:c=0.25").bfloat16(), []
    model.trunk.register_forward_pre_hook(lambda module, args: seen.extend(t.dtype for t in args))
    model(*tokens()).backward()
    assert seen == [torch.bfloat16, torch.float32, torch.float32] and model.trunk.report.exact
    assert not list(model.buffers())


def test_default_width_of_the_swiglu():
    """8/3 of the width, rounded up to a multiple of 64; three such matrices against the GPT's two of four
    times the width.
    """
    for width, hidden in ((24, 64), (192, 512), (776, 2112), (768, 2048), (4096, 10944)):
        assert lm.LlamaConfig(vocab=2, width=width, heads=4).mlp_width == hidden
    assert lm.LlamaConfig(vocab=2, width=64, heads=4, hidden=100).mlp_width == 100


@pytest.mark.parametrize("scheme", ["midpoint", "blend", "leapfrog", "hamiltonian", "midpoint_blend:a=0.5"])
def test_the_trunk_with_its_tables_passes_verify(scheme):
    """The stack's own checks, with the block arguments that the model hands through it."""
    model = lm.Llama(lm.LlamaConfig(**SHAPE), scheme)
    x, *tables = model._enter(tokens()[0])
    x = x.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = verify.reconstruction(model.trunk, x, *tables)
    assert found.ok, found
    found = verify.gradients(
        model.trunk, x, *tables, context=lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    assert found.ok, found
