"""What training and fine-tuning ask of a CUDA device, with one that is not there (tests/fake_device.py)."""

import pytest
import torch

from fake_device import FakeDevice, on
from revstep.hf import _auto, _loss
from revstep.lm import _parallel, _session

GPU = torch.device("cuda", 1)


@pytest.fixture
def fake(monkeypatch):
    with FakeDevice() as made:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + device.index)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: made.log.append(f"set {device}"))
        yield made


def test_generators_of_a_run_are_kept_and_restored(fake):
    kept = _parallel.capture_random(GPU)
    assert set(kept) == {"cpu", "cuda"} and int(kept["cuda"][0]) == 9
    fake.generators[1] += 1
    _parallel.restore_random(kept, GPU)
    assert int(fake.generators[1][0]) == 9
    _parallel.restore_random({"cpu": kept["cpu"]}, GPU)  # of a run on the CPU
    assert fake.count("generator of cuda:1") == 1


def test_the_gpu_is_found_where_there_is_one(fake, monkeypatch):
    assert _parallel.find_device("auto").type == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _parallel._own_device("auto", 2) == GPU and fake.log[-1] == "set cuda:1"


def test_the_peak_is_that_of_the_device(fake):
    assert _session.peak_memory(GPU) == 1001


def test_a_replica_knows_its_device(fake, monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch.nn.parallel, "DistributedDataParallel", lambda model, **options: asked.append(options)
    )
    module = type("Model", (), {"to": lambda self, device: self})()
    group = object.__new__(_parallel.Replicated)
    group.device = GPU
    group.place(module)
    assert asked == [{"device_ids": [GPU], "gradient_as_bucket_view": True}]


def test_a_group_is_made_of_the_devices(fake, monkeypatch):
    made = {}
    monkeypatch.setattr(_parallel.dist, "rendezvous", lambda url: iter([(None, 1, 2)]))
    monkeypatch.setattr(_parallel.dist, "PrefixStore", lambda prefix, store: prefix)
    monkeypatch.setattr(
        _parallel.dist, "init_process_group", lambda backend, **options: made.update(options, backend=backend)
    )
    _parallel._join(GPU)
    assert made["backend"] == "nccl" and made["device_id"] == GPU and made["rank"] == 1


@pytest.mark.parametrize("module", [_auto, _loss])
def test_the_device_s_generator_is_put_back(module, fake, monkeypatch):
    """Looking at a model draws from the generators of the model's device; they are as before afterwards."""
    forked = []

    def fork_rng(devices=()):
        forked.extend(devices)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    weight = on(torch.zeros(4, 4), 1)

    class Model:
        class config:
            vocab_size = 4
            get_text_config = staticmethod(lambda: Model.config)

        parameters = staticmethod(lambda: iter([weight]))
        get_input_embeddings = staticmethod(lambda: type("E", (), {"weight": weight}))

    with pytest.raises(KeyboardInterrupt):
        if module is _auto:
            _auto.own_text(Model(), print)
        else:
            _loss._probe(Model())
    assert forked == [GPU]
