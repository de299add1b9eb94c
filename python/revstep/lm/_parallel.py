"""Where a training run computes: its device with its precision and its generators, and its processes, one
alone or a group that trains one model.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._values import shown
from ..errors import ConfigError, RevstepError
from ._language_model import evaluated

# ------------------------------------------------------------------------------------------------------------
# The device of a run: which it is, in which precision it computes, and the state of its generators.


def find_device(name: str) -> torch.device:
    """A torch device that works here; "auto" is cuda where there is one. Raises ConfigError."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, TypeError, ImportError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"device {shown(name)} cannot be used: {said}; try cpu") from error
    if device.type == "meta":
        raise ConfigError("device 'meta' cannot be used: it holds no numbers; try cpu")
    return device


def capture_random(device: torch.device) -> dict[str, Tensor]:
    """torch's generator states, as tensors."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    """The inverse of ``capture_random``; a state of a device that this run does not use is left alone."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def autocast(device: torch.device, dtype: torch.dtype, cache: bool = True) -> torch.autocast:
    """Autocast to ``dtype``; off for float32. ``cache``: cast each weight once and keep it to the end of the
    context.
    """
    return torch.autocast(
        device.type,
        dtype=dtype if dtype != torch.float32 else torch.bfloat16,
        enabled=dtype != torch.float32,
        cache_enabled=cache,
    )


# ------------------------------------------------------------------------------------------------------------
# The processes of a run: one alone, or a group that trains one model, each process on its rows of every
# batch.
#
# ``with start("ddp", "auto", batch=8) as engine`` gives an engine for ``TrainConfig.parallel``. The rest of
# the run asks it for what differs and does not know which it has. In a group every process must ask in the
# same order, for nearly all of it is a collective.

T = TypeVar("T")
#: How long processes wait for one that prepares the data or writes a checkpoint. One that has died is noticed
#: at once.
PATIENCE = datetime.timedelta(days=1)


class ParallelError(RevstepError, RuntimeError):
    """This process ends because another one did; that one says why."""


class Engine:
    """How the processes of a run work together. This one is for a process alone: nothing is exchanged.

    Attributes:
        name: as in the checkpoint. rank, size: of this process, among how many. device: where it computes.
        cache_casts: whether autocast may keep the cast weights of all layers until the end of a forward pass.
    """

    name = "none"
    rank = 0
    size = 1
    cache_casts = True

    def __init__(self, device: torch.device):
        self.device = device

    def place(self, model: nn.Module) -> nn.Module:
        """Put ``model`` where it is trained -> what to call in its place for a loss whose gradients are those
        of the whole batch.
        """
        return model.to(self.device)

    def accumulating(self, called: nn.Module, last: bool) -> contextlib.AbstractContextManager:
        """Around forward and backward of a micro-batch: gradients need not be joined before the last."""
        return contextlib.nullcontext()

    def rows(self, batch: Tensor) -> Tensor:
        """Of a batch (B, ...) drawn alike by all processes, those of this one: (B / size, ...)."""
        return batch

    def seed(self, seed: int, step: int = 0) -> int:
        """Of this process's generators at ``step``: process 0 has that of a run alone, no two processes the
        same.
        """
        if self.rank == step == 0:
            return seed
        # 32 bits: torch's CPU generator ignores the rest.
        return int(np.random.SeedSequence([seed, self.rank, step]).generate_state(1)[0])

    def exchange(self, packed: bytes) -> list[bytes]:
        """What every process gave, by rank; all give the same length."""
        return [packed]

    def most(self, number: int) -> int:
        """The largest of the processes' numbers, each from 0 to 255."""
        return max(packed[0] for packed in self.exchange(bytes([number])))

    def first(self, function: Callable[[], T], outline: Callable[[T], T] = lambda value: value) -> T:
        """``function()``, called on process 0 alone while the others wait; they get ``outline`` of what it
        returned, by pickle.

        Raises:
            what ``function`` raises, on process 0; on the others ParallelError.
        """
        return function()

    def collect(self, value: T) -> list[T]:
        """On process 0 the value of each process, by rank; elsewhere its own alone."""
        return [value]

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor of which every process has a part or a copy: on process 0, elsewhere as an outline (on
        the meta device).
        """
        return tensor

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """The inverse of ``whole``: what this process holds of a tensor that belongs to the parameter
        ``like``.
        """
        return tensor


class _Group(Engine):
    """What both kinds of group have in common. ``control`` is a group for the CPU, whatever the
    model is on.
    """

    kind: str

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.name = f"{self.kind} of {self.size}"
        self.control = dist.new_group(backend="gloo", timeout=PATIENCE)

    def rows(self, batch: Tensor) -> Tensor:
        share = len(batch) // self.size
        return batch[self.rank * share : (self.rank + 1) * share]

    def exchange(self, packed: bytes) -> list[bytes]:
        mine = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(theirs, mine, group=self.control)
        return [t.numpy().tobytes() for t in theirs]

    def first(self, function: Callable[[], T], outline: Callable[[T], T] = lambda value: value) -> T:
        value = None
        told = [None]
        if self.rank == 0:
            try:
                value = function()
                told = [(True, outline(value))]
            except BaseException as error:
                dist.broadcast_object_list(
                    [(False, str(error) or type(error).__name__)], src=0, group=self.control
                )
                raise
        dist.broadcast_object_list(told, src=0, group=self.control)
        if self.rank == 0:
            return value
        done, value = told[0]
        if not done:
            raise ParallelError(f"process {self.rank} stopped with process 0, which says: {value}")
        return value

    def collect(self, value: T) -> list[T]:
        values = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self.control)
        return values or [value]

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.detach().cpu() if self.rank == 0 else tensor.detach().to("meta")

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        full = self._room(tensor)
        dist.broadcast(full, src=0)
        return full

    def _room(self, tensor: Tensor) -> Tensor:
        return (
            tensor.to(self.device).contiguous()
            if self.rank == 0
            else torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        )


class Replicated(_Group):
    """DistributedDataParallel: every process holds the whole model and optimiser; gradients are averaged
    while backward runs.
    """

    kind = "ddp"

    def place(self, model: nn.Module) -> nn.Module:
        devices = [self.device] if self.device.type == "cuda" else None
        # gradients that live in the buckets are held once
        return nn.parallel.DistributedDataParallel(
            model.to(self.device), device_ids=devices, gradient_as_bucket_view=True
        )

    def accumulating(self, called: nn.Module, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if last else called.no_sync()


class Sharded(_Group):
    """FSDP2: every process holds its share of weights, gradients and optimiser; a layer's weights are whole
    only while it is evaluated.

    The weights are gathered in float32 and cast by autocast, as in one process, so that the choice of engine
    changes no number: FSDP's own mixed-precision policy would also run the norms on rounded weights.
    Gradients are joined after each micro-batch: kept until the last one they would have to be whole, as large
    as the model.
    """

    kind, cache_casts = "fsdp", False  # a cast weight that is kept is a gathered layer that is kept

    def place(self, model: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        for module in evaluated(model.trunk):
            # Moves it to the device; layer by layer, so that the whole model need not fit there.
            fully_shard(module, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def whole(self, tensor: Tensor) -> Tensor:
        return super().whole(tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor)

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        if not hasattr(like, "full_tensor"):
            return super().part(tensor, like)
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(self._room(tensor), like.device_mesh, like.placements)


ENGINES: dict[str, type[Engine]] = {"none": Engine} | {kind.kind: kind for kind in (Replicated, Sharded)}


@contextlib.contextmanager
def start(kind: str, device: str, batch: int) -> Iterator[Engine]:
    """The engine ``kind``, one of ``ENGINES``, on the device of this process; the process group is joined
    first and left at the end.

    A group that is there already is used, and stays. gloo on the CPU; nccl on CUDA, where ``device`` must not
    name one GPU.

    Raises:
        ConfigError: a group of engines outside torchrun, or one process's engine in several of torchrun's; a
            batch that cannot be shared out.
        ParallelError: another process has ended.
    """
    ours = not dist.is_initialized()
    launched = ours and "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if kind == "none":
        if launched:
            raise ConfigError(
                f"{os.environ['WORLD_SIZE']} processes would each train the same run: add --parallel ddp or"
                " --parallel fsdp, or start without torchrun"
            )
        yield Engine(find_device(device))
        return
    if ours and not all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        raise ConfigError(
            f"parallel is {kind!r}, but this process was started alone: use torchrun --standalone"
            f" --nproc-per-node N -m revstep.lm --parallel {kind} ..., or parallel 'none'"
        )
    size = int(os.environ["WORLD_SIZE"]) if ours else dist.get_world_size()
    if batch % size:
        raise ConfigError(
            f"batch is {batch}; expected a multiple of the {size} processes, among which its rows are"
            " shared out"
        )
    here = _own_device(device, size)
    if ours:
        _join(here)
    engine = ENGINES[kind](here)
    with _explained(engine.rank), warnings.catch_warnings():
        # an advice to those who write to a block's output in place: no trunk does
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        yield engine
    # Only after a good end: where a process has died, its group cannot be taken apart in good order, and ends
    # with this one.
    dist.destroy_process_group(None if ours else engine.control)


def _join(here: torch.device) -> None:
    # torchrun's store outlives a restart, and a process that finds an address of the time before waits for
    # one that is dead
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"revstep-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    cuda = here.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo", store=store, rank=rank, world_size=size, device_id=here if cuda else None
    )


def _own_device(name: str, size: int) -> torch.device:
    if name.startswith("cuda:") and size > 1:
        raise ConfigError(
            f"device is {name!r}, one GPU for {size} processes; say cuda, and each takes the GPU of its"
            " LOCAL_RANK"
        )
    if name == "auto" and torch.cuda.is_available():
        name = "cuda"
    # never the first GPU by default: what a process touches there stays allocated, once for each of them
    device = find_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def _explained(rank: int) -> Iterator[None]:
    """Whose connection breaks is not to blame: say that another process has ended, in a sentence."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or (
            not isinstance(error, RevstepError) and "gloo" in str(error)
        ):
            raise ParallelError(
                f"process {rank} stopped: it has lost the others, one of which has ended and says why"
            ) from error
        raise
