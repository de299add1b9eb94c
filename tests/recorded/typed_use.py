"""Programs as a user writes them, for a type checker (``.ci/typed.py``); they are not run. A line that must
be refused says with which code.
"""

import torch
from typing_extensions import assert_type

import revstep
from revstep import hf, lm, ode, verify

block = torch.nn.Linear(8, 8)
x = torch.randn(2, 8)

# ---- a stack ----
stack = revstep.ReversibleStack([block], revstep.Blend(c=0.25), keep="auto", memory_budget=0.5, checks="all")
assert_type(stack, revstep.ReversibleStack)
assert_type(stack.states(x), revstep.stack.States)
assert_type(stack.options, revstep.StackOptions)
if stack.report is not None:
    assert_type(stack.report.exact, bool)
    assert_type(stack.report.bytes_saved, int)
assert_type(verify.reconstruction(stack, x).ok, bool)
revstep.FixedPoint(bits=64, frac_bits=32)
revstep.ReversibleStack([block], revstep.Blend(c=[0.5, 0.25]), revstep.Float(torch.float64))
revstep.ReversibleStack([block], revstep.Blend(), kep=2)  # expect: call-arg
revstep.ReversibleStack([block], revstep.Blend(), keep=2.5)  # expect: arg-type
revstep.Blend(c="half")  # expect: arg-type
print(revstep.Blnd)  # expect: attr-defined
try:
    stack(x).sum().backward()
except revstep.ReconstructionError as error:
    assert_type(error.layer, int)
except revstep.StateOverflowError as error:
    assert_type(error.largest, float)

# ---- a pretrained model ----
model = hf.from_pretrained("run")
assert_type(hf.convert(model, "blend:c=0.25", tile=256, say=print), torch.nn.Module)
hf.convert(model, tilt=256)  # expect: call-arg
print(hf.convrt)  # expect: attr-defined
if (conversion := hf.conversion(model)) is not None:
    assert_type(conversion.report, revstep.stack.Report | None)
assert_type(hf.FineTune("run", steps=10).batch, int)

# ---- a small model ----
assert_type(lm.GPT(lm.GPTConfig(vocab=256), "blend", state="fixed32").hidden(x), torch.Tensor)
lm.GPT(lm.GPTConfig(vocab=256), "blend", states="fixed32")  # expect: call-arg
config = lm.TrainConfig(steps=10, out="run")
assert_type(lm.train(config).losses, list[float])

# ---- an equation ----
orbit = ode.integrate(ode.fields.Kepler(mu=1.0), (x, x), scheme="kahan_li6", h=1e-2, steps=10)
assert_type(orbit, ode.Solution)
assert_type(orbit.reverse(), ode.Solution)
assert_type(orbit.stats.steps, int)
ode.integrate(ode.fields.Kepler(), (x, x), stesp=10)  # expect: call-arg
print(ode.fields.Keplr)  # expect: attr-defined
