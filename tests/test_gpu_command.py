"""The command for the day a GPU is there, rehearsed: every part by the same code, nothing lost on the way."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fake_device import FakeDevice

pytest.importorskip("transformers")
pytest.importorskip("peft")
from revstep_lab import _gpu_parts, gpu

PARTS = {part.name: part for part in gpu.PARTS}


def started(tmp_path, *words):
    return gpu.main(["--out", str(tmp_path / "gpu.json"), "--device", "cpu", *words])


def record(tmp_path):
    return json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))


#: These look for the largest batch in processes of their own, which takes a CPU minutes; tests/bench has the
#: case that they run.
BY_HAND = {"batch", "throughput"}


def test_a_rehearsal(tmp_path):
    """Each part is done, or says why a CPU cannot do it, and has a goal."""
    wanted = [name for name in PARTS if name not in BY_HAND]
    assert started(tmp_path, "--minutes", "60", "--parts", *wanted) == 0
    found = record(tmp_path)["parts"]
    assert list(found) == wanted
    for name, part in found.items():
        if name == "memcheck":
            assert part["status"] == gpu.LEFT_OUT and "on a device" in part["said"]
            continue
        assert part["status"] == gpu.DONE
        assert gpu._goals(part["result"]), f"{name} has no goal"
    exact = [g for name in ("kernels_agree", "stacks") for g in found[name]["result"]["goals"]]
    assert all(g["met"] for g in exact) and found["kernels_agree"]["result"]["compared"] > 1000
    assert gpu.rows(record(tmp_path)).count("\n") > len(wanted)


@pytest.fixture
def parts(monkeypatch):
    """Three parts that write what they are called, by a program each."""
    ran = []

    def words(name, program):
        def made(settings):
            ran.append(name)
            return ["-c", program, gpu.OUT]

        return made

    good = "import json, sys; json.dump({'goals': []}, open(sys.argv[1], 'w'))"
    made = {
        "first": good,
        "second": "raise SystemExit('no such device')",
        "third": f"import time; time.sleep(60); {good}",
        "last": good,
    }
    limits = {"third": 0.5}
    monkeypatch.setattr(
        gpu,
        "PARTS",
        tuple(gpu.Part(n, n, limits.get(n, 30), words(n, program)) for n, program in made.items()),
    )
    return ran


def test_a_part_that_fails_or_hangs_costs_no_other(parts, tmp_path, capsys):
    assert started(tmp_path) == 1
    found = record(tmp_path)["parts"]
    assert [p["status"] for p in found.values()] == [gpu.DONE, gpu.FAILED, gpu.LATE, gpu.DONE]
    assert "no such device" in found["second"]["said"] and "second: failed" in capsys.readouterr().out


def test_what_is_done_is_not_done_again(parts, tmp_path):
    started(tmp_path)
    del parts[:]
    started(tmp_path)
    assert parts == ["second", "third"]


def test_an_interrupted_run_has_lost_one_part(parts, tmp_path, monkeypatch, capsys):
    run = gpu._run

    def interrupted(part, settings, limit):
        if part.name == "second":
            raise KeyboardInterrupt
        return run(part, settings, limit)

    monkeypatch.setattr(gpu, "_run", interrupted)
    assert started(tmp_path) == 130 and list(record(tmp_path)["parts"]) == ["first"]
    assert "goes on" in capsys.readouterr().out


def test_out_of_time(parts, tmp_path):
    assert started(tmp_path, "--minutes", "0") == 1
    assert {p["status"] for p in record(tmp_path)["parts"].values()} == {gpu.LATE} and not parts


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "cannot be read"),
        ("[]", "no file of this command"),
        (
            json.dumps({"kind": gpu.KIND, "device": "cuda", "parts": {}}),
            "a run on 'cuda', and --device is cpu",
        ),
    ],
)
def test_another_file_is_not_overwritten(content, words, tmp_path, capsys):
    (tmp_path / "gpu.json").write_text(content, encoding="utf-8")
    assert started(tmp_path) == 2
    assert words in capsys.readouterr().err and (tmp_path / "gpu.json").read_text() == content


def test_a_rehearsal_is_not_documented(parts, tmp_path, capsys):
    started(tmp_path)
    assert started(tmp_path, "--docs", str(tmp_path)) == 2
    assert "rehearsal" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["gpu.json"]


def test_results_become_files_and_a_page(tmp_path):
    goal = {"what": "time / plain's", "value": 1.2, "goal": 1.3, "at_least": False, "met": True}
    done = {"status": gpu.DONE, "seconds": 1.0}
    made = {
        "kind": gpu.KIND,
        "device": "cuda",
        "parts": {
            "trunk": {**done, "result": {"bench": "trunk", "goals": [goal]}},
            "stacks": {**done, "result": {"goals": [{**goal, "what": "states"}]}},
            "batch": {"status": gpu.LATE, "seconds": 9.0},
        },
    }
    out = tmp_path / "gpu.json"
    out.write_text(json.dumps(made), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    assert gpu.main(["--out", str(out), "--docs", str(tmp_path / "docs")]) == 0
    assert sorted(p.name for p in (tmp_path / "docs").iterdir()) == ["gpu.md", "gpu_trunk.json"]
    page = (tmp_path / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert "| trunk | time / plain's | 1.2 | at most 1.3 | met |" in page and "not measured" in page
    assert "<!-- figures of docs/benchmarks/gpu_trunk.json" in page


def test_without_kernels_and_without_a_compiler(monkeypatch, tmp_path, capsys):
    """``--device cuda`` with this build, where there is nothing to build from."""
    monkeypatch.setattr(gpu, "_python", lambda words: subprocess.CompletedProcess(words, 0, "False\n", ""))
    assert gpu.main(["--out", str(tmp_path / "gpu.json"), "--source", str(tmp_path)]) == 2
    assert "expected a checkout as --source" in capsys.readouterr().err


NO_KERNELS = subprocess.CompletedProcess([], 0, "False\n", "")


def without_kernels(monkeypatch, tmp_path, *answers):
    """A checkout and nvcc; answers of Python, the last one of pip. Returns what Python is asked."""
    asked, answers = [], iter([NO_KERNELS, *answers])
    (tmp_path / "checkout" / "csrc").mkdir(parents=True)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu, "_python", lambda words: asked.append(words) or next(answers))
    return asked


def test_a_build_without_kernels_is_made_again_with_them(monkeypatch, parts, tmp_path, capsys):
    checkout = tmp_path / "checkout"
    asked = without_kernels(monkeypatch, tmp_path, subprocess.CompletedProcess([], 0, "", ""))
    out = tmp_path / "gpu.json"
    assert gpu.main(["--out", str(out), "--source", str(checkout)]) == 1  # of its parts, one fails
    assert asked[1][:3] == ["-m", "pip", "install"] and asked[1][-2:] == [
        "cmake.define.REVSTEP_CUDA=ON",
        str(checkout),
    ]
    assert parts == ["first", "second", "third", "last"]
    said = capsys.readouterr().out
    assert said.startswith("building the CUDA kernels\n") and gpu.rows(record(tmp_path)) in said


def test_kernels_that_cannot_be_built(monkeypatch, parts, tmp_path, capsys):
    failed = subprocess.CompletedProcess([], 1, "", "error: no such architecture\n")
    without_kernels(monkeypatch, tmp_path, failed)
    words = ["--out", str(tmp_path / "gpu.json"), "--source", str(tmp_path / "checkout")]
    assert gpu.main(words) == 2 and not parts
    said = capsys.readouterr().err
    assert said == "revstep_lab.gpu: the CUDA kernels cannot be built: error: no such architecture\n"


def test_kernels_that_are_there_are_not_built(monkeypatch, parts, tmp_path):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: pytest.fail("something was looked for"))
    monkeypatch.setattr(gpu, "_python", lambda words: subprocess.CompletedProcess(words, 0, "True\n", ""))
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 1 and parts[0] == "first"


def test_python_is_the_one_that_runs():
    done = gpu._python(["-S", "-c", "import sys; print(sys.executable); sys.exit(3)"])
    assert (done.returncode, done.stdout) == (3, f"{sys.executable}\n")


@pytest.mark.parametrize(
    "status, folder, said",
    [
        (gpu.DONE, "nowhere", "nowhere is no folder: expected docs/benchmarks of a checkout"),
        (gpu.LATE, ".", "gpu.json has no part that is done: run it on a GPU first"),
    ],
)
def test_there_is_nothing_to_document(tmp_path, capsys, status, folder, said):
    part = {"status": status, "seconds": 1.0, "result": {"bench": "trunk"}}
    made = {"kind": gpu.KIND, "device": "cuda", "parts": {"trunk": part}}
    (tmp_path / "gpu.json").write_text(json.dumps(made), encoding="utf-8")
    assert gpu.main(["--out", str(tmp_path / "gpu.json"), "--docs", str(tmp_path / folder)]) == 2
    assert said in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["gpu.json"]


# ---- parts that need a device, on one that is not there ----


def cuda(**more):
    return SimpleNamespace(device="cuda", small=True, model=None, **more)


@pytest.mark.parametrize("broken", [False, True])
def test_kernels_of_a_device_are_compared_with_those_of_the_cpu(monkeypatch, broken):
    """The fake's kernels are the CPU's; broken on purpose, its checksum has another bit."""
    monkeypatch.setattr(_gpu_parts, "STATES", _gpu_parts.STATES[:1])
    monkeypatch.setattr(_gpu_parts, "SHAPES", _gpu_parts.SHAPES[2:3])
    real = _gpu_parts.ops.checksum
    wrong = lambda x: real(x) ^ 1 if broken and x.is_cuda else real(x)  # noqa: E731
    monkeypatch.setattr(_gpu_parts.ops, "checksum", wrong)
    with FakeDevice() as device:
        found = _gpu_parts.agree(cuda())
    assert device.count("step on 0") == device.count("inverse on 0") > 0 and found["compared"] > 100
    (goal,) = found["goals"]
    assert goal["value"] == (len(_gpu_parts.VALUES) if broken else 0) and goal["met"] is not broken


@pytest.mark.parametrize("there", [True, False])
def test_the_memory_checker_is_there_or_the_part_is_left_out(monkeypatch, there):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name if there else None)
    said = PARTS["memcheck"].needs(cuda())
    assert said == (None if there else "compute-sanitizer is not installed")
    assert PARTS["memcheck"].words(cuda())[2:5] == ["memcheck", "--device", "cuda"]


@pytest.mark.parametrize("code, wrong", [(0, 0), (7, 1)])
def test_the_memory_checker_is_asked_about_every_kernel(monkeypatch, code, wrong):
    asked = []

    def ran(words, **_):
        asked.append(words)
        return subprocess.CompletedProcess(words, code, "========= ERROR SUMMARY", "")

    monkeypatch.setattr(_gpu_parts.shutil, "which", lambda name: f"bin/{name}")
    monkeypatch.setattr(_gpu_parts.subprocess, "run", ran)
    found = _gpu_parts.memcheck(cuda())
    (words,) = asked
    assert words[:4] == ["bin/compute-sanitizer", "--error-exitcode", "7", sys.executable]
    assert (
        words[4:9] == ["-m", "revstep_lab._gpu_parts", "agree", "--small", "--device"] and words[9] == "cuda"
    )
    (goal,) = found["goals"]
    assert goal["value"] == wrong and goal["met"] is not bool(wrong) and "SUMMARY" in found["said"]


def test_a_memory_checker_that_does_not_run_is_a_failure(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no device found")
    monkeypatch.setattr(_gpu_parts.subprocess, "run", lambda words, **_: failed)
    with pytest.raises(RuntimeError, match="compute-sanitizer ended with 1: no device found"):
        _gpu_parts.memcheck(cuda())


def test_the_weights_that_are_named_are_loaded(monkeypatch):
    from revstep.hf import _sources

    model = torch.nn.Linear(2, 2).bfloat16()
    monkeypatch.setattr(_sources, "load", lambda name: (model, "a tokenizer"))
    found, words = _gpu_parts._smollm2(SimpleNamespace(model="weights/SmolLM2-135M", small=False))
    assert found.weight.dtype == torch.float32 and words == "SmolLM2-135M"


def test_a_device_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append("cuda"))
    _gpu_parts._wait("cpu")
    assert not waited
    _gpu_parts._wait("cuda")
    assert waited == ["cuda"]


@pytest.mark.parametrize("broken", ["bit", "shape"])
def test_a_kernel_with_another_bit_is_counted(monkeypatch, broken):
    """Broken on purpose: one bit of a checksum; a view without its last row."""
    real = _gpu_parts.ops.checksum if broken == "bit" else _gpu_parts.ops.decode
    name = "checksum" if broken == "bit" else "decode"
    wrong = (lambda x: real(x) ^ 1) if broken == "bit" else (lambda *args: real(*args)[:-1])

    def expected(*args):
        with monkeypatch.context() as patch:
            patch.setattr(_gpu_parts.ops, name, real)
            return _EXPECTED(*args)

    monkeypatch.setattr(_gpu_parts, "_expected", expected)
    monkeypatch.setattr(_gpu_parts.ops, name, wrong)
    monkeypatch.setattr(_gpu_parts, "STATES", _gpu_parts.STATES[:1])
    settings = type("Settings", (), {"device": "cpu", "small": True})
    goals = _gpu_parts.agree(settings)["goals"]
    assert goals[0]["value"] == len(_gpu_parts.VALUES) * 3 and not goals[0]["met"]


_EXPECTED = _gpu_parts._expected


def test_the_module_runs():
    run = subprocess.run([sys.executable, "-m", "revstep_lab.gpu", "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and "--minutes" in run.stdout
