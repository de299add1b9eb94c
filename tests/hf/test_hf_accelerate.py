"""accelerate by hand, a GradScaler, fp16: the loop that people write themselves."""

import pytest
import torch
from accelerate import Accelerator
from models import LAYERS, SCHEMES, converted, differing, tokens

from revstep import StateOverflowError, hf
from revstep._models.layers import decoder_layers
from revstep.stack._audit import Audit


def batches():
    return torch.utils.data.DataLoader([{"input_ids": row} for row in tokens(8, 10)], batch_size=2)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_accelerate_by_hand(scheme):
    """prepare, accumulate, clip_grad_norm_: the bits of the stored recurrence."""
    ends = []
    for keep in (0, LAYERS):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        made = converted("Llama", scheme, convert={"keep": keep}).train()
        made, optimiser, loader = accelerator.prepare(
            made, torch.optim.AdamW(made.parameters(), lr=1e-2), batches()
        )
        torch.manual_seed(0)
        norms, losses = [], []
        for batch in loader:
            with accelerator.accumulate(made):
                loss = made(**batch, labels=batch["input_ids"], use_cache=False).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norms.append(float(accelerator.clip_grad_norm_(made.parameters(), 0.5)))
                optimiser.step()
                optimiser.zero_grad()
                losses.append(float(loss.detach()))
        assert len(norms) == 2 and losses[-1] != losses[0]
        plain = accelerator.unwrap_model(made)
        assert keep or hf.conversion(plain).report.exact
        ends.append(
            {"loss": torch.tensor([*norms, *losses])} | {n: p.detach() for n, p in plain.named_parameters()}
        )
    assert differing(*ends) == []


def test_accelerate_state_saved_and_loaded(tmp_path):
    accelerator = Accelerator(cpu=True)
    made, optimiser = accelerator.prepare(
        m := converted("Llama").train(), torch.optim.AdamW(m.parameters(), lr=1e-2)
    )

    def step(seed):
        ids = tokens(seed=seed)
        accelerator.backward(made(input_ids=ids, labels=ids, use_cache=False).loss)
        optimiser.step()
        optimiser.zero_grad()

    step(1)
    accelerator.save_state(str(tmp_path))
    step(2)
    first = {n: p.detach().clone() for n, p in made.named_parameters()}
    accelerator.load_state(str(tmp_path))
    assert differing(first, dict(made.named_parameters())) != []
    step(2)
    assert differing(first, {n: p.detach() for n, p in made.named_parameters()}) == []


# ---- GradScaler ----


def fp16_step(made, optimiser, scaler, ids):
    """One step under fp16 autocast. Returns (loss, whether the weights changed)."""
    before = [p.detach().clone() for p in made.parameters()]
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = made(input_ids=ids, labels=ids, use_cache=False).loss
    scaler.scale(loss).backward()
    scaler.unscale_(optimiser)
    torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
    scaler.step(optimiser)
    scaler.update()
    return float(loss.detach()), any(not torch.equal(a, b) for a, b in zip(before, made.parameters()))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_overflow_step_is_skipped_and_the_next_one_works(scheme):
    made = converted("Llama", scheme, convert={"state": "fixed32:20", "on_nonfinite": "propagate"}).train()
    optimiser, scaler = (
        torch.optim.SGD(made.parameters(), lr=0.01),
        torch.amp.GradScaler("cpu", init_scale=2.0**10),
    )
    down = decoder_layers(made)[1][1].mlp.down_proj.weight
    sane = down.detach().clone()
    assert fp16_step(made, optimiser, scaler, tokens())[1] and scaler.get_scale() == 2.0**10
    with torch.no_grad():
        down.fill_(6e4)  # the branch overflows fp16: infinite increments
    loss, changed = fp16_step(made, optimiser, scaler, tokens())
    assert loss != loss and not changed and scaler.get_scale() == 2.0**9
    with torch.no_grad():
        down.copy_(sane)
    loss, changed = fp16_step(made, optimiser, scaler, tokens())
    assert loss == loss and changed and scaler.get_scale() == 2.0**9 and hf.conversion(made).report.exact


def test_an_overflow_of_the_format_alone():
    """Finite in float, outside the 32-bit state: skipped with "propagate", an error that names the next
    format with "raise".
    """
    for mode in ("propagate", "raise"):
        made = converted("Llama", convert={"state": "fixed32:20", "on_nonfinite": mode}).train()
        optimiser, scaler = (
            torch.optim.SGD(made.parameters(), lr=0.01),
            torch.amp.GradScaler("cpu", init_scale=8.0),
        )
        with torch.no_grad():
            decoder_layers(made)[1][2].mlp.down_proj.weight.mul_(3e4)
        if mode == "raise":
            with pytest.raises(StateOverflowError, match=r"layer 2: .*FixedPoint\("):
                fp16_step(made, optimiser, scaler, tokens())
        else:
            loss, changed = fp16_step(made, optimiser, scaler, tokens())
            assert loss != loss and not changed and scaler.get_scale() == 4.0


def test_without_the_poison_the_overflow_is_not_seen(monkeypatch):
    """The mutant: a poisoned pass whose output is not made NaN hands the optimiser finite, wrong
    gradients.
    """
    made = converted("Llama", convert={"state": "fixed32:20", "on_nonfinite": "propagate"}).train()
    with torch.no_grad():
        decoder_layers(made)[1][2].mlp.down_proj.weight.mul_(3e4)
    monkeypatch.setattr(
        Audit, "poisoned", property(lambda self: False, lambda self, value: None), raising=False
    )
    optimiser, scaler = (
        torch.optim.SGD(made.parameters(), lr=0.01),
        torch.amp.GradScaler("cpu", init_scale=8.0),
    )
    loss, _ = fp16_step(made, optimiser, scaler, tokens())
    assert loss == loss


def test_fp16_weights():
    made = [
        converted("Llama", dtype=torch.float16, convert={"keep": keep, "on_nonfinite": "propagate"}).train()
        for keep in (0, LAYERS)
    ]
    grads = []
    for m in made:
        loss = m(input_ids=tokens(), labels=tokens(), use_cache=False).loss
        (loss * 128).backward()
        grads.append({n: p.grad for n, p in m.named_parameters()})
    assert differing(*grads) == [] and hf.conversion(made[0]).report.exact
