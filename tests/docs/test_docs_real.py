"""README shows what ``revstep demo`` measured on real weights."""

import json
import re

import pages

from revstep_lab.demo.real import session

BLOCK = re.compile(r"<!-- real: .*? -->\n\n```\n(.*?)\n```\n\n<!-- /real -->", re.S)
DOCUMENT = json.loads((pages.ROOT / "docs" / "benchmarks" / "demo_real.json").read_text(encoding="utf-8"))


def faults(text, document):
    """What the block should say and does not."""
    said = BLOCK.search(text)[1]
    expected = [
        session.four_losses(document["losses"]),
        session.memory_table(document["memory"]),
        document["states"],
    ]
    around = [document["command"], f"{document['steps']} steps", document["settings"]["scheme"]]
    return [part for part in expected if part not in said] + [part for part in around if part not in text]


def test_the_readme_repeats_the_record():
    assert faults((pages.ROOT / "README.md").read_text(encoding="utf-8"), DOCUMENT) == []
    assert DOCUMENT["exact"] and DOCUMENT["states_rebuilt"] == DOCUMENT["states_bit_equal"] > 0
    assert session.summary(DOCUMENT) == DOCUMENT["summary"]


def test_an_invented_figure_is_found():
    text = (pages.ROOT / "README.md").read_text(encoding="utf-8")
    peak = f"{DOCUMENT['memory']['reversible']['peak'] / 1e6:,.0f} MB"
    loss = f"{DOCUMENT['losses']['deployed']:.4f}"
    assert faults(text.replace(peak, "7 MB"), DOCUMENT) and faults(text.replace(loss, "1.0000"), DOCUMENT)
    assert faults(text.replace(DOCUMENT["command"], "revstep demo"), DOCUMENT)
