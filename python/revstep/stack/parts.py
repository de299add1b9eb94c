"""What a tensor consists of: the strided tensors with memory of their own behind it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def components(t: Tensor) -> Iterator[Tensor]:
    """``t`` itself where it is an ordinary tensor; what it wraps (a DTensor, a quantised weight, a tensor of
    a transform); indices and values.
    """
    if wrapped(t):
        yield from components(torch._C._functorch.get_unwrapped(t))
    elif hasattr(t, "__tensor_flatten__"):
        for name in t.__tensor_flatten__()[0]:
            # beside tensors some name the mesh of devices they lie on
            if isinstance(inner := getattr(t, name), Tensor):
                yield from components(inner)
    elif t.layout == torch.strided:
        yield t
    elif t.layout == torch.sparse_coo:
        yield from (t._indices(), t._values())
    elif t.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (t.crow_indices(), t.col_indices(), t.values())
    elif t.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (t.ccol_indices(), t.row_indices(), t.values())
