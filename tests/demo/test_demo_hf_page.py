"""docs/hf.md shows what ``revstep demo --hf`` measured."""

import importlib.util
import json
from pathlib import Path

import pytest

from revstep_lab.demo.finetune import record

PATH = Path(__file__).resolve().parents[2] / "docs" / "hf_tables.py"
spec = importlib.util.spec_from_file_location("hf_tables", PATH)
hf_tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hf_tables)
RECORD = json.loads(hf_tables.FILE.read_text(encoding="utf-8"))


def test_the_page_is_up_to_date():
    page = hf_tables.PAGE.read_text(encoding="utf-8")
    assert hf_tables.renewed(page, RECORD) == page, "run python docs/generate.py"
    loss = f"{RECORD['families']['llama']['tuned'][0]['deployed']:.4f}"
    # A changed number is renewed.
    assert loss in page and hf_tables.renewed(page.replace(loss, "9.9999"), RECORD) == page


def test_the_verdict_is_that_of_the_numbers():
    assert (
        RECORD["goals"] == record.goals(RECORD["families"])
        and RECORD["exact"] is record.exact(RECORD["families"]) is True
    )
    assert RECORD["summary"] == record.summary(RECORD)


@pytest.mark.parametrize(
    "text, words",
    [
        ("<!-- hf: dial, from docs/hf_tables.py -->\n", "needs its"),
        ("<!-- hf: none, from docs/hf_tables.py -->\n<!-- /hf -->", "no table"),
    ],
)
def test_wrong_marks_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        hf_tables.renewed(text, RECORD)
