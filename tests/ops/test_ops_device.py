"""The operators' way to a CUDA device: which kernel, on which device and stream, asked when. The device is a
fake one (tests/fake_device.py); its kernels are those of the CPU.
"""

import subprocess
import sys
import threading

import pytest
import torch

from fake_device import KERNELS, FakeDevice, on
from revstep import _C, ops
from revstep.errors import ReferenceKernelWarning
from revstep.ops import _devices, _kernels, _registration


@pytest.fixture
def device():
    with FakeDevice() as made:
        yield made


def operands(n=40):
    prev, cur = torch.randint(-(2**20), 2**20, (2, n), dtype=torch.int32)
    return prev, cur, torch.randn(n)


def through(name):
    """The function that is registered for CUDA tensors."""
    return _registration._on_device(name)


def test_every_kernel_runs_on_its_tensors_device_and_stream(device):
    prev, cur, f = operands()
    a, b, g = on(prev, 1), on(cur, 1), on(f, 1)
    view, nxt, carry, stats = through("step")(a, b, g, 0.5, 0.5, 1.0, 20, torch.float32, None, None)
    expected = ops.step(prev, cur, f, 0.5, 0.5, 1.0, 20, torch.float32)
    for ours, theirs in zip((view, nxt, carry, stats), expected):
        assert torch.equal(ours.as_subclass(torch.Tensor), theirs)
    through("inverse")(nxt, b, g, carry, 0.5, 0.5, 1.0, 20, torch.float32, None, None)
    through("encode")(g, torch.int32, 20, torch.float32)
    through("decode")(nxt, 20, torch.float32)
    through("checksum")(nxt)
    through("scale")(g, [0.5, 2.0], torch.float32, None, None)
    assert device.log == ["status of 1", *(f"{kernel} on 1, stream 11" for kernel in KERNELS)]
    assert device.current == 0


def test_a_device_without_a_number_is_the_current_one(device):
    assert _devices.refusal(torch.device("cuda")) == ""
    stats, x = torch.zeros(4, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)
    arguments = _C.ChecksumArgs(n=3, data=x.data_ptr(), stats=stats.data_ptr(), state=_C.dtypes()["int32"])
    _kernels._launch("checksum", torch.device("cuda"), arguments)
    assert device.log == ["status of 0", "checksum on 0, stream 11"]


def test_the_device_of_another_thread_is_entered(device):
    prev, _, f = operands()
    failed = []

    def run():  # as autograd's threads do, which begin on device 0
        try:
            with device:
                through("step")(on(prev, 1), None, on(f, 1), 1.0, 0.0, 1.0, 20, None, None, None)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed and device.log[-1] == "step on 1, stream 11" and device.current == 0


def test_rows_are_chosen_without_a_wait(device):
    prev, cur, f = (x.view(4, 10) for x in operands())
    choice = torch.tensor([0, 1, 1, 0], dtype=torch.uint8)
    rows = 0.5, 0.5, 1.0, 20, torch.float32
    ours = through("step")(on(prev), on(cur), on(f), *rows, on(choice), [-0.5, 1.5, 1.0])
    theirs = ops.step(prev, cur, f, *rows, choice, [-0.5, 1.5, 1.0])
    assert all(torch.equal(a.as_subclass(torch.Tensor), b) for a, b in zip(ours, theirs))
    through("scale")(on(f), [0.5], torch.float32, on(choice), [2.0])
    assert device.count("read") == device.count("copied") == 0


def test_fingerprints_are_left_on_the_device(device):
    x = torch.randn(3, 50)
    found = ops.fingerprint(on(x, 1), 1, 5)
    assert device.log == ["status of 1", "sample on 1, stream 11"]
    assert found.as_subclass(torch.Tensor).item() == ops.fingerprint(x, 1, 5)


def test_a_device_that_cannot_run_the_kernels_takes_the_reference():
    """Another architecture, an old driver: asked once, said once, and the result is the reference's."""
    prev, cur, f = operands()
    with FakeDevice(status="no image for its architecture") as device:
        _registration._warn_reference.cache_clear()
        with pytest.warns(ReferenceKernelWarning, match="'cuda:1': no image for its architecture"):
            first = through("step")(on(prev, 1), on(cur, 1), on(f, 1), 0.5, 0.5, 1.0, 20, None, None, None)
        through("checksum")(first[1])
        ops.fingerprint(on(f, 1))
        assert device.count("stream") == 0 and device.count("status") == 1
    _registration._warn_reference.cache_clear()
    assert torch.equal(first[1].as_subclass(torch.Tensor), ops.step(prev, cur, f, 0.5, 0.5, 1.0, 20, None)[1])


def test_a_build_without_cuda_says_so():
    _devices.refusal.cache_clear()
    if not _C.built_with_cuda():
        assert _devices.refusal(torch.device("cuda", 3)) == _C.cuda_status() != ""
    assert "there are none for 'xpu'" in _devices.refusal(torch.device("xpu"))


def test_import_asks_no_device():
    """``CUDA_VISIBLE_DEVICES`` can be set, and processes forked, after the import."""
    program = """
import importlib.util, sys, torch
from pathlib import Path
found = next(Path(importlib.util.find_spec("revstep").origin).parent.glob("_C*.so"))
spec = importlib.util.spec_from_file_location("revstep._C", found)
watched = importlib.util.module_from_spec(spec)
spec.loader.exec_module(watched)
def asked():
    raise SystemExit("the import asked for the device")
watched.cuda_status, watched.built_with_cuda = asked, lambda: True
sys.modules["revstep._C"] = watched
import revstep
assert revstep.ops._kernels._C is watched and not torch.cuda.is_initialized()
print("quiet")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "quiet", done.stdout + done.stderr
