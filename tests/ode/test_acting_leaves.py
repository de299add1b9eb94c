"""Everything that acts on a field gets its gradient: whatever it is behind, and whenever it acts first."""

import copy
import functools
import gc
import pickle
import threading

import ode_cases as cases
import pytest
import torch
from torch import nn

import revstep
from revstep import ode
from revstep.ode import _graph, _runs
from revstep.ode._units import make_grid
from revstep_lab.verify.ode.oracle import stored

SCHEMES = ("midpoint", "blend", "verlet", "kahan_li6", "reversible_rk4")
STEPS = 8


def _leaf(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def _start(shape=(3,)):
    return cases.tensors(1, shape)[0]


def _differences(field, leaves, scheme="verlet", y0=None, args=(), steps=STEPS):
    """How far our gradients are from stored autograd's, over the largest; inf where one is missing."""
    method, y0, state = cases.METHODS[scheme], _start() if y0 is None else y0, revstep.FixedPoint(64, 50)
    ours = ode.integrate(field, y0, scheme=scheme, h=0.1, steps=steps, args=args, state=state).ys[-1]
    grid = make_grid(state, None, method.begin("first", y0, 0.1), shared=True)
    h = torch.tensor(0.1, dtype=torch.float64)
    theirs = stored(field, y0, method=method, grid=grid, h=h, steps=steps, args=args)[0]
    assert torch.equal(ours, theirs)
    expected = torch.autograd.grad(theirs.sum(), leaves, allow_unused=True, retain_graph=True)
    if not ours.requires_grad:
        return [float("inf") for _ in leaves]
    got = torch.autograd.grad(ours.sum(), leaves, allow_unused=True)
    assert any(e is not None and e.any() for e in expected)
    pairs = [(torch.zeros_like(b) if a is None else a, b) for a, b in zip(got, expected) if b is not None]
    return [float("inf") if a is None and b is not None else 0.0 for a, b in zip(got, expected)] + [
        float((a - b).abs().max() / b.abs().max().clamp_min(1.0)) for a, b in pairs
    ]


#: 8 steps of at most 35 micro-steps of 4 uses, 16 roundings each, as in test_gradient.py.
BOUND = 16 * STEPS * 35 * 4 * 2.0**-53


def _by_time(a, b):
    return lambda t, y: (a if float(t) < 0.35 else b) * torch.sin(y)


def _by_state(a, b):
    return lambda t, y: (a if float(y.detach()[1]) > -0.5 else b) * torch.sin(y + 0.2)


@pytest.mark.parametrize("switch", [_by_time, _by_state])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_leaf_that_acts_later_gets_its_gradient(scheme, switch):
    first, later = _leaf(-2.5), _leaf(0.7)
    assert (
        max(
            _differences(
                switch(first, later),
                [first, later],
                scheme,
                y0=torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64),
            )
        )
        <= BOUND
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_leaf_in_a_run_without_any_other(scheme):
    """Nothing that is given requires a gradient, and nothing acts at first: the run begins again."""
    later = _leaf(0.7)
    assert max(_differences(lambda t, y: later * y if float(t) > 0.35 else -y, [later], scheme)) <= BOUND


def test_asking_the_first_evaluation_alone_is_rejected(monkeypatch):
    """The old rule: what acts is what acts at the start."""
    take, first, later = _graph.Leaves.take, _leaf(-0.3), _leaf(0.7)

    def once(self, value, oldest, own):
        if not self.alive():
            take(self, value, oldest, own)

    monkeypatch.setattr(_graph.Leaves, "take", once)
    assert max(_differences(_by_time(first, later), [first, later])) == float("inf")


def test_a_run_that_does_not_begin_again_is_rejected(monkeypatch):
    later = _leaf(0.7)
    original = _runs.Evaluations.__init__
    monkeypatch.setattr(
        _runs.Evaluations,
        "__init__",
        lambda self, problem, arguments, graph, grad_enabled: original(
            self, problem, arguments, graph, False
        ),
    )
    assert max(_differences(lambda t, y: later * y if float(t) > 0.35 else -y, [later])) == float("inf")


# ---- what parameters are behind ----


class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.7, 0.2, -0.4], dtype=torch.float64))

    def forward(self, t, y):
        return torch.tanh(self.w * y) if float(t) > 0.25 else -y


class Holder:
    def __init__(self, module):
        self.module, self.made = module, None

    def __call__(self, t, y):
        return self.module(t, y)

    def slotted(self, t, y):
        return self.module.forward(t, y)


WAYS = {
    "module": lambda m: m,
    "lambda": lambda m: lambda t, y: m(t, y),
    "bound method": lambda m: m.forward,
    "callable": Holder,
    "method of a holder": lambda m: Holder(m).slotted,
    "partial": lambda m: functools.partial(lambda m, t, y: m(t, y), m),
    "list": lambda m: (lambda ms: lambda t, y: ms[0](t, y))([m]),
    "dict": lambda m: (lambda ms: lambda t, y: ms["a"](t, y))({"a": m}),
    "FirstOrder": ode.FirstOrder,
    "FirstOrder of a lambda": lambda m: ode.FirstOrder(lambda t, y: m(t, y)),
    "the parameter itself": lambda m: lambda t, y: m.w,
    "a view of it": lambda m: lambda t, y: m.w.expand_as(y),
    "checkpoint": lambda m: lambda t, y: torch.utils.checkpoint.checkpoint(m, t, y, use_reentrant=False),
    "torch.func.grad": lambda m: lambda t, y: torch.func.grad(lambda x: (torch.cos(x) * m.w).sum())(y),
    "functional_call": lambda m: lambda t, y: torch.func.functional_call(m, {"w": m.w * 2}, (t, y)),
    "autograd inside": lambda m: lambda t, y: _inside(m.w, y),
}


def _inside(w, y):
    with torch.enable_grad():
        x = y if y.requires_grad else y.detach().requires_grad_()
        return -torch.autograd.grad((torch.cos(w * x) + x**2).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("start", ["given", "differentiated"])
@pytest.mark.parametrize("way", WAYS)
def test_parameters_are_trained_behind(way, start):
    module, y0 = Late(), _start()
    leaves = [module.w]
    if start == "differentiated":
        leaves.append(y0.requires_grad_())
    assert max(_differences(WAYS[way](module), leaves, y0=y0)) <= BOUND


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_parameters_of_a_compiled_script_are_trained():
    """Its parameters live in C++: their Python objects come and go."""
    script, y0 = torch.jit.script(nn.Linear(3, 3).double()), _start()
    run = ode.integrate(lambda t, y: script(y), y0, scheme="midpoint", h=0.1, steps=5)
    gc.collect()
    run.ys[-1].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in script.parameters())


def test_a_parameter_made_in_the_first_call_is_trained():
    holder = Holder(None)

    def field(t, y):
        if holder.made is None:
            holder.made = nn.Parameter(torch.full_like(y, 0.5))
        return torch.sin(holder.made * y)

    ode.integrate(field, _start(), scheme="verlet", h=0.1, steps=5).ys[-1].sum().backward()
    assert holder.made.grad.any()


@pytest.mark.parametrize("fmt", [None, revstep.Float(torch.float64)])
def test_a_start_from_inference_mode_trains_parameters(fmt):
    module = Late()
    with torch.inference_mode():
        y0 = _start() * 1.0
    run = ode.integrate(module, y0, scheme="verlet", h=0.1, steps=5, state=fmt)
    run.ys[-1].sum().backward()
    assert module.w.grad.any() and (fmt is not None or run.reverse().exact)


def test_modules_as_arguments_are_trained():
    module = Late()
    assert max(_differences(lambda t, y, m: m(t, y), [module.w], args=(module,))) <= BOUND


def test_a_tensor_that_is_argument_and_closure_gets_both_gradients():
    w = _leaf(0.5)
    assert max(_differences(lambda t, y, v: torch.sin(w * y) * v, [w], args=(w,))) <= BOUND


# ---- what does not act, and what is refused ----


def test_nothing_is_kept_where_nothing_acts():
    class Never(Late):
        def forward(self, t, y):
            return -y

    for field in (Never(), lambda t, y: -y, lambda t, y: _inside(torch.ones(3, dtype=torch.float64), y)):
        run = ode.integrate(field, _start(), scheme="verlet", h=0.1, steps=5)
        assert not run.ys.requires_grad and run.stats.bytes_saved == 0 and run.reverse().exact


def _steady(t, y):
    return -y


def test_what_a_run_leaves_behind_can_be_copied(monkeypatch):
    taken, stats = [], _runs.OnTensors.stats
    monkeypatch.setattr(_runs.OnTensors, "stats", lambda self: taken.append(self) or stats(self))
    ode.integrate(_steady, _start().requires_grad_(), scheme="verlet", h=0.1, steps=5)
    left = taken[0]
    for there in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        evaluations, surroundings = there((left.evaluations, left.surroundings))
        assert evaluations.graph and surroundings.grad_enabled and evaluations.leaves.alive() == []


def test_leaves_made_in_each_call_do_not_pile_up(monkeypatch):
    sizes, take, w = [], _graph.Leaves.take, _leaf(0.5)

    def counted(self, *args):
        take(self, *args)
        sizes.append(len(self._found))

    monkeypatch.setattr(_graph.Leaves, "take", counted)

    def field(t, y):
        return _inside(w, y) + nn.Parameter(torch.zeros_like(y))

    run = ode.integrate(field, _start(), scheme="verlet", h=0.1, steps=50)
    assert len(sizes) > 100 and max(sizes) <= 3  # the weight, and what the last call made
    run.ys[-1].sum().backward()
    assert w.grad


def _old(t, y, w=_leaf(0.5), kept=[]):  # noqa: B006, B008 - kept on purpose
    if not kept:
        kept.append(w * 2)
    return (kept[0] if float(t) > 0.25 else 1.0) * torch.sin(y)


def _written_once():
    kept, w = [], _leaf(0.5)

    def field(t, y):
        if not kept:
            kept.append(torch.exp(w))
        return kept[0] * torch.sin(y)

    return field


def _grown():
    buffer, w = torch.zeros(3, dtype=torch.float64), _leaf(0.5)

    def field(t, y):
        buffer.copy_(w * y)
        return buffer

    return field


@pytest.mark.parametrize(
    "make",
    [lambda: _old, _written_once, _grown],
    ids=["computed before, used later", "written once", "one buffer"],
)
@pytest.mark.parametrize("scheme", ["midpoint", "verlet", "reversible_rk4"])
def test_a_tensor_with_a_history_is_refused_by_name(make, scheme):
    with pytest.raises(
        revstep.UnsupportedError,
        match=r"computed with gradients before this evaluation \([\w:]+\).*pass it through args=",
    ):
        ode.integrate(make(), _start(), scheme=scheme, h=0.1, steps=STEPS)


def test_a_tensor_with_a_history_in_an_object_is_refused_and_in_a_dict_is_right():
    w = _leaf(0.5)
    holder = Holder(None)
    holder.made = w * 2
    with pytest.raises(revstep.UnsupportedError, match="in tuples, lists and dicts"):
        field = lambda t, y, o: o.made * torch.sin(y)  # noqa: E731
        ode.integrate(field, _start(), scheme="verlet", h=0.1, steps=3, args=(holder,))
    nested = {"a": (w * 2, "text")}
    assert max(_differences(lambda t, y, o: o["a"][0] * torch.sin(y), [w], args=(nested,))) <= BOUND


def test_old_nodes_of_another_thread_are_known_by_coming_again():
    """A device numbers nodes of a backward pass by a thread of its own: new ones may have low numbers."""

    def elsewhere(x):
        made = []
        thread = threading.Thread(target=lambda: made.append(x * 2))
        thread.start()
        thread.join()
        return made[0]

    w = torch.ones(2, device="meta", requires_grad=True)
    fresh = _graph.Leaves()
    for _ in range(3):
        oldest, x = _graph.next_node(), torch.ones(2, device="meta", requires_grad=True)
        value = elsewhere(x) * w
        fresh.take(value, max(oldest, 10), {id(x)})
    assert [leaf is w for leaf in fresh.alive()] == [True]
    old, again = w * 2, _graph.Leaves()
    again.take(old * 3, _graph.next_node(), set())
    with pytest.raises(revstep.UnsupportedError, match="MulBackward0"):
        again.take(old * 3, _graph.next_node(), set())
