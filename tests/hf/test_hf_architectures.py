"""Kinds of layers: what they return, take and do to their stream, and the halves Hamiltonian needs of them.

That a class of the mapping converts, or not, is test_hf_mapping.py's; here is what a kind means beyond it.
"""

import copy
import warnings

import mapping
import pytest
import torch
import transformers
from mapping import apart, build, tokens, trained
from tiny_config import LAYERS
from torch import nn

from revstep import UnsupportedError, hf
from revstep._models.layers import decoder_layers
from revstep.hf import _layer_steps
from revstep.hf.adapters import halves

C = 0.25
#: One or more of each: one-tuples, casts, factors, positions, two attentions, plain lists, other depths.
KINDS = "falcon_h1 mamba mamba2 falcon_mamba hy_v4 gemma4_text recurrent_gemma longcat_flash".split()
KINDS += "ctrl cpmant xlstm whisper".split()
KINDS = [name for name in KINDS if name in mapping.names()]  # of the installed transformers


def blended(model, **options):
    return hf.convert(model, f"blend:c={C}", start="repeat", calibration=tokens(), say=None, **options)


# ---- beyond one step of training in float32 ----


@pytest.mark.parametrize("name", [name for name in KINDS if name != "xlstm"])
def test_in_bfloat16(name):
    """Residuals in float32 between layers in bfloat16: rebuilt to the bit, and near float32's loss."""
    made = blended(build(name).to(torch.bfloat16))
    loss = made(input_ids=tokens(), labels=tokens()).loss
    loss.backward()
    assert hf.conversion(made).report.exact
    assert abs(float(loss) - float(trained(blended(build(name)))["loss"])) < 0.05 * float(loss)


@pytest.mark.parametrize("name", KINDS)
def test_all_graphs_kept_give_the_same_gradients(name):
    rebuilt, kept = (trained(blended(build(name), keep=keep)) for keep in (0, LAYERS))
    assert rebuilt.keys() == kept.keys() and all(torch.equal(g, kept[n]) for n, g in rebuilt.items())


@pytest.mark.parametrize("name", [name for name in KINDS if name != "whisper"])  # which does not do it alone
def test_generation_with_a_cache_as_without(name):
    made = blended(build(name)).eval()
    made.generation_config.eos_token_id = None
    options = {"max_new_tokens": 5, "do_sample": False}
    ids = tokens()[:, :5]
    with_cache, without = (made.generate(input_ids=ids, use_cache=used, **options) for used in (True, False))
    assert torch.equal(with_cache, without) and with_cache.shape[1] == 10


def test_positions_that_need_no_logits_go_through_all_layers(monkeypatch):
    """Gemma 4 drops them halfway, with a cache; the mutant lets it."""
    monkeypatch.setattr(_layer_steps.Conversion, "_whole", lambda self, kwargs: kwargs)
    with pytest.raises(UnsupportedError, match="changed the hidden state between decoder layers"):
        test_generation_with_a_cache_as_without("gemma4_text")


@pytest.mark.parametrize("name", ["falcon_h1", "gpt_neo", "bloom", "llama", "recurrent_gemma", "cpmant"])
@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
def test_a_layer_returns_what_its_own_forward_returns(name, scheme):
    if scheme == "hamiltonian" and name in ("falcon_h1", "recurrent_gemma", "cpmant"):
        pytest.skip("no adapter splits it")

    def seen(model):
        found = []

        def note(layer, args, out):
            found.append(len(out) if isinstance(out, tuple) else 0)

        handles = [layer.register_forward_hook(note) for layer in decoder_layers(model)[1]]
        model(input_ids=tokens(), use_cache=False)
        for handle in handles:
            handle.remove()
        return found

    model = build(name)
    plain = seen(model)
    assert seen(hf.convert(model, scheme, calibration=tokens(), say=None)) == plain


# ---- caches ----


@pytest.mark.parametrize("name", ["llama", "recurrent_gemma", "falcon_h1"])
def test_training_fills_no_cache_and_evaluation_does(name):
    made = blended(build(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        out = made(input_ids=tokens(), labels=tokens())
    assert getattr(out, "cache", None) is None
    out.loss.backward()
    assert hf.conversion(made).report.exact
    if name != "recurrent_gemma":  # whose cache is in its layers
        with torch.no_grad():
            out = made.eval()(input_ids=tokens(), use_cache=True)
            cache = out.cache if "cache" in out else out.past_key_values
            assert cache.get_seq_length() == tokens().shape[1]


def test_a_cache_that_is_asked_for_by_position_is_not_filled():
    """RecurrentGemma's layers get ``use_cache`` by position, and keep states where it is true."""
    made = blended(build("recurrent_gemma"))
    with pytest.warns(UserWarning, match="keeps no key-value cache while it trains"):
        made(input_ids=tokens(), labels=tokens(), use_cache=True).loss.backward()
    assert hf.conversion(made).report.exact


def test_names_of_positions():
    def drop(names, *args):
        return _layer_steps._without_cache((args, {}), 0, names, True)[0]

    cache = transformers.DynamicCache()
    with pytest.warns(UserWarning, match="keeps no key-value cache"):
        assert drop(("mask", "use_cache", "cache"), "m", True, cache) == ("m", False, None)
    assert drop(("mask", "use_cache"), "m", None) == ("m", None)
    assert drop(("mask", "causal"), "m", True) == ("m", True), "another argument that is true"


@pytest.mark.parametrize("key", ["activations", "hidden_states"])
def test_a_stream_by_its_name(key):
    """The model's loop may name the stream; of RecurrentGemma it is ``activations``."""
    name = {"activations": "recurrent_gemma", "hidden_states": "falcon_h1"}[key]

    names = (key, "position_ids", "attention_mask", "use_cache", "cache")

    def named(layer, args, kwargs):
        return (), {**dict(zip(names, args)), **kwargs}

    def by_name(model):
        for layer in decoder_layers(model)[1]:
            layer.register_forward_pre_hook(named, with_kwargs=True)
        return model

    assert apart(trained(blended(by_name(build(name)))), trained(blended(build(name)))) == 0.0


# ---- which list it is ----


def lists(config, **held):
    made = build("ctrl")
    for name, layers in held.items():
        setattr(made.transformer, name, nn.ModuleList(layers))
    vars(made.config).update(config)
    return made


def test_a_list_that_is_as_long_as_the_config_says():
    where, layers = decoder_layers(build("ctrl"))
    assert where == "transformer.h" and len(layers) == LAYERS
    shorter = lists({}, others=[nn.Linear(2, 2)] * 3)
    assert decoder_layers(shorter)[0] == "transformer.h", "another list of another length"
    mixed = lists({}, others=[nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh()])
    assert decoder_layers(mixed)[0] == "transformer.h", "another list, of several classes"
    with pytest.raises(UnsupportedError, match=r"several lists of layers, transformer\.h .*\.others"):
        decoder_layers(lists({}, others=[nn.Linear(2, 2) for _ in range(LAYERS)]))
    with pytest.raises(UnsupportedError, match=r"has no nn\.ModuleList .*as long as the config says \(3\)"):
        decoder_layers(lists({"n_layer": 3}))


@pytest.mark.parametrize("name, depth", [("whisper", 2), ("longcat_flash", 8)])
def test_a_depth_that_is_called_otherwise(name, depth):
    model = build(name)
    where, layers = decoder_layers(model)
    assert model.config.num_hidden_layers == depth and len(layers) == LAYERS
    del model.get_submodule(where)[-1]
    with pytest.raises(UnsupportedError, match=f"holds 3 layers, config.num_hidden_layers says {depth}"):
        decoder_layers(model)


def test_a_decoder_that_drops_layers():
    config = transformers.MBartConfig(
        vocab_size=96, d_model=32, decoder_layers=2, encoder_layers=2, decoder_attention_heads=4,
        decoder_ffn_dim=48, decoder_layerdrop=0.1, is_decoder=True,
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"config\.decoder_layerdrop is 0\.1: .*layerdrop=0\.0"):
        hf.convert(transformers.MBartForCausalLM(config), say=None)


# ---- encoders ----

SEES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
EYES = SEES | {"image_size": 28, "patch_size": 14}
READS = SEES | {"vocab_size": 96, "max_position_embeddings": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODERS = {
    "ViT": lambda t: t.ViTModel(t.ViTConfig(**EYES)),
    "DINO v2": lambda t: t.Dinov2Model(t.Dinov2Config(**EYES)),
    "DINO v3": lambda t: t.DINOv3ViTModel(t.DINOv3ViTConfig(**EYES)),
    "SigLIP": lambda t: t.SiglipVisionModel(t.SiglipVisionConfig(**EYES)),
    "CLIP's eye": lambda t: t.CLIPVisionModel(t.CLIPVisionConfig(**EYES)),
    "CLIP's text": lambda t: t.CLIPTextModel(t.CLIPTextConfig(**READS, **IDS)),
    "ModernBERT": lambda t: t.ModernBertModel(
        t.ModernBertConfig(**READS, cls_token_id=1, sep_token_id=2, **IDS)
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name):
    """Losses and gradients are the stored recurrence's, in float64."""
    torch.manual_seed(0)
    plain = ENCODERS[name](transformers).train()
    with torch.no_grad():
        for p in plain.parameters():
            p.mul_(3.0 if p.ndim > 1 else 1.0)
    reads = plain.main_input_name
    batch = {reads: tokens() if reads == "input_ids" else torch.randn(2, 3, 28, 28)}
    weights = torch.randn(32)

    def gradients(model, dtype):
        torch.manual_seed(0)  # DINO v3 draws its positions
        made = {n: t.to(dtype) if t.is_floating_point() else t for n, t in batch.items()}
        loss = (model(**made).last_hidden_state * weights.to(dtype)).mean()
        loss.backward()
        found = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
        return found | {"loss": loss.detach().double()}

    ours = hf.convert(copy.deepcopy(plain), f"blend:c={C}", start="repeat", calibration=batch, say=None)
    found = gradients(ours, torch.float32)
    assert hf.conversion(ours).report.exact and hf.conversion(ours).report.matched == 4

    def stored(c):
        exact = copy.deepcopy(plain).double()
        mapping.Stored(decoder_layers(exact)[1], c)
        return gradients(exact, torch.float64)

    assert apart(found, stored(C)) < 1e-4 and apart(found, stored(0.0)) > 5e-3


# ---- Hamiltonian's halves ----


def mlp(norm):
    return lambda layer, q: layer.mlp(getattr(layer, norm)(q))


#: By model type: the attention's module, and the second half written out.
HALVES = {
    "gpt_oss": ("self_attn", lambda layer, q: layer.mlp(layer.post_attention_layernorm(q))[0]),
    "bloom": (
        "self_attention",
        lambda layer, q: layer.mlp(layer.post_attention_layernorm(q), torch.zeros_like(q)),
    ),
    "gpt_neo": ("attn", mlp("ln_2")),
    "falcon": ("self_attention", mlp("input_layernorm")),
    "gpt_neox": ("attention", mlp("post_attention_layernorm")),
    "gptj": ("attn", mlp("ln_1")),
    "codegen": ("attn", mlp("ln_1")),
    "phi": ("self_attn", mlp("input_layernorm")),
    "cohere": ("self_attn", mlp("input_layernorm")),
}


class TwoStreams:
    """p' = p + F(q), q' = q + G(p'), stored: F is what the attention returned in the layer's own forward."""

    def __init__(self, name, layers):
        attention, self.second = HALVES[name]
        for i, layer in enumerate(layers):
            getattr(layer, attention).register_forward_hook(self._attended)
            layer.forward = self._step(i, layer, layer.forward, name == "bloom")

    def _attended(self, module, args, out):
        self.branch = out[0] if isinstance(out, tuple) else out

    def _step(self, i, layer, own, adds):
        def forward(*args, **kwargs):
            q, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            p = q if i == 0 else self.p
            out = own(q, *rest, **kwargs)
            self.p = p + (self.branch - q if adds else self.branch)
            y = q + self.second(layer, self.p)
            return (y, *out[1:]) if isinstance(out, tuple) else y

        return forward


def two_streams(name):
    for dtype in (torch.float64, torch.float32):  # the experts of gpt-oss are not for float64
        model = build(name).to(dtype)
        TwoStreams(name, decoder_layers(model)[1])
        try:
            return trained(model)
        except RuntimeError:
            assert dtype == torch.float64


@pytest.mark.parametrize("name", HALVES)
def test_halves(name):
    made = hf.convert(build(name), "hamiltonian", calibration=tokens(), say=None)
    found = trained(made)
    assert hf.conversion(made).report.exact and apart(found, two_streams(name)) < 1e-4
    assert apart(found, trained(build(name))) > 5e-3, "another network than the plain one"


@pytest.mark.parametrize("name", ["bloom", "gpt_oss", "falcon"])
def test_attention_weights_are_not_made_up(name):
    made = hf.convert(build(name), "hamiltonian", calibration=tokens(), say=None)
    out = made(input_ids=tokens())
    assert not out.attentions
    if name != "gpt_oss":  # which takes no such argument; its weights are seen by hooks on the attention
        with pytest.raises(UnsupportedError, match=r"output_attentions is on, .*leave it off, or use"):
            made(input_ids=tokens(), output_attentions=True)


HALVED_WRONGLY = {
    "what it adds to is not taken off": ("bloom", halves, "takes_residual", lambda module: False),
    "the tuple is passed on": (
        "gpt_oss",
        _layer_steps.Conversion,
        "_as_it_returns",
        lambda s, i, y, aux, a, k: (y, *aux),
    ),
    "the tuple is lost": ("gpt_neo", _layer_steps.Conversion, "_as_it_returns", lambda s, i, y, aux, a, k: y),
    "one after the other": ("falcon", halves.ParallelBlock, "parallel", False),
    "a norm too many": ("gpt_neox", halves, "LAYOUTS", ()),
}


@pytest.mark.parametrize("mutant", HALVED_WRONGLY)
def test_halves_that_are_wrong_are_seen(mutant, monkeypatch):
    name, where, attribute, value = HALVED_WRONGLY[mutant]
    if attribute == "LAYOUTS":
        wrong = ((("input_layernorm", "attention"), ("input_layernorm", "mlp")), *halves.LAYOUTS)
        where, attribute, value = halves.Parallel, "layouts", wrong
    monkeypatch.setattr(where, attribute, value)
    with pytest.raises((UnsupportedError, AttributeError, TypeError)):
        trained(hf.convert(build(name), "hamiltonian", calibration=tokens(), say=None))


def test_two_of_each_are_no_half():
    with pytest.raises(UnsupportedError, match=r"no adapter splits LongcatFlashDecoderLayer .*llama needs"):
        hf.convert(build("longcat_flash"), "hamiltonian", say=None)


def test_a_second_half_that_returns_another_sum():
    class Norm(nn.Module):
        def forward(self, x, residual):
            return torch.tanh(x + residual)

    layer = nn.Module()
    layer.mlp = Norm()
    with pytest.raises(UnsupportedError, match="Norm takes the residual stream and returns something else"):
        halves.SecondHalf(layer, ("mlp",))(torch.ones(1, 2, 3))
