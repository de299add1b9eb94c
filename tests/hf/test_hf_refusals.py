"""What cannot be converted or run is refused in words that name what is missing."""

import pytest
import torch
import transformers
from models import LAYERS, VOCAB, WIDTH, converted, encoder_of_sounds, gradients, model, tokens
from torch import nn

import revstep
from revstep import ConfigError, UnsupportedError, hf
from revstep._models.layers import decoder_layers

TINY = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
T5 = {"vocab_size": VOCAB, "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


def encoder_decoder():
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))


def bert():
    return transformers.BertLMHeadModel(transformers.BertConfig(**TINY, is_decoder=True))


def two_stacks():
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=TINY | {"projection_dim": 8},
            vision_config=TINY | {"image_size": 8, "patch_size": 4, "projection_dim": 8},
        )
    )


def vision_and_text():
    """Two lists of the same length in what the config calls its text model."""
    made = model("Llama")
    made.model.more = nn.ModuleList(model("Llama").model.layers)
    return made


def without_layers():
    class Flat(transformers.PreTrainedModel):
        config_class = transformers.GPT2Config

        def __init__(self, config):
            super().__init__(config)
            self.lm_head = nn.Linear(4, 4)

    return Flat(transformers.GPT2Config())


def one_layer_left_out():
    made = model("Llama")
    made.config.num_hidden_layers = LAYERS - 1
    return made


def scaled_stream():
    """A layer that halves its stream: not x plus its branches."""
    made = model("Llama")
    layer = decoder_layers(made)[1][2]
    own = layer.forward
    layer.forward = lambda x, *args, **kwargs: own(x, *args, **kwargs) * 0.5
    return made


def falcon_with_dropout():
    sizes = {name: value for name, value in TINY.items() if name != "intermediate_size"}
    return transformers.FalconForCausalLM(transformers.FalconConfig(**sizes, hidden_dropout=0.1))


def in_another_order():
    made = model("Llama")
    made.model.layers = nn.ModuleList([made.model.layers[0]] * LAYERS)
    return made


REFUSED = {
    "no transformers model": (
        lambda: nn.Linear(2, 2),
        {},
        ConfigError,
        r"got Linear, expected a transformers model",
    ),
    "encoder-decoder": (
        encoder_decoder,
        {},
        UnsupportedError,
        r"T5ForConditionalGeneration is an encoder-decoder",
    ),
    "post-norm BERT": (bert, {}, UnsupportedError, r"BertLayer.*(post-norm|differ)"),
    "post-norm OPT": (
        lambda: model("OPT", do_layer_norm_before=False),
        {},
        UnsupportedError,
        r"OPTDecoderLayer .*post-norm.*adapter='difference'",
    ),
    "no layers": (
        without_layers,
        {},
        UnsupportedError,
        r"Flat has no nn\.ModuleList of decoder layers: looked for",
    ),
    "two stacks": (two_stacks, {}, UnsupportedError, r"CLIPModel does not run on token ids alone"),
    "layers left out": (
        one_layer_left_out,
        {},
        UnsupportedError,
        r"holds 4 layers, config\.num_hidden_layers says 3",
    ),
    "layers dropped at random": (
        lambda: model("OPT", layerdrop=0.1),
        {},
        UnsupportedError,
        r"config\.layerdrop is 0\.1: .*load it with layerdrop=0\.0",
    ),
    "layers of an encoder alone dropped at random": (
        lambda: encoder_of_sounds(encoder_layerdrop=0.1),
        {},
        UnsupportedError,
        r"config\.encoder_layerdrop is 0\.1: .*load it with encoder_layerdrop=0\.0",
    ),
    "scaled stream": (
        scaled_stream,
        {},
        UnsupportedError,
        r"LlamaDecoderLayer does not return its input plus",
    ),
    "one layer at several depths": (
        in_another_order,
        {},
        UnsupportedError,
        r"called its layers as .*expected each of the 4 once|several depths",
    ),
    "two streams, a dropout that is no module": (
        falcon_with_dropout,
        {"scheme": "hamiltonian"},
        UnsupportedError,
        r"parallel does not apply config\.hidden_dropout, which is 0\.1: set it to 0\.0",
    ),
    "two streams, OPT": (
        lambda: model("OPT"),
        {"scheme": "hamiltonian"},
        UnsupportedError,
        (
            r"no adapter splits OPTDecoderLayer for two streams: gpt2 needs the module\(s\) ln_2, mlp; .*one"
            r" stream such as Blend"
        ),
    ),
    "unknown adapter": (
        lambda: model(),
        {"adapter": "magic"},
        ConfigError,
        r"unknown adapter 'magic', expected one of branches, difference, gpt2",
    ),
    "adapter of the other kind": (
        lambda: model(),
        {"adapter": "llama"},
        ConfigError,
        r"'llama' makes blocks for 2 stream\(s\), the scheme needs 1",
    ),
    "unknown scheme": (lambda: model(), {"scheme": "magic"}, ConfigError, r"magic.*blend"),
    "no scheme": (lambda: model(), {"scheme": 3}, ConfigError, r"scheme is 3, expected"),
    "several stacks": (vision_and_text, {}, UnsupportedError, r"several lists of layers, "),
    "unknown state": (lambda: model(), {"state": "fixed7"}, ConfigError, r"fixed7"),
    "bits of a named scheme": (
        lambda: model(),
        {"bits": 3},
        ConfigError,
        r"bits is 3, and the scheme is .*auto",
    ),
    "bits out of range": (
        lambda: model(),
        {"scheme": "auto", "bits": 9},
        ConfigError,
        r"bits is 9, expected .*1 to 8",
    ),
    "keep too large": (
        lambda: model(),
        {"keep": LAYERS + 1},
        ConfigError,
        r"keep is 5, expected an integer from 0 to 4",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_conversion(case):
    make, options, error, message = REFUSED[case]
    plain = make()
    with pytest.raises(error, match=message):
        hf.convert(plain, **{"scheme": "blend:c=0.25"} | options, say=None)
    forwards = [m.__dict__.get("forward") for m in plain.modules()]
    assert not any(type(f).__module__.startswith("revstep") for f in forwards if f) and not hasattr(
        getattr(plain, "config", None), "revstep"
    )


def test_an_option_that_does_not_exist():
    with pytest.raises(TypeError, match="kep"):
        hf.convert(model(), "blend:c=0.25", kep=1)


def test_a_scheme_that_is_not_the_packages_own_speaks_for_itself():
    made = hf.convert(model(), revstep.Blend(c=0.5), state=revstep.FixedPoint(64, 20), say=None)
    assert hf.conversion(made).scheme == revstep.Blend(c=0.5) and hf.conversion(
        made
    ).state == revstep.FixedPoint(64, 20)


# ---- running ----


@pytest.mark.parametrize("family", ["Llama", "GPT2LMHeadModel"])
def test_a_filled_cache_with_gradients(family):
    made = converted(family)
    with torch.no_grad():
        cache = made(input_ids=tokens(), use_cache=True).past_key_values
    made.train()
    with pytest.raises(UnsupportedError, match=r"filled key-value cache \(prefix tuning\)"):
        made(input_ids=tokens(seed=2), past_key_values=cache)
    gradients(made)


def test_prefix_tuning():
    peft = pytest.importorskip("peft")
    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    made = peft.get_peft_model(converted("Llama"), peft.PrefixTuningConfig(**options)).train()
    with pytest.raises(UnsupportedError, match="prefix tuning"):
        made(input_ids=tokens(), labels=tokens())
    with torch.no_grad():
        made(input_ids=tokens())
    stored = peft.get_peft_model(
        converted("Llama", convert={"keep": LAYERS}), peft.PrefixTuningConfig(**options)
    ).train()
    stored(input_ids=tokens(), labels=tokens()).loss.backward()
    assert stored.prompt_encoder["default"].embedding.weight.grad.any(), (
        "who keeps everything may have a prefix"
    )


def test_layers_alone_and_out_of_order():
    made = converted("GPT2LMHeadModel")
    layers, x = decoder_layers(made)[1], torch.randn(1, 3, WIDTH)
    with pytest.raises(
        UnsupportedError, match=r"layer 2 was called after layer none: .*runs all its layers in order"
    ):
        layers[2](x)
    view = layers[0](x)
    with pytest.raises(UnsupportedError, match="layer 2 was called after layer 0"):
        layers[2](view)
    with pytest.raises(UnsupportedError, match="layer 1 was called after layer none"):
        layers[1](view)
    gradients(made.train())


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x.clone()], ids=["added", "copied"])
def test_a_state_changed_between_layers(change):
    made = converted("GPT2LMHeadModel")
    layers = decoder_layers(made)[1]
    handle = layers[1].register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
    with pytest.raises(UnsupportedError, match="changed the hidden state between decoder layers 0 and 1"):
        gradients(made.train())
    handle.remove()
    gradients(made)


# ---- the way round that the messages name ----


@pytest.mark.parametrize("case", ["post-norm BERT", "post-norm OPT", "scaled stream"])
def test_difference_serves_what_branches_refuses(case):
    made = [
        hf.convert(REFUSED[case][0](), "blend:c=0.25", adapter="difference", keep=keep, say=None)
        for keep in (0, 2)
    ]
    made[1].load_state_dict(made[0].state_dict())
    grads = [gradients(m.train(), seed=1) for m in made]
    layers = len(decoder_layers(made[0])[1])
    if case != "post-norm BERT":  # BERT has dropout: its own masks are drawn by kept layers in the same order
        assert hf.conversion(made[0]).report.matched == layers
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0] if grads[0][n] is not None)
    plain = REFUSED[case][0]()
    plain.load_state_dict(made[0].state_dict())
    near = hf.convert(REFUSED[case][0](), f"blend:c={2.0**-8}", adapter="difference", say=None)
    near.load_state_dict(plain.state_dict())
    with torch.no_grad():
        a, b, c = (m.eval()(input_ids=tokens(), use_cache=False).logits for m in (plain, near, made[0]))
    assert (a - b).abs().max() < 0.1 * (a - c).abs().max()
