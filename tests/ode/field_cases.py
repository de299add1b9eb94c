"""A state for every built-in field, in every equation kind it can be used as."""

import numpy as np
import torch

from revstep.ode import fields

#: Constructor arguments and the shape of one system, by class name; test_fields.py checks that none is
#: missing.
MADE = {
    "Fput": ({"alpha": 0.25, "beta": 0.5}, (5,)),
    "Harmonic": ({"omega": 1.2}, (3,)),
    "HenonHeiles": ({"c": 0.5}, (2,)),
    "Kepler": ({"mu": 1.1}, (3,)),
    "Linear": ({"A": [[0.0, 1.0, 0.5], [1.0, -0.5, 0.25], [0.5, 0.25, -0.2]]}, (3,)),
    "LotkaVolterra": ({}, (2,)),
    "LotkaVolterraLog": ({}, (2,)),
    "NBody": ({"masses": (1.0, 0.5, 0.25), "softening": 0.125}, (3, 3)),
    "Pendulum": ({"omega": 1.1}, (2,)),
    "VanDerPol": ({"mu": 0.8}, (2,)),
}

#: Those whose formulas have a sine or an exponential, which are not NumPy's to the last bit.
TRANSCENDENTAL = {"LotkaVolterraLog", "Pendulum"}

#: ``(name, kind)`` of every field and equation.
CASES = [(name, kind) for name, cls in fields.available().items() for kind in cls.kinds]


def make(name, kind, **more):
    cls = fields.available()[name]
    options = {**MADE[name][0], **more}
    return cls(**options, equation=kind) if len(cls.kinds) > 1 else cls(**options)


def state(name, batch=(4,), seed=0):
    """``(q, v)`` of a batch, away from singularities: components around 1, 2, 3, ... divided by
    their number.
    """
    event = MADE[name][1]
    rng = np.random.default_rng(seed)
    where = (1.0 + np.arange(np.prod(event))).reshape(event) / np.prod(event)
    q, v = where + 0.1 * rng.random((*batch, *event)), 0.2 * rng.standard_normal((*batch, *event))
    return torch.from_numpy(q), torch.from_numpy(v)
