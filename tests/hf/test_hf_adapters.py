"""Adapters: found in their folder, chosen by what a layer has, a user's own taken, and a wrong split rejected
before anything runs.
"""

import pytest
import torch
from models import FAMILIES, LAYERS, MODELS, converted, differing, gradients, model, tokens

from revstep import ConfigError, UnsupportedError, hf
from revstep._models.layers import decoder_layers
from revstep.hf.adapters import Adapter, available, choose
from revstep.hf.adapters._base import LayerBlock
from revstep.hf.adapters.halves import Llama, SecondHalf, SplitAdapter, SplitBlock
from revstep.stack._stream import Stream

TWO_STREAMS = {
    "GPT2LMHeadModel": "gpt2",
    "GPTNeoX": "neox",
    "Gemma2": "sandwich",
    "Gemma3": "sandwich",
    "OPT": None,
}


def test_the_registry_is_the_folder():
    found = available()
    assert set(found) == set("branches difference gpt2 llama mixtral neox parallel sandwich".split())
    assert all(issubclass(cls, Adapter) and cls.name == name and cls.__doc__ for name, cls in found.items())
    assert [name for name, cls in found.items() if cls.fallback] == ["difference"]
    found.clear()
    assert available(), "a copy is handed out"


@pytest.mark.parametrize("family", MODELS)
def test_the_choice(family):
    layers = decoder_layers(model(family))[1]
    assert choose(layers, 1).name == "branches"
    two = TWO_STREAMS.get(family, "llama")
    if two is None:
        with pytest.raises(UnsupportedError, match="pass an adapter of your own"):
            choose(layers, 2)
    else:
        assert choose(layers, 2).name == two


def test_every_layer_is_asked():
    layers = decoder_layers(model("Llama"))[1]
    del layers[3].mlp
    with pytest.raises(UnsupportedError, match=r"llama needs the module\(s\) mlp"):
        choose(layers, 2)


@pytest.mark.parametrize("body", [{}, {"name": 3}, {"name": "x", "streams": 3}], ids=str)
def test_an_adapter_says_what_it_is(body):
    with pytest.raises(ConfigError, match="must define `name`"):
        type("Broken", (Adapter,), body)


# ---- increments ----


@pytest.mark.parametrize("family", MODELS)
def test_increments_are_the_branches(family):
    """x + f(x) is the layer's output, and f is not layer(x) - x: at a stream 2^16 times the branch that
    difference has lost its low bits.

    f from the branches equals the float64 layer's increment to float32's rounding of the branch; the
    difference only to that of the stream.
    """
    made, exact = model(family, experts="eager"), model(family, experts="eager", dtype=torch.float64)
    layer, true = decoder_layers(made)[1][1], decoder_layers(exact)[1][1]
    given = {}

    def looking(_, args, kwargs):
        given["args"], given["kwargs"] = args, kwargs

    layer.register_forward_pre_hook(looking, with_kwargs=True)
    with torch.no_grad():
        made(input_ids=tokens(), use_cache=False)
        x = given["args"][0] * 2.0**12
        args, kwargs = given["args"][1:], given["kwargs"]
        block = available()["branches"]().block(layer, layer.forward)
        by_branches, by_difference = block(x, *args, **kwargs), layer.forward(x, *args, **kwargs) - x
        wide = {
            k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            for k, v in kwargs.items()
        }
        wide |= (
            {"position_embeddings": tuple(t.double() for t in kwargs["position_embeddings"])}
            if "position_embeddings" in kwargs
            else {}
        )
        f = available()["branches"]().block(true, true.forward)(x.double(), *args, **wide)
    errors = [float((g.double() - f).abs().max()) for g in (by_branches, by_difference)]
    stream = torch.finfo(torch.float32).eps * float(x.abs().max())
    assert (
        errors[0] < 0.25 * errors[1]
        and errors[1] <= 4 * stream
        and float(f.abs().max()) < 2.0**-2 * float(x.abs().max())
    )


class Half(LayerBlock):
    """A user's own block."""

    def forward(self, x, *args, **kwargs):
        out = self.own_forward(Stream.of(x), *args, **kwargs)
        return out.delta


class Mine(Adapter):
    """A user's adapter, not in the package."""

    name = "mine"

    def missing(self, layer):
        return "" if hasattr(layer, "self_attn") else "mine needs self_attn"

    def block(self, layer, forward):
        return Half(layer, forward)


def test_a_users_own(tmp_path):
    made = hf.convert(model("Llama"), "blend:c=0.25", adapter=Mine(), say=None).train()
    assert (
        hf.conversion(made).adapter.name == "mine"
        and differing(gradients(made), gradients(converted("Llama").train())) == []
    )
    with pytest.raises(UnsupportedError, match="mine needs self_attn"):
        hf.convert(model("GPT2LMHeadModel"), "blend:c=0.25", adapter=Mine(), say=None)
    with pytest.raises(ConfigError, match=r"'mine' makes blocks for 1 stream\(s\), the scheme needs 2"):
        hf.convert(model("Llama"), "hamiltonian", adapter=Mine(), say=None)
    made.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown adapter 'mine'"):
        hf.from_pretrained(tmp_path)
    again = hf.from_pretrained(tmp_path, adapter=Mine())
    assert differing(gradients(again.train()), gradients(made)) == []


def test_a_users_own_split():
    """OPT, which no adapter of the package splits."""

    class Fully(SecondHalf):
        def forward(self, x, *args, **kwargs):
            layer = self.layer
            return layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))

    class Opt(SplitAdapter):
        name = "opt"
        second = ("final_layer_norm", "fc1", "fc2")

        def block(self, layer, forward):
            return SplitBlock(super().block(layer, forward).first, Fully(layer, self.second))

    made = [
        hf.convert(model("OPT"), "hamiltonian", adapter=Opt(), keep=keep, say=None).train()
        for keep in (0, LAYERS)
    ]
    assert differing(*(gradients(m) for m in made)) == [] and hf.conversion(made[0]).report.exact


# ---- what the probe rejects ----


class WithoutNorm(Llama):
    second = ("mlp",)


class Twice(Llama):
    second = ("post_attention_layernorm", "mlp", "mlp")


class Swapped(Llama):
    second = ("mlp", "post_attention_layernorm")


class SecondTwice(Llama):
    def block(self, layer, forward):
        made = super().block(layer, forward)
        return SplitBlock(made.second, made.second)


@pytest.mark.parametrize("wrong", [WithoutNorm, Twice, Swapped, SecondTwice])
def test_a_wrong_split(wrong):
    with pytest.raises(
        UnsupportedError,
        match=r"LlamaDecoderLayer and its SplitBlock differ: \|x \+ f\(x\) - layer\(x\)\| is",
    ):
        hf.convert(model("Llama"), "hamiltonian", adapter=wrong(), say=None)


def test_one_layer_that_differs_is_enough():
    made = model("Llama")
    layer = decoder_layers(made)[1][2]
    layer.mlp.register_forward_hook(lambda _, args, out: out * 1.0)  # harmless
    hf.revert(hf.convert(made, "hamiltonian", say=None))
    own = layer.forward
    layer.forward = lambda x, *args, **kwargs: own(x, *args, **kwargs) + 0.01 * x.mean()
    with pytest.raises(UnsupportedError):
        hf.convert(made, "hamiltonian", say=None)


def test_a_stream_that_loses_one_addition(monkeypatch):
    """Only the last branch is remembered."""
    own = Stream.__torch_function__.__func__

    def losing(cls, func, types, args=(), kwargs=None):
        stream = next((a for a in args if isinstance(a, Stream)), None)
        if (
            stream is not None
            and getattr(stream, "delta", None) is not None
            and func in (torch.Tensor.add, torch.Tensor.__add__, torch.add)
        ):
            stream = Stream.of(stream.value, None, stream.stop)
            args = tuple(stream if isinstance(a, Stream) else a for a in args)
        return own(cls, func, types, args, kwargs or {})

    monkeypatch.setattr(Stream, "__torch_function__", classmethod(losing))
    for family in ("Llama", "GPT2LMHeadModel"):
        with pytest.raises(UnsupportedError, match="BranchesBlock differ"):
            hf.convert(model(family), "blend:c=0.25", say=None)


# ---- the stream ----


def test_what_a_stream_remembers():
    x, a, b = torch.randn(3, 2, 4).unbind()
    s = Stream.of(x)
    assert s.delta is None and torch.equal(s.value, x)
    for added in (
        s + a + b,
        b + (a + s),
        torch.add(torch.add(s, a), b),
        (s + a).add(b),
        (s + a).view(4, 2).reshape(2, 4) + b,
    ):
        assert (
            isinstance(added, Stream)
            and torch.equal(added.delta, a + b)
            and torch.equal(added.value, (x + a) + b)
        )
    s += a
    assert torch.equal(s.delta, a)
    normed, cast = torch.nn.functional.layer_norm(s, (4,)), s.to(torch.int64)
    for read in (s * 2, s - a, torch.add(s, a, alpha=2), normed, s + s, s + 1.0, cast, s[0]):
        assert not hasattr(read, "delta") or type(read) is torch.Tensor
    assert type(torch.nn.functional.linear(s, torch.eye(4))) is torch.Tensor, (
        "what reads the stream is an ordinary tensor"
    )


def test_a_stream_is_differentiated_like_its_value():
    x, w = torch.randn(2, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    out = Stream.of(x) + torch.nn.functional.linear(Stream.of(x), w).tanh()
    plain = torch.nn.functional.linear(x, w).tanh()
    for ours, theirs in zip(
        torch.autograd.grad(out.delta.sum(), (x, w)), torch.autograd.grad(plain.sum(), (x, w))
    ):
        assert torch.equal(ours, theirs)


def test_all_families_are_asked():
    assert set(MODELS) == set(FAMILIES)
