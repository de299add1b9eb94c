"""Converted Hugging Face models under FSDP2, sharded decoder layer by decoder layer, in the
model's own loop.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sharding
import torch
import torch.distributed as dist
from sharding import differing, gradients
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import revstep
from revstep import hf

sys.path.insert(0, str(Path(__file__).parent.parent / "hf"))
models = pytest.importorskip("models")  # of the tests of hf

STEPS = 4


def _layers(model: nn.Module) -> list[nn.Module]:
    return list(hf.conversion(model).layers)


def _shard(
    model: nn.Module,
    policy: MixedPrecisionPolicy | None = None,
    layers: MixedPrecisionPolicy | None = None,
    **options,
) -> nn.Module:
    mesh, policy = init_device_mesh("cpu", (dist.get_world_size(),)), policy or MixedPrecisionPolicy()
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=layers or policy, **options)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def _noded(model: nn.Module) -> nn.Module:
    """A node at each layer's input, as FSDP puts it there: the layer's gradients are summed up before they
    join the rest.
    """
    for layer in _layers(model)[1:]:  # the first layer's input has the start of the recurrence behind it
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: ((args[0].view_as(args[0]), *args[1:]), kwargs), with_kwargs=True
        )
    return model


def _backward(model: nn.Module, step: int, half: int, share: float = 1.0) -> float:
    torch.manual_seed(1000 * step + half)
    ids = models.tokens(2, 8, seed=10 * step + half)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    (loss * share).backward()
    report = hf.conversion(model).report
    assert hf.conversion(model).stack.keep == models.LAYERS or (
        report.exact and report.matched == report.layers > 0
    )
    return float(loss.detach())


def _train(model: nn.Module, halves: tuple[int, ...], steps: int = STEPS) -> list:
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for step in range(steps):
        losses.append([_backward(model, step, half, 1.0 / len(halves)) for half in halves])
        opt.step()
        opt.zero_grad()
    return losses


def _trained(rank: int, family: str, scheme: str, options: dict) -> tuple:
    model = _shard(models.converted(family, scheme, convert=options).train())
    return _train(model, (rank,)), sharding.weights(model)


CASES = [("Llama", name, {}) for name in models.SCHEMES] + [
    ("Llama", "blend", {"keep": 2}),
    ("GPT2LMHeadModel", "blend", {}),
    ("Qwen3", "hamiltonian", {}),
]


@pytest.mark.parametrize(("family", "scheme", "options"), CASES, ids=lambda v: str(v))
def test_steps_are_those_of_one_process(ranks, family, scheme, options):
    """Losses and weights to the bit."""
    alone = _noded(models.converted(family, scheme, convert=options).train())
    expected = _train(alone, (0, 1))
    (zero, w0), (one, w1) = ranks(_trained, family, scheme, options)
    assert [[a[0], b[0]] for a, b in zip(zero, one)] == expected
    assert not differing(w0, sharding.weights(alone)) and not differing(w1, sharding.weights(alone))


def _on_one_half(rank: int) -> dict:
    model = _shard(models.converted("Llama").train())
    _train(model, (0,), 1)
    return sharding.weights(model)


def test_what_that_comparison_rejects(ranks):
    """Both processes on one half of the batch."""
    alone = _noded(models.converted("Llama").train())
    _train(alone, (0, 1), 1)
    assert all(differing(found, sharding.weights(alone)) for found in ranks(_on_one_half))


# ---- gathering, freeing, reducing ----


def _observed(rank: int, scheme: str, mutant: bool) -> tuple:
    model = models.converted("Llama", scheme).train()
    if mutant:  # the layers as they would be if the step dropped what FSDP put between them
        for layer in _layers(model)[1:]:
            layer.forward = _Dropping(layer.forward)
    model = _shard(model)
    _backward(model, 0, rank)
    model.zero_grad()
    layers, seen = _layers(model), []
    for k, layer in enumerate(layers):
        layer.mlp.down_proj.register_forward_pre_hook(lambda *_, k=k: seen.append((k, _whole(layers))))
    with sharding.collectives() as found:
        _backward(model, 1, rank)
    return seen, found, _whole(layers), [sum(p.numel() for p in layer.parameters()) for layer in layers]


def _whole(layers: list[nn.Module]) -> list[int]:
    return [
        k for k, layer in enumerate(layers) if not any(isinstance(p, DTensor) for p in layer.parameters())
    ]


class _Dropping:
    def __init__(self, step):
        self.step = step

    def __call__(self, x, *args, **kwargs):
        return self.step(self.step.conversion._local.view, *args, **kwargs)


def _sound(seen: list, found: dict, after: list, sizes: list[int]) -> bool:
    n = len(sizes)
    order = [*range(n), *reversed(range(n))]
    once = found["reduce"][:-1] == [*reversed(sizes)] and [2 * g for g in found["gather"][1:]] == [
        *sizes,
        *reversed(sizes),
    ]
    return seen == [(k, [k]) for k in order] and once and after == []


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
def test_a_layer_is_whole_only_while_it_is_evaluated_and_reduced_as_backward_goes(ranks, scheme):
    assert all(_sound(*answer) for answer in ranks(_observed, scheme, False))
    if scheme == "blend":
        assert not any(_sound(*answer) for answer in ranks(_observed, scheme, True))


# ---- mixed precision, LoRA, refusals ----


def _mixed(rank: int) -> tuple:
    found = []
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)
    for keep in (0, models.LAYERS):
        model = _shard(
            models.converted("Llama", convert={"keep": keep}).train(),
            policy,
            MixedPrecisionPolicy(torch.bfloat16, torch.float32),
        )
        _backward(model, 0, rank)
        found.append(gradients(model))
    full = _shard(models.converted("Llama").train())
    _backward(full, 0, rank)
    return differing(*found), differing(found[0], gradients(full))


def test_mixed_precision_is_that_of_the_stored_model(ranks):
    for stored, full in ranks(_mixed):
        assert not stored and full


def _lora(rank: int, sharded: bool) -> dict:
    import peft

    torch.manual_seed(5)
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
    )
    model = peft.get_peft_model(models.converted("Llama").train(), config)
    model = _shard(model) if sharded else _noded(model)
    _backward(model, 0, rank)
    return gradients(model)


def test_lora(ranks):
    """Adapters beside frozen weights in one shard: the average of both ranks' gradients, to the bit; nothing
    for what is frozen.
    """
    pytest.importorskip("peft")
    zero, one = (_lora(rank, False) for rank in (0, 1))
    expected = {name: (g + one[name]) / 2 for name, g in zero.items()}
    assert expected and all("lora" in name for name in expected)
    for found in ranks(_lora, True):
        assert not differing(found, expected)


def _nested(rank: int, scheme: str) -> list[dict]:
    """One step with attention and MLP sharded by themselves, with and without the rest of their layer, and as
    usual.
    """
    found = []
    for parts in (("self_attn", "mlp", ""), ("self_attn", "mlp"), ("",)):
        model, mesh = models.converted("Llama", scheme).train(), init_device_mesh("cpu", (2,))
        for layer in _layers(model):
            for name in parts:
                fully_shard(layer.get_submodule(name), mesh=mesh)
        _backward(fully_shard(model, mesh=mesh), 0, rank)
        found.append(gradients(model))
    return found


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
def test_submodules_of_a_layer_sharded_by_themselves(ranks, scheme):
    zero, one = ranks(_nested, scheme)
    assert not any(differing(zero[2], found) for found in (*zero[:2], *one)) and zero[2]


def _refused(rank: int) -> list[str]:
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)
    with pytest.raises(revstep.UnsupportedError) as cast:
        _backward(_shard(models.converted("Llama").train(), policy), 0, rank)
    plain = models.model("Llama")
    for layer in plain.model.layers:
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(revstep.UnsupportedError) as caught:
        hf.convert(plain, "blend:c=0.25", say=None)
    return [str(cast.value), str(caught.value)]


def test_what_is_refused_by_name(ranks):
    """A policy that casts the state between two layers; the wrong order."""
    for cast, order in ranks(_refused):
        assert (
            "output_dtype is for the model, not for its layers" in cast
            and "convert the model first, then apply fully_shard" in order
        )


@torch.no_grad()
def _evaluated(model: nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=models.tokens(2, 8), use_cache=False).logits


def _evaluated_in_shards(rank: int) -> torch.Tensor:
    return _evaluated(_shard(models.converted("Llama")))


def test_evaluation_without_gradients(ranks):
    expected = _evaluated(models.converted("Llama"))
    assert all(torch.equal(logits, expected) for logits in ranks(_evaluated_in_shards))
