"""The quickstart of docs/hf.md: on a small stand-in always, and as it is printed on the real weights where
they are at hand.

``REVSTEP_SMOLLM2`` names a folder with the real model, as ``save_pretrained`` wrote it. On one CPU thread
this takes five minutes.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest
import stand_in

pytest.importorskip("transformers")
pytest.importorskip("peft")
PAGE = (pages.ROOT / "docs" / "hf.md").read_text(encoding="utf-8")
REAL = os.environ.get("REVSTEP_SMOLLM2", "")


def quickstart(page):
    """The section of this name, down to the next heading of its rank."""
    return re.search(r"^## Quickstart.*?(?=^## )", page, re.M | re.S)[0]


def run(page, folder):
    """The code of the quickstart, where a folder stands for the hub. It fetches nothing."""
    script = folder / "quickstart.py"
    script.write_text("\n".join(pages.python_blocks(quickstart(page))), encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=folder, env=environment
    )


def exact_steps(said, layers):
    """How many lines say that all states of a pass were rebuilt."""
    return len(re.findall(rf"^loss \d+\.\d+, states exact \({layers} states\)$", said, re.M))


def test_it_starts_from_a_named_model_and_ends_with_a_saved_one():
    blocks = pages.python_blocks(quickstart(PAGE))
    assert stand_in.NAME in blocks[0] and "from_pretrained(name" in blocks[0]
    assert (
        "hf.revert(" in blocks[-2]
        and "save_pretrained(" in blocks[-2]
        and 'from_pretrained("smollm2-tuned")' in blocks[-1]
    )
    assert "revstep" not in blocks[-1] and "hf." not in blocks[-1], "the result needs transformers alone"


def test_it_runs_on_a_small_model(tmp_path):
    stand_in.write(tmp_path)
    ran = run(PAGE, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert exact_steps(ran.stdout, 4) == 5
    assert '"revstep"' not in (tmp_path / "smollm2-tuned" / "config.json").read_text(encoding="utf-8")


def test_a_quickstart_that_forgets_to_revert_is_noticed(tmp_path):
    stand_in.write(tmp_path)
    wrong = PAGE.replace("model = hf.revert(model.merge_and_unload())", "model = model.merge_and_unload()", 1)
    assert wrong != PAGE
    assert run(wrong, tmp_path).returncode == 0
    assert '"revstep"' in (tmp_path / "smollm2-tuned" / "config.json").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="REVSTEP_SMOLLM2 names no folder with SmolLM2-135M-Instruct")
def test_it_runs_on_the_real_weights(tmp_path):
    there = tmp_path / stand_in.NAME
    there.parent.mkdir(parents=True)
    there.symlink_to(Path(REAL).resolve(), target_is_directory=True)
    ran = run(PAGE, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert exact_steps(ran.stdout, 30) == 5 and "30 layers as Blend" in ran.stdout
    print(ran.stdout)  # with -s, what the page shows of it
