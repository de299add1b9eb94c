"""The fixed-grid test problems that torchdiffeq publishes (constant, sine, linear), written from their
formulas, and comparisons."""

import torch
import torchdiffeq

from revstep import ode

#: torchdiffeq's names, with the order of each.
NAMES = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}


class Constant(torch.nn.Module):
    """y' = a + (y - (a t + b))**5, solved by y = a t + b."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (0.2, 3.0))

    def forward(self, t, y):
        return self.a + (y - (self.a * t + self.b)) ** 5

    def solution(self, t):
        return (self.a * t + self.b)[:, None]


class Sine(torch.nn.Module):
    """y' = 2 y / t + t**4 sin(2 t) - t**2 + 4 t**3 from t = 1 on."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, t, y):
        return self.w * 2 * y / t + t**4 * torch.sin(2 * t) - t**2 + 4 * t**3

    def solution(self, t):
        """y = t**2 (c + t**3 ...) integrated by parts: (y / t**2)' = t**2 sin(2 t) - 1 + 4 t, with y(0) = 0
        and (y / t**2)(0) = pi."""
        inner = -0.5 * t**2 * torch.cos(2 * t) + 0.5 * t * torch.sin(2 * t) + 0.25 * torch.cos(2 * t)
        return (t**2 * (inner - t + 2 * t**2 + torch.pi - 0.25))[:, None]


class Linear(torch.nn.Module):
    """y' = A y with a skew A of ten components, so that nothing grows."""

    def __init__(self):
        super().__init__()
        u = torch.randn(10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1
        self.A, self.y0 = torch.nn.Parameter(u - u.T), torch.ones(10, dtype=torch.float64)

    def forward(self, t, y):
        return y @ self.A.T

    def solution(self, t):
        return torch.stack([torch.matrix_exp(self.A * (x - t[0])) @ self.y0 for x in t])


PROBLEMS = {"constant": Constant, "sine": Sine, "linear": Linear}
RISING = torch.linspace(1.0, 8.0, 10, dtype=torch.float64)
UNEVEN = torch.tensor([1.0, 1.3, 2.0, 2.1, 3.7, 5.0], dtype=torch.float64)
TIMES = {"rising": RISING, "falling": RISING.flip(0), "uneven": UNEVEN, "uneven, falling": UNEVEN.flip(0)}


def start(problem, t):
    """y(t[0]) as a leaf."""
    with torch.no_grad():
        return problem.solution(t)[0].clone().requires_grad_()


def results(solve, problem, t, **options):
    """Values, and the gradients of a weighted sum of them with respect to y0, every time and the
    parameters."""
    t = t.clone().requires_grad_()
    y0 = start(problem, t.detach())
    ys = solve(problem, y0, t, **options)
    weights = torch.linspace(0.5, 1.5, ys.numel(), dtype=torch.float64).reshape(ys.shape)
    return [ys.detach(), *torch.autograd.grad((weights * ys).sum(), [y0, t, *problem.parameters()])]


def both(problem, t, **options):
    """``results`` of revstep's odeint and of torchdiffeq's."""
    return [results(solve, problem, t, **options) for solve in (ode.odeint, torchdiffeq.odeint)]


def apart(ours, theirs):
    """The largest difference of two lists of tensors, each relative to the largest value of its right one."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max()) / max(1.0, float(b.abs().max())) for a, b in pairs)
