"""``revstep verify --block``: a good block is accepted, and each rule rejects, by name and with advice, a
block that breaks it.
"""

import json
from pathlib import Path

import pytest
import torch
import user_blocks

from revstep import _cli
from revstep.errors import ConfigError
from revstep.state import FixedPoint
from revstep.verify.blockcheck import Subject, check_block, make_subject
from revstep.verify.blockcheck._depth import recommend

FILE = str(Path(__file__).with_name("user_blocks.py"))
X = torch.randn(2, 5, user_blocks.WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def check(factory, x=X, layers=4, **options):
    return check_block(Subject(factory.__name__, factory, x), layers, **options)


def broken(report):
    return [f.check for f in report.findings if not f.ok]


# ---- accepted ----

GOOD = [
    user_blocks.make_good,
    user_blocks.make_pair,
    user_blocks.Good,
    user_blocks.make_shared,
    user_blocks.Tuple,
    user_blocks.Listed,
    user_blocks.make_auxiliary_pair,
    user_blocks.MakesATableOnce,
]


@pytest.mark.parametrize("factory", GOOD)
def test_good_blocks_are_accepted(factory):
    report = check(factory)
    assert report.ok and not report.advice() and not report.notes, [
        *broken(report),
        *report.advice(),
        *report.notes,
    ]
    assert set(report.drift) == ({"hamiltonian"} if "pair" in factory.__name__ else {"blend", "midpoint"})
    for depths, columns in report.drift.values():
        assert depths == [1, 2, 4] and len(columns) == 4
        exact = columns.pop("fixed point, all of these")
        assert exact == [0.0, 0.0, 0.0] and all(e > 0 for errors in columns.values() for e in errors)
    assert set(report.formats.values()) == {"FixedPoint(bits=32, frac_bits=20)"}


def test_dropout_is_fine_and_said_to_be_replayed():
    (found,) = (f for f in check(user_blocks.make_good).findings if f.check == "random numbers")
    assert found.ok and not found.advice and "replayed bit for bit" in found.result.why
    (found,) = (f for f in check(user_blocks.Good).findings if f.check == "random numbers")
    assert found.result.why == "draws none"


def test_float64_blocks_are_measured_as_they_are():
    report = check_block(Subject("good", user_blocks.Good, X.double(), torch.float64), 2)
    assert report.ok and set(report.drift["blend"][1]) == {
        "float states, float64",
        "fixed point, all of these",
    }


# ---- rejected, each by its rule ----

BROKEN = {
    "Counter": ("hidden state", "it changed its own calls", "take counters, caches, running statistics"),
    "RunningMean": ("hidden state", "it changed its own mean", "running statistics"),
    "PrivateGenerator": ("hidden state", "it changed its own generator", "private generators"),
    "NumpyNoise": ("foreign random numbers", "NumPy's generators", "torch.rand"),
    "PythonNoise": ("foreign random numbers", "Python's random", "torch.rand"),
    "Unseeded": ("determinism", "though torch's generators were put back", "use_deterministic_algorithms"),
    "Global": ("determinism", "outputs differ", "a global variable"),
    "InPlace": ("in-place write", "wrote to its input", "x = x + ..."),
    "InPlaceLater": ("in-place write", "wrote to its input", "inplace=True"),
    "Branches": ("grad mode", "differ under no_grad", "is_grad_enabled"),
    "Loud": ("range", "headroom", "frac_bits"),
    "Explodes": ("range", "growing", "pre-norm"),
    "Infinite": ("shape", "NaN or infinite", "weights"),
    "Empty": ("shape", "returned an empty list or tuple", "return the increment"),
    "Words": ("shape", "returned str", "return the increment"),
    "Nothing": ("shape", "returned NoneType", "return the increment"),
    "Skip": ("skip connection", "share in the output is 1.0", "from_residual"),
    "OnCtx": ("memory", "stay alive", "ctx.save_for_backward"),
    "OnModule": ("memory", "1 times its input", "on the module"),
    "InAList": ("memory", "1 times its input", "in a hook's list"),
    "Narrow": ("shape", "returned (2, 5, 4)", "input's shape"),
    "Raises": ("shape", "ValueError: no such key", "--shape"),
    "Tired": ("stack", "RuntimeError: enough", "evaluated again"),
    "Cut": ("gradient", "has no graph", "detach()"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_block_that_breaks_a_rule_is_rejected_by_its_name(name):
    rule, why, advice = BROKEN[name]
    report = check(getattr(user_blocks, name))
    assert not report.ok and rule in broken(report)
    found = next(f for f in report.findings if f.check == rule and not f.ok)
    assert why in found.result.why and any(advice in sentence for sentence in found.advice)
    alone = {"hidden state", "foreign random numbers", "determinism", "in-place write", "grad mode"}
    alone |= {"gradient", "shape", "memory", "skip connection"}
    assert alone & set(broken(report)) == alone & {rule}, "one cause has one name"
    if rule in ("hidden state", "foreign random numbers", "determinism"):
        assert "reconstruction" in broken(report), "and the stack itself notices"


def test_a_rule_broken_by_one_of_a_pair_names_it():
    def pair():
        return user_blocks.Good(), user_blocks.Counter()

    assert "G: hidden state" in broken(check(pair)) and not any(
        name.startswith("F:") for name in broken(check(pair))
    )


def test_every_rule_has_a_block_that_breaks_it():
    hints = {"random numbers", "plain network"}
    rules = {f.check for f in check(user_blocks.Good).findings} - hints
    assert rules | {"stack"} == {rule for rule, _, _ in BROKEN.values()} | {"reconstruction", "gradients"}


# ---- hints ----


def test_increments_below_the_grid_are_noticed():
    assert any("more fractional bits" in sentence for sentence in check(user_blocks.Tiny, layers=2).advice())


@pytest.mark.parametrize(
    "largest, expected",
    [
        (1.0, FixedPoint(32, 20)),
        (300.0, FixedPoint(32, 19)),
        (1e5, FixedPoint(64, 32)),
        (1e12, FixedPoint(64, 19)),
    ],
)
def test_recommended_format_has_headroom(largest, expected):
    fmt = recommend(largest)
    assert fmt == expected and fmt.limit >= 8 * largest
    assert recommend(float("inf")) is None and recommend(1e30) is None


# ---- the command ----


def test_command_accepts(tmp_path, capsys):
    path = tmp_path / "block.json"
    assert (
        _cli.main(
            [
                "verify",
                "--block",
                f"{FILE}:make_good",
                "--block-args",
                "16, dropout=0.2",
                "--shape",
                "2,5,16",
                "--layers",
                "3",
                "--json",
                str(path),
            ]
        )
        == 0
    )
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    assert "checks hold: the block can be used" in said and "FixedPoint(bits=32, frac_bits=20)" in said
    assert (
        data["ok"]
        and data["environment"]["torch"] == torch.__version__
        and data["drift"]["blend"]["layers"] == [1, 2, 3]
    )


def test_command_rejects_by_name_and_says_what_to_change(capsys):
    assert _cli.main(["verify", "--block", f"{FILE}:Counter", "--layers", "2", "--scheme", "midpoint"]) == 1
    said = capsys.readouterr().out
    assert (
        "FAILED  hidden state" in said
        and "what to change:" in said
        and "take counters" in said
        and "blend" not in said
    )


def test_module_of_the_working_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_of_test.py").write_text("from user_blocks import Good as make_block\n")
    monkeypatch.chdir(tmp_path)
    assert _cli.main(["verify", "--block", "mine_of_test:make_block", "--layers", "1"]) == 0


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--block", "make_block"], "expected module:function or file.py:function"),
        (["--block", "no_such_module:f"], "importing no_such_module failed: ModuleNotFoundError"),
        (["--block", f"{FILE}:nothing"], "has no function nothing; it has"),
        (["--block", f"{FILE}:make_good"], "give --shape"),
        (["--block", f"{FILE}:make_good", "--shape", "2,x"], "expected sizes separated by commas"),
        (
            ["--block", f"{FILE}:make_good", "--shape", "2,5,16", "--block-args", "16, os.environ"],
            "numbers or quoted strings",
        ),
        (
            ["--block", f"{FILE}:make_good", "--shape", "2,5,16", "--block-args", "depth=3"],
            "raised TypeError",
        ),
        (
            ["--block", f"{FILE}:make_function", "--shape", "2,5,16"],
            "the factory returned function, expected an nn.Module",
        ),
        (["--block", f"{FILE}:Good", "--scheme", "hamiltonian"], "needs a pair (F, G)"),
        (
            ["--block", f"{FILE}:make_pair", "--shape", "2,5,16", "--scheme", "blend"],
            "makes a pair, which hamiltonian takes",
        ),
        (
            ["--block", f"{FILE}:Good", "--scheme", "verlet"],
            "unknown scheme verlet, expected some of bdia, blend",
        ),
        (["--block", f"{FILE}:Good", "--layers", "0"], "expected at least 1"),
        (["--block", f"{FILE}:Good", "--dtype", "float32+bf16"], "expected one of float32"),
        (["--block", f"{FILE}:Good", "--html", "page"], "--html cannot be used with --block"),
    ],
)
def test_mistakes_are_sentences(options, sentence, capsys):
    assert _cli.main(["verify", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_example_input_must_be_hidden_states(tmp_path):
    (tmp_path / "tokens_of_test.py").write_text(
        "import torch\nclass Block(torch.nn.Identity):\n    def example_input(self):\n        return"
        " torch.zeros(2, 3, dtype=torch.long)\n"
    )
    with pytest.raises(ConfigError, match="expected hidden states"):
        make_subject(f"{tmp_path}/tokens_of_test.py:Block")
