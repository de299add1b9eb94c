"""Docstrings say what is true, as far as a test can see: their examples run, what they refer to exists, the
errors they name are errors, and their arguments are those of the signature.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import docstrings
import pytest
import torch
from torch import nn

import revstep


def small_stack(monkeypatch: Any) -> dict[str, Any]:
    blocks = [nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()) for _ in range(12)]
    return {"revstep": revstep, "blocks": blocks, "x": torch.randn(2, 4)}


def small_model(monkeypatch: Any) -> dict[str, Any]:
    return {"revstep": revstep, "torch": torch, "model": nn.Linear(4, 4)}


def orbit(monkeypatch: Any) -> dict[str, Any]:
    return {"q0": torch.tensor([1.0, 0.0]).double(), "p0": torch.tensor([0.0, 1.0]).double()}


def small_llama(monkeypatch: Any) -> dict[str, Any]:
    transformers = pytest.importorskip("transformers", reason="comes with revstep[hf]")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.LlamaConfig(vocab_size=64, tie_word_embeddings=False, **shape)
    return {"model": transformers.LlamaForCausalLM(config), "token_ids": torch.randint(64, (2, 16))}


def small_run(monkeypatch: Any) -> dict[str, Any]:
    """``TrainConfig`` takes what the example gives it, for a model and a run that take a second."""
    lm = importlib.import_module("revstep.lm")
    real, text = lm.TrainConfig, Path("text.txt")
    text.write_text("def f(x):\n    return x\n" * 200, encoding="utf-8")
    small = {"layers": 1, "width": 16, "heads": 2, "context": 16, "batch": 2, "warmup": 1, "eval_batches": 1}
    small.update(data=(str(text),), tokenizer="bytes", device="cpu", progress=False)

    def made(**given: Any) -> Any:
        return real(**{**small, **given, "steps": min(given["steps"], 3)})

    monkeypatch.setattr(lm, "TrainConfig", made)
    return {}


#: What the examples of a module are run with; those of other modules need nothing.
PREPARED = {
    "revstep": small_stack,
    "revstep._fused_step": small_model,
    "revstep.hf": small_llama,
    "revstep.lm": small_run,
    "revstep.ode": orbit,
}
EXAMPLES = [
    pytest.param(t.module, code, id=f"{t.module}:{t.name}".strip(":"))
    for t in docstrings.texts()
    for code in docstrings.examples(t.text)
    if t.module.partition(".")[0] == "revstep"
]


@pytest.mark.parametrize("module, code", EXAMPLES)
def test_examples_run(module, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    docstrings.run(code, PREPARED.get(module, lambda _: {})(monkeypatch))


def test_the_examples_are_found():
    assert {example.values[0] for example in EXAMPLES} >= {*PREPARED, "revstep.ode.fields"}
    assert docstrings.examples("Text.\n\n    next = alpha prev + beta cur\n\nArgs:\n    x: one.") == []


@pytest.mark.parametrize(
    "text",
    [
        ">>> 1 + 1\n3",
        ">>> raise ValueError",
        ">>> x = 1     # a comment that\nwas wrapped >>> x + 1",
        "Text.\n\n    import revstep\n    revstep.NoSuchScheme()",
        "Text.\n\n    from revstep import hf  and words",
        "Text, so::\n\n    this is no Python",
    ],
)
def test_wrong_examples_are_found(text):
    [code] = docstrings.examples(text)
    with pytest.raises((AssertionError, AttributeError, SyntaxError)):
        docstrings.run(code, {})


@pytest.mark.parametrize("package", docstrings.PACKAGES)
def test_cross_references_lead_somewhere(package):
    found = [
        fault
        for file in docstrings.files(package)
        for fault in docstrings.unresolved(file.read_text(encoding="utf-8"), docstrings.module_name(file))
    ]
    assert found == [], "\n" + "\n".join(found)


def test_wrong_cross_references_are_found():
    source = (
        '"""See :mod:`.walk`, :func:`.ambient.rebuilding`, :class:`Pair` and :class:`~revstep.Blend`."""\n'
    )
    there = "revstep._recurrence.walk"
    assert docstrings.unresolved(source, there) == []
    for right, wrong in (
        (".walk", ".walked"),
        (".walk", "..walk"),
        (":mod:`.walk", ":class:`.walk"),
        (":func:`.ambient.rebuilding", ":func:`.ambient.rebuild"),
        (":class:`Pair", ":class:`Pear"),
        (":class:`~revstep.Blend", ":class:`~revstep.blend"),
    ):
        assert len(docstrings.unresolved(source.replace(right, wrong), there)) == 1, wrong
    assert docstrings.unresolved("# a comment: :meth:`Pair.none`\n", there)


def test_named_errors_exist():
    errors = docstrings.known_errors()
    assert [
        f"{text.module}:{text.name}: {name}"
        for text in docstrings.texts()
        for name in docstrings.named_errors(text.text)
        if name.rpartition(".")[2] not in errors
    ] == []


def test_named_arguments_exist_and_are_all_there():
    faults = [
        f"{text.module}:{text.name}: {fault}"
        for text, value in docstrings.described()
        for fault in docstrings.wrong_entries(text.text, value, docstrings.is_public(text))
    ]
    assert faults == [], "\n" + "\n".join(faults)


def test_wrong_entries_are_found():
    def function(x, y=1, *rest, **options):
        pass

    right = "A function.\n\nArgs:\n    x: one.\n    y: two: and more.\n\nRaises:\n    ValueError: when."
    assert docstrings.wrong_entries(right, function, True) == []
    assert docstrings.wrong_entries(right.replace("y: ", "z: "), function, True) == [
        "z is no argument",
        "y is not there",
    ]
    lost = right.replace("    y: ", "y: ")
    assert docstrings.wrong_entries(lost, function, True) == ["y is not there"]
    assert docstrings.wrong_entries(lost, function, False) == []
    attributes = "An error.\n\nAttributes:\n    layer: index.\n    depth: of what?"
    assert docstrings.wrong_entries(attributes, revstep.ReconstructionError, True) == [
        "depth is no attribute"
    ]
    assert docstrings.named_errors(right) == ["ValueError"]
    for wrong in (right.replace("ValueError", "ValuError"), "It does. Raises NoSuchError when it cannot."):
        assert set(docstrings.named_errors(wrong)) - docstrings.known_errors()
