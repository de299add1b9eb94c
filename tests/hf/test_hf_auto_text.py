"""The text that the dial reads: made up by the model itself where none is given, pieces of it where there is
much.
"""

import counting
import models
import pytest
import torch

from revstep import hf
from revstep.hf import _auto
from revstep.hf._calibrate import as_batches, mean_loss


@pytest.fixture(scope="module")
def learned():
    return counting.learned()


def test_without_text_the_model_makes_up_its_own(learned):
    model, _ = learned
    state = torch.get_rng_state()
    texts = [_auto.own_text(model, lambda line: None) for _ in range(2)]
    assert torch.equal(*texts) and torch.equal(torch.get_rng_state(), state) and texts[0].shape == (4, 64)
    assert mean_loss(model, as_batches(texts[0], None, model)) < 4.0, (
        "its own text, not random tokens: log 96 = 4.56"
    )
    said = []
    hf.convert(model, say=said.append)
    try:
        assert "calibrated on 256 tokens" in said[-2] and hf.conversion(model).state.frac_bits > 20
    finally:
        hf.revert(model)


def test_a_model_that_makes_up_no_text_says_so(learned, monkeypatch):
    model, said = learned[0], []

    def fails(*args, **kwargs):
        raise ValueError("no")

    monkeypatch.setattr(type(model), "generate", fails)
    assert _auto.own_text(model, said.append).shape == (4, 64) and "ValueError: no" in said[0]


@pytest.mark.parametrize("limit, length", [(1000, 256), (100, 64), (1, 2)])
def test_its_own_text_is_no_longer_than_it_reads(learned, monkeypatch, limit, length):
    """The config may not say how much that is."""
    model = learned[0]
    before = type(model).forward

    def forward(self, input_ids=None, **kwargs):
        if input_ids.shape[1] > limit:
            raise RuntimeError("the size of tensor a must match")
        return before(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", forward)
    monkeypatch.setattr(model.config, "max_position_embeddings", -1)
    assert _auto.own_text(model, lambda line: None).shape == (4, length)


def test_the_search_reads_pieces_from_all_of_the_text():
    ids = torch.arange(8000).view(8, 1000)
    (cut,) = _auto.some_tokens([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], 1024)
    assert cut["input_ids"].shape == cut["attention_mask"].shape == (4, 256)
    assert (
        cut["input_ids"][:, 0].tolist() == [0, 2512, 5000, 7512]
        and int(cut["input_ids"].diff(dim=1).unique()) == 1
    )
    both = _auto.some_tokens([{"input_ids": ids[:1, :512]}, {"input_ids": ids[1:2, :300]}], 1024)
    assert [b["input_ids"].tolist() for b in both] == [
        [ids[0, :256].tolist(), ids[0, 256:512].tolist(), ids[1, :256].tolist()]
    ]
    ragged = _auto.some_tokens([{"input_ids": ids[:1, :20]}, {"input_ids": ids[1:2, :30]}], 1024)
    assert [tuple(b["input_ids"].shape) for b in ragged] == [(1, 20), (1, 30)]


def test_pieces_are_text_and_pictures_stay_with_theirs():
    ids = torch.arange(2000).view(2, 1000)
    mask = torch.zeros_like(ids)
    mask[0, :300] = 1
    (only,) = _auto.some_tokens([{"input_ids": ids, "attention_mask": mask}], 1024)
    assert only["input_ids"][:, 0].tolist() == [0, 256], "what is padding alone is left out"
    seen = {"input_ids": ids, "pixel_values": torch.zeros(2, 3, 4, 4)}
    assert _auto.some_tokens([seen], 10) == [seen]


def test_a_model_without_predictions_is_not_measured():
    said = []
    made = hf.convert(models.model("Llama").model, say=said.append)
    assert hf.conversion(made).scheme == _auto.UNMEASURED and "predicts no next token" in said[0]
