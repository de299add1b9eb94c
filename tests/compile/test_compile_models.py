"""The project's own models, converted ones, and the step of a scheme by itself, under torch.compile."""

import models
import pytest
import stacks
import torch
from compiled import breaks, graphs

import revstep
from revstep import hf, lm
from revstep._models import training
from revstep.lm._architectures import GPT, GPTConfig

SHAPE = {"vocab": 64, "context": 16, "layers": 3, "width": 32}


def step(call, model, *args, **kwargs):
    """Loss, gradients and the next random number."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    out = call(*args, **kwargs)
    loss = out if isinstance(out, torch.Tensor) else out.loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters()), torch.rand(1)]


of_torch = pytest.mark.skipif(not training.has_operator(), reason="this torch has no loss in chunks")


@pytest.mark.parametrize("make, chunk", (pytest.param("gpt", 16, marks=of_torch), ("llama", 0)))
def test_a_language_model_is_one_graph(make, chunk, monkeypatch):
    """The loss in chunks is torch's operator in a compiled graph, and our own without: rounded otherwise."""
    monkeypatch.setattr(training, "_ours", lambda weight, tie: False)
    if make == "gpt":
        model = GPT(GPTConfig(**SHAPE, heads=4, dropout=0.1, loss_chunk=chunk), "blend")
    else:
        model = lm.Llama(lm.LlamaConfig(**SHAPE, heads=4, kv_heads=2, loss_chunk=chunk), "blend")
    ids = torch.randint(0, 64, (3, 16), generator=torch.Generator().manual_seed(0))
    model.trunk.compile(backend="aot_eager")
    plain = step(model, model, ids, ids)
    report, inside = model.trunk.report, graphs()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        assert (
            stacks.same(plain, step(compiled, model, ids, ids))
            and model.trunk.report == report
            and report.exact
        )
    # The model around, and its blocks once more on the weights of the operator.
    assert breaks() == [] and inside == 1 and graphs() == 3


@of_torch
def test_the_loss_of_a_compiled_model_is_that_of_the_plain_one(monkeypatch):
    """Rounded otherwise: 64 logits and 48 tokens are summed in another order, in float32."""
    found = []
    for ours in (True, False):
        monkeypatch.setattr(training, "_ours", lambda weight, tie, ours=ours: ours)
        torch.manual_seed(0)
        model = GPT(GPTConfig(**SHAPE, heads=4, loss_chunk=16), "blend")
        ids = torch.randint(0, 64, (3, 16), generator=torch.Generator().manual_seed(0))
        found.append(step(model, model, ids, ids)[:-1])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= (64 + 48) * torch.finfo(torch.float32).eps * max(
            1.0, float(b.abs().max())
        )


def converted():
    return models.converted("Llama").train()


def inputs():
    ids = torch.randint(
        3, models.VOCAB, (models.BATCH, models.TIME), generator=torch.Generator().manual_seed(0)
    )
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def test_blocks_of_a_converted_model_compiled():
    """The same sums in another arrangement of kernels: gradients to rounding of uncompiled blocks, states as
    exact as ever.
    """
    model = converted()
    plain = step(model, model, **inputs())
    hf.conversion(model).stack.compile(backend="aot_eager")
    ours = step(model, model, **inputs())
    made = graphs()
    assert made and hf.conversion(model).report.exact and breaks() == []
    assert stacks.same(ours, step(model, model, **inputs())) and graphs() == made
    # Of float32 gradients through four layers of weights three times as large as initialised: 1e3 roundings
    bound = 2e-4
    assert all(
        float((a - b).norm()) <= bound * float(b.norm())
        for a, b in zip(ours, plain)
        if float(b.norm()) > 1e-6
    )


def test_a_converted_model_compiled_whole_breaks_at_its_layers():
    model = converted()
    plain = step(model, model, **inputs())
    report = hf.conversion(model).report
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        ours = step(compiled, model, **inputs())
        assert (
            float((ours[0] - plain[0]).abs()) < 1e-5 * float(plain[0]) and hf.conversion(model).report.exact
        )
    assert hf.conversion(model).report.layers == report.layers
    made = graphs()
    # What torch 2.9 cannot trace is of transformers.
    known = ["hf.conversion(model).stack.compile()"] + ["method `clear`"] * (not training.has_operator())
    assert breaks() and all(any(text in reason for text in known) for reason in breaks())
    assert any(known[0] in reason for reason in breaks())
    step(compiled, model, **inputs())
    assert graphs() == made


def test_gradient_checks_reject_blocks_compiled_wrong(monkeypatch):
    model = converted()
    plain = step(model, model, **inputs())
    stack = hf.conversion(model).stack

    def halved(gm, example_inputs):
        return lambda *args: tuple(t * 1.001 for t in gm(*args))

    stack.compile(backend=halved)
    ours = step(model, model, **inputs())
    assert any(
        float((a - b).norm()) > 2e-4 * float(b.norm()) for a, b in zip(ours, plain) if float(b.norm()) > 1e-6
    )


def there_and_back(scheme, state):
    def run(prev, cur, w):
        increment = torch.tanh(cur.float() * 2.0**-20 @ w)
        nxt, carry = scheme.step(prev, cur, increment, layer=1, state=state, return_carry=True)
        return nxt, scheme.inverse(nxt, cur, increment, layer=1, state=state, carry=carry)

    g = torch.Generator().manual_seed(0)
    prev, cur = (state.encode(torch.randn(4, 8, generator=g))[1] for _ in range(2))
    return run, (prev, cur, torch.randn(8, 8, generator=g))


@pytest.mark.parametrize("name", [n for n in stacks.SCHEMES if not stacks.scheme(n).per_sample])
def test_step_and_inverse_in_one_graph(name):
    run, given = there_and_back(stacks.scheme(name), revstep.FixedPoint(on_nonfinite="propagate"))
    expected = run(*given)  # draws the paper's a, which dynamo cannot
    nxt, back = torch.compile(run, backend="aot_eager", fullgraph=True)(*given)
    assert (
        torch.equal(back, given[0])
        and torch.equal(nxt, expected[0])
        and not torch.equal(nxt, back)
        and graphs() == 1
    )


def test_a_format_that_raises_breaks_the_graph_and_still_raises():
    run, (prev, cur, w) = there_and_back(revstep.Midpoint(), revstep.FixedPoint())
    compiled = torch.compile(run, backend="aot_eager")
    for _ in range(2):
        nxt, back = compiled(prev, cur, w)
        assert torch.equal(back, prev) and torch.equal(nxt, run(prev, cur, w)[0])
        made = graphs()
    assert made == 3 and all("on_nonfinite" in reason for reason in breaks())
    with pytest.raises(revstep.StateOverflowError):
        compiled(torch.full_like(prev, 2**31 - 1), cur, w)
