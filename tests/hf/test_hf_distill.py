"""Distillation: the divergence, its direction, its gradient, and a student that moves towards its teacher."""

import copy

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, TrainingArguments

from revstep.errors import ConfigError
from revstep.hf import _distill
from revstep.hf._distill import Distiller, distillation_loss, distillation_trainer

V = 11
EPS = torch.finfo(torch.float64).eps


def logits(seed, dtype=torch.float64):
    return torch.randn(2, 5, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labels():
    y = torch.randint(0, V, (2, 5), generator=torch.Generator().manual_seed(9))
    y[0, :3] = -100
    return y


def reference(s, t, y, temperature, weight):
    """Term by term from the definition, with the rows picked out by hand."""
    s, t, y = s[:, :-1], t[:, :-1], y[:, 1:]
    s, t, y = s[y != -100], t[y != -100], y[y != -100]
    kl = F.kl_div(F.log_softmax(s / temperature, -1), F.softmax(t / temperature, -1), reduction="batchmean")
    return weight * temperature**2 * kl + (1 - weight) * F.cross_entropy(s, y)


def check(loss):
    """The loss and its gradient against ``reference``, in float64: V terms a row of size at most T^2 * 10,
    one rounding each and some for the logarithms.
    """
    for temperature, weight in ((1.0, 1.0), (2.0, 0.7), (0.5, 0.0)):
        s, r, t, y = logits(0).requires_grad_(), logits(0).requires_grad_(), logits(1), labels()
        got = loss(s, t, labels=y, temperature=temperature, weight=weight)
        want = reference(r, t, y, temperature, weight)
        bound = 10 * temperature**2 * 8 * V * EPS
        if (got - want).abs() > bound:
            return False
        got.backward()
        want.backward()
        if (s.grad - r.grad).abs().max() > bound:
            return False
    return True


def test_it_is_the_divergence_of_the_definition():
    assert check(distillation_loss)


def test_it_is_the_same_in_pieces(monkeypatch):
    monkeypatch.setattr(_distill, "ELEMENTS", 3 * V)
    assert check(distillation_loss)


def exchanged(s, t, **options):
    """KL(student || teacher): the arguments of the divergence the other way round."""
    kl = F.kl_div
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "kl_div", lambda own, given, **o: kl(given, own, **o))
        return distillation_loss(s, t, **options)


MUTANTS = {
    "divergence the other way round": exchanged,
    "no temperature squared": lambda s, t, *, temperature, **o: (
        distillation_loss(s, t, temperature=temperature, **o) / temperature**2
    ),
    "labels not shifted": lambda s, t, *, labels, **o: distillation_loss(
        s, t, labels=F.pad(labels, (1, 0))[:, :-1], **o
    ),
    "positions not masked": lambda s, t, *, labels, **o: distillation_loss(
        s, t, labels=labels.clamp(min=0), **o
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_divergence_is_rejected(mutant):
    assert not check(MUTANTS[mutant])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_loss_and_no_gradient_for_a_student_that_is_its_teacher(dtype):
    s = logits(0, dtype).requires_grad_()
    loss = distillation_loss(s, s.detach().clone(), temperature=3.0)
    loss.backward()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == wide and loss == 0
    # softmax(s) - softmax(t) * sum(softmax(t)): the sum of V probabilities is 1 to V roundings; times T / N,
    # below T.
    assert s.grad.abs().max() <= 3.0 * 2 * V * torch.finfo(wide).eps


def test_all_positions_count_without_labels_and_the_teacher_gets_no_gradient():
    s, t = logits(0).requires_grad_(), logits(1).requires_grad_()
    loss = distillation_loss(s, t)
    loss.backward()
    want = F.kl_div(F.log_softmax(s, -1), F.softmax(t, -1), reduction="sum") / 10
    assert (loss - want).abs() <= 80 * V * EPS and t.grad is None and s.grad[:, -1].abs().min() > 0


def test_options_that_cannot_be_used_are_refused():
    s, y = logits(0), labels()
    for options, message in (
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"weight": 1.5, "labels": y}, "weight"),
        ({"weight": 0.5}, "labels"),
        ({"labels": y[:, 1:]}, "not shifted"),
    ):
        with pytest.raises(ConfigError, match=message):
            distillation_loss(s, s, **options)
    with pytest.raises(ConfigError, match="twice the same"):
        distillation_loss(s, s[..., :-1])


def model(seed, cls=LlamaForCausalLM, config=LlamaConfig, **extra):
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    return cls(config(**sizes, initializer_range=0.3, **extra))


def data(n=8):
    x = torch.randint(0, 32, (n, 6), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": row, "labels": row.clone()} for row in x]


def divergence(student, teacher):
    x = torch.stack([row["input_ids"] for row in data()])
    with torch.no_grad():
        return distillation_loss(student(x).logits, teacher(x).logits).item()


def test_a_student_moves_towards_its_teacher_under_the_trainer(tmp_path):
    teacher, student = model(0).eval(), model(1)
    weights, before = copy.deepcopy(teacher.state_dict()), divergence(student, teacher)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=20,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = distillation_trainer()(
        model=student,
        args=args,
        train_dataset=data(),
        eval_dataset=data(),
        distiller=Distiller(teacher, temperature=2.0, weight=0.9),
    )
    trainer.train()
    assert divergence(student, teacher) < before / 2
    assert trainer.evaluate()["eval_loss"] > 0
    assert not teacher.training and all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(weights[name], value) for name, value in teacher.state_dict().items())
    assert distillation_trainer() is distillation_trainer()


def test_a_router_loss_is_added():
    experts = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.1}
    teacher, student = model(0).eval(), model(1, MixtralForCausalLM, MixtralConfig, **experts)
    inputs = {"input_ids": torch.stack([row["input_ids"] for row in data()])}
    loss, outputs = Distiller(teacher)(student, inputs, return_outputs=True)
    plain = distillation_loss(outputs.logits, teacher(**inputs).logits)
    assert (
        loss.item() == pytest.approx((plain + 0.1 * outputs.aux_loss).item(), rel=1e-6)
        and outputs.aux_loss > 0
    )


def test_a_teacher_in_training_mode_is_refused():
    with pytest.raises(ConfigError, match=r"teacher\.eval"):
        Distiller(model(0).train())(model(1), {"input_ids": torch.zeros(1, 3, dtype=torch.int64)})
