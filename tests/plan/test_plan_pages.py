"""docs/plan.md: its tables are those of its record, and the record is what the code says of the published
figures.
"""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("plan_tables", DOCS / "plan_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def record(tables):
    return json.loads(tables.FILE.read_text(encoding="utf-8"))


def test_the_page_repeats_its_record(tables, record):
    text = tables.PAGE.read_text(encoding="utf-8")
    assert text.count("<!-- plan:") == 3 and tables.renewed(text, record) == text
    assert tables.renewed(text.replace("reversible", "irreversible"), record) != text.replace(
        "reversible", "irreversible"
    )


@pytest.mark.parametrize(
    "text", ["<!-- plan: accuracy, from docs/plan_tables.py -->\n", "<!-- plan: accuracy -->\n<!-- /plan -->"]
)
def test_a_mark_that_is_open_is_refused(tables, record, text):
    with pytest.raises(ValueError, match="needs its"):
        tables.renewed(text, record)


def errors(rows, fitted):
    return [abs(r["predicted"] / r["published"] - 1) for r in rows if r["fitted"] == fitted]


def test_published_batches(tables, record):
    """Three numbers fitted, five predicted: bounds stated in the page."""
    rows = tables.published()
    assert rows == record["published"]
    assert len(errors(rows, True)) == 3 and max(errors(rows, True)) < 0.02
    assert len(errors(rows, False)) == 5 and max(errors(rows, False)) < 0.07


def test_without_what_their_implementation_keeps_the_prediction_is_off(tables, record):
    """The bound rejects the recurrence alone: two states and nothing a layer."""
    alone = record["alone"]
    assert max(errors(alone, False)) > 0.07 and all(
        r["predicted"] > r["published"] for r in alone if r["mode"] == "reversible" and r["layers"] > 16
    )


def test_recorded_accuracy(record):
    assert len(record["accuracy"]) == 18
    for r in record["accuracy"]:
        assert abs(r["predicted"] / r["measured"] - 1) <= 0.1
        assert abs((r["predicted"] - r["before"]) / (r["measured"] - r["before"]) - 1) <= 0.1
