"""Layers that are copied, replaced, moved, added or removed after ``convert``.

The model refuses them before anything is computed, and ``revert`` gives a plain model back.
"""

import copy
import io
import pickle
import weakref

import pytest
import torch
from models import LAYERS, converted, differing, gradients, model, tokens
from torch import nn

from revstep import ConfigError, UnsupportedError, hf
from revstep._models.layers import decoder_layers
from revstep.hf import _convert
from revstep.hf._forwards import LayerStep, LoopStep, OwnForward
from revstep.hf._layer_steps import Conversion


def resized(made):
    made.config.num_hidden_layers = len(made.model.layers)
    for i, layer in enumerate(made.model.layers):
        layer.self_attn.layer_idx = i


def replicated(made):
    peft = pytest.importorskip("peft")
    torch.manual_seed(4)
    options = {"layer_replication": [[0, 2], [1, 4]], "init_lora_weights": False}
    return peft.get_peft_model(made, peft.LoraConfig(r=2, target_modules=["q_proj"], **options))


def put_in(index, make):
    def change(made):
        made.model.layers[index] = make(made.model.layers)

    return change


def rearranged(order, duplicate=lambda layer: layer):
    def change(made):
        layers = list(made.model.layers)
        made.model.layers = nn.ModuleList(layers[i] for i in order[:LAYERS])
        made.model.layers.extend(duplicate(layers[i]) for i in order[LAYERS:])

    return change


def removed(made):
    del made.model.layers[2]


def appended(made):
    made.model.layers.append(copy.deepcopy(made.model.layers[0]))


def inserted(made):
    made.model.layers.insert(1, copy.copy(made.model.layers[1]))


#: How the layers are changed, and what the message says.
CHANGES = {
    "replicated by peft": (replicated, r"4 layers then, 5 now, layer 0 is another module"),
    "deep copy of another": (
        put_in(1, lambda layers: copy.deepcopy(layers[0])),
        r"layer 1 is another module",
    ),
    "shallow copy of another": (
        put_in(1, lambda layers: copy.copy(layers[0])),
        r"layer 1 is a copy of layer 0",
    ),
    "another once more": (put_in(1, lambda layers: layers[0]), r"layer 1 was layer 0"),
    "the first, pickled": (
        put_in(0, lambda layers: pickle.loads(pickle.dumps(layers[0]))),
        r"layer 0 is another module",
    ),
    "the last, new": (
        put_in(3, lambda layers: model("Llama", seed=7).model.layers[3]),
        r"layer 3 is another module",
    ),
    "of another converted model": (
        put_in(2, lambda layers: converted("Llama", seed=7).model.layers[2]),
        r"layer 2 is another module",
    ),
    "all new": (
        lambda made: setattr(made.model, "layers", model("Llama", seed=7).model.layers),
        r"layer 0 is another module",
    ),
    "turned round": (rearranged([3, 2, 1, 0]), r"layer 0 was layer 3"),
    "two exchanged": (rearranged([0, 2, 1, 3]), r"layer 1 was layer 2"),
    "copies of all": (rearranged([0, 1, 2, 3, 0, 1, 2, 3], copy.deepcopy), r"4 layers then, 8 now"),
    "the first half": (
        lambda made: setattr(made.model, "layers", made.model.layers[:2]),
        r"4 layers then, 2 now",
    ),
    "the second half": (
        lambda made: setattr(made.model, "layers", made.model.layers[2:]),
        r"4 layers then, 2 now, layer 0 was layer 2",
    ),
    "one removed": (removed, r"4 layers then, 3 now, layer 2 was layer 3"),
    "one appended": (appended, r"4 layers then, 5 now\. A converted"),
    "one inserted": (inserted, r"4 layers then, 5 now, layer 1 is a copy of layer 1"),
}


def changed(module, change):
    made = CHANGES[change][0](module) or module
    resized(made.get_base_model() if hasattr(made, "get_base_model") else made)
    return made.train()


@pytest.fixture
def computed():
    """Counts the calls of the modules inside decoder layers, whosever they are."""
    calls = []

    def note(module, args):
        if type(module).__name__ in ("LlamaMLP", "LlamaAttention", "LlamaRMSNorm"):
            calls.append(module)

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    yield calls
    handle.remove()


def steps(module):
    kinds = (LayerStep, LoopStep, OwnForward)
    return [m for m in module.modules() if isinstance(m.__dict__.get("forward"), kinds)]


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
@pytest.mark.parametrize("change", CHANGES)
def test_refused_at_once_and_reverted(computed, change, scheme):
    made = changed(converted("Llama", scheme), change)
    computed.clear()
    with pytest.raises(
        UnsupportedError,
        match=rf"changed after convert: .*{CHANGES[change][1]}.*revert\(model\), change them",
    ):
        gradients(made)
    assert not computed, "nothing is computed before it is refused"
    with torch.no_grad(), pytest.raises(UnsupportedError, match="changed after convert"):
        made.eval()(input_ids=tokens())
    assert hf.revert(made.train()) is made and steps(made) == [] and hf.conversion(made) is None
    plain = changed(model("Llama"), change)
    if steps(plain):  # a layer that came out of a converted model as it was
        hf.revert(plain)
    assert made.config.to_dict() == plain.config.to_dict()
    assert differing(gradients(made), gradients(plain)) == []
    base = made.get_base_model() if hasattr(made, "get_base_model") else made
    if len({id(layer) for layer in base.model.layers}) == len(base.model.layers):
        again = hf.convert(made, "blend:c=0.25", say=None)
        gradients(again)
        assert hf.conversion(again).report.exact


def test_layers_that_left_the_model_are_plain_after_revert():
    made = converted("Llama")
    left = made.model.layers[2]
    removed(made)
    hf.revert(made)
    assert "forward" not in left.__dict__


@pytest.mark.parametrize("index", range(LAYERS))
def test_whichever_layer_is_called_first(index):
    made = converted("Llama")
    x, layer = torch.randn(1, 3, 32), made.model.layers[index]
    made.model.layers = nn.ModuleList([copy.deepcopy(layer) for layer in made.model.layers])
    with pytest.raises(UnsupportedError, match="changed after convert"):
        layer(x)


def test_a_list_that_is_none_any_more():
    made = converted("Llama")
    del made.model.layers
    made.model.layers = nn.Identity()
    with pytest.raises(UnsupportedError, match=r"LlamaModel\.layers is no list of layers any more"):
        gradients(made)


def test_layers_compiled_one_by_one_are_the_same_layers():
    made, expected = converted("Llama").train(), gradients(converted("Llama").train())
    for i in range(LAYERS):
        made.model.layers[i] = torch.compile(made.model.layers[i], backend="eager")
    found = gradients(made)
    torch._dynamo.reset()
    assert differing({name.replace("._orig_mod", ""): g for name, g in found.items()}, expected) == []


def test_hooks_of_accelerate_that_came_after_convert_stay():
    from accelerate.hooks import ModelHook, add_hook_to_module

    made, plain = converted("Llama").train(), model("Llama").train()
    for module in (made, plain):
        add_hook_to_module(module.model.layers[1], ModelHook())
        add_hook_to_module(module.model, ModelHook())
    assert differing(gradients(made), gradients(converted("Llama").train())) == []
    twin = copy.deepcopy(made)
    assert differing(gradients(twin), gradients(made)) == []
    for module in (made, twin):
        hf.revert(module)
        assert hasattr(module.model.layers[1], "_hf_hook") and hasattr(module.model, "_hf_hook")
        assert differing(gradients(module), gradients(plain)) == []


def test_hooks_of_accelerate_that_came_before_convert_come_back():
    from accelerate.hooks import ModelHook, add_hook_to_module

    made, plain = model("Llama").train(), model("Llama").train()
    for part in (made.model, made.model.layers[1]):
        add_hook_to_module(part, ModelHook())
    before = [part.forward for part in (made.model, made.model.layers[1])]
    hf.convert(made, "blend:c=0.25", say=None)
    twin = copy.deepcopy(made)
    for module in (made, twin):
        assert differing(gradients(module), gradients(converted("Llama").train())) == []
        with pytest.raises(UnsupportedError, match="changed after convert"):
            gradients(changed(copy.deepcopy(module), "one removed"))
        hf.revert(module)
        assert differing(gradients(module), gradients(plain)) == []
    assert [made.model.forward, made.model.layers[1].forward] == before


# ---- a layer, or the list, copied out of a converted model ----


def stored(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": stored}


def run(layer, family="Llama"):
    torch.manual_seed(2)
    x = torch.randn(1, 5, 32)
    if family != "Llama":
        return layer(x)
    return layer(x, position_embeddings=model("Llama").model.rotary_emb(x, torch.arange(5)[None]))


SOURCES = [("Llama", "blend"), ("GPT2LMHeadModel", "hamiltonian")]


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("family, scheme", SOURCES)
def test_a_layer_copied_alone_is_plain(family, scheme, duplicate):
    made, plain = converted(family, scheme), model(family)
    alone = COPIES[duplicate](decoder_layers(made)[1][1])
    listed = COPIES[duplicate](nn.ModuleList(decoder_layers(made)[1]))
    for i, layer in ((1, alone), *enumerate(listed)):
        assert torch.equal(run(layer, family)[0], run(decoder_layers(plain)[1][i], family)[0])
        assert "forward" not in layer.__dict__, "after its first call at the latest"
    gradients(made.train())
    assert hf.conversion(made).report.exact, "the model itself is still converted"


def test_a_layer_copied_alone_takes_nothing_along():
    made, plain = converted("Llama"), model("Llama")
    size = len(pickle.dumps(plain.model.layers[1]))
    assert len(pickle.dumps(made.model.layers[1])) < size + 1000 < len(pickle.dumps(made)) / 3
    alone = copy.deepcopy(made.model.layers[1])
    assert "forward" not in alone.__dict__, "gone as soon as the copy is complete"
    whole = weakref.ref(hf.conversion(made))
    del made
    assert whole() is None or all(m is not alone for m in whole().layers)


def test_the_module_with_the_loop_copied_alone_is_converted():
    made = converted("Llama")
    twin = copy.deepcopy(made.model)
    assert hf.conversion(twin).loop is twin and hf.conversion(twin) is not hf.conversion(made)
    with torch.no_grad():
        assert torch.equal(twin(input_ids=tokens())[0], made.model(input_ids=tokens())[0])


@pytest.mark.parametrize("taken", [copy.deepcopy, COPIES["pickle"]], ids=["deepcopy", "pickle"])
def test_copies_of_copies_never_run_anothers_weights(taken):
    """A shallow copy shares its forward with what it was copied from, and must not run that one's weights."""
    alone = taken(converted("Llama").model.layers[1])
    shallow = copy.copy(alone)
    if "forward" in alone.__dict__:  # pickled: it goes with the first call
        run(alone)
        with pytest.raises(UnsupportedError, match=r"shallow copy \(copy\.copy\) of a layer"):
            run(shallow)
    else:
        assert torch.equal(run(shallow), run(alone))
    of_shallow = copy.deepcopy(copy.copy(converted("Llama").model.layers[1]))
    with pytest.raises(UnsupportedError, match=r"shallow copy \(copy\.copy\) of a layer"):
        run(of_shallow)


def test_a_pickled_layer_in_another_model_is_converted_as_plain():
    plain = model("Llama")
    plain.model.layers[1] = pickle.loads(pickle.dumps(converted("Llama").model.layers[1]))
    hf.convert(plain, "blend:c=0.25", say=None)
    assert differing(gradients(plain.train()), gradients(converted("Llama").train())) == []


# ---- several conversions in one module ----


def test_several_conversions():
    both = nn.ModuleDict({"student": converted("Llama"), "teacher": converted("GPT2LMHeadModel")})
    with pytest.raises(ConfigError, match=r"holds 2 converted models, in LlamaModel and GPT2Model"):
        hf.conversion(both)
    assert hf.conversion(both["student"]).loop is both["student"].model
    hf.revert(both)
    assert steps(both) == [] and not any(hasattr(m.config, "revstep") for m in both.values())
    assert differing(gradients(both["student"].train()), gradients(model("Llama").train())) == []


def test_the_conversion_of_a_model_is_its_own():
    one, two = converted("Llama"), converted("Llama", seed=7)
    one.model.layers[0] = two.model.layers[0]
    assert hf.conversion(one).loop is one.model
    with pytest.raises(ConfigError, match=r"converted already .*revert\(model\) first"):
        hf.convert(one, "blend:c=0.25", say=None)
    hf.revert(one)
    assert steps(one) == []
    with pytest.raises(UnsupportedError):
        gradients(two.train())  # its first layer was made plain, being in the other model as well
    hf.revert(two)
    assert differing(gradients(two.train()), gradients(model("Llama", seed=7).train())) == []


# ---- mutants ----


@pytest.mark.parametrize("change", ["deep copy of another", "turned round", "one removed", "one appended"])
def test_without_the_comparison_a_change_is_refused_late_or_for_another_reason(computed, monkeypatch, change):
    monkeypatch.setattr(Conversion, "refuse_changes", lambda self: None)
    made = changed(converted("Llama"), change)
    computed.clear()
    said = ""
    try:
        gradients(made)
    except UnsupportedError as error:
        said = str(error)
    assert "changed after convert" not in said and (computed or "called after layer none" in said)


def test_a_revert_that_forgets_copies_is_seen(monkeypatch):
    monkeypatch.setattr(_convert, "plain", lambda module: None)
    made = changed(converted("Llama"), "shallow copy of another")
    hf.revert(made)
    assert steps(made) != []


def test_a_step_that_is_copied_as_it_stands_takes_the_model_along(monkeypatch):
    monkeypatch.delattr(LayerStep, "__reduce__")
    monkeypatch.delattr(LayerStep, "__deepcopy__")
    made = converted("Llama")
    assert len(pickle.dumps(made.model.layers[1])) > 2 * len(pickle.dumps(model("Llama").model.layers[1]))
    assert steps(copy.deepcopy(made.model.layers[1])) != []
