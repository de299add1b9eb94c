"""Tests on the device kernels without a device: a pytest plugin that sends the operators to the shim.

``REVSTEP_SHIM=LIBRARY PYTHONPATH=tests/cpp/shim pytest -p shim_plugin TESTS``, where LIBRARY is what the
target ``revstep_shim_library`` builds. Tensors stay on the CPU. What the extension is told is recorded when
its structs are made, and given to the device kernels instead of those of the CPU; so is the fingerprint's
tensor. A ``BoundStep`` exists on the CPU only and is left alone. A session in which no kernel went there
fails.
"""

import ctypes
import os
from collections import Counter

import torch  # noqa: F401 -- the extension binds to its OpenMP runtime

import revstep.ops._direct as direct
import revstep.ops._kernels as kernels
import revstep.ops._look as look
from revstep import _C

I32, I64, F64, AT = ctypes.c_int, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
MOST = _C.MAX_SCALED


def struct(name, *fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


# As in csrc/kernels/step.hpp; the library says whether the sizes agree.
Step = struct(
    "Step", ("n", I64), ("source", AT), ("cur", AT), ("value", AT), ("out", AT), ("view", AT), ("carry", AT),
    ("stats", AT), ("state", I32), ("value_type", I32), ("view_type", I32), ("alpha", F64), ("beta", F64),
    ("gamma", F64), ("frac_bits", I32), ("carry_bits", I32), ("choice", AT), ("row_length", I64),
    ("alpha1", F64), ("beta1", F64), ("gamma1", F64),
)  # fmt: skip
Encode = struct(
    "Encode", ("n", I64), ("x", AT), ("out", AT), ("view", AT), ("stats", AT), ("value_type", I32),
    ("state", I32), ("view_type", I32), ("frac_bits", I32),
)  # fmt: skip
Decode = struct(
    "Decode", ("n", I64), ("state_data", AT), ("view", AT), ("state", I32), ("view_type", I32),
    ("frac_bits", I32),
)  # fmt: skip
Checksum = struct("Checksum", ("n", I64), ("data", AT), ("stats", AT), ("state", I32))
Scale = struct(
    "Scale", ("n", I64), ("g", AT), ("out", AT * MOST), ("count", I32), ("value_type", I32),
    ("last_type", I32), ("factor", F64 * MOST), ("choice", AT), ("row_length", I64), ("factor1", F64 * MOST),
)  # fmt: skip

LAUNCHES = Counter()
library = ctypes.CDLL(os.environ["REVSTEP_SHIM"])
library.revstep_shim_size.restype = I64
for _which, _struct in enumerate((Step, Encode, Decode, Checksum, Scale)):
    assert library.revstep_shim_size(_which) == ctypes.sizeof(_struct), (
        f"{_struct.__name__} is another struct"
    )


def call(name, *arguments):
    why = ctypes.create_string_buffer(512)
    LAUNCHES[name] += 1
    if getattr(library, f"revstep_shim_{name}")(*arguments, why, len(why)):
        raise RuntimeError(why.value.decode())


def recorded(name, made):
    """The extension's class with a memory of what it was told."""

    class Recorded(getattr(_C, name)):
        def __init__(self, **told):
            super().__init__(**told)
            self.told = {key: value for key, value in told.items() if key not in ("out", "factors")}
            out = told.get("out")
            if isinstance(out, list):
                self.told |= {"count": len(out), "out": (AT * MOST)(*out)}
                self.told["factor"] = (F64 * MOST)(*told["factors"])
            elif out is not None:
                self.told["out"] = out
            self.rows = {}

        def by_row(self, *, rows, **second):
            super().by_row(rows=rows, **second)
            self.rows = {"choice": rows.told["choice"], "row_length": rows.told["length"]}
            if "factors" in second:
                self.rows["factor1"] = (F64 * MOST)(*second["factors"])
            else:
                self.rows |= {f"{key}1": value for key, value in second.items()}

        def struct(self):
            return made(**self.told, **self.rows)

    Recorded.__name__ = name
    return Recorded


for _name, _struct in (
    ("StepArgs", Step), ("EncodeArgs", Encode), ("DecodeArgs", Decode), ("ChecksumArgs", Checksum),
    ("ScaleArgs", Scale), ("Rows", None),
):  # fmt: skip
    setattr(_C, _name, recorded(_name, _struct))


def launch(kernel, device, arguments):
    assert device.type == "cpu"
    told = arguments.struct()
    call(kernel, ctypes.byref(told))


def sample(at, width, size, stride, every, seed):
    out, dims = ctypes.c_int64(), len(size)
    several = I64 * max(1, dims)
    call(
        "sample", AT(at), I32(width), I32(dims), several(*size), several(*stride), I64(every),
        ctypes.c_uint32(seed), ctypes.byref(out),
    )  # fmt: skip
    return out.value


kernels._launch = launch
for _name in ("step", "inverse", "encode", "decode", "scale"):  # the short way to the kernels of the CPU
    setattr(direct, _name, lambda *_: None)
look._C = type("Told", (), {**vars(_C), "sample": staticmethod(sample)})


def pytest_sessionfinish(session):
    if not LAUNCHES["step"] or not LAUNCHES["inverse"]:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    said = ", ".join(f"{count} {name}" for name, count in LAUNCHES.most_common())
    terminalreporter.write_line(f"kernels run by the shim: {said or 'NONE, so nothing was shown'}")
