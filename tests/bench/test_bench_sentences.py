"""What the benchmarks say, and leave alone, where a file, a package, a process or a machine is not what they
expect.
"""

import resource
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from revstep import _cli
from revstep.errors import ConfigError, RevstepError, StateOverflowError
from revstep.lm._session import DivergedError
from revstep_lab.bench import neural_field, packages, peaks, pendulums, results, runner, training
from revstep_lab.cases import _quality, finetune, pretrained, quality
from revstep_lab.cases._quality import QualityCase
from revstep_lab.commands import bench

# ---- files ----


def row(name, p50, **more):
    return {"name": name, "p20": 0.9 * p50, "p50": p50, "p80": 1.2 * p50, "ratios": {}, **more}


def test_a_table_that_is_no_text_is_left_alone(tmp_path):
    path = tmp_path / "figures.csv"
    path.write_bytes(b"bench,\xff\n")
    with pytest.raises(ConfigError, match=r"figures\.csv is not text in UTF-8 .*: name another file"):
        results.add_to_csv(str(path), {})
    assert path.read_bytes() == b"bench,\xff\n"


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", r"runs\.json cannot be read: .*; remove it, or name another file"),
        ("[1]", r"runs\.json holds no finished runs: name another file"),
        ('{"case": {"a": 1}, "runs": [{"variant": "x"}]}', "holds runs without their numbers: remove it"),
        ('{"case": {"a": 1}, "runs": [1]}', "holds runs without their numbers: remove it"),
        ('{"case": {"a": 2}, "runs": []}', "holds runs of another case .a 2 there, 1 here.: go on with"),
        ('{"case": {"a": 1}}', "holds runs of another case"),
    ],
)
def test_a_file_that_no_run_goes_on_from(tmp_path, text, said):
    path = tmp_path / "runs.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        results.Runs(path, {"a": 1})
    assert path.read_text() == text


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "b.json cannot be read: "),
        ('{"bench": "trunk"}', "b.json is not what revstep bench --json writes (KeyError: "),
        ('{"bench": "trunk", "measurements": 3}', "b.json is not what revstep bench --json writes ("),
    ],
)
def test_a_report_of_a_damaged_file_is_refused_by_name(tmp_path, capsys, text, said):
    (tmp_path / "b.json").write_text(text)
    assert _cli.main(["bench", "--report", str(tmp_path)]) == 2
    problem = capsys.readouterr().err
    assert said in problem and "or measure again" in problem and problem.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_what_a_case_says_of_its_own_file_is_not_said_twice(tmp_path):
    with pytest.raises(ConfigError, match=r"^as it stands$"), bench._as_written(tmp_path / "b.json"):
        raise ConfigError("as it stands")


@pytest.mark.parametrize("slowest, scale", [(25.0, "log"), (15.0, "linear")])
def test_rows_far_apart_are_drawn_by_magnitude(monkeypatch, tmp_path, slowest, scale):
    figures = []
    monkeypatch.setattr(results, "save", lambda fig, path: figures.append(fig))
    results.draw_rows(tmp_path / "x.png", "t", "s", [row("plain", 1.0), row("keep=1", slowest)])
    (ax,) = figures[0].axes
    assert ax.get_xscale() == scale and [bar.get_width() for bar in ax.patches] == [1.0, slowest]


# ---- machines and packages ----


def test_a_machine_that_does_not_say_what_it_is(monkeypatch, tmp_path):
    """An ARM board's file has no model name; other systems have no such file."""
    monkeypatch.setattr(runner.platform, "processor", lambda: "")
    monkeypatch.setattr(runner.platform, "machine", lambda: "a machine")
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 3)
    for found in ("processor\t: 0\nFeatures\t: fp\n", None):
        path = tmp_path / "cpuinfo"
        path.unlink(missing_ok=True)
        if found:
            path.write_text(found)
        monkeypatch.setattr(runner, "open", lambda name: path.open(), raising=False)  # noqa: B023
        assert runner._cpu_name() == "a machine, 3 cores"
    path.write_text("model name\t: A: fast one\n")
    assert runner._cpu_name() == "A: fast one, 3 cores"


def test_without_a_compiler(monkeypatch):
    from torch._inductor import cpp_builder

    def missing():
        raise RuntimeError("No working C++ compiler found\nin a list of them")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    assert packages.no_compiler() == "torch.compile needs a C++ compiler: No working C++ compiler found"
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "c++")
    assert packages.no_compiler() == ""


class Additive(nn.Module):
    """memcnn's coupling: ``y1 = x1 + F(x2); y2 = x2 + G(y1)``."""

    def __init__(self, Fm, Gm, split_dim):
        super().__init__()
        self.Fm, self.Gm, self.split_dim = Fm, Gm, split_dim

    def forward(self, x):
        a, b = x.chunk(2, self.split_dim)
        a = a + self.Fm(b)
        return torch.cat([a, b + self.Gm(a)], self.split_dim)


def test_memcnns_coupling_is_joined_as_the_others_are():
    """memcnn is installed by few; its classes are stood in for by what its documentation says of them."""
    package = SimpleNamespace(AdditiveCoupling=Additive, InvertibleModuleWrapper=lambda fn: fn)
    halves = [(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)]
    x = torch.randn(3, 4)
    joined = packages.memcnn(package, halves)
    assert torch.equal(joined(x), packages.Stored(halves)(x)) and joined.loses_autocast


class Euler:
    """As much of diffrax as a neural field asks for: steps forward, whatever the solver."""

    ODETerm = staticmethod(lambda field: field)

    @staticmethod
    def diffeqsolve(field, solver, t0, t1, h, y, args, adjoint, max_steps, stepsize_controller):
        for n in range(max_steps):
            y = y + h * field(t0 + n * h, y, args)
        return SimpleNamespace(ys=[y])

    def __getattr__(self, name):
        if name == "ReversibleAdjoint":
            raise AttributeError(name)
        return lambda **options: (name, options)


class Program:
    """A function as jax has it compiled, run as it is: compiling takes a while."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *given):
        return self.function(*given)

    def lower(self, *given):
        return self

    def compile(self):
        return self

    def memory_analysis(self):
        return SimpleNamespace(temp_size_in_bytes=40)


def test_newer_ones_of_diffrax_step_backwards_too(monkeypatch):
    jax = pytest.importorskip("jax")
    monkeypatch.setattr(jax, "jit", Program)
    net, y = neural_field.Net(2), torch.randn(3, 2)
    older = neural_field.compiled_calls(Euler(), net, y, 2)
    newer = Euler()
    newer.ReversibleAdjoint = lambda: "reversible"
    found = neural_field.compiled_calls(newer, net, y, 2)
    more = ["diffrax ReversibleHeun, reversible", "diffrax Midpoint, reversible"]
    assert list(found) == [*older, *more] and len(older) == 6
    call, temporaries = found[more[0]]
    assert [g.shape for g in neural_field.as_tensors(call())] == [
        y.shape,
        *(p.shape for p in net.parameters()),
    ]
    assert temporaries == 40


def test_an_integration_of_scipy_that_fails_is_no_figure(monkeypatch):
    failed = SimpleNamespace(status=-1, message="Required step size is too small.")
    monkeypatch.setattr(pendulums, "solve_ivp", lambda *args, **options: failed)
    with pytest.raises(RuntimeError, match=r"solve_ivp with RK23: Required step size is too small\."):
        pendulums._solve("RK23", pendulums.start(2), 2)


# ---- memory ----


def test_a_step_on_a_device_says_where_its_forward_pass_ends(monkeypatch):
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    with pytest.raises(RevstepError, match=r"the step did not call between\(\) after its forward pass"):
        peaks.by_allocator(lambda between: None, "cuda")


def test_a_kernel_without_a_high_water_mark(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmRSS:\t    12 kB\n")
    monkeypatch.setattr(peaks, "_STATUS", status)
    assert peaks._status("VmRSS") == 12 * 1024
    with pytest.raises(RevstepError, match=r"status has no line VmHWM"):
        peaks._status("VmHWM")


def test_a_case_that_a_child_could_not_make_again(monkeypatch):
    monkeypatch.setattr(peaks.subprocess, "run", lambda *a, **k: pytest.fail("a process was started"))
    with pytest.raises(RevstepError, match="case is dict, expected a dataclass"):
        peaks.in_children(print, {"layers": 2}, ["plain"])


def test_a_training_process_that_is_over_before_it_is_asked(monkeypatch):
    """What it was told is lost, and what it said is not."""
    start = subprocess.Popen

    def over(command, **options):
        program = "import sys; sys.stderr.write('a warning\\nno such thing\\n'); sys.exit(3)"
        process = start([sys.executable, "-S", "-c", program], **options)
        process.wait()
        return process

    monkeypatch.setattr(training.subprocess, "Popen", over)
    said = r"the training process ended with 3 on .*'threads': 1.*; its last words: no such thing"
    with pytest.raises(RevstepError, match=said):
        training.Worker(training.Model(2, 16, 2, 512, 32), 1)


@pytest.mark.parametrize("limit, share", [(0, None), (6 << 30, 0.25), (48 << 30, 1.0)])
def test_a_limit_on_a_device_is_of_its_allocator(monkeypatch, limit, share):
    shares = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=24 << 30)
    )
    before = resource.getrlimit(resource.RLIMIT_DATA)
    training.confine(replace(training.Model(2, 16, 2, 512, 32), device="cuda", limit=limit))
    assert shares == ([] if share is None else [share])
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


# ---- runs that end early ----

CASE = QualityCase(
    variants=("plain", "blend"), layers=1, width=16, heads=2, context=16, batch=4, steps=2, tune_steps=2,
    rates=(1e-3, 2e-3, 4e-3), points=1, eval_batches=1, max_bytes=50_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus():
    with _quality.texts(CASE) as found:
        yield found


@pytest.mark.parametrize("error", [DivergedError("the loss is nan"), StateOverflowError("out", 1, 2.0, 1.0)])
def test_a_run_that_diverges_is_a_run_without_a_loss(monkeypatch, corpus, error):
    def go(self, *_):
        raise error

    monkeypatch.setattr(_quality.Run, "go", go)
    found = _quality.train_one(CASE, corpus, "blend", 3, 1e-3, 2)
    assert found["error"] == f"{type(error).__name__}: {error}" and found["loss"] is None
    assert found["curve"] == [] and found["order"] is found["exact"] is found["max_error"] is None
    assert (found["variant"], found["seed"], found["rate"], found["steps"]) == ("blend", 3, 1e-3, 2)


def test_an_interrupted_run_is_no_finished_one(monkeypatch, corpus):
    monkeypatch.setattr(_quality.Run, "go", lambda self, *_: SimpleNamespace(interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        _quality.train_one(CASE, corpus, "plain", 0, 1e-3, 2)


def test_a_variant_of_which_a_seed_diverged_has_no_mean():
    def run(variant, seed, steps, loss, **more):
        about = {"variant": variant, "seed": seed, "rate": 2e-3, "steps": steps, "loss": loss, "error": None}
        return {**about, "order": 7, "exact": None, "max_error": None, **more}

    runs = results.Runs(None, {})
    nothing = {"order": None, "error": "DivergedError: the loss is nan"}
    made = [
        run("blend", CASE.tune_seed, CASE.tune_steps, 3.0, order=5),
        run("blend", 0, CASE.steps, None, **nothing),
        run("blend", 1, CASE.steps, 2.0, exact=True, max_error=0.0),
        run("blend", 2, CASE.steps, 2.5, exact=True, max_error=0.0),
    ]
    for one in made:
        runs.get(one["variant"], one["seed"], one["rate"], one["steps"], lambda *_, one=one: one)
    found = quality.summary(replace(CASE, seeds=(0, 1, 2)), "blend", runs)
    assert found["losses"] == [None, 2.0, 2.5] and found["errors"] == ["DivergedError: the loss is nan"]
    assert found["exact"] is None and found["max_error"] == 0.0
    assert [found[name] for name in ("loss", "sd", "difference", "standard_error")] == [None] * 4
    # Only whole runs are compared by their batches.
    _quality.same_order([run("plain", 0, CASE.steps, 2.0), made[1], run("bdia", 0, CASE.steps, 2.0)])
    with pytest.raises(RevstepError, match="bdia was trained on other batches than plain"):
        _quality.same_order([run("plain", 0, 2, 2.0), made[1], run("bdia", 0, 2, 2.0, order=8)])


# ---- the models that are fine-tuned ----


def test_weights_that_cannot_be_had_are_not_loaded(monkeypatch):
    from revstep.hf import _sources

    monkeypatch.setattr(_sources, "load", lambda *a, **k: pytest.fail("something was loaded"))
    monkeypatch.setattr("revstep_lab.demo.real.settings.find_weights", lambda: (None, "no network"))
    with pytest.raises(ConfigError, match="SmolLM2-135M cannot be had: no network; pass --model with one"):
        pretrained.load_pretrained("")


def test_a_model_is_loaded_plain(monkeypatch, tmp_path):
    from revstep.hf import _sources

    monkeypatch.setattr(_sources, "load", lambda name, plain: (name, plain))
    monkeypatch.setattr("revstep_lab.demo.real.settings.find_weights", lambda: (tmp_path / "w.gguf", ""))
    assert pretrained.load_pretrained("") == (str(tmp_path / "w.gguf"), True)
    assert pretrained.load_pretrained("some/model") == ("some/model", True)


def test_steps_of_the_first_training_have_a_name_of_their_own(monkeypatch):
    """--steps would be those of another case."""
    pytest.importorskip("transformers")
    from revstep_lab.demo.finetune import trials

    monkeypatch.setattr(trials, "run_finetune", lambda case, *rest: {"case": case})
    found = finetune.run(
        {"train_steps": 9, "seeds": [3, 4]}, SimpleNamespace(rounds=1, memory=False, show=id)
    )
    assert found["case"].steps == 9 and found["case"].seeds == (3, 4)
    assert "train-steps" in finetune.OPTIONS and "steps" not in finetune.OPTIONS
