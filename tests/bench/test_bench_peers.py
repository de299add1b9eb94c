"""Every row of a network computes the network's gradients, peers reverse instead of storing, and what is not
installed is left out with a reason.
"""

import json

import pytest
import torch
from torch import nn

from revstep import _cli
from revstep.errors import ConfigError
from revstep_lab.bench import packages, peaks
from revstep_lab.cases import peers
from revstep_lab.cases.trunk import TrunkCase, train_step

CASE = TrunkCase(layers=4, width=16, heads=2, batch=2, length=8)
TINY = "--layers 4 --width 16 --heads 2 --batch 1 --length 8 --rounds 1 --no-memory".split()
#: Relative. Each of 2 x 4 half-steps rounds a state to 2**-24 (the grid of fixed point: 2**-21, states are of
#: size 1), and derivatives carry it on with factors near 1; a row of another network is off by its whole
#: gradient.
CLOSE = 2 * 4 * 2**-21


def installed(row):
    module, reason = packages.peer(packages.PEERS[row][0])
    if module is None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def networks():
    return peers.families(CASE)[0]


def test_rows_of_a_network_agree(networks):
    """Checkpointing and the exact stack to the bit; reversed couplings to the rounding of their states."""
    errors = peers.gradients_off(networks, CASE)
    assert list(networks["residual"]) == [
        "plain",
        "checkpoint",
        "checkpoint, attention kept",
        "checkpoint, 1 block in 2",
        "checkpoint, segments of 2",
    ]
    for name in (*networks["residual"], *networks["midpoint"]):
        assert errors[name] == 0.0, name
    for name in networks["coupling"]:
        assert errors[name] < CLOSE, name
    assert 0 < errors["coupling, float state"] < errors["coupling"]  # it is no comparison with itself
    assert (
        networks["midpoint"]["reversible midpoint"].report.exact
        and networks["coupling"]["coupling"].report.exact
    )


class Swapped(packages.Stored):
    """G before F."""

    def forward(self, x):
        q = p = x
        for F, G in self.halves:
            p = p + G(q)
            q = q + F(p)
        return p


class Forgetful(packages.Stored):
    """The gradient of one half does not arrive."""

    def forward(self, x):
        q = p = x
        for F, G in self.halves:
            q = q + F(p)
            p = p + G(q).detach()
        return p


class OtherStream(packages.Stored):
    def forward(self, x):
        q = p = x
        for F, G in self.halves:
            q = q + F(p)
            p = p + G(q)
        return q


class Frozen(packages.Stored):
    """x gets its gradient, the parameters none."""

    def forward(self, x):
        def frozen(module, y):
            return torch.func.functional_call(
                module, {name: p.detach() for name, p in module.named_parameters()}, y
            )

        q = p = x
        for F, G in self.halves:
            q = q + frozen(F, p)
            p = p + frozen(G, q)
        return p


@pytest.mark.parametrize("wrong", [Swapped, Forgetful, OtherStream, Frozen])
def test_a_wrong_coupling_does_not_agree(networks, wrong):
    blocks = networks["residual"]["plain"].blocks
    rows = {
        "residual": networks["residual"],
        "coupling": {
            "right": packages.Stored([b.halves() for b in blocks]),
            "wrong": wrong([b.halves() for b in blocks]),
        },
    }
    assert peers.gradients_off(rows, CASE)["wrong"] > 100 * CLOSE


def grown(make):
    """Bytes kept for backward by each of 4 more layers."""
    kept = []
    for layers in (2, 6):
        case = TrunkCase(layers=layers, width=16, heads=2, batch=8, length=64)
        nets, _ = peers.families(case, "")
        halves = [block.halves() for block in nets["residual"]["plain"].blocks]
        x = torch.randn(case.batch, case.length, case.width)
        trunk = make(halves)
        kept.append(
            peaks.by_allocator(lambda between, t=trunk, x=x, c=case: train_step(t, x, c, between))["kept"]
        )
    return (kept[1] - kept[0]) / 4


@pytest.mark.parametrize("row", packages.PEERS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_peers_reverse_and_do_not_store(row):
    """A layer adds at most generator states (revlib: two for each half), a stored one its graph: 23 states,
    32 KB each.
    """
    installed(row)
    assert (
        grown(lambda halves: packages.coupled_trunks(halves, row)[0][row])
        <= 4 * torch.get_rng_state().numel() + 64
    )


def test_a_stored_coupling_is_seen_to_store():
    assert grown(packages.Stored) > 10 * 4 * 8 * 64 * 16


@pytest.mark.parametrize("row", packages.PEERS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_bfloat16_is_evaluated_again_in_bfloat16(row):
    """With the forward pass's autocast in force in backward, the same roundings; without, float32 blocks,
    which differ by bfloat16's 2**-9.
    """
    installed(row)
    case = TrunkCase(layers=4, width=16, heads=2, batch=2, length=8, dtype="bfloat16")
    nets, _ = peers.families(case, row)
    trunk = nets["coupling"][row]
    rows = {
        "residual": nets["residual"],
        "coupling": {"stored": nets["coupling"]["coupling, stored"], row: trunk},
    }
    assert peers.gradients_off(rows, case)[row] < CLOSE
    trunk.loses_autocast = False
    assert peers.gradients_off(rows, case)[row] > 2**-11


def test_selective_keeps_attention_and_nothing_else():
    """Output and log-sum-exp of each block more than with plain checkpointing; with a policy that keeps all,
    the graph.
    """
    case = TrunkCase(layers=4, width=16, heads=2, batch=8, length=64)
    blocks = peers.families(case, "")[0]["residual"]["plain"].blocks
    x = torch.randn(case.batch, case.length, case.width)

    def kept(name):
        trunk = packages.checkpointed_trunks(blocks)[name]
        return peaks.by_allocator(lambda between: train_step(trunk, x, case, between))["kept"]

    logsumexp = 4 * case.batch * case.heads * case.length
    assert kept("checkpoint, attention kept") - kept("checkpoint") == pytest.approx(
        4 * (x.nbytes + logsumexp), abs=4 * 256
    )
    assert kept("checkpoint, segments of 2") < kept("checkpoint") < kept("checkpoint, 1 block in 2")


def test_what_is_not_installed_is_left_out(monkeypatch, tmp_path, capsys):
    def require(name, *rest):
        raise ConfigError("not there")

    monkeypatch.setattr(packages, "require", require)
    path = tmp_path / "peers.json"
    assert _cli.main(["bench", "peers", *TINY, "--json", str(path)]) == 0
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    assert [s["what"] for s in data["skipped"]] == list(packages.PEERS)
    for s in data["skipped"]:
        assert f"skipped: {s['what']}: this comparison needs the package" in said and s["reason"] in said
    assert (
        not set(packages.PEERS) & {m["name"] for m in data["measurements"]}
        and "revlib" not in data["environment"]
    )
    assert "pip install --no-deps memcnn" in said and "pip install 'revstep[hf]'" in said
    assert all(" / revlib" not in g["what"] for g in data["goals"]) and len(data["goals"]) == 2


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_command_line(tmp_path, capsys):
    path = tmp_path / "peers.json"
    assert _cli.main(["bench", "peers", *TINY, "--scheme", "blend", "--json", str(path)]) == 0
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    names = [m["name"] for m in data["measurements"]]
    there = [row for row, (package, _) in packages.PEERS.items() if packages.peer(package)[0] is not None]
    assert {"plain", "reversible blend", "reversible blend, keep=1", "coupling", *there} <= set(
        names
    ) and all(name in said for name in names)
    assert {"revlib", "revtorch"} <= data["environment"].keys() and data["command"].startswith(
        "revstep bench peers --scheme blend --layers 4"
    )
    assert all(
        m["network"] in ("residual", "blend", "coupling") and m["gradient_off"] < CLOSE
        for m in data["measurements"]
    )


def test_goals_can_be_missed():
    ours, rival = "reversible midpoint, keep=1", "revlib"
    rows = [
        {"name": ours, "ratios": {"plain": 1.25, "checkpoint": 1.09}},
        *({"name": n, "ratios": {rival: 0.9}} for n in peers.OURS),
        {"name": rival, "ratios": {}},
    ]
    sizes = {rival: {"peak": 100}, peers.OURS[0]: {"peak": 100}, peers.OURS[1]: {"peak": 101}}
    found = peers.goals(CASE, rows, sizes)
    assert [g["met"] for g in found] == [True, False, True, True, True, False]
    assert [g["value"] for g in found[-2:]] == [1.0, 1.01]


def test_depths():
    assert [packages.every(n) for n in (1, 2, 4, 12, 48)] == [1, 1, 2, 3, 7]
    assert list(packages.checkpointed_trunks(nn.ModuleList([nn.Identity()]))) == [
        "checkpoint",
        "checkpoint, attention kept",
    ]
