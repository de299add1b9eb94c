"""The chunked loss of transformers' models: equal to theirs in loss and gradients, and what it does to an
instance.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
import transformers
from loss_models import KINDS, SIZES, TOLERANCE, V, batch, build, run
from transformers import Trainer, TrainingArguments

from revstep.errors import ConfigError, UnsupportedError
from revstep.hf import _loss as chunked
from revstep.hf._lazy import LazyLogits
from revstep.hf._loss import ChunkedLoss, LazyForward, chunk_loss, unchunk_loss

pytestmark = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="torch without linear_cross_entropy"
)


def wide_loss(logits, labels, vocab_size, num_items_in_batch=None, **_):
    """ForCausalLMLoss without its cast to float32, which would be the largest error of a float64
    comparison.
    """
    labels = F.pad(labels, (0, 1), value=-100)[..., 1:]
    loss = F.cross_entropy(
        logits.reshape(-1, vocab_size),
        labels.reshape(-1),
        reduction="mean" if num_items_in_batch is None else "sum",
    )
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def agree(dtype, kind="Llama", chunk=4, **inputs):
    """Loss and every gradient of the chunked model against transformers' own, on the same weights.

    The bound is derived at TOLERANCE.
    """
    plain = build(kind, dtype)
    model = chunk_loss(copy.deepcopy(plain), chunk)
    if dtype == torch.float64:
        plain.loss_function = wide_loss
    inputs = {**batch(), **inputs}
    (want, grads), (got, found) = run(plain, **inputs), run(model, **inputs)
    bound = TOLERANCE * torch.finfo(dtype).eps
    if got.dtype != want.dtype or grads.keys() != found.keys():
        return False
    errors = [
        (got - want).abs() / want.abs(),
        *((found[name] - g).abs().max() / (g.abs().max() + 1e-3) for name, g in grads.items()),
    ]
    return max(e.item() for e in errors) <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_transformers_own(kind, dtype):
    assert agree(dtype, kind)


@pytest.mark.parametrize("chunk", ["auto", 1, 1000])
def test_any_chunk_gives_the_same(chunk):
    assert agree(torch.float64, chunk=chunk)


@pytest.mark.parametrize("count", [29, torch.tensor(29)])
def test_the_number_of_items_divides_the_sum(count):
    assert agree(torch.float64, num_items_in_batch=count) and agree(torch.float32, num_items_in_batch=count)


def test_shifted_labels_are_taken_as_they_are():
    inputs = batch()
    inputs["shift_labels"] = inputs["labels"].roll(1)
    assert agree(torch.float32, **inputs)


def not_shifted(self, logits, labels, *args, **kwargs):
    return TRUE_CALL(self, logits, labels, *args, **{**kwargs, "shift_labels": labels})


def not_counted(self, logits, labels, vocab_size, num_items_in_batch=None, **kwargs):
    return TRUE_CALL(self, logits, labels, vocab_size, **kwargs)


def no_head_gradient(self, logits, *args, **kwargs):
    logits.source.weight = logits.source.weight.detach()
    return TRUE_CALL(self, logits, *args, **kwargs)


TRUE_CALL = ChunkedLoss.__call__


@pytest.mark.parametrize("mutant", [not_shifted, not_counted])
def test_a_wrong_loss_is_rejected(mutant, monkeypatch):
    monkeypatch.setattr(ChunkedLoss, "__call__", mutant)
    assert not agree(torch.float64, num_items_in_batch=29)


def test_a_head_without_its_gradient_is_rejected(monkeypatch):
    monkeypatch.setattr(ChunkedLoss, "__call__", no_head_gradient)
    assert not agree(torch.float64)


@pytest.mark.parametrize("count", [None, 29])
def test_bfloat16_weights_give_a_float32_loss_near_that_of_transformers(count):
    """Against transformers with the same weights: logits are rounded to bfloat16 there, losses of tokens
    here.
    """
    plain, inputs = build(dtype=torch.bfloat16), {**batch(), "num_items_in_batch": count}
    model = chunk_loss(copy.deepcopy(plain), 4)
    (want, grads), (got, found) = run(plain, **inputs), run(model, **inputs)
    assert got.dtype == torch.float32 and not torch.equal(got, got.bfloat16().float())
    eps = torch.finfo(torch.bfloat16).eps
    # Half an eps each for a token's loss and for the logits that differ from it by a few units.
    assert (got - want).abs() <= 2 * eps * want
    # The trunks' forward passes are one; backward rounds about 20 times a layer to 16 bits, by at most eps /
    # 2 each and independently in both:
    # relative distance squared 2 R (eps / 2)^2, half of it the cosine's deficiency. Measured: 1.1 eps^2 at
    # most.
    roundings = 2 * 20
    for name, grad in grads.items():
        assert (
            F.cosine_similarity(grad.double().flatten(), found[name].double().flatten(), 0)
            > 1 - roundings * eps**2 / 4
        ), name


def test_autocast_does_not_round_the_loss_and_logits_have_its_dtype():
    model, inputs = chunk_loss(build(), 4), batch()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**inputs)
    assert outputs.logits.dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32
    assert not torch.equal(outputs.loss, outputs.loss.bfloat16().float())
    assert outputs.logits.float().dtype == torch.float32 and outputs.logits.source.computed is None
    assert outputs.logits[0, 0].dtype == torch.bfloat16


# ---- the instance ----


def state(model):
    return {name: sorted(module.__dict__) for name, module in model.named_modules()}


def test_the_probe_leaves_the_random_state():
    model, random = build("GPT2", resid_pdrop=0.5), torch.get_rng_state()
    chunk_loss(model)
    assert torch.equal(random, torch.get_rng_state())
    model(**batch())
    assert not torch.equal(random, torch.get_rng_state())  # the same forward outside the probe draws


@pytest.mark.parametrize("was_set", [False, True])
def test_unchunk_restores_the_instance(was_set):
    model = build()
    if was_set:
        model.loss_function = model.loss_function
    before, keys, config = state(model), list(model.state_dict()), model.config.to_dict()
    assert (
        chunk_loss(model) is model
        and type(model) is transformers.LlamaForCausalLM
        and list(model.state_dict()) == keys
    )
    with pytest.raises(ConfigError, match="already"):
        chunk_loss(model)
    assert unchunk_loss(model) is model and state(model) == before and model.config.to_dict() == config
    assert type(model(**batch()).logits) is torch.Tensor
    with pytest.raises(ConfigError, match="not chunked"):
        unchunk_loss(model)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_chunked_and_their_own(copied):
    model = chunk_loss(build(), 4)
    other = copied(model)
    assert other.lm_head.forward.head is other.lm_head and isinstance(other(**batch()).logits, LazyLogits)
    unchunk_loss(model)
    want, got = run(model, **batch())[0], run(other, **batch())[0]
    assert (want - got).abs() <= V * torch.finfo(torch.float32).eps * want


def test_a_saved_model_is_a_plain_one(tmp_path):
    model = chunk_loss(build(), 4)
    model.save_pretrained(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(plain.train()(**batch()).logits, model(**batch()).logits)


def test_an_accelerate_hook_stays_before_the_head():
    hooks = pytest.importorskip("accelerate.hooks")

    class Count(hooks.ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            Count.calls += 1
            return args, kwargs

    for first in (True, False):
        model, Count.calls = build(), 0
        if first:
            hooks.add_hook_to_module(model.lm_head, Count())
        chunk_loss(model, 4)
        if not first:
            hooks.add_hook_to_module(model.lm_head, Count())
        seen = Count.calls
        assert isinstance(model(**batch()).logits, LazyLogits) and Count.calls == seen + 1
        unchunk_loss(model)
        assert type(model(**batch()).logits) is torch.Tensor and Count.calls == seen + 2
        hooks.remove_hook_from_module(model.lm_head)
        assert (
            not isinstance(model.lm_head.forward, LazyForward)
            and type(model(**batch()).logits) is torch.Tensor
        )


# Adam divides by small gradients' size: rounding grows over its steps.
def test_the_trainer_trains_and_evaluates_as_without(tmp_path):
    losses = []
    for chunk in (None, 4):
        model = build()
        if chunk:
            chunk_loss(model, chunk)
        rows = batch(8)
        data = [{"input_ids": x, "labels": y} for x, y in zip(rows["input_ids"], rows["labels"])]
        args = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
        )
        trainer = Trainer(model=model, args=args, train_dataset=data, eval_dataset=data)
        trainer.train()
        entries = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        losses.append([*entries, trainer.evaluate()["eval_loss"]])
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_lora_on_the_trunk_works_and_on_the_head_is_refused():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build(), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    want = run(model, **batch())[1]
    model.zero_grad()
    got = run(chunk_loss(model, 4), **batch())[1]
    assert (
        isinstance(model(**batch()).logits, LazyLogits)
        and want.keys() == got.keys()
        and all("lora" in name for name in got)
    )
    bound = TOLERANCE * torch.finfo(torch.float32).eps
    assert all(
        (want[name] - got[name]).abs().max() <= bound * (want[name].abs().max() + 1e-3) for name in want
    )
    for options in (
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ):
        adapted = peft.get_peft_model(build(), peft.LoraConfig(task_type="CAUSAL_LM", **options))
        with pytest.raises(UnsupportedError, match=r"expected torch\.nn\.Linear"):
            chunk_loss(adapted)


# ---- refusals ----


def tiny(kind, **extra):
    sizes = {name: SIZES[name] for name in SIZES if name != "head_dim"}
    return getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(
            vocab_size=V, pad_token_id=0, bos_token_id=0, eos_token_id=0, **sizes, **extra
        )
    )


@pytest.mark.parametrize(
    "kind, message",
    [
        ("Gemma2", "final_logit_softcapping"),
        ("Granite", "between head and loss"),
        ("Cohere", "between head and loss"),
    ],
)
def test_logits_that_change_before_the_loss_are_refused(kind, message):
    model = tiny(kind)
    before = state(model)
    with pytest.raises(UnsupportedError, match=message):
        chunk_loss(model)
    assert state(model) == before


def test_softcapping_is_found_by_the_probe_too(monkeypatch):
    model = tiny("Gemma2")
    monkeypatch.setattr(chunked, "SOFTCAP", "a name that no config has")
    with pytest.raises(UnsupportedError, match="between head and loss"):
        chunk_loss(model)


class Peeks(transformers.LlamaForCausalLM):
    def forward(self, input_ids=None, labels=None, **kwargs):
        outputs = super().forward(input_ids=input_ids)
        outputs.logits.max()
        outputs.loss = self.loss_function(outputs.logits, labels, V)
        return outputs


class OwnLoss(transformers.LlamaForCausalLM):
    def forward(self, input_ids=None, labels=None, **kwargs):
        outputs = super().forward(input_ids=input_ids)
        outputs.loss = F.cross_entropy(outputs.logits.transpose(1, 2), labels)
        return outputs


@pytest.mark.parametrize(
    "cls, message", [(Peeks, "reads or changes"), (OwnLoss, "does not call self.loss_function")]
)
def test_a_forward_of_another_kind_is_refused(cls, message):
    with pytest.raises(UnsupportedError, match=message):
        chunk_loss(cls(build().config))


def test_other_heads_losses_models_and_options_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="transformers model"):
        chunk_loss(torch.nn.Linear(2, 2))
    with pytest.raises(UnsupportedError, match="no output embeddings"):
        chunk_loss(transformers.LlamaModel(build().config))
    for chunk in (0, -1, 2.0, True, "many"):
        with pytest.raises(ConfigError, match="chunk is"):
            chunk_loss(build(), chunk)
    model = build()
    model.loss_function = wide_loss
    with pytest.raises(UnsupportedError, match="wide_loss"):
        chunk_loss(model)
    model = build()
    model.lm_head.forward = lambda x: x
    with pytest.raises(UnsupportedError, match="forward of its own"):
        chunk_loss(model)
    monkeypatch.delattr(F, "linear_cross_entropy")
    with pytest.raises(ConfigError, match=r"needs torch 2\.13 .* for weights in bfloat16, and this is torch"):
        chunk_loss(build().bfloat16())
