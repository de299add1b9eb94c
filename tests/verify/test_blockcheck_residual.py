"""``verify --block`` on blocks written x + f(x), on what blocks keep, and on blocks that raise."""

import pytest
import torch
import user_blocks
from torch import nn

from revstep import _cli
from revstep.errors import ConfigError, ReconstructionError
from revstep.verify.blockcheck import Subject, _behaviour, _depth, check_block

X = torch.randn(2, 5, user_blocks.WIDTH, generator=torch.Generator().manual_seed(0))
FILE = user_blocks.__file__


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def check(factory, x=X, layers=3, residual=False, **options):
    return check_block(Subject(factory.__name__, factory, x, residual=residual), layers, **options)


def broken(report):
    return [f.check for f in report.findings if not f.ok]


def found(report, name):
    return next(f for f in report.findings if f.check.endswith(name))


# ---- x + f(x) ----


def test_a_skip_connection_fails_and_says_what_to_do():
    report = check(user_blocks.Skip)
    assert broken(report) == ["skip connection"]
    (advice,) = found(report, "skip connection").advice
    assert "return f(x)" in advice and "residual=True" in advice and "--residual" in advice


def test_both_halves_of_a_pair_are_asked():
    assert broken(check(user_blocks.make_skip_pair)) == ["F: skip connection", "G: skip connection"]


@pytest.mark.parametrize("factory", [user_blocks.Skip, user_blocks.make_skip_pair, user_blocks.SkipOfHalves])
def test_residual_checks_what_from_residual_makes_of_it(factory):
    report = check(factory, residual=True)
    assert report.ok, broken(report)
    assert not report.advice() and not report.notes


def test_residual_takes_the_halves_of_a_module_too():
    assert check(user_blocks.SkipOfHalves, residual=True, schemes=["hamiltonian", "blend"]).ok


def test_residual_of_a_block_that_is_none_says_so():
    report = check(user_blocks.PostNorm, residual=True)
    assert broken(report) == ["shape"] and 'by="difference"' in found(report, "shape").result.why


def test_the_command_knows_residual(capsys):
    assert _cli.main(["verify", "--block", f"{FILE}:Skip", "--layers", "2"]) == 1
    said = capsys.readouterr()
    assert "FAILED  skip connection" in said.out and "the network as it is written" in said.out
    assert "can be used" not in said.out
    assert _cli.main(["verify", "--block", f"{FILE}:Skip", "--layers", "2", "--residual"]) == 0
    said = capsys.readouterr().out
    assert "beside the plain network x = x + f(x)" in said
    assert "the block can be used in ReversibleStack(..., residual=True)" in said
    assert _cli.main(["verify", "--residual"]) == 2 and "give --block too" in capsys.readouterr().err


# ---- the plain network ----


def test_the_deviation_is_that_of_an_independent_loop():
    """Blend's recurrence in float64 without rounding, beside x + f(x), to the grid's rounding."""
    report = check(user_blocks.Good, layers=6, schemes=["blend"])
    blocks = [Subject("good", user_blocks.Good, X).make(seed).double() for seed in range(6)]
    prev = cur = network = X.double()
    with torch.no_grad():
        for block in blocks:
            prev, cur, network = cur, 0.25 * prev + 0.75 * cur + 1.25 * block(cur), network + block(network)
    expected = float((cur - network).norm() / network.norm())
    result = found(report, "plain network").result
    assert result.ok and result.measured == pytest.approx(expected, rel=1e-3)
    assert f"{result.measured:.2g}" in result.why


def test_a_residual_block_is_far_from_the_network_as_written_until_it_is_taken_as_one():
    far, near = (found(check(user_blocks.Skip, layers=6, residual=r), "plain network") for r in (False, True))
    assert "x = block(x), the network as it is written" in far.result.claim and far.advice
    assert "x = x + f(x)" in near.result.claim and not near.advice
    assert far.result.measured > 10 > 1 > near.result.measured


def test_dropout_is_the_same_in_both():
    assert found(check(user_blocks.make_good), "plain network").result.measured < 0.5


def test_a_stack_compared_with_itself_is_seen(monkeypatch):
    monkeypatch.setattr(_depth, "_relative", lambda ours, theirs, real=_depth._relative: real(ours, ours))
    with pytest.raises(AssertionError):
        test_a_residual_block_is_far_from_the_network_as_written_until_it_is_taken_as_one()


# ---- memory ----


def test_the_bytes_are_counted():
    size = X.numel() * 4
    for factory in (user_blocks.OnCtx, user_blocks.OnModule, user_blocks.InAList):
        result = found(check(factory), "memory").result
        assert (result.measured, result.bound, result.unit) == (size, 0.0, "bytes")


def test_a_check_that_keeps_the_output_misses_what_the_module_holds(monkeypatch):
    class Generous(_depth.Outside):
        def __exit__(self, *error):
            super().__exit__(*error)
            self._made.clear()

    assert not _depth.outside(user_blocks.OnModule, X).ok
    monkeypatch.setattr(_depth, "Outside", Generous)
    assert _depth.outside(user_blocks.OnModule, X).ok


def test_a_share_that_only_hints_is_seen(monkeypatch):
    monkeypatch.setattr(_behaviour, "SKIP", -1.0)
    assert check(user_blocks.Skip).ok


# ---- whatever a block does, there is a finding or a sentence ----


class Unreadable(Exception):
    def __str__(self):
        raise ValueError("no words")


class Hostile(user_blocks.Around):
    """Raises at a place."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error or RuntimeError("enough")


class InForward(Hostile):
    def forward(self, x):
        raise self.error


class InBackward(Hostile):
    def spoil(self, x, f):
        def raising(g, error=self.error):
            raise error

        if f.requires_grad:
            f.register_hook(raising)
        return f


class InSecond(Hostile):
    calls = 0

    def spoil(self, x, f):
        self.calls += 1
        if self.calls > 1:
            raise self.error
        return f


class WithoutGrad(Hostile):
    def spoil(self, x, f):
        if not torch.is_grad_enabled():
            raise self.error
        return f


class InCopy(Hostile):
    def __deepcopy__(self, memo):
        raise self.error

    def spoil(self, x, f):
        return f


class InAutocast(Hostile):
    def spoil(self, x, f):
        if torch.is_autocast_enabled("cpu"):
            raise self.error
        return f


class InDeepStack(Hostile):
    def spoil(self, x, f):
        if not torch.equal(x, X) and not torch.equal(x, 64 * X):
            raise self.error
        return f


class Parametric(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.how = forward

    def forward(self, x):
        return self.how(x)


HOSTILE = [InForward, InBackward, InSecond, WithoutGrad, InDeepStack]
ERRORS = [RuntimeError("enough"), SystemExit(3), KeyError("x"), Unreadable(), AssertionError()]
ERRORS += [ReconstructionError("mine")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("cls", HOSTILE)
def test_an_error_anywhere_is_a_finding(cls, error):
    def factory():
        return cls(error)

    report = check(factory, layers=2)
    assert not report.ok and report.to_dict()
    assert any(type(error).__name__ in f.result.why for f in report.findings if not f.ok)


@pytest.mark.parametrize("cls", [InCopy, InAutocast])
def test_what_a_stack_can_do_without_is_a_note_at_most(cls):
    assert check(cls, layers=2).ok


@pytest.mark.parametrize(
    "how",
    [
        lambda x: None,
        lambda x: [],
        lambda x: "x",
        lambda x: (None, x),
        lambda x: {"x": x},
        lambda x: x.long(),
        lambda x: x.to(torch.complex64),
        lambda x: x.double(),
        lambda x: x.sum(),
        lambda x: x.to_sparse(),
        lambda x: x.detach().numpy(),
        lambda x: torch.autograd.grad(x.sin().sum(), x, create_graph=True)[0],
        lambda x: torch.func.grad(lambda t: t.sin().sum())(x),
        lambda x: 0 * x,
        lambda x: x,
        lambda x: x.to("meta"),
    ],
)
def test_whatever_a_block_without_parameters_returns(how):
    report = check(lambda: Parametric(how), layers=2)
    assert report.findings and report.to_dict() and (report.ok or report.advice())


INPUTS = [torch.zeros(2, 5, 16), X[:0], X[0, 0, 0], X.double(), X * float("nan"), X.long()]


@pytest.mark.parametrize("x", INPUTS)
def test_whatever_the_input_is(x):
    assert check(user_blocks.Good, x, layers=2).to_dict()
    assert check(lambda: Parametric(lambda t: t * 0.5), x, layers=2).to_dict()


def test_ctrl_c_ends_the_check():
    with pytest.raises(KeyboardInterrupt):
        check(lambda: InForward(KeyboardInterrupt()))


PLACES = {
    "SystemExit in the import": "raise SystemExit(0)",
    "SyntaxError": "def",
    "an attribute that raises": "def __getattr__(name): raise RuntimeError('mine')",
    "SystemExit in the factory": "def make(): raise SystemExit",
    "None": "def make(): return None",
    "a generator": "def make(): yield 1",
    "no module": "class make:\n    pass",
    "an empty pair": "def make(): return ()",
    "a factory that works once": "def make(kept=[torch.nn.Identity()]): return kept.pop()",
    "an input that raises": "class make(torch.nn.Identity):\n    def example_input(self): 1 / 0",
    "an input that exits": "class make(torch.nn.Identity):\n    def example_input(self): raise SystemExit",
    "lazy parameters": "def make(): return torch.nn.LazyLinear(16)",
    "a block that cannot be cast": "class make(torch.nn.Identity):\n    def to(self, *args): 1 / 0",
    "a scripted block": "def make(): return torch.jit.script(torch.nn.Linear(16, 16))",
    "a compiled block": "def make(): return torch.compile(torch.nn.Linear(16, 16), backend='eager')",
}


@pytest.mark.parametrize("residual", [[], ["--residual"]], ids=["", "residual"])
@pytest.mark.parametrize("place", PLACES)
def test_the_command_never_ends_in_a_traceback(place, residual, tmp_path, capsys):
    path = tmp_path / f"hostile_{abs(hash(place))}.py"
    path.write_text(f"import torch\n{PLACES[place]}\n")
    shape = [] if "input" in place else ["--shape", "2,5,16"]
    cast = ["--dtype", "float64"] if "cast" in place else []
    code = _cli.main(["verify", "--block", f"{path}:make", "--layers", "2", *shape, *cast, *residual])
    said = capsys.readouterr()
    assert code in (0, 1, 2)
    assert code != 2 or said.err.startswith("revstep: ")
    assert code != 1 or "FAILED" in said.out


def test_a_check_without_its_guard_is_seen(monkeypatch):
    import contextlib

    monkeypatch.setattr(_behaviour, "caught", lambda tell: contextlib.nullcontext())
    with pytest.raises(RuntimeError, match="enough"):
        check(lambda: InBackward())


def test_a_factory_that_stops_working_is_a_config_error():
    made = []

    def factory():
        made.append(1)
        if len(made) > 60:
            raise KeyError("tired")
        return user_blocks.Good()

    with pytest.raises(ConfigError, match="the factory raised KeyError"):
        check(factory, layers=200)
