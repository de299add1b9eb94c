"""The benchmarks page: its tables and the sentences with figures are made of the files in docs/benchmarks,
and no other sentence has a figure that was measured."""

import copy
import json
import re

import pytest
from pages import ROOT, load

generate = load(ROOT / "docs" / "generate.py")
answers = generate.answers
FRONT, FOLDER = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks"
TEXT = FRONT.read_text(encoding="utf-8")
#: What a measured figure looks like: a decimal fraction, a share in per cent, bytes, "3 times".
FIGURE = re.compile(r"\d\.\d+ (?!bits)|\d ?%|\d [KMG]?B\b|\d times\b|\d+ ms\b")


def written(text):
    """The page without what is generated, and without the targets of its links."""
    text = re.sub(r"<!-- (answer: [\w-]+|goals),.*?<!-- /(answer|goals) -->", "", text, flags=re.S)
    return re.sub(r"\]\([^)]*\)", "]", text)


def figures(text):
    return FIGURE.findall(written(text))


def test_the_pages_show_the_answers():
    pages = generate.benchmarks()
    assert FRONT in pages and FOLDER / "small-models.md" in pages
    for page, text in pages.items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name}: run python docs/generate.py"


def test_every_answer_is_given_once():
    texts = [TEXT, *(page.read_text(encoding="utf-8") for page in FOLDER.glob("*.md"))]
    assert sorted(m[2] for text in texts for m in answers.MARK.finditer(text)) == sorted(answers.answers())


def test_no_figure_is_typed_by_hand():
    assert len(answers.MARK.findall(TEXT)) >= 12 and figures(TEXT) == []


@pytest.mark.parametrize(
    "words",
    [
        "It took 1.3 times as long.",
        "It held 153 MB.",
        "The loss rose by 0.1 %.",
        "It is 4 times faster.",
        "0.004 nats",
    ],
)
def test_a_typed_figure_is_found(words):
    assert figures(f"{TEXT}\n{words}\n") != []


def test_a_figure_that_is_not_the_measured_one_is_found():
    costs = answers.read("pretrained_costs_smollm2_lora")["costs"]
    peak = f"{max(row['peak'] for row in costs if 'Blend' in row['name']) / 1e6:.0f} MB"
    assert TEXT.count(peak) >= 2 and answers.with_answers(TEXT.replace(peak, "7 MB")) == TEXT


def test_other_measurements_are_other_answers(monkeypatch):
    """Every answer changes when the fractions in its files do. (The demo's table is words already.)"""

    def moved(value):
        if isinstance(value, dict):
            return {key: moved(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [moved(inner) for inner in value]
        return value * 1.5 if isinstance(value, float) else value

    before = {
        name: answers.shown(make(), FRONT) for name, make in answers.answers().items() if name != "demo"
    }
    files = {path.stem: moved(json.loads(path.read_text(encoding="utf-8"))) for path in FOLDER.glob("*.json")}
    for module in ("answers", "answers_training", "answers_models", "answers_beside"):
        monkeypatch.setattr(f"{module}.read", lambda name: files[name])
    after = {name: answers.shown(make(), FRONT) for name, make in answers.answers().items() if name != "demo"}
    assert [name for name in before if before[name] == after[name]] == []


def test_a_new_pretrained_model_is_in_the_answer(monkeypatch):
    """No mark is needed on this page: the answer has every file of ``revstep bench pretrained``."""
    import answers_models

    lora, costs = (copy.deepcopy(answers.read(f"pretrained_{name}smollm2_lora")) for name in ("", "costs_"))
    new = {**lora, "case": {**lora["case"], "model": "gemma3", "adapting": "full"}}
    part = {**costs, "case": {**costs["case"], "model": "somebody/else"}, "costs": costs["costs"][:1]}
    plain = {**lora, "losses": lora["losses"][:2]}
    monkeypatch.setattr(
        answers_models,
        "pretrained",
        lambda what: {"a": new, "b": plain} if what == "losses" else {"c": costs, "d": part},
    )
    answer = answers_models.ANSWERS["fine-tuned"]()
    assert ["Gemma 3 270M, all weights", "Blend, c by layer"] in [list(row[:2]) for row in answer.rows]
    assert ("somebody/else, LoRA of rank 8", "plain", "-", "1.00", "-", "2.53 GB", "-") in answer.rows
    assert answer.text.count("Gemma 3 270M, all weights: after 200 steps") == 1 and answer.files == [
        "a",
        "b",
        "c",
        "d",
    ]


def test_marks_that_do_not_pair_or_name_nothing_are_refused():
    with pytest.raises(ValueError, match="needs its"):
        answers.with_answers("<!-- answer: step, by docs/generate.py -->\n")
    with pytest.raises(ValueError, match="needs its"):
        answers.with_answers("<!-- /answer -->\n")
    with pytest.raises(ValueError, match="no answer 'nothing'"):
        answers.with_answers("<!-- answer: nothing, by docs/generate.py -->\n<!-- /answer -->")
    assert answers.with_answers("no marks") == "no marks"


def test_numbers_as_they_are_written():
    assert answers.span([2.0, 1.0]) == "1.00 to 2.00" and answers.span([1.001, 1.002]) == "1.00"
    assert answers.percent(-0.000001) == "+0.00 %" and answers.percent(0.0069) == "+0.69 %"
    assert answers.met([{"met": True}, {"met": False}]) == "1 of 2"
