"""What depends on the device: which loss in chunks runs there, and carries that are not there."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
from plan_step import BATCH, SEQUENCE, configs, measure

from revstep import ConfigError, _cli
from revstep.plan import _modes, plan

#: Trained in full the peak is at the optimiser's step, whatever the loss.
CHUNKED = {"sequence": SEQUENCE, "batch": BATCH, "dtype": "float32", "chunk": 256, "trainable": "lora:r=2"}


@pytest.fixture(scope="module")
def small():
    """One layer under many ids: the loss is the peak."""
    return configs(hidden=64, layers=1)["llama"]


@pytest.mark.parametrize("mode", ["plain", "reversible"])
def test_the_loss_that_runs_on_a_cpu_is_planned(small, mode):
    real = measure(small, mode, trainable="lora:r=2", chunk=256)
    mine, other = (plan(small, **CHUNKED, device=d).row(mode, True) for d in ("cpu", "cuda"))
    assert mine.moment == "loss"
    assert mine.peak == pytest.approx(real.peak, rel=0.03)
    # torch's, planned in its place, is seen.
    assert other.peak != pytest.approx(real.peak, rel=0.03)


def test_carries_in_host_memory_are_not_on_the_device():
    """Of 6 layers at 4 bits two stay: what is read, and what sets out for the next."""
    llama = configs(hidden=64, layers=6)["llama"]
    there, away = (plan(llama, **CHUNKED, offload_carries=o).row("reversible", True) for o in (False, True))
    elements = SEQUENCE * BATCH * 64
    assert there.states - away.states == 4 * elements * 4 / 8
    assert away.peak < there.peak
    assert (
        plan(llama, **CHUNKED, offload_carries=True).row("plain").peak
        == plan(llama, **CHUNKED).row("plain").peak
    )


@pytest.mark.parametrize("bits, of, left", [((2, 4, 6), 3, 10), ((2, 4, 6), 1, 2), ((2, 4, 6), 0, 0)])
def test_the_last_two_steps_stay(bits, of, left):
    assert _modes.Reversible(4, bits, offload=True).carries(8, 3, of) == left
    assert _modes.Reversible(4, bits).carries(8, 3, of) == sum(bits[:of])


def test_two_steps_a_layer():
    """Hamiltonian: the last two steps are those of one layer."""
    assert _modes.Reversible(4, (1, 2, 4, 8), offload=True).carries(8, 2, 2) == 12


@pytest.mark.parametrize(
    "options, words",
    [
        ({"device": "mps"}, "device is 'mps', expected 'cuda' or 'cpu'"),
        ({"device": "cpu", "offload_carries": True}, "would wait in the memory that is planned"),
    ],
)
def test_devices_that_make_no_sense(small, options, words):
    with pytest.raises(ConfigError, match=words):
        plan(small, **CHUNKED, **options)


def test_the_command(small, tmp_path, capsys):
    small.save_pretrained(tmp_path)
    line = ["plan", str(tmp_path), "--seq", "64", "--lora", "2", "--dtype", "float32", "--offload-carries"]
    assert _cli.main(line) == 0
    said = capsys.readouterr().out
    assert "carries in host memory" in said and "--offload-carries" in said.split("run: ")[1]
    assert _cli.main([*line, "--device", "cpu"]) == 2
