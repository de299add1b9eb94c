"""Sampling: the distribution it draws from, its options, the cropped context, and deploying a blend as the
plain network.
"""

import math

import pytest
import torch

from revstep import lm
from revstep.errors import ConfigError
from revstep.lm._sampler import _choose

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()[:, [2, 0, 3, 1]]  # ids by rank: 1, 3, 0, 2


def counts(n=20_000, temperature=1.0, top_k=0, top_p=1.0):
    generator = torch.Generator().manual_seed(0)
    drawn = _choose(LOGITS.expand(n, 4).clone(), temperature, top_k, top_p, generator)
    return (torch.bincount(drawn[:, 0], minlength=4) / n).tolist()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_k": 2}, [0, 0.625, 0, 0.375]),
        ({"top_k": 9}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_p": 0.5}, [0, 1, 0, 0]),
        ({"top_p": 0.51}, [0, 0.625, 0, 0.375]),
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
        ({"top_k": 3, "top_p": 0.8}, [0, 0.625, 0, 0.375]),
    ],
)
def test_the_distribution_is_the_one_asked_for(options, expected):
    for got, want in zip(counts(**options), expected, strict=True):
        # Five standard errors; exact where want is 0 or 1.
        assert abs(got - want) <= 5 * (want * (1 - want) / 20_000) ** 0.5


@pytest.fixture(params=[lm.GPTConfig, lm.LlamaConfig])
def model(request):
    return lm.make_model(
        request.param(vocab=30, context=8, layers=2, width=16, heads=2), "blend", seed=1
    ).eval()


def test_seeds_and_the_global_generator(model):
    prompt, before = torch.tensor([[3, 4]]), torch.get_rng_state()
    a, b, c = (lm.generate(model, prompt, 20, seed=seed) for seed in (7, 7, 8))
    assert (
        torch.equal(a, b) and not torch.equal(a, c) and a.shape == (1, 22) and torch.equal(a[:, :2], prompt)
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_the_context_is_cropped_to_its_end(model):
    prompt = torch.arange(20)[None]
    long, short = (lm.generate(model, p, 3, temperature=0) for p in (prompt, prompt[:, -8:]))
    assert torch.equal(long[:, -3:], short[:, -3:])


def test_it_stops_before_the_end_id(model):
    prompt = torch.tensor([[3, 4]])
    free = lm.generate(model, prompt, 12, seed=1)
    assert torch.equal(
        lm.generate(model, prompt, 12, seed=1, stop=free[0, 6].item()),
        free[:, : free[0, 2:].tolist().index(free[0, 6].item()) + 2],
    )


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": 1e-40},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"count": -1},
        {"seed": 2**64},
    ],
)
def test_bad_options(model, options):
    with pytest.raises(ConfigError, match=rf"^{next(iter(options))} is .*; expected"):
        lm.generate(model, torch.tensor([[1]]), **{"count": 2} | options)
    with pytest.raises(ConfigError, match="at least one token"):
        lm.generate(model, torch.empty(1, 0, dtype=torch.int64), 2)


@pytest.mark.parametrize(
    "changes", [{}, {"model": "llama", "kv_heads": 1, "tied": False}], ids=["gpt", "llama"]
)
def test_text_from_a_run_folder(config, tmp_path, changes):
    result = lm.train(config(scheme="blend", **changes))
    text = lm.generate_text(tmp_path / "run", "the state", 20)
    assert text.startswith("the state") and text == lm.generate_text(tmp_path / "run", "the state", 20)
    model, tokenizer, loaded = lm.load_model(tmp_path / "run")
    assert loaded == result.config and not model.training and tokenizer.vocab == 257
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), result.model.parameters(), strict=True))
    assert isinstance(lm.load_model(tmp_path / "run", scheme="plain")[0].trunk, lm.ResidualStack)
    with pytest.raises(ConfigError, match="not valid text"):
        lm.generate_text(tmp_path / "run", "\udce9")
