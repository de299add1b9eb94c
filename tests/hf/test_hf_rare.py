"""What conversion answers where models are unlike those that are trained by thousands: its refusals, and
the branches that keep a rare layer right.
"""

import copy
import inspect
import sys

import pytest
import torch
import transformers
from models import LAYERS, WIDTH, converted, differing, model, tokens
from torch import nn

from revstep import ConfigError, UnsupportedError, hf
from revstep._models import layers as model_layers
from revstep.hf import (
    _auto,
    _calibrate,
    _convert,
    _dial,
    _finetune,
    _forwards,
    _install,
    _lazy,
    _loss,
    _probe,
    _sources,
    _tokenwise,
    _whole,
)
from revstep.hf.adapters import halves


def test_what_is_read_is_the_last_state():
    with pytest.raises(ConfigError, match="readout is 'pair', expected 'last'"):
        hf.convert(model(), "blend", readout="pair", say=None)


def test_batches_of_another_form_are_not_put_together():
    ids = torch.zeros(1, 4, dtype=torch.int64)
    rows = {"input_ids": ids, "attention_mask": ids}
    assert _auto._joins(rows, rows)
    assert not _auto._joins(rows, {"input_ids": ids})
    assert not _auto._joins(rows, rows | {"attention_mask": torch.zeros(1, 1, 4, 4)})
    assert not _auto._joins(rows, {name: torch.zeros(1, 5, dtype=torch.int64) for name in rows})


def test_a_loss_is_of_a_model_that_predicts_tokens():
    encoder = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
    )
    with pytest.raises(ConfigError, match=r"BertModel has no next-token loss here.*name a scheme instead"):
        _calibrate.mean_loss(encoder, [{"input_ids": tokens()}])
    with pytest.raises(ConfigError, match="batches without input_ids"):
        _calibrate.mean_loss(model(), [{"inputs_embeds": torch.zeros(1, 2, WIDTH)}])


def test_a_folder_without_a_class_holds_a_causal_language_model():
    assert _convert._class(transformers, transformers.LlamaConfig()) is transformers.AutoModelForCausalLM


def test_the_dial_says_how_long_it_will_take(monkeypatch):
    clock = iter(range(0, 10_000, 11))
    monkeypatch.setattr(_dial.time, "monotonic", lambda: next(clock))
    said = []
    hf.convert(model(), calibration=tokens(2, 24), say=said.append, tolerance=9.0, loss_tolerance=9.0)
    told = [line for line in said if line.startswith("the dial: ")]
    assert told[0] == f"the dial: 2 of {2 * LAYERS} passes, {22 / 2 * (2 * LAYERS - 2):.0f} s left"


def test_the_dial_wants_logits_of_every_token():
    made = model()
    dial = object.__new__(_dial.Trials)
    dial.model = made
    made.register_forward_hook(lambda m, args, out: out.__setitem__("logits", out.logits[:, -1]))
    with pytest.raises(ConfigError, match=r"gives logits of shape \(2, 96\), expected one row a token"):
        dial._logits({"input_ids": tokens()})


def test_settings_that_transformers_refuses(tmp_path, monkeypatch):
    def refuse(**options):
        raise ValueError("no such device\nand more")

    monkeypatch.setattr(transformers, "TrainingArguments", refuse)
    with pytest.raises(ConfigError, match="transformers refuses these settings: no such device"):
        _finetune._arguments(transformers, hf.FineTune(out=str(tmp_path), steps=1, device="cpu"))


class Compiled(nn.Module):
    """Its class's forward is no Python function, as in a module written in C."""

    forward = property(lambda self: None)


def test_a_forward_without_a_signature_takes_nothing_by_position():
    assert _forwards.parameters_of(Compiled()) == ()
    assert _forwards.parameters_of(nn.Linear(1, 1)) == ("input",)


def test_the_loop_has_the_signature_of_the_forward_it_replaces():
    """A Trainer drops the columns of a dataset that the model's forward does not name."""
    plain, made = model(), converted()
    found = inspect.signature(made.model.forward)
    assert found.parameters.keys() == inspect.signature(plain.model.forward).parameters.keys()


def test_sharded_layers_are_refused(monkeypatch):
    monkeypatch.setattr(_install, "ungathered", lambda layer: True)
    made = model()
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(UnsupportedError, match=r"sharded already.*convert the model first"):
        hf.convert(made, "blend:c=0.25", say=None)
    assert hf.conversion(made) is None and differing(made.state_dict(), before) == []


def test_lazy_logits_below_the_subclass_are_computed():
    """An operator that is called past ``__torch_function__`` gets the values."""
    hidden, weight = torch.randn(2, 3), torch.randn(4, 3)
    z = _lazy.lazy_logits(hidden, weight, None)
    assert not z.requires_grad and isinstance(z.double(), _lazy.LazyLogits)
    with torch._C.DisableTorchFunctionSubclass():
        got = torch.ops.aten.add.Tensor(z, z)
    assert type(got) is torch.Tensor and torch.equal(got, 2 * (hidden @ weight.T))


@pytest.mark.parametrize("change", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_an_embedding_with_a_gradient_of_its_own_is_not_looked_up_late(change):
    embedding = nn.Embedding(4, 3, **change)
    head = nn.Linear(3, 4, bias=False)
    head.weight = embedding.weight
    assert _loss._tie(embedding, head, last=True) is None and "forward" not in vars(embedding)


def test_an_embedding_whose_forward_is_taken_keeps_it():
    def tied():
        embedding, head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        head.weight = embedding.weight
        return embedding, head

    embedding, head = tied()
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(embedding, hooks.ModelHook())
    assert _loss._tie(embedding, head, last=True) is None
    embedding, head = tied()
    embedding.forward = own = embedding.forward
    assert _loss._tie(embedding, head, last=True) is None and embedding.forward is own
    embedding, head = tied()
    assert _loss._tie(embedding, head, last=True) is embedding.forward


def test_a_layer_returns_its_hidden_state():
    x = torch.zeros(1, 2, 3)
    with pytest.raises(
        UnsupportedError, match=r"Linear returned str, expected the hidden state.*\(1, 2, 3\)"
    ):
        _probe._compare(nn.Linear(3, 3), x, "out", nn.Identity(), (), {})
    with pytest.raises(UnsupportedError, match="Linear returned Tensor, expected"):
        _probe._compare(nn.Linear(3, 3), x, x[:, :1], nn.Identity(), (), {})


def test_a_terminal_sees_the_bars_of_transformers(monkeypatch, capsys):
    with _sources._no_bar():
        print("a bar", file=sys.stderr)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with _sources._no_bar():
        print("a bar", file=sys.stderr)
    assert capsys.readouterr().err == "a bar\n"


class Shaped(nn.Module):
    """Takes rows of one length only, in a way of its own."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


def refusing(x):
    if x.shape[-2] != 4:
        raise ValueError("four tokens, please")
    return x


@pytest.mark.parametrize(
    "answer, taken",
    [
        (lambda x: 2 * x, True),
        (lambda x: x[..., :1, :], False),  # not a token a token
        (refusing, False),
        (lambda x: x if x.shape[-2] == 4 else x.sum(), False),
        (lambda x: x if x.shape[-2] == 4 else "nothing", False),
        (lambda x: x.cumsum(-2), False),
    ],
)
def test_only_what_computes_each_token_alone_is_taken_by_tiles(answer, taken):
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    module = Shaped(answer)
    assert _tokenwise._is_tokenwise(module, (x,), {}, module(x)) is taken
    assert not _tokenwise._is_tokenwise(module, (x,), {"mask": None}, x)
    narrow = Shaped(lambda x: x if x.shape[-2] == 4 else x[..., :1])  # equal numbers, of another shape
    assert not _tokenwise._is_tokenwise(narrow, (torch.ones_like(x),), {}, torch.ones_like(x))
    row = x[0, 0]  # no tokens at all
    assert not _tokenwise._is_tokenwise(Shaped(lambda x: x), (row,), {}, row)


def test_an_error_of_transformers_that_names_no_tensor_stays(tmp_path):
    class Kind:
        @staticmethod
        def from_pretrained(path, **options):
            raise RuntimeError("out of handles")

    with pytest.raises(RuntimeError, match=r"^out of handles$"):
        _whole.load_whole(Kind, tmp_path)


def test_a_layer_that_adds_nothing_has_no_first_half():
    layer = nn.Linear(3, 3)
    half = halves.FirstHalf(layer, lambda x: torch.zeros(1, 2, 3))
    with pytest.raises(UnsupportedError, match="Linear adds nothing to its stream, so it has no attention"):
        half(torch.randn(1, 2, 3))


class Adding(nn.Module):
    """An MLP that adds to the residual stream itself, as Bloom's does."""

    def forward(self, x, residual):
        return residual + x


def test_a_parallel_layer_whose_mlp_adds_is_refused():
    layer = nn.Module()
    layer.ln_1, layer.attn, layer.mlp = nn.LayerNorm(3), nn.Identity(), Adding()
    assert "an MLP that adds to the residual stream" in halves.Parallel().missing(layer)


def test_a_rank_is_at_least_one():
    with pytest.raises(ConfigError, match="the rank of LoRA is 0, expected a whole number of at least 1"):
        model_layers.add_lora(model(), 0)
