"""Does the check that runs on every backward pass notice the smallest corruption?"""

from __future__ import annotations

import torch
from torch import Tensor

from revstep.errors import ReconstructionError
from revstep.stack import ReversibleStack
from revstep.verify.result import Result


def checksums(stack: ReversibleStack, x: Tensor, flips: int = 8, seed: int = 0) -> Result:
    """Flip one bit of one of the last two states and rebuild: each flip must raise ReconstructionError. Exact formats only."""
    states = stack.states(x)
    generator = torch.Generator().manual_seed(seed)
    missed = 0
    for trial in range(flips):
        prev, cur = (s.clone() for s in states.last_two[:2])
        victim = (prev, cur)[trial % 2].view(-1)
        index = int(torch.randint(victim.numel(), (), generator=generator))
        victim[index] ^= 1 << int(torch.randint(20, (), generator=generator))
        try:
            stack.reconstruct(states.last_two._replace(prev=prev, cur=cur))
            missed += 1
        except ReconstructionError:
            pass
    return Result("one flipped bit is found", missed == 0, missed, 0, "missed flips", f"{flips} flips tried")
