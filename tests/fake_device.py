"""A CUDA device that is not there: tensors that say they are on ``cuda:0`` or ``cuda:1`` and lie in the
memory of the CPU, and a ``torch.cuda`` that writes down what it is asked.

torch itself knows nothing of it: operators of these tensors run on the CPU, and so does autograd. What runs
is the library's own code for devices. Copies to and from the device, and numbers that are read from it, are
logged, for on a GPU the host waits at each of them.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from revstep import _C, ops
from revstep.ops import _devices

READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
KERNELS = ("step", "inverse", "encode", "decode", "checksum", "scale")


class OnDevice(Tensor):
    """A tensor of the CPU that says it is on a device; so are its results."""

    @property
    def device(self):
        return torch.device("cuda", getattr(self, "_index", 0))

    @property
    def is_cpu(self):
        return False

    @property
    def is_cuda(self):
        return True

    def record_stream(self, stream):
        stream.log.append(f"{stream.name} uses memory")

    def pin_memory(self):
        raise AssertionError("memory of the device cannot be page-locked")


def on(x: Tensor, index: int = 0) -> OnDevice:
    made = x.as_subclass(OnDevice)
    made._index = index
    return made


def backward(loss: Tensor) -> None:
    """``loss.backward()`` that the fake watches: torch's own is a function, and none is watched inside of
    one.
    """
    loss, one = loss.as_subclass(Tensor), torch.ones((), dtype=loss.dtype)
    Variable._execution_engine.run_backward((loss,), (one,), False, False, (), True, True)


def _is_device(x) -> bool:
    return (isinstance(x, torch.device) and x.type == "cuda") or (isinstance(x, str) and x.startswith("cuda"))


class FakeDevice(TorchFunctionMode):
    """Entered: ``device="cuda"`` works. ``log`` has what the device was asked, in order."""

    def __init__(self, status: str = ""):
        super().__init__()
        self.log: list[str] = []
        self.status = status
        self.current = 0
        self.generators = {
            0: torch.full((16,), 7, dtype=torch.uint8),
            1: torch.full((16,), 9, dtype=torch.uint8),
        }
        self.main = Stream("main", self.log)
        self._patches = contextlib.ExitStack()

    # ---- torch.cuda ----

    def device(self, device):
        fake = self

        @contextlib.contextmanager
        def entered():
            before, fake.current = fake.current, torch.device(device).index
            try:
                yield
            finally:
                fake.current = before

        return entered()

    def current_stream(self, device=None):
        return self.main

    def Stream(self):
        return Stream("side", self.log)

    @contextlib.contextmanager
    def stream(self, stream):
        self.log.append(f"on {stream.name}")
        yield
        self.log.append("off")

    def get_rng_state(self, device):
        return self.generators[torch.device(device).index].clone()

    def set_rng_state(self, state, device):
        self.log.append(f"generator of {device}")
        self.generators[torch.device(device).index] = state.clone()

    # ---- the extension ----

    def _launched(self, kernel):
        def run(arguments, stream):
            self.log.append(f"{kernel} on {self.current}, stream {stream}")
            getattr(_C, kernel)(arguments, 1, -1)

        return run

    def _sample(self, *what):
        *where, out, stream = what
        self.log.append(f"sample on {self.current}, stream {stream}")
        torch.frombuffer((ctypes_at(out)), dtype=torch.int64)[0] = _C.sample(*where)

    # ---- torch ----

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        pinned = kwargs.pop("pin_memory", False)
        name = getattr(func, "__name__", "")
        leaves = tree_leaves((args, kwargs))
        ours = [x for x in leaves if isinstance(x, OnDevice)]
        wanted = [x for x in (*args, *kwargs.values()) if _is_device(x)]
        named = [x for x in (*args, *kwargs.values()) if isinstance(x, (str, torch.device))]
        if not wanted:
            if ours and (name in READS or (name == "to" and named)):
                self.log.append(f"read by {name}")
                if name in ("cpu", "to"):
                    return func(args[0].as_subclass(Tensor), *args[1:], **kwargs)
            found = func(*args, **kwargs)
            if pinned:
                found.pinned = True
            for made in tree_leaves(found) if ours else ():
                if isinstance(made, OnDevice) and not hasattr(made, "_index"):
                    made._index = getattr(ours[0], "_index", 0)
            return found
        index = torch.device(wanted[0]).index or 0
        args = tuple(torch.device("cpu") if _is_device(x) else x for x in args)
        kwargs = {k: torch.device("cpu") if _is_device(v) else v for k, v in kwargs.items()}
        if not ours and (name in ("tensor", "as_tensor") or any(isinstance(x, Tensor) for x in leaves)):
            beside = kwargs.get("non_blocking", False) and getattr(args[0], "pinned", False)
            self.log.append(f"copied by {name}, {'beside' if beside else 'waiting'}")
        return tree_map_only(Tensor, lambda t: on(t.as_subclass(Tensor), index), func(*args, **kwargs))

    def __enter__(self):
        import pytest

        patch = pytest.MonkeyPatch()
        self._patches.callback(patch.undo)
        for name in ("device", "current_stream", "Stream", "stream", "get_rng_state", "set_rng_state"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        for kernel in KERNELS:
            patch.setattr(_C, f"{kernel}_cuda", self._launched(kernel))
        patch.setattr(_C, "sample_cuda", self._sample)
        patch.setattr(_C, "built_with_cuda", lambda: True)
        patch.setattr(_C, "cuda_status", self._asked)
        patch.setattr(Tensor, "pin_memory", _pinned)
        patch.setattr(ops, "scale", _scale_there(ops.scale))
        _devices.refusal.cache_clear()
        self._patches.callback(_devices.refusal.cache_clear)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._patches.close()

    def _asked(self):
        self.log.append(f"status of {self.current}")
        return self.status

    def count(self, text: str) -> int:
        return sum(text in line for line in self.log)


class Stream(SimpleNamespace):
    def __init__(self, name, log):
        super().__init__(name=name, log=log, cuda_stream={"main": 11, "side": 12}[name])

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


def _scale_there(scale):
    """Autograd's own sums of gradients have forgotten that they are on a device."""
    return lambda g, *rest: scale(on(g) if any(isinstance(x, OnDevice) for x in rest) else g, *rest)


def _pinned(x: Tensor) -> Tensor:
    made = x.clone()
    made.pinned = True
    return made


def ctypes_at(address: int):
    import ctypes

    return (ctypes.c_char * 8).from_address(address)
