"""peft around a converted model and inside one: only the adapters train, with the gradients of the stored
recurrence, in memory flat in depth.
"""

import copy

import pytest
import torch
from models import LAYERS, SCHEMES, converted, differing, gradients, model, tokens

from revstep import ConfigError, UnsupportedError, hf
from revstep._models.layers import decoder_layers
from revstep.hf._finetune import FineTune, finetune

peft = pytest.importorskip("peft")

TARGETS = {
    "Llama": ["q_proj", "v_proj", "down_proj"],
    "GPT2LMHeadModel": ["c_attn", "c_fc"],
    "Gemma2": ["q_proj", "o_proj", "up_proj"],
}
KINDS = {
    "lora": lambda f: peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=TARGETS[f], lora_dropout=0.1, init_lora_weights=False
    ),
    "dora": lambda f: peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=TARGETS[f], use_dora=True, init_lora_weights=False
    ),
    "ia3": lambda f: peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=TARGETS[f],
        feedforward_modules=TARGETS[f][-1:],
        init_ia3_weights=False,
    ),
}


def adapted(family="Llama", scheme="blend", kind="lora", when="after", seed=4, convert=None, **changes):
    """A peft model, converted before (``when="after"``: peft comes after conversion) or after peft."""
    made = model(family, **changes)
    options = SCHEMES[scheme] | (convert or {}) | {"say": None}
    if when == "after":
        hf.convert(made, **options)
    torch.manual_seed(seed)
    made = peft.get_peft_model(made, KINDS[kind](family))
    if when == "before":
        assert hf.convert(made, **options) is made
    return made.train()


CASES = [("Llama", s, "lora") for s in SCHEMES] + [
    (f, "blend", "lora") for f in ("GPT2LMHeadModel", "Gemma2")
]
CASES += [
    ("GPT2LMHeadModel", "hamiltonian", "lora"),
    ("Llama", "blend", "dora"),
    ("Llama", "hamiltonian", "dora"),
    ("GPT2LMHeadModel", "blend", "ia3"),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("family, scheme, kind", CASES)
def test_only_adapters_train_as_on_the_stored_recurrence(family, scheme, kind, when):
    made = adapted(family, scheme, kind, when)
    rebuilt = gradients(made)
    trained = {name for name, g in rebuilt.items() if g is not None} - {"loss"}
    assert trained and trained == {name for name, p in made.named_parameters() if p.requires_grad}
    assert (
        all("lora_" in name or "ia3_" in name for name in trained)
        and not made.get_input_embeddings().weight.requires_grad
    )
    assert all(rebuilt[name].any() for name in trained), "every adapter of every layer should have a gradient"
    assert hf.conversion(made).report.exact
    assert differing(rebuilt, gradients(adapted(family, scheme, kind, when, convert={"keep": LAYERS}))) == []
    if family == "Llama" and scheme == "blend":
        assert (
            differing(
                rebuilt, gradients(adapted(family, scheme, kind, "before" if when == "after" else "after"))
            )
            == []
        ), "the order should not matter"


def test_states_below_the_first_adapter_are_not_rebuilt():
    made = model("Llama")
    hf.convert(made, "blend:c=0.25", say=None)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=["q_proj"],
        layers_to_transform=[2, 3],
        init_lora_weights=False,
    )
    made = peft.get_peft_model(made, config).train()
    gradients(made)
    assert hf.conversion(made).report.exact and hf.conversion(made).report.layers <= 2


def saved(module, deepest):
    """(bytes that autograd keeps between forward and backward, each storage once, weights not counted; bytes
    the report says).
    """
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def pack(t):
        # Holding it keeps the address from being used again.
        kept[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)
        return t

    ids = tokens(2, 32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = module(input_ids=ids, labels=ids, use_cache=False)
    held = sum(n for p, (n, _) in kept.items() if p not in weights)
    out.loss.backward()
    assert deepest or hf.conversion(module).report.exact
    return held, 0 if deepest else hf.conversion(module).report.bytes_saved


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("scheme", ["blend", "midpoint", "hamiltonian"])
def test_memory_is_flat_in_depth(scheme, kind):
    """4 against 12 layers: the report grows by checksums and carries (2 bits an element and layer for c =
    1/4), what autograd holds by nothing.
    """
    sizes = {}
    for layers in (4, 12):
        for keep in (0, layers):
            options = {"num_hidden_layers": layers, "convert": {"keep": keep}}
            made = (
                adapted("Llama", scheme, **options)
                if kind == "lora"
                else converted("Llama", scheme, **options).train()
            )
            sizes[layers, keep > 0] = saved(made, keep > 0)
    steps, bits = 8 * hf.conversion(made).scheme.halves, 2 if scheme == "blend" else 0
    carries = steps * bits * 2 * 32 * 32 // 8
    generators = 8 * len(torch.get_rng_state()) if kind == "lora" else 0  # LoRA's dropout: 5 kB a layer
    assert sizes[12, False][0] == sizes[4, False][0], "held by autograd"
    assert (
        sizes[12, False][1] - sizes[4, False][1]
        == 8 * steps + carries + generators * hf.conversion(made).scheme.halves
    )
    assert sizes[12, True][0] > 2 * sizes[4, True][0] > 4 * sizes[4, False][0], (
        "the stored pass should grow, or the comparison says nothing"
    )


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("family", list(TARGETS))
def test_training_merging_and_reverting(family, when):
    made = adapted(family, when=when)
    optimiser = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    frozen = copy.deepcopy({n: p for n, p in made.named_parameters() if not p.requires_grad})
    losses = []
    for step in range(3):
        losses.append(float(gradients(made, seed=step)["loss"]))
        optimiser.step()
    assert losses[-1] < losses[0] and all(
        torch.equal(p, frozen[n]) for n, p in made.named_parameters() if n in frozen
    )
    with torch.no_grad():
        before = made.eval()(input_ids=tokens(), use_cache=False).logits
    merged = made.merge_and_unload()
    assert hf.conversion(merged) is not None
    with torch.no_grad():
        after = merged(input_ids=tokens(), use_cache=False).logits
    assert 0 < float((after - before).abs().max()) < 1e-3 * float(before.abs().max()), (
        "merged in float32: the same up to rounding"
    )
    hf.revert(merged)
    plain = model(family)
    assert list(merged.state_dict()) == list(plain.state_dict()) and type(merged) is type(plain)
    plain.load_state_dict(merged.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(plain(input_ids=tokens()).logits, merged(input_ids=tokens()).logits)


def test_reverting_under_the_adapters():
    made = hf.revert(adapted("Llama"))
    plain = model("Llama")
    torch.manual_seed(4)
    plain = peft.get_peft_model(plain, KINDS["lora"]("Llama")).train()
    assert hf.conversion(made) is None and differing(gradients(made), gradients(plain)) == []


def test_disabled_adapters_are_the_converted_base():
    made = adapted("Llama").eval()
    with torch.no_grad(), made.disable_adapter():
        assert torch.equal(made(input_ids=tokens()).logits, converted("Llama")(input_ids=tokens()).logits)


def test_adapters_saved_and_loaded(tmp_path):
    made = adapted("Llama").eval()
    made.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(converted("Llama"), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens()).logits, made(input_ids=tokens()).logits)


def test_a_frozen_layer_that_is_trained_is_seen():
    made = adapted("Llama")
    decoder_layers(made)[1][1].mlp.up_proj.weight.requires_grad_(True)
    trained = {name for name, g in gradients(made).items() if g is not None}
    assert any("lora_" not in name and name != "loss" for name in trained)


# ---- a head that peft has wrapped has no chunked loss ----

HEADS = {
    "trained tokens": ({"trainable_token_indices": [3, 4]}, "TrainableTokensWrapper, because trainable"),
    "saved whole": ({"modules_to_save": ["lm_head"]}, "ModulesToSaveWrapper"),
    "adapted": ({"target_modules": ["q_proj", "lm_head"]}, r"peft\..*Linear"),
}


def with_head(kind, convert=True):
    made = model("Llama", tie_word_embeddings=kind == "trained tokens")
    if convert:
        hf.convert(made, "blend:c=0.25", say=None)
    torch.manual_seed(4)
    options = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False} | HEADS[kind][0]
    return peft.get_peft_model(made, peft.LoraConfig(**options))


@pytest.mark.parametrize("convert", [True, False])
@pytest.mark.parametrize("kind", HEADS)
def test_the_advice_about_a_wrapped_head_works(tmp_path, kind, convert):
    """The message names loss_chunk=0, and with it the model trains."""
    made, options = with_head(kind, convert), {"out": str(tmp_path), "steps": 2, "batch": 2, "device": "cpu"}
    advice = r"FineTune\(loss_chunk=0\), or revstep finetune --loss-chunk 0"
    with pytest.raises(UnsupportedError, match=rf"{HEADS[kind][1]}.*{advice}"):
        finetune(made, tokens(4), FineTune(**options), say=None)
    assert len(finetune(made, tokens(4), FineTune(**options, loss_chunk=0), say=None).losses) == 2
    assert differing(gradients(made), gradients(with_head(kind, convert))) != [], "it has trained"
    with pytest.raises(UnsupportedError, match=HEADS[kind][1]) as error:
        hf.chunk_loss(made)
    assert "loss_chunk" not in str(error.value), "an option of finetune, which chunk_loss does not have"


def test_trained_tokens_of_a_head_that_is_not_tied_have_a_chunked_loss(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[3, 4])
    made = peft.get_peft_model(converted("Llama", tie_word_embeddings=False), config)
    finetune(made, tokens(4), FineTune(out=str(tmp_path), steps=1, batch=2, device="cpu"), say=None)


@pytest.mark.parametrize("targets", ["embed_tokens,q_proj", "lm_head"])
def test_adapters_on_a_matrix_that_two_share(targets):
    """Merged, they would change both: another model than was trained. The model is left as it was."""
    made = model("Llama", tie_word_embeddings=True)
    before = {n: (p.clone(), p.requires_grad) for n, p in made.named_parameters()}
    with pytest.raises(ConfigError, match=r"(embed_tokens|lm_head) shares its matrix with .*(lm_head|embed)"):
        hf.add_lora(made, rank=2, targets=targets)
    now = dict(made.named_parameters())
    assert now.keys() == before.keys()
    assert all(torch.equal(now[n], p) and now[n].requires_grad == g for n, (p, g) in before.items())
    assert len(hf.add_lora(made, rank=2, targets="all-linear").peft_config) == 1
    untied = model("Llama", tie_word_embeddings=False)
    assert len(hf.add_lora(untied, rank=2, targets="embed_tokens,q_proj").peft_config) == 1


def prompted():
    """Virtual tokens, which are larger than any token."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    made = peft.get_peft_model(model("Llama"), config).eval()
    with torch.no_grad():
        for p in made.parameters():
            if p.requires_grad:
                p.mul_(1000)
    return made


def test_losses_and_calibration_see_the_prompts():
    made, ids = prompted(), tokens()
    with torch.no_grad():
        loss = float(made(input_ids=ids, labels=ids).loss)
        base = float(made.get_base_model()(input_ids=ids, labels=ids).loss)
    assert hf.mean_loss(made, [{"input_ids": ids}]) == pytest.approx(loss)  # to 1e-6
    assert base != pytest.approx(loss, rel=1e-4), "without the prompts it is another number"
    hf.convert(made, "blend:c=0.0625", calibration=ids, headroom=2.0, say=None)
    made(input_ids=ids)  # in range
    seen = hf.conversion(made).stack.state
    plain = hf.convert(model("Llama"), "blend:c=0.0625", calibration=ids, headroom=2.0, say=None)
    assert seen.limit > hf.conversion(plain).stack.state.limit, "the prompts were seen"
