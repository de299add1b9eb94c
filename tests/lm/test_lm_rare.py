"""What a training run says at the ends that few reach."""

import types

import pytest
import torch
import torch.nn.functional as F

import revstep
from revstep import ConfigError, UnsupportedError, lm
from revstep._models import training
from revstep.lm import _checkpoint, _guard, _parallel, _run, _sampler, _trainer


def test_an_error_of_ours_while_a_checkpoint_is_read_stays(config, tmp_path):
    lm.train(config(steps=1))
    with pytest.raises(ConfigError, match=r"^not this one$"), _checkpoint._reading(tmp_path / "run"):
        raise ConfigError("not this one")
    with pytest.raises(MemoryError), _checkpoint._reading(tmp_path / "run"):
        raise MemoryError


def test_nothing_is_wider_than_the_widest_format():
    guard = object.__new__(_guard.Guard)
    guard.state = revstep.FixedPoint(64, 0)
    spec, said = guard._advice(0.5)
    assert spec == "" and "lower --lr or raise --weight-decay" in said
    guard.state = revstep.FixedPoint(32)
    spec, said = guard._advice(0.5)
    assert spec.startswith("fixed") and f"--resume --state {spec}" in said
    assert revstep.Float(torch.float32).wider(1e30) is None


def test_the_loss_in_chunks_of_a_torch_that_has_none(monkeypatch):
    """Before torch 2.13: ours, as on the CPU with any torch; refused where only torch's would do."""
    model = lm.GPT(lm.GPTConfig(vocab=11, layers=1, width=8, heads=1, context=4, loss_chunk=2), "plain")
    ids = torch.tensor([[3, 1, 4, 1]])
    expected = [model(ids, ids), *torch.autograd.grad(model(ids, ids), model.head_weight)]
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    assert all(
        torch.equal(a, b)
        for a, b in zip(expected, [model(ids, ids), *torch.autograd.grad(model(ids, ids), model.head_weight)])
    )
    assert training._ours(torch.zeros(2, 2, device="meta"), None)  # on other devices too
    said = r"needs torch 2\.13 .* for weights in bfloat16.*or hold all logits \(loss_chunk=0\)"
    with pytest.raises(ConfigError, match=said):
        model.bfloat16()(ids, ids)


def test_a_batch_that_processes_cannot_share(monkeypatch):
    monkeypatch.setattr(_parallel.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(_parallel.dist, "get_world_size", lambda: 3)
    with (
        pytest.raises(ConfigError, match="batch is 4; expected a multiple of the 3 processes"),
        _parallel.start("ddp", "cpu", 4),
    ):
        pass


def test_more_processes_than_before_draw_from_seeds_of_their_own():
    run = object.__new__(_run.Run)
    run.engine, run.config = _parallel.Engine(torch.device("cpu")), types.SimpleNamespace(seed=7)
    run.engine.rank = 2
    saved = types.SimpleNamespace(training={"random": None, "random_of_others": (None,)}, step=5)
    run._restore_random(saved)
    found = torch.rand(3)
    torch.manual_seed(run.engine.seed(7, 5))
    assert torch.equal(found, torch.rand(3))


def test_a_loss_scale_that_has_collapsed(tmp_path):
    run = object.__new__(_run.Run)
    run.scaler = types.SimpleNamespace(get_scale=lambda: 2.0**-15)
    run.out = None
    with pytest.raises(
        lm.DivergedError, match=r"the loss scale has fallen to 3.05e-05 at step 9: no step is"
    ):
        run._scaled_step(9, "")


def test_weights_that_do_not_fit_on_the_device(config, tmp_path, monkeypatch):
    lm.train(config(steps=1))

    def full(self, *args):
        raise torch.OutOfMemoryError("out of memory\nand a table")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(lm.CheckpointError, match=r"cannot be used on cpu: out of memory$"):
        _sampler.load_model(tmp_path / "run", device="cpu")


@pytest.mark.parametrize("error, size", [(ConfigError("ours"), 1), (RuntimeError("the connection"), 2)])
def test_errors_of_a_restored_run_that_are_not_the_checkpoints(error, size):
    def restore(saved):
        raise error

    run = types.SimpleNamespace(restore=restore, engine=types.SimpleNamespace(size=size))
    with pytest.raises(type(error), match=str(error)) as caught:
        _trainer._restored(run, types.SimpleNamespace(path="checkpoint"))
    assert caught.value is error


@pytest.mark.parametrize("trunk", ["plain", "blend"])
def test_the_loss_in_chunks_has_no_second_derivative(trunk, monkeypatch):
    """Its gradients are numbers: those of them would lack the head's part, by more than their own size."""
    ids = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(1))

    def second(chunk):
        sizes = {"vocab": 11, "layers": 2, "width": 8, "heads": 1, "context": 6, "loss_chunk": chunk}
        model = lm.GPT(lm.GPTConfig(**sizes), trunk, seed=1)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            found = torch.autograd.grad(model(ids, ids), list(model.parameters()), create_graph=True)
            sum(g.square().sum() for g in found).backward()
        return model.head_weight.grad

    whole = second(0)
    with pytest.raises(UnsupportedError, match=r"second derivatives.*loss_chunk=0"):
        second(2)
    monkeypatch.setattr(training._FirstDerivative, "apply", lambda loss: loss)  # the mutant
    assert (second(2) - whole).norm() > 0.5 * whole.norm()
