"""The option tile of a converted model: which modules it takes, the gradients, adapters, experts, folders."""

import contextlib
import copy
import functools

import pytest

pytest.importorskip("transformers")
import torch
import transformers
from models import VOCAB, converted, model
from torch import nn

import revstep
from revstep import hf
from revstep.errors import FallbackWarning
from revstep.hf import _tokenwise
from revstep.stack import _fitting, _tiles

TILE = 5


def ids():
    return torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))


def gradients(model, **more):
    model.train()
    torch.manual_seed(3)
    loss = model(input_ids=ids(), labels=ids(), use_cache=False, **more).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


def close(found, expected):
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b is not None]
    assert pairs and all((a - b).abs().max() <= 1e-5 * max(1e-3, float(b.abs().max())) for a, b in pairs)


@pytest.fixture
def again(monkeypatch):
    """How many tokenwise halves were evaluated a second time, for their gradient came late."""
    calls, original = [], _tiles.Call.again
    monkeypatch.setattr(_tiles.Call, "again", lambda self, x, g: (calls.append(1), original(self, x, g)))
    return calls


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
@pytest.mark.parametrize(
    "name, late", [("GPT2LMHeadModel", 0), ("Llama", 0), ("Qwen3", 0), ("GPTNeoX", 0), ("Gemma3", 4)]
)
def test_gradients_are_those_of_whole_mlps(name, late, scheme, again):
    made = converted(name, scheme, convert={"tile": TILE})
    found = gradients(made)
    assert len(again) == late and hf.conversion(made).report.exact
    del again[:]
    close(found, gradients(converted(name, scheme)))
    assert not again


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_experts_are_taken_by_tiles(kind, again, monkeypatch):
    seen, sweep = [], _tiles.Call._sweep
    monkeypatch.setattr(
        _tiles.Call, "_sweep", lambda self, *a: (seen.append(type(self.module).__name__), sweep(self, *a))[1]
    )
    close(gradients(experts(kind, tile=TILE)), gradients(experts(kind)))
    assert len(set(seen)) == 1 and "Moe" in seen[0] and not again


def experts(kind, **options):
    torch.manual_seed(0)
    more = {"num_local_experts": 4} if kind == "Mixtral" else {"num_experts": 4, "moe_intermediate_size": 16}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_experts_per_tok=2, **more,
    )  # fmt: skip
    made = transformers.AutoModelForCausalLM.from_config(config)
    return hf.convert(made, "blend:c=0.125", calibration=ids(), say=None, **options)


def test_recorded_router_logits_are_refused():
    with pytest.raises(
        revstep.UnsupportedError, match=r"router_logits are recorded .*output_router_logits=False"
    ):
        gradients(experts("Mixtral", tile=TILE), output_router_logits=True)
    gradients(experts("Mixtral"), output_router_logits=True)


def test_lora_under_tiles(again):
    def adapted(**options):
        made = model("Llama")
        torch.manual_seed(0)
        made = hf.add_lora(made, 4, targets="all-linear")
        for name, p in made.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.05)
        return hf.convert(made, "blend:c=0.125", calibration=ids(), say=None, **options)

    found = gradients(adapted(tile=TILE))
    assert not again and len(found) == 1 + 2 * 7 * 4
    close(found, gradients(adapted()))


def test_saved_and_loaded_and_reverted(tmp_path):
    made = converted("Llama", convert={"tile": TILE})
    expected = gradients(made)
    made.save_pretrained(tmp_path)
    loaded = hf.from_pretrained(tmp_path)
    assert hf.conversion(loaded).stack.tile == TILE
    close(gradients(loaded), expected)
    close(
        gradients(copy.deepcopy(loaded).requires_grad_()),
        gradients(converted("Llama", convert={"tile": TILE})),
    )
    hf.revert(made)
    assert not any("forward" in vars(m) for m in made.modules())


def test_a_layer_without_an_mlp_of_its_own_is_named():
    with pytest.raises(
        revstep.UnsupportedError, match=r"OPTDecoderLayer has no MLP .*looked at OPTAttention"
    ):
        converted("OPT", convert={"tile": TILE})


# ---- the trial sees what is not tokenwise ----


class Mixes(nn.Module):
    """Each token reads the one before it."""

    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.how = nn.Linear(8, 8), nn.Linear(8, 8), how

    def forward(self, x):
        return self.second(self.how(self.first(x)))


HOW = {
    "the token before": (lambda x: x + x.roll(1, -2), False),
    "a mean over tokens": (lambda x: x - x.mean(-2, keepdim=True), False),
    "the position": (lambda x: x * torch.arange(1, x.shape[-2] + 1)[:, None], False),
    "its own features": (torch.tanh, True),
}


@pytest.mark.parametrize("how", HOW)
def test_what_mixes_tokens_is_seen(how):
    mixes, alone = HOW[how]
    torch.manual_seed(0)
    layer = nn.Sequential(Mixes(mixes))
    candidates = _tokenwise.Candidates([layer])
    with candidates.watched():
        layer(torch.randn(2, 5, 8))
    if alone:
        candidates.declare()
        assert _tiles.declared(layer) == [layer[0]]
    else:
        with pytest.raises(revstep.UnsupportedError, match="looked at Mixes"):
            candidates.declare()


def test_mutant_that_believes_everything(monkeypatch):
    monkeypatch.setattr(_tokenwise, "_is_tokenwise", lambda *_: True)
    with pytest.raises(pytest.fail.Exception):
        test_what_mixes_tokens_is_seen("the token before")


@pytest.mark.parametrize("budget, tile", [(1 << 40, None), (1000, TILE)])
def test_a_budget_chooses_the_tiles_of_a_converted_model(budget, tile, monkeypatch):
    """Where it holds a layer's graph every graph is kept, and where it does not the MLPs go by tiles."""
    monkeypatch.setattr(_fitting, "TILES", (TILE,))
    said = pytest.warns(FallbackWarning) if tile else contextlib.nullcontext()
    made = converted("Llama", "blend", convert={"keep": "auto", "memory_budget": budget, "tile": "auto"})
    with said:  # not even tiles of this model hold so little
        found = gradients(made)
    same = gradients(
        converted("Llama", "blend", convert={"tile": tile} if tile else {"keep": len(made.model.layers)})
    )
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(found, same, strict=True))


# ---- what would compute something else of a tile ----


def hooked(mlp):
    mlp.act_fn.register_forward_hook(lambda module, args, out: out * 0.5)


def before(mlp):
    mlp.down_proj.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))


def spectral(mlp):
    nn.utils.parametrizations.spectral_norm(mlp.up_proj)


def normed(mlp):
    mlp.act_fn = nn.BatchNorm1d(1)  # never called: it is refused for being there


@pytest.mark.parametrize(
    "change, words",
    [
        (hooked, "act_fn in it has a forward hook"),
        (before, "down_proj in it has a forward hook"),
        (spectral, "moves statistics on in every evaluation"),
        (normed, r"act_fn \(BatchNorm1d\) moves statistics"),
    ],
)
def test_what_looks_at_all_tokens_is_refused(change, words):
    made = hf.convert(model("Llama"), "blend", tile=TILE, say=None)
    for layer in hf.conversion(made).layers:
        change(layer.mlp)
    with pytest.raises(revstep.UnsupportedError, match=f"LlamaMLP is taken by tiles, and .*{words}"):
        gradients(made)


def test_a_hook_on_the_mlp_itself_sees_all_tokens():
    found = []
    for tile in (None, TILE):
        made = hf.convert(model("Llama"), "blend", tile=tile, say=None)
        for layer in hf.conversion(made).layers:
            layer.mlp.register_forward_hook(lambda module, args, out: out.cumsum(-2) * 0.1)
        found.append(gradients(made))
    close(*found)


def test_revert_takes_back_what_convert_declared():
    made = model("Llama")
    own = made.model.layers[0].mlp
    own.tokenwise = False
    with pytest.raises(revstep.UnsupportedError, match="no MLP"):
        hf.convert(_none_of_them(made), "blend", tile=TILE, say=None)
    hf.convert(made, "blend", tile=TILE, say=None)
    assert own.tokenwise is False, "the user's word stands"
    assert all(layer.mlp.tokenwise for layer in made.model.layers[1:])
    hf.revert(made)
    assert own.tokenwise is False and not any(hasattr(x.mlp, "tokenwise") for x in made.model.layers[1:])
    for layer in made.model.layers:  # now they mix tokens, and are looked at anew
        layer.mlp.forward = functools.partial(_mixing, layer.mlp)
    with pytest.raises(revstep.UnsupportedError, match="no MLP that could be taken by tiles"):
        hf.convert(made, "blend", tile=TILE, say=None)


def _mixing(mlp, x):
    return type(mlp).forward(mlp, x).cumsum(-2)


def _none_of_them(made):
    found = copy.deepcopy(made)
    for layer in found.model.layers:
        layer.mlp.tokenwise = False
    return found
