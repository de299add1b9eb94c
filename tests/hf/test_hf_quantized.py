"""LoRA on bases in 4 and 8 bits: trained where a gradient passes through, refused by name where none does."""

import contextlib
import importlib.util

import pytest
import torch
import transformers
from models import LAYERS, bf16, differing, gradients, model, tokens
from torch import nn

from revstep import ConfigError, UnsupportedError, hf
from revstep._models.layers import decoder_layers
from revstep.hf import _install, _probe
from revstep.hf._whole import load_whole

peft = pytest.importorskip("peft")

TARGETS = ["q_proj", "v_proj", "down_proj"]
LORA = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": TARGETS, "init_lora_weights": False}
#: Adapter weights that have a gradient, two a target and layer; with the loss one more.
TRAINED = 2 * len(TARGETS) * LAYERS


def bnb(**options):
    return "bitsandbytes", lambda: transformers.BitsAndBytesConfig(**options)


def ao(name, **options):
    def make():
        from torchao import quantization

        made = {n: getattr(torch, v) if n == "weight_dtype" else v for n, v in options.items()}
        return transformers.TorchAoConfig(getattr(quantization, name)(**made))

    return "torchao", make


FOUR = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16}
#: Library and configuration, as transformers takes it.
TRAINABLE = {
    "nf4": bnb(**FOUR, bnb_4bit_quant_type="nf4"),
    "nf4, scales in 8 bits": bnb(**FOUR, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": bnb(**FOUR, bnb_4bit_quant_type="fp4"),
    "int8 of bitsandbytes": bnb(load_in_8bit=True),
    "int8 of torchao": ao("Int8WeightOnlyConfig"),
    "int4 of torchao": ao("IntxWeightOnlyConfig", weight_dtype="int4"),
    "float8 of torchao": ao("Float8WeightOnlyConfig"),
}  # fmt: skip
WITHOUT_GRADIENT = {
    "int8 activations": ao("Int8DynamicActivationInt8WeightConfig"),
    "int8 activations, int4 weights": ao("Int8DynamicActivationIntxWeightConfig", weight_dtype="int4"),
}


def of(case):
    """The configuration of the case, where its library is installed."""
    library, make = case
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    return make()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("base")
    model("Llama", hidden_size=64, intermediate_size=128, scale=2.0).save_pretrained(made)
    return made


def load(folder, config, dtype=torch.bfloat16):
    return load_whole(transformers.AutoModelForCausalLM, folder, quantization_config=config, dtype=dtype)


def adapted(made, when="before", prepared=False, keep=0):
    """LoRA around the model and the conversion, in one order or the other, as QLoRA is set up."""
    if prepared:
        made = peft.prepare_model_for_kbit_training(made)  # norms in float32, gradient checkpointing
    options = {"keep": keep, "calibration": tokens(), "say": None}
    if when == "before":
        hf.convert(made, "blend:c=0.25", **options)
    torch.manual_seed(4)
    made = peft.get_peft_model(made, peft.LoraConfig(**LORA, lora_dropout=0.1))
    if when == "after":
        hf.convert(made, "blend:c=0.25", **options)
    return made.train()


def trained(found):
    return [name for name, g in found.items() if g is not None and g.any() and name != "loss"]


@pytest.mark.filterwarnings("ignore:gradient checkpointing was on")
@pytest.mark.parametrize("prepared", [False, True], ids=["as loaded", "prepared"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TRAINABLE)
def test_adapters_train_as_on_the_stored_recurrence(folder, name, dtype, when, prepared):
    context = bf16 if prepared else contextlib.nullcontext
    bases = [load(folder, of(TRAINABLE[name]), dtype) for _ in range(2)]
    one, two = (adapted(base, when, prepared, keep) for base, keep in zip(bases, (0, LAYERS)))
    before, base = gradients(one, context=context), one.get_base_model().state_dict()
    base = {n: t.clone() for n, t in base.items() if "lora_" not in n}
    assert len(trained(before)) == TRAINED and hf.conversion(one).report.exact
    assert differing(before, gradients(two, context=context)) == []
    with torch.no_grad(), context():
        one.eval()(input_ids=tokens())  # an evaluation between the steps
    after = gradients(one.train(), context=context)
    assert differing(after, before) == [] and hf.conversion(one).report.exact
    later = one.get_base_model().state_dict()
    plain = [n for n in base if type(base[n]) is torch.Tensor]
    assert all(torch.equal(later[n], base[n]) for n in plain), "frozen as it was"


@pytest.mark.parametrize("name", ["nf4", "int8 of bitsandbytes", "int8 of torchao"])
def test_saved_and_loaded(folder, tmp_path, name):
    """The folder holds the quantised weights and the reversible settings."""
    made = hf.convert(load(folder, of(TRAINABLE[name])), "blend:c=0.25", keep=1, say=None)
    made.save_pretrained(tmp_path)
    again = hf.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens()).logits, made(input_ids=tokens()).logits)
    assert hf.conversion(again).stack.keep == 1
    assert _probe.quantized(decoder_layers(again)[1][0].mlp.down_proj) is not None


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_without_a_gradient_they_are_refused(folder, name, when):
    words = r"q_proj\S* is a Linear of torchao \(\w+\), which passes no gradient on to its input"
    with pytest.raises(UnsupportedError, match=words + ".*Int8WeightOnlyConfig"):
        adapted(load(folder, of(WITHOUT_GRADIENT[name])), when)


def test_that_the_plain_model_does_not_train_there_either(folder):
    """What the refusal says: of the same adapters on the plain model most have no gradient."""
    config = of(WITHOUT_GRADIENT["int8 activations"])
    plain = peft.get_peft_model(load(folder, config), peft.LoraConfig(**LORA)).train()
    assert 0 < len(trained(gradients(plain))) < TRAINED


def test_a_quantisation_that_does_not_run_here_is_named(folder):
    config = of(ao("Int4WeightOnlyConfig", group_size=32))
    if torch.cuda.is_available():
        pytest.skip("int4 tiles may run on this machine")
    with pytest.raises(ConfigError, match=r"28 cannot be made from what is there \(model\.layers\.0\."):
        load(folder, config)


# ---- weights that bitsandbytes repacks for inference ----


def repacks():
    """Does bitsandbytes repack on this machine's CPU?"""
    if importlib.util.find_spec("bitsandbytes") is None:
        return False
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


NEEDS_REPACKING = pytest.mark.skipif(not repacks(), reason="bitsandbytes repacks no weights here")


@NEEDS_REPACKING
def test_a_model_that_was_evaluated_before_is_refused(folder):
    made = load(folder, of(TRAINABLE["nf4"]))
    with torch.no_grad():
        made(input_ids=tokens())
    with pytest.raises(UnsupportedError, match=r"Linear4bit of bitsandbytes \(Params4bit\) that an eval"):
        hf.convert(made, "blend:c=0.25", say=None)


@NEEDS_REPACKING
@pytest.mark.parametrize("where", ["during conversion", "afterwards"])
def test_without_holding_the_weights_training_would_end_unseen(folder, monkeypatch, where):
    """The mutants: what the evaluation passes, ours and the user's, would do to the adapters' gradients."""
    if where == "during conversion":
        monkeypatch.setattr(_probe, "unpacked", lambda model: contextlib.nullcontext())
    monkeypatch.setattr(_install, "hold", lambda modules: None)
    made = adapted(load(folder, of(TRAINABLE["nf4"])))
    if where == "afterwards":
        with torch.no_grad():
            made.eval()(input_ids=tokens())
    assert len(trained(gradients(made.train()))) < TRAINED


class Repacking(nn.Linear):
    """As a 4-bit linear map of bitsandbytes behaves on a CPU: an evaluation pass ends its gradients."""

    def __init__(self, inside, outside):
        super().__init__(inside, outside, bias=False)
        self.weight = nn.Parameter(self.weight.mul(16).to(torch.int8), requires_grad=False)
        self.weight.quant_state = type("State", (), {"packing_format_for_cpu": False})()
        self.support_avx512bf16_for_cpu = True

    def forward(self, x):
        state = self.weight.quant_state
        if self.support_avx512bf16_for_cpu and not self.training and not x.requires_grad:
            state.packing_format_for_cpu = True
        weight = self.weight.to(x.dtype) / 16
        return (x.detach() if state.packing_format_for_cpu else x) @ weight.T


def with_repacking():
    made = model("Llama")
    for layer in decoder_layers(made)[1]:
        old = layer.mlp.down_proj
        layer.mlp.down_proj = Repacking(old.in_features, old.out_features)
    return made.eval()


def packed(made):
    return [m.weight.quant_state.packing_format_for_cpu for m in made.modules() if isinstance(m, Repacking)]


def test_nothing_of_ours_repacks():
    made = with_repacking()
    rows = [{"input_ids": tokens()}]
    hf.mean_loss(made, rows)
    assert packed(made) == [False] * LAYERS
    assert all(m.support_avx512bf16_for_cpu for m in made.modules() if isinstance(m, Repacking)), "as it was"
    hf.convert(made, "blend:c=0.25", calibration=tokens(), say=None)
    hf.mean_loss(made, rows)
    with torch.no_grad():
        made(input_ids=tokens())
    assert packed(made) == [False] * LAYERS
    gradients(made.train())
    assert hf.conversion(made).report.exact and made.model.layers[0].self_attn.q_proj.weight.grad.any()


def test_what_is_repacked_already_is_refused():
    made = with_repacking()
    with torch.no_grad():
        made(input_ids=tokens())
    assert packed(made) == [True] * LAYERS
    with pytest.raises(UnsupportedError, match=r"down_proj is a Repacking of \w+ \(torch\.int8\) that an"):
        hf.convert(made, "blend:c=0.25", say=None)


class Cut(Repacking):
    """A product of quantised activations, through which no gradient passes."""

    def forward(self, x):
        return x.detach() @ (self.weight.to(x.dtype) / 16).T


class Broken(Repacking):
    def forward(self, x):
        raise NotImplementedError("no kernel for this machine")


@pytest.mark.parametrize("kind, words", [(Cut, "passes no gradient on"), (Broken, "differentiated here .no")])
def test_one_layer_is_enough(kind, words):
    made = model("Llama")
    made.model.layers[2].mlp.up_proj = kind(32, 48)
    with pytest.raises(UnsupportedError, match=rf"mlp\.up_proj is a {kind.__name__} of .*{words}"):
        hf.convert(made, "blend:c=0.25", say=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ordinary_weights_are_not_taken_for_quantised(dtype):
    for family in ("Llama", "GPT2LMHeadModel", "Mixtral"):
        assert [n for n, m in model(family, dtype=dtype).named_modules() if _probe.quantized(m)] == []


class Own(nn.Parameter):
    """A parameter of a class of its own, as extensions have them, that is an ordinary tensor all the same."""


def test_parameters_of_another_class_are_tried_and_pass():
    made = model("Llama")
    layer = made.model.layers[1]
    layer.input_layernorm.weight = Own(layer.input_layernorm.weight.data)
    layer.mlp.up_proj.weight = Own(layer.mlp.up_proj.weight.data)
    kinds = {n: _probe.quantized(m) for n, m in layer.named_modules() if _probe.quantized(m)}
    assert list(kinds) == ["mlp.up_proj"] and kinds["mlp.up_proj"].endswith("(Own)")
    hf.convert(made, "blend:c=0.25", say=None)
