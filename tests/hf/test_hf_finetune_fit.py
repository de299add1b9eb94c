"""``revstep finetune --fit``: kept layers and tiles are those of the fastest predicted point that fits."""

import re
import types

import pytest

from revstep import hf
from revstep._cli.commands import _fit
from revstep._cli.commands.finetune import check
from revstep.errors import ConfigError
from revstep.plan import _choice, _planner

SHORT = (
    "finetune MODEL --data TEXT --batch 4 --context 32 --lr 1e-3 --device cpu --eval-batches 4 --steps 1"
    " --loss-tolerance 9 --scheme blend:c=0.0625"
)


def chosen(folder):
    stack = hf.conversion(hf.from_pretrained(folder)).stack
    return stack.keep, stack.tile


def test_all_layers_are_kept_where_they_fit(revstep, hub, tmp_path):
    code, said, _ = revstep(f"{SHORT} --out OUT/a --fit 1GB")
    assert code == 0 and re.search(r"^to fit 1 GB: reversible, keep=3, .* 1\.00 times plain's", said, re.M)
    assert chosen(tmp_path / "a") == (3, None)


def test_the_least_budget_fits_and_less_is_refused(revstep, hub, tmp_path, monkeypatch):
    seen = []
    honest = _choice.fastest
    monkeypatch.setattr(_choice, "fastest", lambda points, b: seen.extend(points) or honest(points, b))
    code, _, problem = revstep(f"{SHORT} --out OUT/b --fit 1kB")
    assert code == 2 and re.search(r"--fit: a step of batch 4 needs .* at least, with reversible", problem)
    budget = int(min(p.peak for p in seen)) + 1
    code, said, _ = revstep(f"{SHORT} --out OUT/c --fit {budget}")
    best = honest(seen, budget)
    assert code == 0 and f"{best}, " in said and chosen(tmp_path / "c") == (best.keep, best.tile)
    assert best.keep < 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"keep": 1}, "--fit chooses --keep"),
        ({"tile": 64}, "--fit chooses --tile"),
        ({"memory_budget": 10, "keep": "auto"}, "--fit chooses --keep"),
        ({"scheme": "plain"}, "--scheme is plain"),
        ({"teacher": "MODEL"}, "--fit does not know what a --teacher holds"),
        ({"lora_targets": "q_proj"}, "expected --lora-targets of those"),
        ({"fit": "much"}, "much"),
    ],
)
def test_what_it_does_not_go_with(given, words):
    with pytest.raises(ConfigError, match=words):
        check({"fit": "1GB", **given})
    check({"fit": "1GB"})


def test_carries_of_a_choice_that_is_made_later():
    """The bits that are asked for, or five a layer."""

    def run(**given):
        return types.SimpleNamespace(given=given, get=lambda name: given.get(name, "auto"))

    assert _fit._planned(run(scheme="midpoint")) == "midpoint"
    assert [_fit._planned(run(**g)) for g in ({}, {"bits": 3.5})] == ["blend:c=0.03125", "blend:c=0.0625"]


def test_a_loss_that_has_no_chunks_is_not_planned(revstep, hub, monkeypatch):
    monkeypatch.setattr(_planner, "why_not", lambda model: "the model caps its logits")
    code, _, problem = revstep(f"{SHORT} --out OUT/d --fit 1GB")
    assert (
        code == 2
        and "--fit plans the loss in chunks, and this model's cannot be: use --loss-chunk 0" in problem
    )
