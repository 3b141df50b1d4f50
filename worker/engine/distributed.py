"""Ranks: who we are among them, and the few questions that they answer together.

One rank needs no process group, so a plain `python -m worker.engine` runs the same code without one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

DeviceChoice = Literal["auto", "cpu", "cuda"]

TIMEOUT = timedelta(minutes=10)
"""A rank that is silent for longer is dead: the others fail, and the job resumes from its step checkpoint."""


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Only the first rank writes files."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This rank's rows of a global batch: contiguous, and uneven by one at most."""
        return slice(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up over all ranks, in place; every rank holds the sum."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """The largest over all ranks, in place, without waiting for the device."""
        if self.world > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def mean_(self, tensors: list[Tensor]) -> None:
        """Average over all ranks, in place, in one message."""
        flat = torch.cat([t.reshape(-1) for t in tensors])
        self.sum_(flat).div_(self.world)
        for t, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(piece.view(t.shape))

    def any(self, flag: Tensor | bool) -> bool:
        """Does any rank say yes? One sync point; every rank gets the same answer."""
        if self.world == 1:
            return bool(flag)
        vote = torch.as_tensor(flag, device=self.device).to(torch.int32)
        dist.all_reduce(vote, dist.ReduceOp.MAX)
        return bool(vote)

    def from_first(self, number: int) -> int:
        """The first rank's number, on every rank."""
        if self.world == 1:
            return number
        carrier = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.broadcast(carrier, src=0)
        return int(carrier)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module whose backward pass leaves every rank the mean of all ranks' gradients."""
        if self.world == 1:
            return module
        on_gpu = self.device.type == "cuda"
        return DistributedDataParallel(
            module,
            device_ids=[self.device] if on_gpu else None,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
            static_graph=True,
        )


def start(choice: DeviceChoice = "auto", env: Mapping[str, str] = os.environ) -> Ranks:
    """Join the group that torchrun's variables describe; without them, be the only rank.

    Also shares the cores out: ranks of one host that each take every core are slower than one rank.

    Raises:
        RuntimeError: `choice` is "cuda" and there is none; or the peers did not come.
    """
    rank, world = int(env.get("RANK", "0")), int(env.get("WORLD_SIZE", "1"))
    if "OMP_NUM_THREADS" not in env or world > 1:  # torchrun sets it to 1, which would idle the other cores
        torch.set_num_threads(max(1, _cores() // int(env.get("LOCAL_WORLD_SIZE", "1"))))
    device = _device(choice, int(env.get("LOCAL_RANK", "0")))
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=world, timeout=TIMEOUT)
    return Ranks(rank, world, device)


def close(ranks: Ranks) -> None:
    """Leave the group."""
    if ranks.world > 1 and dist.is_initialized():
        dist.destroy_process_group()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(choice: DeviceChoice, local_rank: int) -> torch.device:
    if choice == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("a CUDA device was asked for and torch sees none")
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # A killed run must resume to the same bits, so kernels may not race.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
