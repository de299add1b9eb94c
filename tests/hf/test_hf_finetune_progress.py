"""What ``revstep finetune`` shows while it runs: a bar on a terminal, lines elsewhere, and the time left."""

import re

from revstep import _cli
from revstep.hf import _settings


def test_a_bar_on_a_terminal_and_lines_elsewhere(hub, tmp_path, capfd, monkeypatch):
    words = f"--data {hub / 'text.py'} --scheme blend:c=0.0625 --steps 3 --context 32 --device cpu".split()
    assert _cli.main(["finetune", str(hub / "model"), "--out", str(tmp_path / "lines"), *words]) == 0
    found = capfd.readouterr()
    assert "fine-tuning:" not in found.err and "step 3/3" in found.out
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert _cli.main(["finetune", str(hub / "model"), "--out", str(tmp_path / "bar"), *words]) == 0
    found = capfd.readouterr()
    assert "step 3/3" not in found.out and re.search(
        r"fine-tuning: +100%.* 3/3 \[\d\d:\d\d<\d\d:\d\d.*states exact \(3 states\)", found.err
    )
    assert "validation, deployed" in found.err
    assert (
        _cli.main(["finetune", str(hub / "model"), "--out", str(tmp_path / "no"), "--no-progress", *words])
        == 0
    )
    assert "step 3/3" in capfd.readouterr().out


def test_time_left():
    assert (
        _settings.time_left([9.0, 2.0, 2.0], 10) == "20 s left"
        and _settings.time_left([30.0], 5) == "2 min 30 s left"
    )
    assert (
        _settings.time_left([100.0] * 50 + [1.0] * 20, 3) == "3 s left"
        and _settings.time_left([], 3) == "0 s left"
    )
